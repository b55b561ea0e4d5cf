"""Recordings to segments with text and word times, through WhisperX.

A recording without text is cut at its sentences. One that came with text, and is short enough for a segment, is kept
whole with that text; what the recogniser hears in it is stored beside, so that `valle2.corpus.curate` can tell whether
they agree. A given text of a longer recording is not used. One recording a thread is in memory at a time, and each
finished one survives a crash.
"""

import shutil
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial as partial_call
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from lhotse import MonoCut, SupervisionSegment
from lhotse.supervision import AlignmentItem

from valle2.asr import ASR_RATE, Aligner, Asr, Window, load_aligner, load_asr
from valle2.bundled import bundled
from valle2.config.transcribe import TranscribeConfig, TranscribeParams
from valle2.corpus.journal import Journal, read_jsonl, write_jsonl
from valle2.corpus.ledger import Ledger
from valle2.corpus.segments import Span, TimedWord, split, whole
from valle2.corpus.truth import word_error_rate
from valle2.errors import SourceError
from valle2.progress import progress
from valle2.stage import file_sha256, output, partial, publish, tree_sha256
from valle2.types import StageResult

_CODE = ("valle2.asr", "valle2.corpus.segments", "valle2.corpus.transcribe", "valle2.text")
"""Modules that make a recording's segments."""


def transcribe(config: TranscribeParams) -> StageResult:
    """Segment, recognise and align: `artifacts/ingest/` -> `artifacts/transcribe/`.

    Raises:
        SourceError: Recordings are missing, or there is no usable speech in any.
        ConfigError: The recogniser or the aligner cannot be loaded.
    """
    path = output("ingest") / "cuts.jsonl"
    if not path.is_file():
        raise SourceError(f"no recordings at {path}; run `valle2 ingest`")
    recordings = [MonoCut.from_dict(row) for row in read_jsonl(path)]
    models = _models_sha256(config.transcribe)
    inputs = [config.transcribe.model_dump(), config.runtime.device, file_sha256(path), models]
    with partial("transcribe", inputs) as work:
        results = _transcribe_all(recordings, work, config, models)
        segments = [row for recording in recordings for row in results[recording.id]["segments"]]
        dropped = [row for recording in recordings for row in results[recording.id]["dropped"]]
        if not segments:
            reasons = ", ".join(sorted({row["reason"] for row in dropped}))
            raise SourceError(
                f"no usable speech in {len(recordings)} recordings (dropped as {reasons}); check `transcribe.language` "
                "and `transcribe.model`, and listen to a recording"
            )
        write_jsonl(work / "out" / "segments.jsonl", segments)
        write_jsonl(work / "out" / "dropped.jsonl", dropped)
        publish(work / "out", output("transcribe"))
        shutil.rmtree(work)
    return _result(recordings, segments, dropped, config)


def _transcribe_all(
    recordings: Sequence[MonoCut], work: Path, config: TranscribeParams, models: list[str]
) -> dict[str, Any]:
    """Result rows by recording; what a killed run or an earlier version of the corpus has finished is taken over."""
    total = sum(recording.duration for recording in recordings)
    inputs = [config.transcribe.model_dump(), config.runtime.device, models]
    with (
        Journal(work / "recordings.jsonl") as journal,
        Ledger("transcribe", inputs, _CODE, ("whisperx", "ctranslate2", "torch", "transformers")) as ledger,
        progress("transcribe", total, "s of audio") as advance,
    ):
        for recording in recordings:
            if recording.id not in journal.done and (known := ledger.get(recording.to_dict())):
                journal.add(recording.id, known)
        left = [recording for recording in recordings if recording.id not in journal.done]
        advance(total - sum(recording.duration for recording in left))
        if left:
            asr, aligner = load_models(config)
            # One torch thread each: what is written then depends on no thread count.
            workers = config.runtime.num_threads if config.runtime.device == "cpu" else 1
            with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
                work_on = partial_call(transcribe_recording, asr=asr, aligner=aligner, config=config.transcribe)
                for recording, result in zip(left, pool.map(work_on, left), strict=True):
                    journal.add(recording.id, result)
                    ledger.add(recording.to_dict(), result)
                    advance(recording.duration)
        return journal.done


