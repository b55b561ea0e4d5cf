"""From a model down to shards, segments, recordings, speakers and their consent.

Every step is checked as it is taken: records by their digests, data by the md5 that the records name, shard manifests
by checksums, and that each stage used what the one before it made. How a trace looks is in `valle2.trust.tree`.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from valle2.errors import LineageError, StorageError
from valle2.shards import ShardFiles
from valle2.stage import output
from valle2.trust.consent import Consent
from valle2.trust.lineage import ModelRecord, StageRecord
from valle2.trust.objects import ObjectReader
from valle2.types import SPLITS, STAGES, Seconds

RecordReader = Callable[[str], StageRecord | ModelRecord]
"""A record by its digest; raises LineageError where it is not to be had."""


@dataclass(frozen=True)
class Segment:
    """A piece of a recording that is in a shard."""

    id: str
    start: Seconds
    seconds: Seconds
    text: str
    split: str


@dataclass(frozen=True)
class SourceRecording:
    """An original file and the pieces of it that were used."""

    id: str
    path: str
    sha256: str
    seconds: Seconds
    segments: tuple[Segment, ...]


@dataclass(frozen=True)
class Voice:
    """A speaker, the ground on which the voice is used, and what of it was used."""

    speaker: str
    source: str
    licence: str
    attribution: str
    consent: Consent | None
    recordings: tuple[SourceRecording, ...]


@dataclass(frozen=True)
class Shard:
    """A shard by its checksums."""

    split: str
    sha256: dict[str, str]
    cuts: int
    frames: int


@dataclass(frozen=True)
class Trace:
    """A model and all that it was made from."""

    digest: str
    record: ModelRecord
    stages: dict[str, tuple[str, StageRecord]]
    shards: tuple[Shard, ...]
    voices: tuple[Voice, ...]
    parent: "Trace | None"
    notes: tuple[str, ...]
    """What could not be followed, and why."""

    def to_json(self) -> dict[str, Any]:
        """The whole trace, JSON-able."""
        return {
            "digest": self.digest,
            "record": self.record.model_dump(mode="json"),
            "stages": {
                stage: {"digest": name, **record.model_dump(mode="json")}
                for stage, (name, record) in self.stages.items()
            },
            "shards": [asdict(shard) for shard in self.shards],
            "voices": [
                {**asdict(voice), "consent": voice.consent.model_dump() if voice.consent else None}
                for voice in self.voices
            ],
            "parent": self.parent.to_json() if self.parent else None,
            "notes": list(self.notes),
        }


def trace(name: str, read: RecordReader, objects: ObjectReader) -> Trace:
    """Follow a model to its voices.

    Args:
        name: Digest of the model's record.
        read: Reads records.
        objects: Reads the outputs that the records name.

    Raises:
        LineageError: A record or an object is altered, or two stages do not fit together. What is merely out of reach
            becomes a note.
    """
    record = read(name)
    if not isinstance(record, ModelRecord):
        raise LineageError(f"lineage record {name[:12]}… is of stage {record.stage}, expected a model's")
    notes: list[str] = []
    stages: dict[str, tuple[str, StageRecord]] = {}
    for stage in sorted(record.stages, key=lambda stage: STAGES.index(stage) if stage in STAGES else len(STAGES)):
        found = read(record.stages[stage])
        if not isinstance(found, StageRecord) or found.stage != stage:
            raise LineageError(f"record {record.stages[stage][:12]}… should be of stage {stage} and is not")
        stages[stage] = (record.stages[stage], found)
    check_chain({stage: found for stage, (_, found) in stages.items()})
    shards, voices = _data({stage: found for stage, (_, found) in stages.items()}, objects, notes)
    parent = None
    if record.parent_model:
        try:
            parent = trace(record.parent_model, read, objects)
        except LineageError as error:
            notes.append(f"training started from model {record.parent_model[:12]}…: {error}")
    return Trace(name, record, stages, shards, voices, parent, tuple(notes))


def check_chain(stages: Mapping[str, StageRecord]) -> None:
    """Each stage must have used the very bytes that the model's other stages made.

    Raises:
        LineageError: It used others; the message names the stage and the path.
    """
    made = {path: (stage, md5) for stage, record in stages.items() for path, md5 in record.outs.items()}
    for stage, record in stages.items():
        for path, md5 in record.deps.items():
            if path in made and made[path][1] != md5:
                raise LineageError(
                    f"{stage} used {path} {md5}, but the model's record of {made[path][0]} made {made[path][1]}; the "
                    "records belong to different runs"
                )


def check_files(record: ModelRecord, sha256: Mapping[str, str], name: str) -> None:
    """A model's files must be the ones that its record names.

    Args:
        record: The model's.
        sha256: Of the files at hand, by name.
        name: The model's, for the message.

    Raises:
        LineageError: They differ; the message names the files.
    """
    changed = [file for file, wanted in sorted(record.model_sha256.items()) if sha256.get(file) != wanted]
    if changed:
        raise LineageError(
            f"{name} is not the model that its lineage record names: {', '.join(changed)} differ or are missing; fetch "
            "it again"
        )


def _data(
    stages: Mapping[str, StageRecord], objects: ObjectReader, notes: list[str]
) -> tuple[tuple[Shard, ...], tuple[Voice, ...]]:
    lacking = [stage for stage in ("ingest", "transcribe", "tokenize") if stage not in stages]
    if lacking:
        notes.append(f"the model's record names no {', '.join(lacking)}, so its voices cannot be told")
        return (), ()
    try:
        shards, used = _shards(stages["tokenize"].outs, objects)
        return shards, _voices(stages, objects, used)
    except (LineageError, StorageError) as error:
        notes.append(str(error))
        return (), ()


def _shards(outs: dict[str, str], objects: ObjectReader) -> tuple[tuple[Shard, ...], dict[str, tuple[str, str]]]:
    """The shards, and for every cut in them its split and text."""
    root = output("tokenize").as_posix()
    manifest = json.loads(objects.read(outs, f"{root}/manifest.json"))
    shards: list[Shard] = []
    used: dict[str, tuple[str, str]] = {}
    for split in (split for split in SPLITS if split in manifest["splits"]):
        for shard in manifest["splits"][split]["shards"]:
            if "location" in manifest:
                rows = _rows(ShardFiles(output("tokenize"), manifest)(split, shard["cuts"]).read_bytes())
            else:
                rows = _rows(objects.read(outs, f"{root}/shards/{split}/{shard['cuts']['file']}"))
            used |= {row["id"]: (split, row["supervisions"][0]["text"]) for row in rows}
            sha256 = {file["file"]: file["sha256"] for file in shard.values() if isinstance(file, dict)}
            shards.append(Shard(split, sha256, len(rows), shard["frames"]))
    return tuple(shards), used


def _voices(
    stages: Mapping[str, StageRecord], objects: ObjectReader, used: Mapping[str, tuple[str, str]]
) -> tuple[Voice, ...]:
    segments = _rows(objects.read(stages["transcribe"].outs, (output("transcribe") / "segments.jsonl").as_posix()))
    cuts = _rows(objects.read(stages["ingest"].outs, (output("ingest") / "cuts.jsonl").as_posix()))
    pieces: dict[str, list[Segment]] = {}
    for row in segments:
        if row["id"] in used:
            split, text = used[row["id"]]
            piece = Segment(row["id"], round(row["start"], 3), round(row["duration"], 3), text, split)
            pieces.setdefault(row["recording"]["id"], []).append(piece)
    unknown = set(used) - {piece.id for found in pieces.values() for piece in found}
    if unknown:
        raise LineageError(f"{len(unknown)} cuts of the shards, such as {min(unknown)}, are in no recording's segments")
    recordings: dict[str, list[SourceRecording]] = {}
    about: dict[str, dict[str, Any]] = {}
    for row in cuts:
        recording = row["recording"]
        if recording["id"] in pieces:
            speaker = row["supervisions"][0]["speaker"]
            about[speaker] = row["custom"]
            found = tuple(pieces.pop(recording["id"]))
            path = row["custom"].get("file") or (recording["sources"][0]["source"] if recording.get("sources") else "")
            source = SourceRecording(row["id"], path, row["custom"]["sha256"], round(row["duration"], 3), found)
            recordings.setdefault(speaker, []).append(source)
    if pieces:
        raise LineageError(f"recording {min(pieces)} of the segments is not among the ingested ones")
    return tuple(
        Voice(
            speaker, about[speaker]["source"], about[speaker]["licence"], about[speaker].get("attribution", ""),
            Consent.of(about[speaker].get("consent")), tuple(found),
        )
        for speaker, found in sorted(recordings.items())
    )  # fmt: skip


def _rows(data: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in data.splitlines() if line]
