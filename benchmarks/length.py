"""How the AR stage grows with the length of the speech: time per second of speech should stay the same.

python -m benchmarks.length
"""

import argparse
import statistics
from collections.abc import Sequence

from benchmarks.report import Figure, main
from benchmarks.timing import ar_seconds, build_ar

LENGTHS = (2.0, 5.0, 10.0, 20.0, 40.0)
BOUND = 0.15


def run(options: argparse.Namespace) -> Sequence[Figure]:
    """All figures; a deviation is that of the time per second from its mean over the lengths."""
    ar = build_ar(options)
    times: dict[float, list[float]] = {seconds: [] for seconds in LENGTHS}
    ar_seconds(ar, 1.0)
    for _ in range(options.repeats):
        for seconds in LENGTHS:
            times[seconds].append(ar_seconds(ar, seconds))
    factors = {seconds: statistics.median(values) / seconds for seconds, values in times.items()}
    mean = statistics.mean(factors.values())
    worst = max(abs(factor / mean - 1) for factor in factors.values())
    return [
        *(Figure(f"AR time per second of speech, {seconds:g} s", factor, "s") for seconds, factor in factors.items()),
        Figure("largest deviation from the mean", worst, "share", BOUND, False),
    ]


if __name__ == "__main__":
    main("Cost against length", run)
