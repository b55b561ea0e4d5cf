"""What grouping saves: the whole AR stage with 2, 4 and 8 frames a group against 1, and what sampling costs.

python -m benchmarks.groups
"""

import argparse
import statistics
import time
from collections.abc import Sequence

import torch

from benchmarks.report import Figure, main
from benchmarks.timing import ar_seconds, build_ar
from valle2.model.sampling import Sampling, sample_group

SECONDS = 10.0
WANTED = {2: 1.9, 4: 3.6, 8: 6.5}


def sampling_seconds(num_groups: int) -> float:
    """Wall time of `num_groups` draws of one code each with repetition aware sampling."""
    logits, history = torch.randn(1, 1, 1025), torch.randint(0, 1024, (1, 10))
    uniforms = torch.rand(num_groups, 1, 1, 2)
    start = time.perf_counter()
    for step in range(num_groups):
        _, history = sample_group(logits, history, uniforms[step], Sampling(), 1024)
    return time.perf_counter() - start


def run(options: argparse.Namespace) -> Sequence[Figure]:
    """All figures; group sizes are timed in turns."""
    times: dict[int, list[float]] = {size: [] for size in (1, *WANTED)}
    sampling = []
    for _ in range(options.repeats):
        for size in times:
            times[size].append(ar_seconds(build_ar(options, size), SECONDS))
        sampling.append(sampling_seconds(round(SECONDS * 75)))
    median = {size: statistics.median(values) for size, values in times.items()}
    return [
        Figure("AR stage, G = 1, 10 s of speech", median[1], "s"),
        *(Figure(f"G = 1 / G = {size}", median[1] / median[size], wanted=bound) for size, bound in WANTED.items()),
        Figure(
            "sampling's share of the AR stage, G = 1", statistics.median(sampling) / median[1], "share", 0.04, False
        ),
    ]


if __name__ == "__main__":
    main("Grouped code modelling", run)
