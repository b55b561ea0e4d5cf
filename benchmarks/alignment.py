"""Word times of many sentences: `valle2.aligner`, batched by length, against WhisperX's own, one by one.

python -m benchmarks.alignment

The voices are the demo's, the model is the bundled one, already loaded on both sides; both have the same threads.
"""

import argparse
import time
from collections.abc import Sequence

import numpy as np
import whisperx
from scipy.signal import resample_poly

from benchmarks.report import Figure, main
from benchmarks.transcription import PEOPLE, PLACES, THINGS, VOICES
from demo.corpus import make_voice, record
from valle2.aligner import load_aligner
from valle2.asr import ASR_RATE, Window
from valle2.bundled import bundled


def run(options: argparse.Namespace) -> Sequence[Figure]:
    """Both ways in turns; `--repeats` of them, of which the fastest count."""
    windows, waves = speak(options.sentences)
    ours = load_aligner("bundled", "en", "cpu", options.batch)
    model, about = whisperx.load_align_model("en", "cpu", model_name=str(bundled("aligner")))
    times: dict[str, list[float]] = {"ours": [], "whisperx": []}
    for _ in range(options.repeats):
        start = time.perf_counter()
        found = ours.align(windows, waves)
        times["ours"].append(time.perf_counter() - start)
        start = time.perf_counter()
        theirs = [
            whisperx.align([{"text": own.text, "start": own.start, "end": own.end}], model, about, wave, "cpu")
            for own, wave in zip(windows, waves, strict=True)
        ]
        times["whisperx"].append(time.perf_counter() - start)
    same = sum(
        [(word.start, word.end) for sentence in own for word in sentence.words]
        == [(word.get("start"), word.get("end")) for part in other["segments"] for word in part["words"]]
        for own, other in zip(found, theirs, strict=True)
    )
    return [
        Figure("audio", sum(map(len, waves)) / ASR_RATE, "s"),
        *(Figure(way, min(own), "s") for way, own in times.items()),
        Figure("WhisperX / ours", min(times["whisperx"]) / min(times["ours"]), wanted=1.5),
        Figure("sentences with the same times", same / len(windows), "share"),
    ]


def speak(count: int) -> tuple[list[Window], list[np.ndarray]]:
    """So many sentences by several voices."""
    rng = np.random.default_rng(0)
    windows, waves = [], []
    for index in range(count):
        text = f"{rng.choice(PEOPLE)} saw {rng.choice(THINGS)} in the {rng.choice(PLACES)}."
        samples = record(make_voice(index % VOICES), [text], rng).samples / 32_768
        waves.append(np.ascontiguousarray(resample_poly(samples, 2, 3), np.float32))
        windows.append(Window(text, 0.0, len(waves[-1]) / ASR_RATE))
    return windows, waves


if __name__ == "__main__":
    main("Alignment", run, sentences=200, batch=4)
