"""Recordings to segments with text and word times, through WhisperX: units of work, workers, and one file of results.

What a worker does with a unit is in `valle2.corpus.transcriber`. Finished units survive a crash, and what earlier
versions of the corpus have found out about a recording is not worked out again. Next: `valle2.corpus.curate`.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import partial as partial_call
from itertools import chain, islice
from pathlib import Path
from typing import Any

from valle2.bundled import bundled
from valle2.config.transcribe import TranscribeConfig, TranscribeParams
from valle2.corpus.journal import iterate_jsonl, json_line, write_jsonl
from valle2.corpus.ledger import Ledger
from valle2.corpus.stretches import Stretch, Unit, units
from valle2.corpus.transcriber import Transcriber, part_file
from valle2.corpus.truth import Truth
from valle2.corpus.voices import name_voices
from valle2.diarisation import load_diariser
from valle2.errors import SourceError
from valle2.progress import progress
from valle2.stage import file_sha256, finish, output, partial, tree_sha256
from valle2.types import Seconds, StageResult
from valle2.workers import spread

_CODE = (
    "valle2.aligner", "valle2.asr", "valle2.corpus.given_text", "valle2.corpus.segments", "valle2.corpus.stretches",
    "valle2.corpus.transcriber", "valle2.corpus.turns", "valle2.corpus.voices", "valle2.corpus.words",
    "valle2.diarisation", "valle2.text",
)  # fmt: skip
"""Modules that make a recording's segments."""

_PACKAGES = ("whisperx", "ctranslate2", "pyannote.audio", "torch", "transformers")


@dataclass
class Totals:
    """What the stage's figures are made of."""

    audio_seconds: Seconds = 0.0
    segments: int = 0
    segment_seconds: Seconds = 0.0
    dropped_seconds: Counter[str] = field(default_factory=Counter)


def transcribe(config: TranscribeParams) -> StageResult:
    """Segment, recognise and align: `artifacts/ingest/` -> `artifacts/transcribe/`.

    Raises:
        SourceError: Recordings are missing, or there is no usable speech in any.
        ConfigError: The recogniser, the aligner or the diarisation pipeline cannot be loaded.
        WorkerError: A unit cannot be done.
    """
    path = output("ingest") / "cuts.jsonl"
    if not path.is_file():
        raise SourceError(f"no recordings at {path}; run `valle2 ingest`")
    if config.transcribe.diarisation:
        load_diariser(config.transcribe.diarisation, config.runtime.device)  # else it would fail in the middle
    models = _models_sha256(config.transcribe)
    inputs = [config.transcribe.model_dump(), config.runtime.device, models]
    with (
        partial("transcribe", [*inputs, file_sha256(path)]) as work,
        Ledger("transcribe", inputs, _CODE, _PACKAGES) as ledger,
    ):
        plan = _plan(path, work, ledger, config.transcribe.shard_seconds)
        _do(plan, work, config)
        truth = Truth(Path(config.ingest.sources), config.transcribe.language)
        totals = _merge(path, work, ledger, truth, config.transcribe.same_voice)
        if not totals.segments:
            reasons = ", ".join(sorted(totals.dropped_seconds))
            raise SourceError(
                f"no usable speech in {totals.audio_seconds / 3600:.2f} h (dropped as {reasons}); check "
                "`transcribe.language` and `transcribe.model`, and listen to a recording"
            )
        finish(work, "transcribe")
    return _result(totals, truth.word_error_rate)


def _plan(path: Path, work: Path, ledger: Ledger, seconds: Seconds) -> Path:
    """The units of what is not known yet; that of a killed run stays, so that its parts fit."""
    plan = work / "units.jsonl"
    if not plan.is_file():
        write_jsonl(work / "known.jsonl", (known for row in iterate_jsonl(path) if (known := ledger.get(row))))
        known = {row["recording"] for row in iterate_jsonl(work / "known.jsonl")}
        left = (row for row in iterate_jsonl(path) if row["id"] not in known)
        write_jsonl(plan, (asdict(unit) for unit in units(left, seconds)))
    return plan


def _read_plan(plan: Path) -> Iterator[Unit]:
    for row in iterate_jsonl(plan):
        yield Unit(row["index"], tuple(Stretch(**stretch) for stretch in row["stretches"]))


