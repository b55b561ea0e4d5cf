"""How much arithmetic a training step is, and how much of it the device could do: model FLOPs utilisation (MFU).

After PaLM (Chowdhery et al., 2022, arXiv:2204.02311, appendix B): only what the model itself needs is counted, forward
and backward. What is computed again for activation checkpointing, what is done for padding, and all that is no matrix
product (norms, softmax, optimiser) count nothing.
"""

import time
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

import torch
from torch import nn

from valle2.model.layers import Block, TransformerShape

FORWARD_AND_BACKWARD = 3
"""Each product of the forward pass has two of the same size in the backward pass."""

GPU_PEAKS = {
    "H200": 989.4e12,
    "H100 NVL": 835e12,
    "H100 PCIe": 756e12,
    "H100": 989.4e12,
    "A100": 312e12,
}
"""Published FLOP/s of dense bfloat16 products by a part of the device's name, the narrower names first."""

PEAK_SHAPES = ((2048, 2048, 2048), (4096, 4096, 1024), (6144, 4096, 1024), (6144, 1024, 4096))
"""Rows, columns and depth of the products that a CPU's peak is measured with."""


def transformer_flops(shape: TransformerShape, num_tokens: Sequence[int], *, causal: bool) -> float:
    """FLOPs of the blocks, forward and backward.

    6 N t + 12 L d t^2 for each row: N weights of the L blocks' linear layers (4 d^2 + 2 d f each), t tokens, width d.
    Half of the second term where attention is causal: what is masked need not be computed.

    Args:
        shape: Sizes.
        num_tokens: Tokens in each row, padding not counted.
        causal: Whether a token attends to those before it only.
    """
    weights = shape.num_layers * (4 * shape.dim**2 + 2 * shape.dim * shape.ffn_dim)
    scores = shape.num_layers * shape.dim * sum(tokens**2 for tokens in num_tokens) * (0.5 if causal else 1.0)
    return FORWARD_AND_BACKWARD * (2 * weights * sum(num_tokens) + 4 * scores)


def ar_flops(
    shape: TransformerShape,
    text_lengths: Sequence[int],
    code_lengths: Sequence[int],
    group_size: int,
    codebook_size: int = 1024,
) -> float:
    """FLOPs of one AR micro-batch, forward and backward; the guidance from word times is not counted.

    A row is its text, two separators and its groups; a head over codebook_size + 1 codes for each frame and for the
    group that ends it; and where G > 1, the layers into and out of a group, G d^2 weights each.
    """
    groups = [length // group_size for length in code_lengths]
    tokens = [text + 2 + count for text, count in zip(text_lengths, groups, strict=True)]
    predictions = sum(groups) + len(groups)
    head = predictions * group_size * shape.dim * (codebook_size + 1)
    grouping = (sum(groups) + predictions) * group_size * shape.dim**2 if group_size > 1 else 0
    return transformer_flops(shape, tokens, causal=True) + FORWARD_AND_BACKWARD * 2 * (head + grouping)


def nar_flops(
    shape: TransformerShape,
    text_lengths: Sequence[int],
    code_lengths: Sequence[int],
    condition_lengths: Sequence[int] | None = None,
    codebook_size: int = 1024,
) -> float:
    """FLOPs of one NAR micro-batch, forward and backward.

    A row is its text, three separators and its frames, all of which attend to all; and a head for each frame behind
    the condition. Where the conditions are not known they count as half of each row, the longest that is ever drawn.
    """
    conditions = [length // 2 for length in code_lengths] if condition_lengths is None else condition_lengths
    tokens = [text + 3 + frames for text, frames in zip(text_lengths, code_lengths, strict=True)]
    head = (sum(code_lengths) - sum(conditions)) * shape.dim * codebook_size
    return transformer_flops(shape, tokens, causal=False) + FORWARD_AND_BACKWARD * 2 * head


def peak_flops(device: torch.device, *, bf16: bool) -> float | None:
    """FLOP/s of matrix products that a device can reach: measured on a CPU, published for a GPU.

    Args:
        device: Which.
        bf16: Whether products are in bfloat16, otherwise float32.

    Returns:
        None for a GPU that is not in the table, or in float32.
    """
    if device.type == "cpu":
        return _measured_peak(torch.bfloat16 if bf16 else torch.float32, torch.get_num_threads())
    if device.type != "cuda" or not bf16:
        return None
    return published_peak(torch.cuda.get_device_name(device))


def published_peak(name: str) -> float | None:
    """Dense bfloat16 FLOP/s of a GPU by its name; None where it is not in the table."""
    return next((peak for part, peak in GPU_PEAKS.items() if part in name), None)


def product_flops(
    dtype: torch.dtype,
    shapes: Sequence[tuple[int, int, int]] = PEAK_SHAPES,
    repeats: int = 3,
    clock: Literal["wall", "cpu"] = "wall",
) -> float:
    """The most FLOP/s of some products on the CPU; weights lie as in a linear layer.

    `clock` is the wall's, or the process's own time shared among its threads, for a machine that is never quiet.
    """
    now = time.perf_counter if clock == "wall" else lambda: time.process_time() / torch.get_num_threads()
    generator = torch.Generator().manual_seed(0)
    best = 0.0
    for rows, columns, depth in shapes:
        left, right = (torch.randn(size, depth, generator=generator).to(dtype) for size in (rows, columns))
        for _ in range(repeats):
            start = now()
            left @ right.T
            best = max(best, 2 * rows * columns * depth / (now() - start))
    return best


@lru_cache
def _measured_peak(dtype: torch.dtype, num_threads: int) -> float:
    """Once in a process for each number of threads; half a second."""
    return product_flops(dtype)


def parameter_counts(model: nn.Module) -> dict[str, int]:
    """How many parameters are in the blocks, in all else (embeddings, which are also the heads), and in all."""
    blocks = sum(count_parameters(block) for block in model.modules() if isinstance(block, Block))
    whole = count_parameters(model)
    return {"parameters": whole, "block_parameters": blocks, "embedding_parameters": whole - blocks}


def count_parameters(module: nn.Module) -> int:
    """All parameters, shared ones once."""
    return sum(parameter.numel() for parameter in module.parameters())
