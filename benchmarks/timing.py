"""Models to measure, and how time is taken."""

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from valle2.decoding import decode_groups
from valle2.model.ar import ARModel
from valle2.model.inference import Weights, prepare
from valle2.model.layers import TransformerShape
from valle2.model.nar import NARModel
from valle2.model.sampling import Sampling

FRAME_RATE = 75.0
PROMPT_FRAMES, TEXT_TOKENS = 225, 60
"""Three seconds of prompt; text of prompt and target."""


def shape(options: argparse.Namespace) -> TransformerShape:
    """The size asked for, with heads of 64 and room for the longest speech measured."""
    return TransformerShape(options.layers, options.dim, max(options.dim // 64, 1), 4 * options.dim, 0.1, 512, 4096)


def build_ar(
    options: argparse.Namespace,
    group_size: int = 1,
    weights: Weights = "float32",
    device: torch.device | str = "cpu",
) -> ARModel:
    """An AR model with random weights, which never ends an utterance of its own."""
    torch.manual_seed(0)
    ar = ARModel(shape(options), 4000, group_size).eval().to(device)
    prepare(ar, weights)
    scores = ar.logits

    def never_ends(hidden: torch.Tensor) -> torch.Tensor:
        found = scores(hidden)
        found[..., ar.eos] = -torch.inf
        return found

    ar.logits = never_ends  # type: ignore[method-assign]
    return ar


def build_nar(
    options: argparse.Namespace, weights: Weights = "float32", device: torch.device | str = "cpu"
) -> NARModel:
    """A NAR model with random weights."""
    torch.manual_seed(0)
    nar = NARModel(shape(options), 4000).eval().to(device)
    prepare(nar, weights)
    return nar


def bytes_read(options: argparse.Namespace, group_size: int, size: int, batch_size: int, num_keys: float) -> float:
    """What a turn of the AR loop reads: all blocks, the head, the group layers, and the cache.

    Args:
        options: Of the benchmark.
        group_size: Frames in a group.
        size: Bytes of a weight, and of a key or value.
        batch_size: Rows.
        num_keys: Tokens in the cache of each.
    """
    weights = options.layers * (12 * options.dim**2 + 13 * options.dim) + 1025 * options.dim
    if group_size > 1:
        weights += 2 * group_size * options.dim**2
    return size * (weights + 2 * batch_size * options.layers * options.dim * num_keys)


def inputs(
    batch_size: int, device: torch.device | str = "cpu"
) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
    """Text, its lengths, and prompts."""
    generator = torch.Generator().manual_seed(1)
    text = torch.randint(0, 4000, (batch_size, TEXT_TOKENS), generator=generator)
    prompts = list(torch.randint(0, 1024, (batch_size, 8, PROMPT_FRAMES - PROMPT_FRAMES % 8), generator=generator))
    lengths = torch.full((batch_size,), TEXT_TOKENS, device=device)
    return text.to(device), lengths, [prompt.to(device) for prompt in prompts]


def ar_seconds(ar: ARModel, seconds: float, batch_size: int = 1) -> float:
    """Wall time of the AR stage for `seconds` of speech, prefill included."""
    text, lengths, prompts = inputs(batch_size, ar.separators.device)
    start = time.perf_counter()
    for _ in decode_groups(
        ar, text, lengths, prompts, list(range(batch_size)), Sampling(), round(seconds * FRAME_RATE)
    ):
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