def _do(plan: Path, work: Path, config: TranscribeParams) -> None:
    """Have every unit done that has not been yet."""
    folder = (work / "parts").absolute()
    folder.mkdir(exist_ok=True)
    total = done = 0.0
    left = False
    for unit in _read_plan(plan):
        finished = part_file(folder, unit).is_file()
        total, done, left = total + unit.seconds, done + unit.seconds * finished, left or not finished
    with progress("transcribe", total, "s of audio") as advance:
        advance(done)
        if left:
            waiting = (unit for unit in _read_plan(plan) if not part_file(folder, unit).is_file())
            make = partial_call(Transcriber, config, folder)
            for unit, _ in spread(waiting, make, config.runtime, config.ray):
                advance(unit.seconds)


def _merge(path: Path, work: Path, ledger: Ledger, truth: Truth, same_voice: float) -> Totals:
    """Write the results of all recordings, in their order and one at a time."""
    known = iterate_jsonl(work / "known.jsonl")
    files = (part_file(work / "parts", unit) for unit in _read_plan(work / "units.jsonl"))
    parts = chain.from_iterable(iterate_jsonl(file) for file in files)
    counts: dict[str, int] = {}
    for unit in _read_plan(work / "units.jsonl"):
        counts |= {stretch.recording["id"]: stretch.count for stretch in unit.stretches if stretch.count > 1}
    totals = Totals()
    out = work / "out"
    out.mkdir(exist_ok=True)
    earlier = next(known, None)
    with (out / "segments.jsonl").open("w") as segments, (out / "dropped.jsonl").open("w") as dropped:
        for recording in iterate_jsonl(path):
            name = recording["id"]
            if earlier and earlier["recording"] == name:
                result, earlier = earlier, next(known, None)
            else:
                result = _joined(name, list(islice(parts, counts.get(name, 1))), same_voice)
                ledger.add(recording, result)
            _count(totals, recording, result)
            truth.compare(
                recording["recording"]["sources"][0]["source"],
                " ".join(row["supervisions"][0]["text"] for row in result["segments"]),
            )
            segments.writelines(map(json_line, result["segments"]))
            dropped.writelines(map(json_line, result["dropped"]))
    return totals


def _joined(name: str, rows: list[dict[str, Any]], same_voice: float) -> dict[str, Any]:
    """The stretches of a recording as one, its segments numbered and its voices named."""
    assert rows, f"{name} is in no part"
    assert all(row["recording"] == name for row in rows), f"{name} is not where it should be"
    if any("voices" in row for row in rows):
        name_voices(name, rows, same_voice)
    segments = [segment for row in rows for segment in row["segments"]]
    for index, segment in enumerate(segments):
        segment["id"] = segment["supervisions"][0]["id"] = f"{name}-{index:03d}"
    return {"recording": name, "segments": segments, "dropped": [part for row in rows for part in row["dropped"]]}


def _count(totals: Totals, recording: dict[str, Any], result: dict[str, Any]) -> None:
    totals.audio_seconds += recording["duration"]
    totals.segments += len(result["segments"])
    totals.segment_seconds += sum(row["duration"] for row in result["segments"])
    for row in result["dropped"]:
        totals.dropped_seconds[row["reason"]] += row["end"] - row["start"]


def _models_sha256(config: TranscribeConfig) -> list[str]:
    """Digests of models that are local folders; names stand for themselves."""
    found = []
    for name, kind in ((config.model, "whisper"), (config.aligner, "aligner")):
        folder = bundled(kind) if name == "bundled" else Path(name or "-")
        found.append(tree_sha256(folder) if folder.is_dir() else name)
    if pipeline := config.diarisation:
        place = Path(pipeline)
        found.append(tree_sha256(place) if place.is_dir() else file_sha256(place) if place.is_file() else pipeline)
    return found


def _result(totals: Totals, wer: float | None) -> StageResult:
    hours = totals.segment_seconds / 3600
    against = f"; WER {wer:.1%} against the corpus's own text" if wer is not None else ""
    dropped = {reason: round(value, 2) for reason, value in sorted(totals.dropped_seconds.items())}
    facts = {
        "segments": totals.segments, "hours": round(hours, 4), "audio_seconds": round(totals.audio_seconds, 2),
        "dropped_seconds": dropped, "wer": wer,
    }  # fmt: skip
    return StageResult(f"{totals.segments} segments, {hours:.2f} h{against}", facts)
