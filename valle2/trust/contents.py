"""What a version of the data holds, read back by digest: its recordings, and what was decided of every segment.

Two versions of it are compared in `valle2.trust.changes`.
"""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from valle2.stage import output
from valle2.trust.objects import ObjectReader
from valle2.types import SPLITS, Seconds, Stage

DATA_STAGES: tuple[Stage, ...] = ("ingest", "transcribe", "curate", "tokenize")

Sound = tuple[str, float, float]
"""SHA-256 of a file, and start and length (s) of what is meant of it: the same whatever it is called."""


@dataclass(frozen=True)
class Made:
    """What went into a stage and came out."""

    params: dict[str, Any]
    deps: dict[str, str]
    """Path -> DVC's md5."""
    outs: dict[str, str]
    """Path -> DVC's md5."""


@dataclass(frozen=True)
class DataVersion:
    """What the data stages made, by digest."""

    name: str
    stages: dict[Stage, Made]


@dataclass(frozen=True, slots=True)
class Recording:
    """A recording that was taken in."""

    sound: Sound
    seconds: Seconds
    about: dict[str, str]
    """Source, speaker, licence, consent, language, text."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A segment and what was decided of it."""

    id: str
    outcome: str
    """`kept for <split>` or `dropped as <reason>`."""
    seconds: Seconds
    text: str


@dataclass(frozen=True)
class Contents:
    """All of it, in memory."""

    recordings: dict[str, Recording]
    refused: Counter[str]
    """Files by the reason for which `ingest` refused them."""
    segments: dict[Sound, Segment]
    funnel: dict[str, Any]
    shards: dict[str, Any]
    """The manifest's splits."""


def read_contents(version: DataVersion, objects: ObjectReader) -> Contents:
    """Read a version.

    Raises:
        LineageError: An object is in none of the places, or damaged.
    """
    ingest, curate = version.stages["ingest"].outs, version.stages["curate"].outs
    recordings = {row["id"]: _recording(row) for row in _rows(objects, ingest, "ingest", "cuts.jsonl")}
    refused = Counter(row["reason"] for row in _rows(objects, ingest, "ingest", "quarantine.jsonl"))
    segments: dict[Sound, Segment] = {}
    for split in SPLITS:
        for row in _rows(objects, curate, "curate", f"{split}.jsonl"):
            sound = _sound(row["custom"]["sha256"], row["start"], row["duration"])
            text = row["supervisions"][0]["text"]
            segments[sound] = Segment(row["id"], f"kept for {split}", row["duration"], text)
    for row in _rows(objects, curate, "curate", "dropped.jsonl"):
        sound = _sound(recordings[row["recording"]].sound[0], row["start"], row["duration"])
        segments[sound] = Segment(row["id"], f"dropped as {row['reason']}", row["duration"], row["text"])
    funnel = json.loads(objects.read(curate, (output("curate") / "funnel.json").as_posix()))
    manifest = objects.read(version.stages["tokenize"].outs, (output("tokenize") / "manifest.json").as_posix())
    return Contents(recordings, refused, segments, funnel, json.loads(manifest)["splits"])


def _recording(row: dict[str, Any]) -> Recording:
    about, custom = row["supervisions"][0], row["custom"]
    told = {
        "source": custom["source"], "speaker": about.get("speaker") or "", "licence": custom.get("licence") or "",
        "consent": json.dumps(custom.get("consent") or {}, sort_keys=True), "language": about.get("language") or "",
        "text": about.get("text") or "",
    }  # fmt: skip
    return Recording(_sound(custom["sha256"], row["start"], row["duration"]), row["duration"], told)


def _sound(sha256: str, start: Seconds, seconds: Seconds) -> Sound:
    return sha256, round(start, 3), round(seconds, 3)


def _rows(objects: ObjectReader, outs: dict[str, str], stage: Stage, name: str) -> Iterator[dict[str, Any]]:
    for line in objects.read(outs, (output(stage) / name).as_posix()).splitlines():
        if line:
            yield json.loads(line)
