"""The AR decode step: with the cache against without, against memory bandwidth, and by precision of the weights.

python -m benchmarks.decoding
"""

import argparse
import statistics
import time
from collections.abc import Sequence

import torch

from benchmarks.report import Figure, main
from benchmarks.timing import (
    FRAME_RATE,
    PROMPT_FRAMES,
    TEXT_TOKENS,
    ar_seconds,
    build_ar,
    bytes_read,
    inputs,
    median_seconds,
)
from valle2.decoding import pad
from valle2.model.ar import ARModel
from valle2.model.inference import Weights, has_bfloat16

SECONDS = 10.0
STEPS = 40
PLACES = 6
"""Lengths at which decoding without a cache is timed; the rest is interpolated, as it would take half an hour."""


def step_seconds(ar: ARModel, batch_size: int = 1) -> float:
    """Median wall time of one decode step in the middle of ten seconds."""
    text, lengths, prompts = inputs(batch_size)
    middle = int(SECONDS * FRAME_RATE / 2)
    codes = [torch.cat([prompt[0], torch.randint(0, 1024, (middle,))]) for prompt in prompts]
    padded, num_frames = pad(codes, text.device)
    _, cache = ar.prefill(text, lengths, padded, num_frames, STEPS)
    times = []
    for step in range(STEPS):
        start = time.perf_counter()
        ar.decode_one_group(torch.randint(0, 1024, (batch_size, 1)), num_frames + step, cache)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def uncached_seconds(ar: ARModel) -> float:
    """Wall time of ten seconds of speech when every step reads everything again."""
    text, lengths, prompts = inputs(1)
    num_new = int(SECONDS * FRAME_RATE)
    places = [round(num_new * (i + 0.5) / PLACES) for i in range(PLACES)]
    total = 0.0
    for place in places:
        codes = torch.cat([prompts[0][0], torch.randint(0, 1024, (place,))])[None]
        start = time.perf_counter()
        ar.prefill(text, lengths, codes, torch.tensor([codes.shape[1]]), 0)
        total += time.perf_counter() - start
    return total / PLACES * num_new


def bandwidths(num_bytes: int, repeats: int) -> tuple[float, float]:
    """Bytes per second of copying (each byte counted once) and of reading a buffer that no cache holds."""
    source = torch.ones(num_bytes // 4)
    target = torch.empty_like(source)
    copying = median_seconds(lambda: target.copy_(source), repeats + 2)
    reading = median_seconds(lambda: source.sum(), repeats + 2)
    return num_bytes / copying, num_bytes / reading


def run(options: argparse.Namespace) -> Sequence[Figure]:
    """All figures; the precisions are timed in turns, so that a slow moment of the machine hits all of them."""
    kinds: list[Weights] = ["float32", "bfloat16", "int8"] if has_bfloat16() else ["float32", "int8"]
    steps: dict[str, list[float]] = {kind: [] for kind in kinds}
    for _ in range(options.repeats):
        for kind in kinds:
            steps[kind].append(step_seconds(build_ar(options, weights=kind)))
    step = {kind: statistics.median(values) for kind, values in steps.items()}
    length = TEXT_TOKENS + 2 + PROMPT_FRAMES + SECONDS * FRAME_RATE / 2
    read = bytes_read(options, 1, 4, 1, length)
    copying, reading = bandwidths(int(read), options.repeats)
    ar = build_ar(options)
    cached = ar_seconds(ar, SECONDS)
    uncached = uncached_seconds(ar)
    batched = step_seconds(ar, 8)
    faster = {"bfloat16": 1.6, "int8": 2.5}
    return [
        Figure("without the cache / with it, 10 s of speech", uncached / cached, wanted=12),
        Figure("step, float32", 1e3 * step["float32"], "ms"),
        Figure("weights and cache read in a step", read / 1e9, "GB"),
        Figure("copy bandwidth", copying / 1e9, "GB/s"),
        Figure("read bandwidth", reading / 1e9, "GB/s"),
        Figure("step / (bytes read / copy bandwidth)", step["float32"] * copying / read, wanted=1.4, at_least=False),
        Figure("step / (bytes read / read bandwidth)", step["float32"] * reading / read),
        *(Figure(f"float32 / {kind}", step["float32"] / step[kind], wanted=faster[kind]) for kind in kinds[1:]),
        Figure("steps of a batch of 8 in the time of 8 / batch 1", 8 * step["float32"] / batched, wanted=4.5),
    ]


if __name__ == "__main__":
    main("AR decode step", run)