def load_models(config: TranscribeParams) -> tuple[Asr, Aligner]:
    """The recogniser and the aligner that the parameters name."""
    options = config.transcribe
    asr = load_asr(
        options.model, options.compute_type, options.language, config.runtime.num_threads,
        device=config.runtime.device, chunk_size=options.chunk_size, batch_size=options.batch_size,
    )  # fmt: skip
    return asr, load_aligner(options.aligner, options.language, config.runtime.device)


def transcribe_recording(recording: MonoCut, asr: Asr, aligner: Aligner, config: TranscribeConfig) -> dict[str, Any]:
    """Segments and dropped stretches of one recording, which together cover each of its samples once.

    Returns:
        `segments`: cuts as dicts; `dropped`: recording, start and end (s), samples, reason.
    """
    waveform = _load(recording)
    rate = recording.sampling_rate
    given = recording.supervisions[0].text
    extra: dict[str, Any] = {}
    if given and recording.duration <= config.max_duration:
        sentences = aligner.align([Window(given, 0.0, len(waveform) / ASR_RATE)], waveform)
        spans = whole(sentences, given, recording.num_samples, rate, config)
        extra = {"asr_text": asr.recognise(waveform)}
    else:
        windows = asr.transcribe(waveform)
        spans = split(aligner.align(windows, waveform), windows, recording.num_samples, rate, config)
    kept = [span for span in spans if not span.reason]
    segments = [_segment(recording, index, span, extra).to_dict() for index, span in enumerate(kept)]
    dropped = [
        {
            "recording": recording.id,
            "start": recording.start + span.start / rate, "end": recording.start + span.end / rate,
            "samples": span.end - span.start, "reason": span.reason,
        }
        for span in spans if span.reason
    ]  # fmt: skip
    accounted = sum(span.end - span.start for span in spans)
    assert accounted == recording.num_samples, f"{recording.id}: {accounted} of {recording.num_samples} samples"
    return {"segments": segments, "dropped": dropped}


def _load(recording: MonoCut) -> Float[np.ndarray, " n"]:
    waveform: np.ndarray = recording.resample(ASR_RATE).load_audio()[0]
    return waveform


def _segment(recording: MonoCut, index: int, span: Span, extra: dict[str, Any]) -> MonoCut:
    rate = recording.sampling_rate
    offset, duration = span.start / rate, (span.end - span.start) / rate
    name = f"{recording.id}-{index:03d}"
    words = [_item(word, offset, duration) for word in span.words]
    about = recording.supervisions[0]
    supervision = SupervisionSegment(
        name, recording.recording.id, 0.0, duration, 0, text=span.text, language=about.language, speaker=about.speaker,
        alignment={"word": words},
    )  # fmt: skip
    custom = {**(recording.custom or {}), **extra}
    cut = MonoCut(
        name, recording.start + offset, duration, 0, [supervision], recording=recording.recording, custom=custom
    )
    assert cut.num_samples == span.end - span.start, f"{name}: {cut.num_samples} samples"
    return cut


def _item(word: TimedWord, offset: float, duration: float) -> AlignmentItem:
    start = min(max(word.start - offset, 0.0), duration)
    end = min(max(word.end - offset, start), duration)
    return AlignmentItem(word.text, round(start, 4), round(end - start, 4), word.score)


def _models_sha256(config: TranscribeConfig) -> list[str]:
    """Digests of models that are local folders; names stand for themselves."""
    found = []
    for name, kind in ((config.model, "whisper"), (config.aligner, "aligner")):
        folder = bundled(kind) if name == "bundled" else Path(name or "-")
        found.append(tree_sha256(folder) if folder.is_dir() else name)
    return found


def _result(
    recordings: Sequence[MonoCut],
    segments: list[dict[str, Any]],
    dropped: list[dict[str, Any]],
    config: TranscribeParams,
) -> StageResult:
    hours = sum(row["duration"] for row in segments) / 3600
    wer = word_error_rate(recordings, segments, Path(config.ingest.sources), config.transcribe.language)
    against = f"; WER {wer:.1%} against the corpus's own text" if wer is not None else ""
    seconds: Counter[str] = Counter()
    for row in dropped:
        seconds[row["reason"]] += row["end"] - row["start"]
    facts = {
        "segments": len(segments),
        "hours": round(hours, 4),
        "audio_seconds": round(sum(recording.duration for recording in recordings), 2),
        "dropped_seconds": {reason: round(value, 2) for reason, value in sorted(seconds.items())},
        "wer": wer,
    }
    return StageResult(f"{len(segments)} segments, {hours:.2f} h{against}", facts)
