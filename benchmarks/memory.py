"""Peak memory of the data stages on a corpus and on one ten times as large.

python -m benchmarks.memory

Each stage runs as its command does; what counts is the most that it and its workers held at once (proportional set
size, so that what they share counts once). The smaller corpus keeps all workers busy.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
import yaml

from benchmarks.report import Figure, main
from benchmarks.transcription import write

STAGES = ("ingest", "transcribe", "curate", "tokenize")
TIMES = 10
_LOOK = 0.2


def run(options: argparse.Namespace) -> Sequence[Figure]:
    """MB of each stage on both corpora, and how many times more the larger one takes."""
    root = Path.cwd()
    peaks: dict[tuple[str, int], float] = {}
    with tempfile.TemporaryDirectory() as name:
        for times in (1, TIMES):
            folder = write(Path(name) / str(times), options.files * times)["short"]
            parameters = {
                "runtime": {"num_threads": options.threads},
                "transcribe": {kind: str(root / "demo/models" / own) for kind, own in MODELS.items()},
                "curate": {
                    "min_dnsmos": 1.0, "max_bit_error": 0, "test_speakers": 1, "dev_speakers": 1, "vocab_size": 60,
                },
                "tokenize": {"codec": str(root / "demo/models/encodec")},
            }  # fmt: skip
            (folder / "params.yaml").write_text(yaml.safe_dump(parameters))
            for stage in STAGES:
                peaks[stage, times] = peak(stage, folder, root, folder / "home")
    figures = []
    for stage in STAGES:
        few, many = peaks[stage, 1], peaks[stage, TIMES]
        figures.append(Figure(f"{stage}: {options.files} files", few, "MB"))
        figures.append(Figure(f"{stage}: {TIMES} times as many / one time", many / few, "times", 1.2, False))
    return figures


MODELS = {"model": "whisper", "aligner": "aligner"}


def peak(stage: str, folder: Path, root: Path, home: Path) -> float:
    """MB."""
    environment = {**os.environ, "PYTHONPATH": str(root), "VALLE2_HOME": str(home), "OMP_NUM_THREADS": "1"}
    most = 0.0
    with subprocess.Popen([sys.executable, "-m", "valle2.cli", stage], cwd=folder, env=environment) as process:
        while process.poll() is None:
            most = max(most, held(process.pid))
            time.sleep(_LOOK)
    if process.returncode:
        raise SystemExit(f"{stage} ended with {process.returncode}")
    return most / 1e6


def held(pid: int) -> float:
    """Bytes of a process and its children."""
    total = 0.0
    try:
        parent = psutil.Process(pid)
        for process in (parent, *parent.children(recursive=True)):
            total += process.memory_full_info().pss
    except psutil.Error:
        return total
    return total


if __name__ == "__main__":
    main("Memory", run, files=150)
