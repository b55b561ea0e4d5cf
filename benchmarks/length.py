"""How the AR stage grows with the length of the speech: time per second of speech should stay the same.

python -m benchmarks.length

Turns at several places of a 40 s utterance are timed in rotation, and a length's time is prefill and the turns up to
its end, those between two places interpolated. To speak 40 s takes minutes, in which the machine itself changes more
than what is measured.
"""

import argparse
import statistics
import time
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from benchmarks.report import Figure, main
from benchmarks.timing import FRAME_RATE, build_ar, inputs
from valle2.decoding import decode_groups
from valle2.model.ar import ARModel
from valle2.model.sampling import Sampling

LENGTHS = (2.0, 5.0, 10.0, 20.0, 40.0)
PLACES = (0.0, 5.0, 10.0, 15.0, 20.0, 25.0, 30.0, 35.0, 40.0)
"""Seconds of speech after which turns are timed."""
TURNS, ROUNDS = 3, 8
"""Turns timed in a row, and how often the rotation goes round for each of `--repeats`."""
BOUND = 0.15


def run(options: argparse.Namespace) -> Sequence[Figure]:
    """All figures; a deviation is that of the time per second from its mean over the lengths."""
    ar = build_ar(options)
    num_turns = TURNS * ROUNDS * options.repeats
    speeches = {place: _spoken(ar, place, num_turns) for place in PLACES}
    prefill = statistics.median(_prefill_seconds(ar) for _ in range(max(options.repeats, 3)))
    times: dict[float, list[float]] = {place: [] for place in PLACES}
    for speech in speeches.values():
        next(speech)
    for _ in range(ROUNDS * options.repeats):
        for place, speech in speeches.items():
            for _ in range(TURNS):
                start = time.perf_counter()
                next(speech)
                times[place].append(time.perf_counter() - start)
    turns = {place: statistics.median(values) for place, values in times.items()}
    factors = {}
    for length in LENGTHS:
        places = (np.arange(round(length * FRAME_RATE)) + 0.5) / FRAME_RATE
        factors[length] = (prefill + np.interp(places, PLACES, list(turns.values())).sum()) / length
    mean = statistics.mean(factors.values())
    worst = max(abs(factor / mean - 1) for factor in factors.values())
    return [
        Figure("prefill", prefill, "s"),
        *(Figure(f"a turn after {place:g} s", 1000 * value, "ms") for place, value in turns.items()),
        *(Figure(f"AR time per second of speech, {length:g} s", factor, "s") for length, factor in factors.items()),
        Figure("largest deviation from the mean", worst, "share", BOUND, False),
    ]


def _spoken(ar: ARModel, place: float, num_turns: int) -> Iterator[object]:
    """Turns of an utterance that has been going on for `place` seconds."""
    text, lengths, [prompt] = inputs(1)
    said = torch.randint(0, 1024, (8, round(place * FRAME_RATE)), generator=torch.Generator().manual_seed(2))
    return decode_groups(ar, text, lengths, [torch.cat([prompt, said], 1)], [0], Sampling(), num_turns + 2)


def _prefill_seconds(ar: ARModel) -> float:
    start = time.perf_counter()
    next(_spoken(ar, 0.0, 1))
    return time.perf_counter() - start


if __name__ == "__main__":
    main("Cost against length", run)
