"""Models to measure, and how time is taken."""

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from valle2.config.sampling import SamplingConfig
from valle2.decoding import decode_groups
from valle2.model.ar import ARModel
from valle2.model.inference import Weights, prepare
from valle2.model.layers import TransformerShape

FRAME_RATE = 75.0
PROMPT_FRAMES, TEXT_TOKENS = 225, 60
"""Three seconds of prompt; text of prompt and target."""


def build_ar(
    options: argparse.Namespace, group_size: int = 1, weights: Weights = "float32", max_frames: int = 4096
) -> ARModel:
    """An AR model with random weights, which never ends an utterance of its own."""
    shape = TransformerShape(
        options.layers, options.dim, max(options.dim // 64, 1), 4 * options.dim, 0.1, 512, max_frames
    )
    torch.manual_seed(0)
    ar = ARModel(shape, 4000, group_size).eval()
    prepare(ar, weights)
    scores = ar.logits

    def never_ends(hidden: torch.Tensor) -> torch.Tensor:
        found = scores(hidden)
        found[..., ar.eos] = -torch.inf
        return found

    ar.logits = never_ends  # type: ignore[method-assign]
    return ar


def inputs(batch_size: int) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
    """Text, its lengths, and prompts."""
    generator = torch.Generator().manual_seed(1)
    text = torch.randint(0, 4000, (batch_size, TEXT_TOKENS), generator=generator)
    prompts = list(torch.randint(0, 1024, (batch_size, 8, PROMPT_FRAMES - PROMPT_FRAMES % 8), generator=generator))
    return text, torch.full((batch_size,), TEXT_TOKENS), prompts


def ar_seconds(ar: ARModel, seconds: float, batch_size: int = 1, sampling: SamplingConfig | None = None) -> float:
    """Wall time of the AR stage for `seconds` of speech, prefill included."""
    text, lengths, prompts = inputs(batch_size)
    settings = (sampling or SamplingConfig()).model_copy(update={"max_seconds": seconds})
    start = time.perf_counter()
    for _ in decode_groups(ar, text, lengths, prompts, list(range(batch_size)), settings, FRAME_RATE):
        pass
    return time.perf_counter() - start


def median_seconds(work: Callable[[], object], repeats: int) -> float:
    """Median wall time of several runs, after one that does not count."""
    work()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times)
