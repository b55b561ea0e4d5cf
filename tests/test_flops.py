"""FLOPs by formula against torch's own count of what a model does."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from valle2.model.ar import ARModel
from valle2.model.layers import TransformerShape
from valle2.model.nar import NARModel
from valle2.training.flops import (
    ar_flops,
    nar_flops,
    parameter_counts,
    peak_flops,
    published_peak,
    transformer_flops,
)

SHAPE = TransformerShape(3, 64, 4, 256, 0.0, 40, 200)
TEXT, FRAMES = [20, 20, 20], [96, 96, 96]
"""Rows of one length: torch counts padding too."""


def counted(loss: torch.Tensor, counter: FlopCounterMode) -> int:
    loss.backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("group_size", [1, 4])
def test_ar_flops_are_those_that_torch_counts(group_size: int) -> None:
    model = ARModel(SHAPE, 30, group_size, 50)
    text, codes = torch.randint(0, 30, (3, 20)), torch.randint(0, 50, (3, 96))
    # The plain attention's products are what torch can count; it computes the masked half too.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        found = counted(model.loss(text, torch.tensor(TEXT), codes, torch.tensor(FRAMES))["loss"], counter)
    tokens = [20 + 2 + 96 // group_size] * 3
    masked = transformer_flops(SHAPE, tokens, causal=False) - transformer_flops(SHAPE, tokens, causal=True)
    assert ar_flops(SHAPE, TEXT, FRAMES, group_size, 50) + masked == pytest.approx(found, rel=0.01)


def test_nar_flops_are_those_that_torch_counts() -> None:
    model = NARModel(SHAPE, 30, 4, 50)
    text, codes = torch.randint(0, 30, (3, 20)), torch.randint(0, 50, (3, 4, 96))
    condition = torch.tensor([10, 20, 30])
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        loss = model.loss(text, torch.tensor(TEXT), codes, torch.tensor(FRAMES), 2, condition)["loss"]
        found = counted(loss, counter)
    assert nar_flops(SHAPE, TEXT, FRAMES, condition.tolist(), 50) == pytest.approx(found, rel=0.01)
    assert nar_flops(SHAPE, TEXT, FRAMES, None, 50) < nar_flops(SHAPE, TEXT, FRAMES, condition.tolist(), 50)


def test_padding_is_not_counted_and_groups_are() -> None:
    one = ar_flops(SHAPE, [20], [96], 1) + ar_flops(SHAPE, [4], [8], 1)
    assert ar_flops(SHAPE, [20, 4], [96, 8], 1) == pytest.approx(one)
    assert ar_flops(SHAPE, [20], [96], 4) < 0.6 * ar_flops(SHAPE, [20], [96], 1)


def test_peaks_are_published_for_gpus_and_measured_on_a_cpu() -> None:
    assert published_peak("NVIDIA H200") == published_peak("NVIDIA H100 80GB HBM3") == 989.4e12
    assert published_peak("NVIDIA H100 PCIe") == 756e12
    assert published_peak("NVIDIA A100-SXM4-80GB") == 312e12
    assert published_peak("Some GPU") is None
    measured = peak_flops(torch.device("cpu"), bf16=False)
    assert measured is not None and 1e9 < measured < 1e14
    assert peak_flops(torch.device("cpu"), bf16=False) == measured


def test_parameters_are_counted_by_part() -> None:
    model = ARModel(SHAPE, 30, 1, 50)
    counts = parameter_counts(model)
    assert counts["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    assert counts["block_parameters"] == 3 * (4 * 64**2 + 2 * 64 * 256 + 9 * 64 + 256)
    assert counts["block_parameters"] + counts["embedding_parameters"] == counts["parameters"]
