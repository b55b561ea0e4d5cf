"""Who was heard in training, by a model and by those that it was trained on from, and on what grounds."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from valle2.errors import LineageError
from valle2.shards import read_cuts
from valle2.trust.consent import Consent
from valle2.trust.lineage import ModelRecord, StageRecord, records_in
from valle2.trust.objects import ObjectReader, places
from valle2.trust.trace import Trace, trace

TRAINING = "training"
"""What a consent that names a scope has to allow."""


def training_speakers(shards: Path) -> set[str]:
    """Speakers of the train split."""
    return {supervision["speaker"] for row in read_cuts(shards, "train") for supervision in row["supervisions"]}


def without_consent(shards: Path) -> tuple[str, ...]:
    """Voices of the train and dev splits that no consent covers, sorted.

    A cut without a ground, or with one whose scope leaves training out, counts.
    """
    found: set[str] = set()
    for split in ("train", "dev"):
        for row in read_cuts(shards, split):
            consent = Consent.of((row.get("custom") or {}).get("consent"))
            if consent is None or (consent.scope and TRAINING not in consent.scope):
                found |= {supervision["speaker"] for supervision in row["supervisions"]}
    return tuple(sorted(found))


def leaked_speakers(shards: Path, parents: Sequence[Path], evaluated: set[str]) -> tuple[str, ...]:
    """Evaluated speakers who were heard in training, sorted.

    Args:
        shards: What the model was trained on, a tokenize output.
        parents: Voice model folders that training started from.
        evaluated: Speakers of the evaluation.

    Raises:
        LineageError: No leak is known, and who was heard by a parent, or by one of its own, cannot be told; the message
            says why.
    """
    heard, untold = training_speakers(shards), None
    for parent in parents:
        try:
            for speakers in _heard_by(parent, evaluated):
                heard |= speakers
        except LineageError as error:
            untold = error
    leaked = tuple(sorted(heard & evaluated))
    if untold and not leaked:
        raise untold
    return leaked


def _heard_by(folder: Path, evaluated: set[str]) -> Iterator[set[str]]:
    records = records_in(folder)
    models = {name: record for name, record in records.items() if isinstance(record, ModelRecord)}
    parents = {record.parent_model for record in models.values()}
    newest = [name for name in models if name not in parents]
    if len(newest) != 1:
        raise LineageError(f"{folder}, from which training started, has no lineage, so whom it heard cannot be told")

    def read(name: str) -> StageRecord | ModelRecord:
        if name not in records:
            raise LineageError(f"lineage record {name[:12]}… is not in {folder / 'lineage'}")
        return records[name]

    found: Trace | None = trace(newest[0], read, ObjectReader(places(), Path()))
    while found:
        yield _heard_in(found, evaluated)
        if found.record.parent_model and found.parent is None:
            raise LineageError(f"the records of a model before {folder} are out of reach: {found.notes[-1]}")
        found = found.parent


def _heard_in(found: Trace, evaluated: set[str]) -> set[str]:
    """The shards tell; where they are out of reach, the test speakers that `curate` had to keep out of training."""
    if found.voices:
        return {
            voice.speaker
            for voice in found.voices
            if any(segment.split == "train" for item in voice.recordings for segment in item.segments)
        }
    kept_out = _test_speakers(found.stages["curate"][1].params) if "curate" in found.stages else set()
    if evaluated <= kept_out:
        return set()
    raise LineageError(
        f"whom the model {found.digest[:12]}… heard, from which training started, cannot be told: {found.notes[0]}"
    )


def _test_speakers(params: Mapping[str, object]) -> set[str]:
    section = params.get("curate")
    named = section.get("test_speakers") if isinstance(section, Mapping) else params.get("curate.test_speakers")
    return set(named) if isinstance(named, list) else set()
