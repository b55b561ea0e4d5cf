"""How close a training step comes to the hardware, and what batching, grouping and checkpointed blocks save.

python -m benchmarks.training

Model FLOPs utilisation: FLOPs of the model (`valle2.training.flops`) in a step's time, against the fastest of several
large matrix products in the same process, on the same threads and in turns with the steps. Of all timings the best
counts, of products and of steps alike: others may use the machine meanwhile. On one that is never quiet `--clock cpu`
with OMP_WAIT_POLICY=PASSIVE takes the process's own time in place of the wall's.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from benchmarks import lengths
from benchmarks.report import Figure, main
from valle2.config.params import Config, parse_config
from valle2.model.layers import TransformerShape
from valle2.training.checkpoint import TrainState
from valle2.training.data import Batch, Corpus, Utterance, collate
from valle2.training.distributed import Ranks, Shared
from valle2.training.efficiency import apply, keep_freed_memory
from valle2.training.flops import PEAK_SHAPES, ar_flops, nar_flops, product_flops
from valle2.training.loop import new_state
from valle2.training.objective import AR, NAR, CodecFacts, Objective
from valle2.training.step import native_bf16, train_step

CODEC = CodecFacts("none", "0" * 64, "0" * 64, 24000, lengths.FRAME_RATE, 8, 1024)
VOCAB_SIZE = 4000
Batches = list[list[list[Utterance]]]


def run(options: argparse.Namespace) -> Sequence[Figure]:
    """All figures."""
    keep_freed_memory()
    with lengths.corpus(options) as corpus:
        batches = lengths.ours(corpus, options.frames)
        figures = [
            *padding(options, corpus, batches, "LibriSpeech-like"),
            *utilisation(options, corpus, batches),
            *grouped(options, corpus, batches),
        ]
    if options.data:
        with lengths.corpus(options, options.data) as corpus:
            figures += padding(options, corpus, lengths.ours(corpus, options.frames), "given recordings")
    return [*figures, *memory(options)]


def configure(options: argparse.Namespace, layers: int, group_size: int = 1, **settings: bool) -> Config:
    """Parameters of a size, by default base."""
    shape = {"size": "base", "num_layers": layers, "dim": options.dim, "num_heads": max(options.dim // 64, 1),
             "ffn_dim": 4 * options.dim}  # fmt: skip
    model = {"group_size": group_size, "ar": shape, "nar": shape}
    return parse_config({"model": model, "train_ar": settings, "train_nar": settings})


def build(kind: str, config: Config) -> tuple[TrainState, Objective]:
    """A model with random weights, its optimiser and its objective."""
    objective: Objective = (AR if kind == "ar" else NAR)(config, CODEC)
    state = new_state(objective.build(VOCAB_SIZE).train(), objective.train)
    apply(state.model, objective.train, kind)
    return state, objective


def step_seconds(state: TrainState, objective: Objective, batch: Batch, clock: str) -> float:
    """Time of one update: forward, backward, clipping, AdamW."""
    now = {"wall": time.perf_counter, "cpu": lambda: time.process_time() / torch.get_num_threads()}[clock]
    start = now()
    train_step(state, Shared(state.model, Ranks(), "ddp"), [batch], objective, Ranks(), 0)
    return now() - start


def middle(batches: Batches, count: int) -> list[int]:
    """The numbers of some batches, evenly from the corpus's order."""
    return [round(i) for i in np.linspace(0, len(batches) - 1, count)]


