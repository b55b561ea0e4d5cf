"""What is taken in: source declarations with licence, attribution and each speaker's consent.

`data/sources.yaml` declares sources; `declare` writes one for a folder of audio that a user already has. What becomes
of the files is in `valle2.corpus.ingest`.
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from valle2.corpus.journal import write_jsonl
from valle2.errors import SourceError

SourceKind = Literal["folder", "lhotse"]
SpeakerFrom = Literal["folder", "file"]
Recipe = Literal["librispeech"]

SIDECARS = frozenset({".txt", ".json", ".jsonl", ".yaml", ".yml", ".md", ".csv", ".tsv", ".lab", ".textgrid", ".html"})
"""Suffixes of files that lie beside audio and are none."""


class Declaration(BaseModel):
    """Base of everything declared: no unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Consent(Declaration):
    """Why a voice may be used."""

    basis: str = Field(min_length=1, description="synthetic, contract, public-domain dedication, signed form, ...")
    record: str = Field("", description="where the proof is")
    granted_by: str = ""
    date: str = ""
    scope: tuple[str, ...] = Field((), description="training, evaluation, synthesis; empty: not limited")


class Speaker(Declaration):
    """A row of `speakers.jsonl`."""

    speaker: str = Field(min_length=1)
    licence: str = Field("", description="replaces the source's")
    consent: Consent | None = None
    revoked: str = Field("", description="date; not empty: the consent was taken back")


class Source(Declaration):
    """One body of audio."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")
    kind: SourceKind
    path: str = Field(description="folder of the audio, relative to the declaration's file")
    language: str = Field("en", description="ISO 639-1 code")
    licence: str = ""
    attribution: str = ""
    speaker_from: SpeakerFrom = Field("folder", description="the first folder below `path`, or the file's name")
    speakers: str = Field("", description="JSONL of speakers, relative to the declaration's file")
    consent: Consent | None = Field(None, description="for speakers without a row of their own")
    recipe: Recipe | None = Field(None, description="kind lhotse: which recipe of lhotse reads the folder")
    parts: tuple[str, ...] = Field((), description="kind lhotse: parts of the corpus; empty: all that are there")

    @model_validator(mode="after")
    def _recipe_fits(self) -> "Source":
        if (self.kind == "lhotse") != (self.recipe is not None):
            raise ValueError(f"kind {self.kind} {'needs' if self.kind == 'lhotse' else 'takes no'} `recipe`")
        return self


class Sources(Declaration):
    """`sources.yaml`."""

    sources: tuple[Source, ...]


class Rights:
    """Licence and consent of a source's speakers."""

    def __init__(self, source: Source, speakers: dict[str, Speaker]) -> None:
        self._source = source
        self._speakers = speakers

    def licence(self, speaker: str) -> str:
        """The speaker's licence, else the source's; may be empty."""
        row = self._speakers.get(speaker)
        return (row.licence if row else "") or self._source.licence

    def consent(self, speaker: str) -> Consent | None:
        """The speaker's consent; a row without one, or with a revoked one, is not helped by the source's."""
        row = self._speakers.get(speaker)
        if row is None:
            return self._source.consent
        return None if row.revoked else row.consent

    def refusal(self, speaker: str) -> tuple[str, str] | None:
        """Reason code and sentence if the speaker's audio must not be used."""
        if not self.licence(speaker):
            return "no_licence", f"speaker {speaker} has no licence; set `licence` of source {self._source.name}"
        if self.consent(speaker) is None:
            row = self._speakers.get(speaker)
            why = f"revoked consent on {row.revoked}" if row and row.revoked else "has no consent"
            where = self._source.speakers or "sources.yaml (`consent`)"
            return "no_consent", f"speaker {speaker} {why}; consent is declared in {where}"
        return None


def read_sources(path: Path) -> tuple[Source, ...]:
    """Read `sources.yaml`.

    Raises:
        SourceError: It is missing or wrong; the message names the field.
    """
    if not path.is_file():
        raise SourceError(
            f"no source declaration at {path}; write one with `valle2 declare AUDIO --to {path.parent}`, or make "
            "the demo's with `python -m demo.corpus data`"
        )
    try:
        declared = Sources.model_validate(yaml.safe_load(path.read_text()))
    except yaml.YAMLError as error:
        raise SourceError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    except ValidationError as error:
        raise SourceError(f"{path}: {explain(error)}") from error
    names = [source.name for source in declared.sources]
    if len(set(names)) < len(names) or not names:
        raise SourceError(f"{path} declares the sources {names}; expected at least one, and each name once")
    for source in declared.sources:
        if not (path.parent / source.path).is_dir():
            raise SourceError(f"source {source.name}: no folder {path.parent / source.path}; set its `path` in {path}")
    return declared.sources


