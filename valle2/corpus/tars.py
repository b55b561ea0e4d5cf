"""Tar files of samples: audio and what has the same name beside it, as WebDataset lays them out."""

import gzip
import tarfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from valle2.corpus.candidates import SIDECARS, Candidate, recording_id, speaker_of
from valle2.corpus.folders import facts_of, parse_json
from valle2.corpus.sources import Source
from valle2.errors import SourceError

TAR = "tar://"
"""A member of a tar file, as fsspec names it: `tar://member::file`."""


def read_tars(
    source: Source, folder: Path, opened: Callable[[Path], BinaryIO] = lambda path: path.open("rb")
) -> Iterator[Candidate]:
    """One candidate a member; `opened` gives the bytes of a tar."""
    for path in sorted(path for path in folder.rglob("*") if path.suffix in (".tar", ".tgz") or ".tar." in path.name):
        try:
            with opened(path) as file:
                yield from _tar(source, folder, path, file)
        except (tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError) as error:
            yield Candidate(source, path.as_posix(), recording_id(source, path.relative_to(folder)), None,
                            reason="broken_tar", detail=f"tar cannot read it ({error}); fetch it again")  # fmt: skip


def _tar(source: Source, folder: Path, path: Path, file: BinaryIO) -> Iterator[Candidate]:
    facts: dict[str, dict[str, str]] = {}
    unreadable: dict[str, str] = {}
    audio: list[PurePosixPath] = []
    with tarfile.open(fileobj=file) as tar:
        for member in tar:
            name = PurePosixPath(member.name)
            if not member.isfile() or any(part.startswith(".") for part in name.parts):
                continue
            suffix, key = name.suffix.lower(), name.with_suffix("").as_posix()
            if suffix in (".txt", ".lab", ".json"):
                content = tar.extractfile(member)
                assert content is not None
                text = content.read().decode("utf-8-sig", "replace")
                where = f"{path}, {name}"
                try:
                    told = {"text": text} if suffix != ".json" else facts_of(parse_json(text, where), where)
                except SourceError as error:
                    unreadable[key] = str(error)
                else:
                    facts.setdefault(key, {}).update(told)
            elif suffix not in SIDECARS:
                audio.append(name)
    for name in sorted(audio):
        key = name.with_suffix("").as_posix()
        told = facts.get(key, {})
        yield Candidate(
            source, f"{TAR}{name}::{path.as_posix()}",
            recording_id(source, PurePosixPath(path.relative_to(folder).with_suffix("")) / name),
            told.get("speaker") or speaker_of(source, name), told.get("text"), told.get("language", ""),
            reason="bad_sidecar" if key in unreadable else "", detail=unreadable.get(key, ""),
        )  # fmt: skip
