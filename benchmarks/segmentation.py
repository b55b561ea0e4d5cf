"""Where speech is found in long recordings against where utterances truly begin and end; ours and WhisperX's step.

python -m benchmarks.segmentation --data path/to/longform

The folder holds recordings, and beside each a JSON with `segments`, rows of start and end (s), that follow each other
without gap. At a join one utterance has just ended and another is about to begin, so that a pause should be there.
"""

import argparse
import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from jaxtyping import Float

from benchmarks.report import Figure, main
from valle2.asr import ASR_RATE, load_asr
from valle2.config.transcribe import TranscribeConfig
from valle2.types import Seconds

WHISPERX_STEP: Seconds = 0.5
NEAR: Seconds = 0.5
"""A pause is at a join if it begins or ends, or lies, within this."""
FRAME = ASR_RATE // 50
LOUD_DB = 20.0
"""A frame that is at most this below the 95th percentile of a recording's is surely speech."""


def run(options: argparse.Namespace) -> Sequence[Figure]:
    """Figures of each step, over all recordings."""
    files = sorted(path for path in Path(options.data).glob("*.flac") if path.with_suffix(".json").is_file())
    if not files:
        raise SystemExit(f"no .flac with a .json beside it in {options.data!r}; give --data path/to/longform")
    figures = []
    for step in (TranscribeConfig().vad_step, WHISPERX_STEP):
        asr = load_asr("bundled", "int8", "en", options.threads, vad_step=step)
        away: list[Seconds] = []
        missed, found, loud = 0.0, 0.0, 0.0
        for path in files:
            wave, rate = soundfile.read(path, dtype="float32")
            if rate != ASR_RATE:
                raise SystemExit(f"{path} has {rate} Hz, expected {ASR_RATE}")
            joins = [row["end"] for row in json.loads(path.with_suffix(".json").read_text())["segments"]][:-1]
            spans = speech(asr, wave)
            away += [distance(join, spans) for join in joins]
            heard = frames_of(spans, len(wave) // FRAME)
            certain = certainly_speech(wave)
            missed, loud = missed + float((certain & ~heard).sum()), loud + float(certain.sum())
            found += float(heard.mean() / len(files))
        name = f"step {step:g} s"
        figures += [
            Figure(f"{name}: median distance of {len(away)} joins to a pause", float(np.median(away)), "s"),
            Figure(f"{name}: joins with a pause within {NEAR:g} s", float(np.mean(np.array(away) <= NEAR)), "share"),
            Figure(
                f"{name}: loud frames (within {LOUD_DB:g} dB of the level of speech) not found", missed / loud, "share"
            ),
            Figure(f"{name}: all that is found as speech", found, "share"),
        ]
    return figures


def speech(asr: Any, wave: Float[np.ndarray, " n"]) -> list[tuple[Seconds, Seconds]]:
    """Start and end of what the model of voice activity takes for speech, before windows are made of it."""
    pipeline = asr._pipeline
    vad, options = pipeline.vad_model, pipeline._vad_params
    scores = vad({"waveform": vad.preprocess_audio(wave), "sample_rate": ASR_RATE})
    windows = vad.merge_chunks(scores, 30.0, onset=options["vad_onset"], offset=options["vad_offset"])
    return [(start, end) for window in windows for start, end in window["segments"]]


def distance(join: Seconds, spans: Sequence[tuple[Seconds, Seconds]]) -> Seconds:
    """From a time to the nearest pause between spans; 0 inside of one."""
    pauses = [(first[1], second[0]) for first, second in pairwise(spans)]
    return min((max(start - join, join - end, 0.0) for start, end in pauses), default=float("inf"))


def frames_of(spans: Sequence[tuple[Seconds, Seconds]], count: int) -> np.ndarray:
    """Which 20 ms frames lie in spans."""
    heard = np.zeros(count, bool)
    for start, end in spans:
        heard[round(start * 50) : round(end * 50)] = True
    return heard


def certainly_speech(wave: Float[np.ndarray, " n"]) -> np.ndarray:
    """Which 20 ms frames are loud."""
    power = np.square(wave[: len(wave) // FRAME * FRAME].reshape(-1, FRAME)).mean(1)
    level = 10 * np.log10(power + 1e-10)
    return np.asarray(level >= np.percentile(level, 95) - LOUD_DB)


if __name__ == "__main__":
    main("Segmentation", run, data="")
