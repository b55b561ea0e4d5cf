"""What became of every piece of sound that was taken in, as the data stages wrote it: kept for a split, or dropped.

Rows are read side by side and one at a time, so that a corpus of any size passes in bounded memory; only where each
recording is from is remembered. What is made of the pieces is in `valle2.corpus.figures` and `valle2.corpus.samples`.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from valle2.corpus.journal import iterate_jsonl
from valle2.errors import SourceError
from valle2.stage import output
from valle2.types import SPLITS, Seconds

MEASURES = ("words_per_second", "dnsmos", "snr", "bandwidth", "silence", "clipped")
"""What `curate` writes of every segment that it judges, kept or dropped."""


class Origin(NamedTuple):
    """Where a recording is from, and on what ground it is used."""

    source: str
    speaker: str
    licence: str
    basis: str
    assumed: bool
    """The speaker was guessed from a file or folder, not told by the data."""
    language: str


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of a recording and what was decided about it."""

    id: str
    outcome: str
    """The split that it is kept for, or the reason for which it was dropped."""
    is_kept: bool
    is_segment: bool
    """Whether it came as far as to be a segment with text; what `transcribe` dropped did not."""
    recording: str
    start: Seconds
    """In its recording."""
    seconds: Seconds
    samples: int
    origin: Origin
    text: str = ""
    measures: dict[str, float] = field(default_factory=dict)
    custom: dict[str, Any] = field(default_factory=dict)
    """What the segment's cut carries."""


def origins() -> dict[str, Origin]:
    """Where each recording is from, by id."""
    return {row["id"]: origin(row) for row in iterate_jsonl(_file("ingest", "cuts.jsonl"))}


def origin(row: dict[str, Any]) -> Origin:
    """Where a recording is from, of its row in `artifacts/ingest/cuts.jsonl`."""
    about, custom = row["supervisions"][0], row["custom"]
    consent = custom.get("consent") or {}
    return Origin(
        custom["source"], about.get("speaker") or "", custom.get("licence") or "", str(consent.get("basis") or ""),
        custom.get("speaker_assumed") is True, about.get("language") or "",
    )  # fmt: skip


def pieces(known: dict[str, Origin]) -> Iterator[Piece]:
    """What `transcribe` dropped, then every segment with what `curate` decided.

    Args:
        known: As `origins` tells.

    Raises:
        SourceError: The outputs of the stages are missing, or belong to different runs.
    """
    for row in iterate_jsonl(_file("transcribe", "dropped.jsonl")):
        name = f"{row['recording']} {row['start']:.3f} to {row['end']:.3f} s"
        yield Piece(
            name, row["reason"], False, False, row["recording"], row["start"], row["end"] - row["start"],
            row["samples"], _known(known, row["recording"]),
        )  # fmt: skip
    heads = {name: iterate_jsonl(_file("curate", f"{name}.jsonl")) for name in (*SPLITS, "dropped")}
    waiting = {name: next(rows, None) for name, rows in heads.items()}
    for row in iterate_jsonl(_file("transcribe", "segments.jsonl")):
        where = next((name for name, head in waiting.items() if head and head["id"] == row["id"]), None)
        if where is None:
            raise SourceError(
                f"segment {row['id']} is neither kept nor dropped in {output('curate')}, which belongs to other "
                "segments; run `valle2 curate`"
            )
        decided = waiting[where]
        assert decided is not None
        waiting[where] = next(heads[where], None)
        yield _segment(row, decided, where, _known(known, row["recording"]["id"]))


def _segment(row: dict[str, Any], decided: dict[str, Any], name: str, origin: Origin) -> Piece:
    kept = name in SPLITS
    measured = decided["custom"] if kept else decided
    return Piece(
        row["id"], name if kept else decided["reason"], kept, True, row["recording"]["id"], row["start"],
        row["duration"], round(row["duration"] * row["recording"]["sampling_rate"]), origin,
        (decided["supervisions"][0]["text"] if kept else decided["text"]) or "",
        {key: measured[key] for key in MEASURES if key in measured}, row["custom"],
    )  # fmt: skip


def _known(known: dict[str, Origin], recording: str) -> Origin:
    if recording not in known:
        raise SourceError(
            f"recording {recording} of {output('transcribe')} is not in {output('ingest')}; run `valle2 transcribe`"
        )
    return known[recording]


def _file(stage: str, name: str) -> Path:
    path = Path("artifacts") / stage / name
    if not path.is_file():
        raise SourceError(f"no {path}, which the data report is made of; run `valle2 {stage}`")
    return path
