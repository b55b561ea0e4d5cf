"""Audio that may become a recording, and how files of a source are named and found."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from valle2.corpus.sources import Source
from valle2.types import Seconds

SIDECARS = frozenset(
    {".txt", ".lab", ".json", ".jsonl", ".csv", ".tsv", ".gz", ".yaml", ".yml", ".md", ".textgrid", ".html"}
)
"""Suffixes of files that lie beside audio and are none."""

_NOBODYS = ("unlisted", "broken_tar", "no_file")
"""Reasons to refuse what is not known to be a recording of anybody."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """Audio that may become a recording."""

    source: Source
    location: str
    """Path of a file, or a URL that fsspec reads."""
    id: str
    speaker: str | None = None
    text: str | None = None
    """As given beside the audio."""
    language: str = ""
    start: Seconds = 0.0
    duration: Seconds | None = None
    """Of the part of the file that is meant; None: to its end."""
    reason: str = ""
    """Why it is refused already, as a code."""
    detail: str = ""
    speaker_assumed: bool = False
    """Nothing tells who speaks; `speaker` stands for whoever it is."""


def audio_files(folder: Path) -> list[Path]:
    """Files below a folder that are meant to be audio: all but hidden ones and text, sorted; a dead link is one too."""
    return sorted(
        path
        for path in folder.rglob("*")
        if (path.is_file() or (path.is_symlink() and not path.is_dir()))
        and path.suffix.lower() not in SIDECARS
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )


def recording_id(source: Source, relative: PurePosixPath | Path) -> str:
    """An id that is a plain file name, told from the path alone."""
    return plain_id(source, relative.with_suffix("").as_posix())


def speaker_of(source: Source, relative: PurePosixPath | Path) -> str | None:
    """Who speaks in a file by the folder that it lies in; None if that does not tell."""
    return relative.parts[0] if source.speaker_from == "folder" and len(relative.parts) > 1 else None


def with_speaker(item: Candidate) -> Candidate:
    """With a name for the speaker whom nothing tells, if the declaration says which: the file's, or the source's."""
    known = item.speaker or item.reason in _NOBODYS
    if known or item.source.speaker_from == "folder":
        return item
    file = item.location.split("::")[0] if item.source.kind == "tar" else item.location
    speaker = PurePosixPath(file).stem if item.source.speaker_from == "file" else item.source.name
    return replace(item, speaker=speaker, speaker_assumed=True)


def place(name: str, *folders: Path) -> Path:
    """Where a file is that an index names; leading folders of the name that are not here are left out."""
    parts = PurePosixPath(name).parts
    for first in range(len(parts)):
        for folder in folders:
            path = folder.joinpath(*parts[first:]) if first else folder / name
            if path.is_file():
                return path
    clips = folders[0] / "clips" / name  # Common Voice
    return clips if clips.is_file() else folders[0] / name


def unlisted(source: Source, folder: Path, named: Iterable[Path], index: str) -> Iterator[Candidate]:
    """Audio of the wanted parts that a source's index does not name, as candidates that are refused."""
    known = set(named)
    for path in audio_files(folder):
        relative = path.relative_to(folder)
        if path not in known and not (source.parts and relative.parts[0] not in source.parts):
            yield Candidate(
                source, path.as_posix(), recording_id(source, relative), None, reason="unlisted",
                detail=f"{index} does not name it",
            )  # fmt: skip


_LANGUAGES = {
    "english": "en", "german": "de", "dutch": "nl", "french": "fr", "spanish": "es", "italian": "it",
    "portuguese": "pt", "polish": "pl",
}  # fmt: skip
"""As lhotse's recipes write them out."""


def language_code(name: str | None) -> str:
    """ISO 639-1 code of a language that may be written out; empty if none is named."""
    return _LANGUAGES.get((name or "").lower(), name or "")


def plain_id(source: Source, name: str) -> str:
    """An id of a corpus's own as a plain file name."""
    return f"{source.name}-{re.sub(r'[^A-Za-z0-9_-]+', '-', name).strip('-')}"
