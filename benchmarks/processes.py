"""What two processes cost on the cores of one, and what an asynchronous checkpoint costs training.

python -m benchmarks.processes

One process with all threads and two with half of them each do the same updates (the same global batch, two
micro-batches) in turns; the best of each counts. A checkpoint is saved behind an update; how long `save` holds training
up, and how much longer the updates take while it is written, is compared with updates without one.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks import lengths
from benchmarks.report import Figure, main
from benchmarks.training import build, configure, middle
from valle2.training.checkpoint import Checkpoints
from valle2.training.data import collate
from valle2.training.distributed import FRESH_STORE, Ranks, Shared, join_ranks
from valle2.training.efficiency import keep_freed_memory
from valle2.training.step import train_step

CHECKPOINT_EVERY = 50
"""Updates, of the bound on what a checkpoint costs."""
COUNTED = 2
"""Updates that are timed each time; one before them warms up."""


def run(options: argparse.Namespace) -> Sequence[Figure]:
    """All figures."""
    return [*processes(options), *checkpoints(options)]


def processes(options: argparse.Namespace) -> list[Figure]:
    """Frames a second of one process, and of two with DDP and FSDP."""
    kinds = {"one": (1, "ddp"), "two, DDP": (2, "ddp"), "two, FSDP": (2, "fsdp")}
    best = dict.fromkeys(kinds, 0.0)
    for _ in range(options.repeats):
        for name, (count, strategy) in kinds.items():
            best[name] = max(best[name], measure(options, count, strategy))
            print(f"{name}: {best[name]:.0f} frames/s", flush=True)
    return [
        Figure("frames a second: two processes (DDP) / one", best["two, DDP"] / best["one"], "times", 0.9),
        Figure("frames a second: two processes (FSDP) / one", best["two, FSDP"] / best["one"], "times"),
    ]


def measure(options: argparse.Namespace, count: int, strategy: str) -> float:
    """Frames a second of that many processes."""
    keys = ("layers", "dim", "frames", "utterances", "threads")
    settings = json.dumps({key: getattr(options, key) for key in keys} | {"strategy": strategy})
    start = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    program = [sys.executable, *start, str(Path(__file__)), settings]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1]), FRESH_STORE: "1"}
    environment["OMP_NUM_THREADS"] = str(options.threads // count)
    done = subprocess.run(program, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return float(done.stdout.split("frames/s:")[1].split()[0])


def rank(settings: dict[str, str | int]) -> None:
    """What each process does: updates of two micro-batches, its share of them."""
    options = argparse.Namespace(**settings)
    keep_freed_memory()
    with lengths.corpus(options) as corpus, join_ranks("cpu") as ranks:
        torch.set_num_threads(options.threads // ranks.world_size)
        torch.manual_seed(0)
        batches = lengths.ours(corpus, options.frames)
        chosen = [batches[i] for i in middle(batches, 2 * (COUNTED + 1))]
        state, objective = build("ar", configure(options, options.layers))
        shared = Shared(state.model, ranks, options.strategy)
        frames, spent = 0, 0.0
        for turn in range(COUNTED + 1):
            both = [collate(corpus, rows, 1) for rows in chosen[2 * turn : 2 * turn + 2]]
            ranks.barrier()
            start = time.perf_counter()
            train_step(state, shared, both[ranks.rank :: ranks.world_size], objective, ranks, 0)
            ranks.barrier()
            if turn:
                spent += time.perf_counter() - start
                frames += sum(batch.num_frames for batch in both)
        if ranks.is_main:
            print(f"frames/s: {frames / spent}", flush=True)


def checkpoints(options: argparse.Namespace) -> list[Figure]:
    """Time that a checkpoint takes away from updates."""
    keep_freed_memory()
    options.out.mkdir(parents=True, exist_ok=True)  # a disk; the system's temporary folder may be memory
    with lengths.corpus(options) as corpus, tempfile.TemporaryDirectory(dir=options.out) as place:
        batches = lengths.ours(corpus, options.frames)
        batch = collate(corpus, batches[len(batches) // 2], 1)
        state, objective = build("ar", configure(options, options.layers))
        shared = Shared(state.model, Ranks(), "ddp")
        kept = Checkpoints(Path(place), {}, 1, Ranks())

        def update() -> float:
            start = time.perf_counter()
            train_step(state, shared, [batch], objective, Ranks(), 0)
            return time.perf_counter() - start

        update()
        quiet, held, whole = [], [], []
        for _ in range(options.repeats):
            quiet += [update(), update()]
            start = time.perf_counter()
            kept.save(state)
            held.append(time.perf_counter() - start)
            extra = held[-1]
            while kept.is_writing:
                extra += update() - min(quiet)
            kept.wait()
            whole.append(extra)
            print(f"save {held[-1]:.2f} s, updates {min(quiet):.2f} s, in all {extra:.2f} s more", flush=True)
        size = sum(file.stat().st_size for file in Path(place).rglob("*") if file.is_file())
    step = statistics.median(quiet)
    every = CHECKPOINT_EVERY * step
    return [
        Figure("checkpoint", size / 1e9, "GB"),
        Figure("a checkpoint holds training up, of an update", statistics.median(held) / step, "share"),
        Figure(f"the same, of {CHECKPOINT_EVERY} updates", statistics.median(held) / every, "share", 0.05, False),
        Figure(f"with slower updates while it is written, of {CHECKPOINT_EVERY}", statistics.median(whole) / every,
               "share", 0.05, False),
    ]  # fmt: skip


if __name__ == "__main__":
    if "RANK" in os.environ:
        rank(json.loads(sys.argv[1]))
    else:
        main("Processes and checkpoints", run, training=True, frames=3000, utterances=1000)
