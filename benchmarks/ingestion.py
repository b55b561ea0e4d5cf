"""Files a second that `ingest` takes in: new ones, and those whose bytes it has seen before; and whether it is linear.

python -m benchmarks.ingestion

Small WAV files of one second each, of 200 speakers, in a folder of their own below the system's temporary one.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile
import yaml

from benchmarks.report import Figure, main
from valle2.config.params import parse_config
from valle2.corpus.ingest import ingest

RATE, SPEAKERS = 16_000, 200
FEW = 4
"""By what the number of files is divided for the smaller corpus."""


def run(options: argparse.Namespace) -> Sequence[Figure]:
    """All figures; a time is that of the whole stage."""
    options.out = options.out.absolute()
    few, many = options.files // FEW, options.files
    times: dict[tuple[int, str], float] = {}
    with tempfile.TemporaryDirectory() as name:
        for count in (few, many):
            write(Path(name) / str(count), count)
            os.chdir(Path(name) / str(count))
            for state in ("new", "seen"):
                start = time.perf_counter()
                ingest(parse_config({"runtime": {"num_threads": options.threads}}))
                times[count, state] = time.perf_counter() - start
        os.chdir(options.out.anchor)
    growth = times[many, "seen"] / times[few, "seen"] / FEW
    return [
        Figure("files", many, ""),
        Figure("new files a second", many / times[many, "new"], "1/s"),
        Figure("seen files a second", many / times[many, "seen"], "1/s", 500),
        Figure(f"time of a file among {many} / among {few}", growth, "times", 1.2, False),
    ]


def write(folder: Path, count: int) -> None:
    """A declared source of so many different files."""
    rng = np.random.default_rng(0)
    noise = (rng.normal(size=20 * RATE) * 3000).astype(np.int16)
    for index in range(count):
        wave = noise[(start := int(rng.integers(19 * RATE))) : start + RATE].copy()
        wave[:2] = index % 30_000, index // 30_000
        path = folder / "data" / "audio" / f"s{index % SPEAKERS:03d}" / f"u{index:07d}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, wave, RATE)
    source = {"name": "many", "path": "audio", "licence": "CC0-1.0", "consent": {"basis": "none needed: noise"}}
    (folder / "data" / "sources.yaml").write_text(yaml.safe_dump({"sources": [source]}))


if __name__ == "__main__":
    main("Ingestion", run, files=20_000)