def utilisation(options: argparse.Namespace, corpus: Corpus, batches: Batches) -> list[Figure]:
    """MFU of both models, plain and compiled; products and steps in turns."""
    bf16 = native_bf16(torch.device("cpu"))
    dtype = torch.bfloat16 if bf16 else torch.float32
    # A batch of middling rows.
    rows = sorted(batches, key=lambda batch: max(one.num_frames for row in batch for one in row))[len(batches) // 2]
    peaks, figures = [], []
    for kind in ("ar", "nar"):
        for compiled in (False, True):
            state, objective = build(kind, configure(options, options.layers, compile=compiled))
            batch = collate(corpus, rows, 1)
            step_seconds(state, objective, batch, options.clock)
            times = []
            for _ in range(options.repeats):
                peaks.append(product_flops(dtype, PEAK_SHAPES, 2, options.clock))
                times.append(step_seconds(state, objective, batch, options.clock))
            flops = model_flops(kind, objective, batch)
            name = f"{kind.upper()}{', compiled' if compiled else ''}"
            print(f"{name}: {batch.num_frames} frames, {flops / 1e12:.2f} TFLOP, steps", *(f"{t:.2f}" for t in times),
                  "s, products", *(f"{peak / 1e9:.0f}" for peak in peaks), "GFLOP/s", flush=True)  # fmt: skip
            figures.append((name, flops / min(times), min(times), batch.num_frames))
            del state
    peak = max(peaks)
    return [
        Figure("largest rate of a product", peak / 1e9, "GFLOP/s"),
        *(Figure(f"model FLOPs utilisation, {name}", rate / peak, "share", 0.55) for name, rate, _, _ in figures),
        *(Figure(f"frames a second, {name}", frames / spent, "frames/s") for name, _, spent, frames in figures),
    ]


def model_flops(kind: str, objective: Objective, batch: Batch) -> float:
    """Of a batch, the NAR model's conditions at their longest."""
    text, codes = batch.text_lengths.tolist(), batch.code_lengths.tolist()
    sizes = TransformerShape(**objective.shape.model_dump())
    return ar_flops(sizes, text, codes, objective.group_size) if kind == "ar" else nar_flops(sizes, text, codes)


def padding(options: argparse.Namespace, corpus: Corpus, batches: Batches, name: str) -> list[Figure]:
    """Padding of our batches and of others, and frames a second of all, in turns.

    Others are random rows padded to the longest of each batch, and random rows in a rectangle of one size for all
    batches, which the longest row of the corpus fits.
    """
    kinds = {
        "ours": batches,
        "random": lengths.at_random(batches, options.frames),
        "fixed": lengths.of_fixed_size(batches, options.frames),
    }
    every = [row for batch in batches for row in batch]
    longest = max(sum(one.num_frames for one in row) for row in every)
    most_text = max(sum(len(one.text) for one in row) for row in every)
    state, objective = build("ar", configure(options, min(options.layers, 3)))
    seen, spent = dict.fromkeys(kinds, 0), dict.fromkeys(kinds, 0.0)
    step_seconds(state, objective, collate(corpus, batches[0], 1), options.clock)
    for turn in range(options.batches):
        for kind, those in kinds.items():
            batch = collate(corpus, those[middle(those, options.batches)[turn]], 1)
            seen[kind] += batch.num_frames
            filled = lengths.fill(batch, longest, most_text) if kind == "fixed" else batch
            spent[kind] += step_seconds(state, objective, filled, options.clock)
    rates = {kind: seen[kind] / spent[kind] for kind in kinds}
    real = sum(sum(one.num_frames for one in row) for row in every) / (longest * len(every))
    return [
        Figure(f"padding share, {name}", lengths.padding_share(batches), "share", 0.08, False),
        Figure(f"padding share of random batches, {name}", lengths.padding_share(kinds["random"]), "share"),
        Figure(f"padding share of batches of fixed size, {name}", 1 - real, "share"),
        Figure(f"frames a second: our batches / fixed size, {name}", rates["ours"] / rates["fixed"], "times", 1.5),
        Figure(f"frames a second: our batches / random ones, {name}", rates["ours"] / rates["random"], "times"),
    ]


def grouped(options: argparse.Namespace, corpus: Corpus, batches: Batches) -> list[Figure]:
    """An epoch of the AR model with G = 1 and with G = 4, some of its batches in turns."""
    cases = {size: build("ar", configure(options, options.layers, size)) for size in (1, 4)}
    times = dict.fromkeys(cases, 0.0)
    for number in middle(batches, options.repeats):
        for size, (state, objective) in cases.items():
            times[size] += step_seconds(state, objective, collate(corpus, batches[number], size), options.clock)
    return [Figure("an epoch of AR with G = 1 / with G = 4", times[1] / times[4], "times", 2.0)]


def memory(options: argparse.Namespace) -> list[Figure]:
    """Peak memory of two updates with checkpointed blocks and without, each in a process of its own."""
    found = []
    for checkpointing in (False, True):
        sizes = f"{options.layers}, {options.dim}, {options.frames}, {options.threads}, {checkpointing}"
        script = f"from benchmarks.training import peak_memory; print(*peak_memory({sizes}))"
        done = subprocess.run([sys.executable, "-c", script], check=True, stdout=subprocess.PIPE, text=True)
        found.append([float(word) for word in done.stdout.split()])
    (plain, plain_time), (kept, kept_time) = found
    return [
        Figure("peak memory of a training, at most 6 layers", plain / 1e9, "GB"),
        Figure("peak memory: checkpointed blocks / plain ones", kept / plain, "times"),
        Figure("step: checkpointed blocks / plain ones", kept_time / plain_time, "times"),
    ]


def peak_memory(layers: int, dim: int, frames: int, threads: int, checkpointing: bool) -> tuple[float, float]:
    """Bytes, what was there before the model aside, and the faster step's seconds."""
    options = argparse.Namespace(layers=layers, dim=dim, frames=frames, threads=threads, utterances=500, clock="wall")
    torch.set_num_threads(options.threads)
    before = highest_memory()
    with lengths.corpus(options) as corpus:
        rows = lengths.ours(corpus, options.frames)[0]
        config = configure(options, min(options.layers, 6), activation_checkpointing=checkpointing)
        state, objective = build("ar", config)
        batch = collate(corpus, rows, 1)
        spent = min(step_seconds(state, objective, batch, options.clock) for _ in range(2))
    return highest_memory() - before, spent


def highest_memory() -> float:
    """Bytes; getrusage would go on from the parent's."""
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return 1024.0 * int(line.split()[1])


if __name__ == "__main__":
    main("Training", run, training=True, frames=6000, utterances=2000, batches=6, data="", clock="wall")
