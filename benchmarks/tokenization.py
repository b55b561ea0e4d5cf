"""`tokenize` against the encodec package called file by file on the same audio; two workers against one.

python -m benchmarks.tokenization

The model is of the genuine 24 kHz shape with random weights. The package gets the samples; what `tokenize` does besides
(starting its workers, writing audio and codes to shards and reading them back) counts against it.
"""

import argparse
import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import soundfile
import torch
from lhotse import AudioSource, MonoCut, Recording, SupervisionSegment

from benchmarks.encoding import build, utterances
from benchmarks.report import Figure, main
from valle2.config.params import parse_config
from valle2.corpus.journal import write_jsonl
from valle2.corpus.tokenize import tokenize
from valle2.shards import load_codes, read_shards
from valle2.stage import output

RATE = 24_000


def run(options: argparse.Namespace) -> Sequence[Figure]:
    """All ways in turns; `--repeats` of them, of which the fastest count."""
    options.out = options.out.absolute()
    times: dict[str, list[float]] = {"package": [], "2 workers": [], "1 worker": []}
    with tempfile.TemporaryDirectory() as name:
        os.chdir(name)
        os.environ["VALLE2_HOME"] = str(Path(name) / "home")
        torch.save(build().state_dict(), "encodec_24khz-random.th")
        files = write()
        for _ in range(options.repeats):
            times["2 workers"].append(ours(2))
            times["package"].append(theirs(files, options.threads))
            times["1 worker"].append(ours(1))
        alone = build().eval()
        with torch.inference_mode():
            same = sum(
                torch.equal(
                    alone.encode(torch.from_numpy(cut.load_audio())[None])[0][0][0],
                    torch.from_numpy(load_codes(cut)).long(),
                )
                for cut in read_shards(output("tokenize"), "train")
            )
        os.chdir(options.out.anchor)
    best = {way: min(own) for way, own in times.items()}
    return [
        *(Figure(way, seconds, "s") for way, seconds in best.items()),
        Figure("package one by one / two workers", best["package"] / best["2 workers"], wanted=2),
        Figure("package one by one / one worker", best["package"] / best["1 worker"]),
        Figure("one worker / two", best["1 worker"] / best["2 workers"], wanted=1.7),
        Figure("utterances with identical tokens", same / len(files), "share", 1.0),
    ]


def write() -> list[Path]:
    """The utterances as files, and as curated cuts."""
    rows, files = [], []
    Path("audio").mkdir()
    for index, wave in enumerate(utterances()):
        path, name, seconds = Path(f"audio/{index:03d}.wav"), f"u-{index:03d}", len(wave) / RATE
        soundfile.write(path, wave.numpy(), RATE, "PCM_16")
        recording = Recording(name, [AudioSource("file", [0], str(path))], RATE, len(wave), seconds, channel_ids=[0])
        about = SupervisionSegment(name, name, 0.0, seconds, 0, text="noise", language="en", speaker="nobody")
        cut = MonoCut(name, 0.0, seconds, 0, [about], recording=recording, custom={"source": "noise", "sha256": name})
        rows.append(cut.to_dict())
        files.append(path)
    for split, own in {"train": rows, "dev": [], "test": []}.items():
        write_jsonl(output("curate") / f"{split}.jsonl", own)
    return files


def ours(workers: int) -> float:
    """Seconds of the stage, with nothing known from before."""
    shutil.rmtree(Path(os.environ["VALLE2_HOME"]), ignore_errors=True)
    config = parse_config(
        {
            "runtime": {"num_threads": workers},
            "tokenize": {"codec": "encodec_24khz-random.th", "part_seconds": 120},
        }
    )  # fmt: skip
    start = time.perf_counter()
    tokenize(config)
    return time.perf_counter() - start


def theirs(files: Sequence[Path], threads: int) -> float:
    """Seconds of the package's own calls."""
    model = build().eval()
    torch.set_num_threads(threads)
    start = time.perf_counter()
    with torch.inference_mode():
        for path in files:
            samples, _ = soundfile.read(path, dtype="float32")
            model.encode(torch.from_numpy(samples)[None, None])
    return time.perf_counter() - start


if __name__ == "__main__":
    main("Tokenization", run)
