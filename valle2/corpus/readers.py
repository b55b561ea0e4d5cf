"""Which recordings a source holds, whatever its kind and wherever it lies.

A reader tells where audio is, who speaks and what is said. It opens no audio, so that a broken file is a candidate like
any other; `valle2.corpus.ingest` judges them. Of a remote source the index files alone are fetched to be read.
"""

import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, cast

import fsspec

from valle2.corpus.candidates import SIDECARS, Candidate, with_speaker
from valle2.corpus.folders import read_folder
from valle2.corpus.manifests import read_manifests
from valle2.corpus.recipes import read_recipe
from valle2.corpus.sources import Source
from valle2.corpus.tars import read_tars
from valle2.errors import SourceError
from valle2.storage import NETWORK_ERRORS, unreachable

_EXPECTED = {
    "folder": "wav, flac, mp3, ogg, opus, m4a or aac files",
    "lhotse": "the layout of the corpus that the recipe is for",
    "manifest": "Lhotse manifests (cuts, or recordings and supervisions, as .jsonl or .jsonl.gz)",
    "tar": "tar files with audio and, beside each, a .txt or .json of the same name",
}


def candidates(source: Source, place: str) -> list[Candidate]:
    """What a source holds, by its declaration.

    Args:
        source: As declared.
        place: Folder that it lies in, or a URL that fsspec reads.

    Raises:
        SourceError: The layout is not what the declaration says; the message names what is missing.
        StorageError: A remote place does not answer.
    """
    found = _remote(source, place.rstrip("/")) if "://" in place else _read(source, Path(place), read_tars)
    if not found:
        raise SourceError(f"source {source.name}: no audio in {place}; expected {_EXPECTED[source.kind]}")
    return [_completed(item) for item in found]


def _read(source: Source, folder: Path, tars: Any) -> list[Candidate]:
    readers = {"folder": read_folder, "lhotse": read_recipe, "manifest": read_manifests, "tar": tars}
    return list(readers[source.kind](source, folder))


def _completed(item: Candidate) -> Candidate:
    """With the source's language and, where nothing else tells who speaks, a name as declared."""
    text = " ".join((item.text or "").split()) or None
    return replace(with_speaker(item), text=text, language=item.language or item.source.language)


def _remote(source: Source, place: str) -> list[Candidate]:
    """Read a copy of the tree in which index files are whole and audio is empty; then name the audio where it is."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        try:
            _copy_tree(place, folder)
        except FileNotFoundError as error:
            raise SourceError(f"source {source.name}: nothing at {place}; correct its `path`") from error
        except NETWORK_ERRORS as error:
            raise unreachable(place, error) from error

        def opened(path: Path) -> BinaryIO:
            return cast(BinaryIO, fsspec.open(f"{place}/{path.relative_to(folder).as_posix()}", "rb").open())

        try:
            found = _read(source, folder, partial(read_tars, opened=opened))
        except NETWORK_ERRORS as error:
            raise unreachable(place, error) from error
        return [replace(item, location=item.location.replace(folder.as_posix(), place)) for item in found]


def _copy_tree(place: str, folder: Path) -> None:
    files, path = fsspec.core.url_to_fs(place)
    names = files.find(path) or files.ls(path, detail=False)
    for name in names:
        target = folder / _below(name, path)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.touch()
    if index := [name for name in names if Path(name).suffix.lower() in SIDECARS]:
        files.get(index, [str(folder / _below(name, path)) for name in index])


def _below(name: str, path: str) -> str:
    return name.removeprefix(path).lstrip("/")
