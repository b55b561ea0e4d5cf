"""What is taken in: source declarations with licence, attribution and each speaker's consent.

`data/sources.yaml` declares sources; `valle2.corpus.declare` writes it. Which recordings a source holds is read in
`valle2.corpus.readers`; what becomes of them is in `valle2.corpus.ingest`.
"""

from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from valle2.errors import SourceError

SourceKind = Literal["folder", "lhotse", "manifest", "tar"]
SpeakerFrom = Literal["folder", "file", "source"]
Recipe = Literal["librispeech", "libritts", "libritts-r", "vctk", "ljspeech", "hifitts", "mls", "emilia"]


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
    kind: SourceKind = "folder"
    path: str = Field(description="folder of the audio, relative to the declaration's file, or a URL (s3://, https://)")
    language: str = Field("en", description="ISO 639-1 code")
    licence: str = ""
    attribution: str = ""
    speaker_from: SpeakerFrom = Field(
        "folder", description="the first folder below `path`; where nothing tells who speaks: a speaker named as the "
        "file, or one named as the source, who is marked as assumed. What stands beside the audio goes first"
    )  # fmt: skip
    speakers: str = Field("", description="JSONL of speakers, relative to the declaration's file")
    consent: Consent | None = Field(None, description="for speakers without a row of their own")
    recipe: Recipe | None = Field(None, description="kind lhotse: which recipe of lhotse reads the folder")
    parts: tuple[str, ...] = Field((), description="kind lhotse: parts of the corpus; empty: all that are there")
    table: str = Field("", description="kind folder: CSV, TSV or JSONL below `path` that says what each file is")
    manifests: tuple[str, ...] = Field((), description="kind manifest: Lhotse manifests below `path`; empty: all")
    text_variant: int = Field(0, ge=0, description="kind manifest: which of several texts, as Libriheavy's cuts have")

    @model_validator(mode="after")
    def _fields_fit(self) -> "Source":
        if (self.kind == "lhotse") != (self.recipe is not None):
            raise ValueError(f"kind {self.kind} {'needs' if self.kind == 'lhotse' else 'takes no'} `recipe`")
        for kind, name in (("lhotse", "parts"), ("folder", "table"), ("manifest", "manifests")):
            if self.kind != kind and getattr(self, name):
                raise ValueError(f"kind {self.kind} takes no `{name}`")
        return self

    def place(self, declaration: Path) -> str:
        """Where the audio is: a folder, or a URL that fsspec reads."""
        return self.path if "://" in self.path else (declaration.parent / self.path).as_posix()


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
        place = source.place(path)
        if "://" not in place and not Path(place).is_dir():
            raise SourceError(f"source {source.name}: no folder {place}; set its `path` in {path}")
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
