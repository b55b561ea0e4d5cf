"""`transcribe` against WhisperX called file by file, on many short files and on one long one; two workers against one.

python -m benchmarks.transcription

The voices are the demo's, the models the bundled ones, with their loading on both sides. WhisperX gets the samples;
what `transcribe` does besides (reading, resampling, checking times, writing, starting its workers) counts against it.
"""

import argparse
import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import yaml

from benchmarks.report import Figure, main
from demo.corpus import SAMPLE_RATE, make_voice, record
from valle2.config.params import parse_config
from valle2.corpus.ingest import ingest
from valle2.corpus.transcribe import transcribe

VOICES = 8
PLACES = ["kitchen", "garden", "harbour", "old town", "valley", "library", "station", "forest", "market", "hotel"]
THINGS = ["a red house", "three small birds", "my brother", "a long train", "the green door", "an empty glass"]
PEOPLE = ["The doctor", "Peter", "Our teacher", "Nobody", "Her sister", "The farmer", "A young man", "Everybody"]


def run(options: argparse.Namespace) -> Sequence[Figure]:
    """All figures; each way is timed once on each corpus, one right after the other."""
    options.out = options.out.absolute()
    times: dict[tuple[str, str], float] = {}
    repository = Path.cwd()
    with tempfile.TemporaryDirectory() as name:
        os.environ["VALLE2_HOME"] = str(Path(name) / "home")
        corpora = write(Path(name), options.files)
        models = [(repository / "demo/models" / kind).as_posix() for kind in ("whisper", "aligner")]
        for corpus, folder in corpora.items():
            os.chdir(folder)
            ingest(parse_config({}))
            for workers in (2, 1):
                times[corpus, f"{workers} workers"] = ours(workers, models)
            times[corpus, "whisperx"] = theirs(folder, models, options.batch)
        os.chdir(options.out.anchor)
    gained = times["short", "1 workers"] / times["short", "2 workers"]
    alone = {corpus: times[corpus, "whisperx"] / times[corpus, "2 workers"] for corpus in corpora}
    return [
        *(Figure(f"{corpus}: {way}", seconds, "s") for (corpus, way), seconds in times.items()),
        Figure(f"{options.files} short files, WhisperX / transcribe", alone["short"], "times", 1.3),
        Figure("one long file, transcribe / WhisperX", 1 / alone["long"], "times", 1.05, False),
        Figure("short files, one worker / two", gained, "times", 1.7),
    ]


def write(folder: Path, count: int) -> dict[str, Path]:
    """So many files of one or two sentences, and one file of them all."""
    rng = np.random.default_rng(0)
    waves = []
    short, long = folder / "short", folder / "long"
    for index in range(count):
        said = [
            f"{rng.choice(PEOPLE)} saw {rng.choice(THINGS)} in the {rng.choice(PLACES)}."
            for _ in range(int(rng.integers(1, 3)))
        ]
        wave = record(make_voice(index % VOICES), said, rng).samples
        target = short / f"data/audio/s{index % VOICES}/u{index:04d}.wav"
        target.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(target, wave, SAMPLE_RATE)
        waves.append(wave)
    (long / "data/audio/s0").mkdir(parents=True)
    soundfile.write(long / "data/audio/s0/all.wav", np.concatenate(waves), SAMPLE_RATE)
    source = {"name": "voices", "path": "audio", "licence": "CC0-1.0", "consent": {"basis": "none needed: synthetic"}}
    for corpus in (short, long):
        (corpus / "data/sources.yaml").write_text(yaml.safe_dump({"sources": [source]}))
    return {"short": short, "long": long}


def ours(workers: int, models: Sequence[str]) -> float:
    """Seconds of the stage, with nothing known from before."""
    shutil.rmtree(Path(os.environ["VALLE2_HOME"]) / "ledger", ignore_errors=True)
    config = parse_config(
        {"runtime": {"num_threads": workers}, "transcribe": {"model": models[0], "aligner": models[1]}}
    )
    start = time.perf_counter()
    transcribe(config)
    return time.perf_counter() - start


def theirs(folder: Path, models: Sequence[str], batch_size: int) -> float:
    """Seconds of WhisperX's own calls, as its command makes them, on two threads."""
    import torch
    import whisperx

    torch.set_num_threads(2)
    files = sorted((folder / "data/audio").rglob("*.wav"))
    start = time.perf_counter()
    asr = whisperx.load_model(
        models[0], "cpu", compute_type="int8", language="en", threads=2,
        asr_options={"suppress_tokens": [], "suppress_blank": False},
    )  # fmt: skip
    aligner, about = whisperx.load_align_model("en", "cpu", model_name=models[1])
    for path in files:
        samples = load(path)
        found: dict[str, Any] = asr.transcribe(samples, batch_size=batch_size, chunk_size=8)
        whisperx.align(found["segments"], aligner, about, samples, "cpu")
    return time.perf_counter() - start


def load(path: Path) -> np.ndarray:
    """Samples at WhisperX's rate, without the process that its own loader starts for each file."""
    from scipy.signal import resample_poly

    samples, _ = soundfile.read(path, dtype="float32")
    return np.ascontiguousarray(resample_poly(samples, 2, 3), np.float32)


if __name__ == "__main__":
    main("Transcription", run, files=500, batch=8)