def read_rights(source: Source, declaration: Path) -> Rights:
    """Read the speakers of a source.

    Raises:
        SourceError: The file is missing or a line is wrong; the message names the line.
    """
    speakers: dict[str, Speaker] = {}
    if source.speakers:
        path = declaration.parent / source.speakers
        if not path.is_file():
            raise SourceError(f"source {source.name}: no speakers file {path}; set its `speakers` in {declaration}")
        for number, line in enumerate(path.read_text().splitlines(), 1):
            if not line.strip():
                continue
            try:
                row = Speaker.model_validate_json(line)
            except ValidationError as error:
                raise SourceError(f"{path} line {number}: {explain(error)}") from error
            speakers[row.speaker] = row
    return Rights(source, speakers)


def explain(error: ValidationError) -> str:
    """A pydantic error as one line."""
    return "; ".join(
        f"`{'.'.join(map(str, item['loc'])) or 'the whole'}`: {item['msg'][0].lower()}{item['msg'][1:]}"
        for item in error.errors()
    )


def audio_files(folder: Path) -> list[Path]:
    """Files below a folder that are meant to be audio: all but hidden ones and text, sorted."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.is_file()
        and path.suffix.lower() not in SIDECARS
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )


def speaker_of(source: Source, relative: Path) -> str | None:
    """Who speaks in a file of a folder source; None if its place does not tell."""
    if source.speaker_from == "file":
        return relative.stem
    return relative.parts[0] if len(relative.parts) > 1 else None


def declare(
    path: Path, to: Path, *, kind: SourceKind = "folder", recipe: Recipe | None = None, name: str = "",
    licence: str, attribution: str = "", consent_basis: str, consent_record: str = "",
    speaker_from: SpeakerFrom = "folder", language: str = "en",
) -> Path:  # fmt: skip
    """Make a self-contained data folder of audio that is already there.

    Files are copied: what happens in the data folder never touches the originals. Declaring another source into the
    same folder adds it.

    Args:
        path: Folder of audio: one folder a speaker, or with `speaker_from="file"` one file a speaker; or the root of a
            LibriSpeech (the folder that holds test-other or the like).
        to: The data folder, such as `data`.
        kind: `folder`, or `lhotse` for a corpus that a recipe of lhotse reads.
        recipe: Which recipe.
        name: Of the source; empty: the folder's.
        licence: Under which all of it stands.
        attribution: Whom to name.
        consent_basis: Why these voices may be used; written for every speaker, and editable there one by one.
        consent_record: Where the proof is.
        speaker_from: Where a file's speaker is told.
        language: ISO 639-1 code.

    Returns:
        The declaration's file.

    Raises:
        SourceError: There is no audio, or the name is taken.
    """
    files = audio_files(path) if path.is_dir() else []
    if not files:
        raise SourceError(f"{path} holds no audio; expected a folder with wav, flac, mp3 or ogg files")
    if path.resolve() in (to.resolve(), *to.resolve().parents):
        raise SourceError(f"{to} lies inside {path}; declare into a folder outside the source")
    name = name or "".join(char if char.isalnum() else "-" for char in path.resolve().name.lower()).strip("-")
    declaration = to / "sources.yaml"
    present = list(read_sources(declaration)) if declaration.is_file() else []
    if name in [source.name for source in present]:
        raise SourceError(f"{declaration} has a source {name!r} already; pass another --name, or remove {to}")
    row: dict[str, Any] = {
        "name": name, "kind": kind, "path": f"{name}/audio", "language": language, "licence": licence,
        "attribution": attribution, "speaker_from": speaker_from, "speakers": f"{name}/speakers.jsonl",
        **({"recipe": recipe} if recipe else {}),
    }  # fmt: skip
    try:
        source = Source.model_validate(row)
    except ValidationError as error:
        raise SourceError(f"the declaration is not right: {explain(error)}") from error
    _take_in(path, to / name / "audio")
    consent = {"basis": consent_basis, "record": consent_record, "scope": ["training", "evaluation", "synthesis"]}
    speakers = sorted({speaker for _, speaker in _speakers(source, path, files) if speaker})
    write_jsonl(
        to / name / "speakers.jsonl",
        [
            {"speaker": speaker, "licence": licence, "consent": consent if consent_basis else None}
            for speaker in speakers
        ],
    )
    rows = [json.loads(known.model_dump_json(exclude_defaults=True)) for known in present] + [row]
    declaration.write_text(yaml.safe_dump({"sources": rows}, sort_keys=False, allow_unicode=True))
    return declaration


def _speakers(source: Source, path: Path, files: list[Path]) -> Iterator[tuple[Path, str | None]]:
    for file in files:
        relative = file.relative_to(path)
        yield file, relative.stem.split("-")[0] if source.kind == "lhotse" else speaker_of(source, relative)


def _take_in(path: Path, folder: Path) -> None:
    """Copy a tree, whole or not at all; never link it, or a change in the data folder would change the user's own."""
    building = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(building, ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)
    for file in sorted(path.rglob("*")):
        target = building / file.relative_to(path)
        if file.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)
    building.rename(folder)
