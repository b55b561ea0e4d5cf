"""When the first audio of a stream comes, against the time that the whole utterance takes offline.

python -m benchmarks.streaming
"""

import argparse
import statistics
import time
from collections.abc import Sequence

import torch

from benchmarks.report import Figure, main
from benchmarks.timing import build_ar, build_nar
from valle2.codec import load_codec
from valle2.config.sampling import SamplingConfig
from valle2.synthesis import Request, Synthesizer
from valle2.text import train_bpe

SECONDS = 10.0


def build(options: argparse.Namespace) -> Synthesizer:
    """A voice model of random weights with the bundled codec, which speaks until the cap."""
    bpe = train_bpe(["the captain sees two old boats and a green bird sings today"], 60)
    ar = build_ar(options, 1)
    return Synthesizer(ar, build_nar(options), bpe, load_codec("bundled"), SamplingConfig(max_seconds=SECONDS))


def run(options: argparse.Namespace) -> Sequence[Figure]:
    """All figures, stream and whole in turns."""
    synthesizer = build(options)
    request = Request("the captain sees two old boats", torch.rand(72_000) - 0.5, "a green bird sings today")
    firsts, streams, wholes = [], [], []
    for _ in range(options.repeats):
        start = time.perf_counter()
        synthesizer.synthesize_batch([request])
        wholes.append(time.perf_counter() - start)
        start = time.perf_counter()
        chunks = synthesizer.stream(request)
        next(chunks)
        firsts.append(time.perf_counter() - start)
        for _ in chunks:
            pass
        streams.append(time.perf_counter() - start)
    whole = statistics.median(wholes)
    return [
        Figure("whole utterance offline, 10 s of speech", whole, "s"),
        Figure("first audio of the stream", statistics.median(firsts), "s"),
        Figure("first audio / offline", statistics.median(firsts) / whole, "share", 0.2, False),
        Figure("whole stream / offline", statistics.median(streams) / whole, "times"),
    ]


if __name__ == "__main__":
    main("Streaming", run)
