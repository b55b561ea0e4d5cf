"""A turn of the AR loop: the same tokens with and without the graphs of a GPU, none of which may wait for it."""

from collections.abc import Callable, Iterator, Sequence
from itertools import islice

import pytest
import torch
from torch import Tensor

from tests.test_model_ar import example, tiny
from valle2.decoding import TURNS_AT_ONCE, draw_uniforms
from valle2.model import step as module
from valle2.model.ar import ARModel
from valle2.model.sampling import Sampling
from valle2.model.step import ARStep, ar_step


def spoken(step: ARStep, turns: int = 20) -> list[list[list[int]]]:
    text, text_lengths, codes, lengths = example()
    uniforms = draw_uniforms([1, 2, 3], 2)
    step.start(text, text_lengths, codes, lengths, next(uniforms))
    groups = [step.group.tolist()]
    for _ in range(turns):
        step.turn(next(uniforms))
        groups.append(step.group.tolist())
    return groups


@pytest.fixture
def on_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The GPU's way of taking turns, with graphs that are calls; how many keys each attends to."""
    spans: list[int] = []

    def graph(work: Callable[[], None], state: Sequence[Tensor]) -> Callable[[], None]:
        before = [tensor.clone() for tensor in state]
        work()  # the trial run, as on a GPU
        for tensor, value in zip(state, before, strict=True):
            tensor.copy_(value)
        spans.append(1)
        return work

    monkeypatch.setattr(module, "capture", graph)
    monkeypatch.setattr(module, "SPAN", 8)
    monkeypatch.setattr(module, "uses_graphs", lambda device: True)
    yield spans


def voice() -> ARModel:
    model = tiny()
    torch.nn.init.normal_(model.code_embedding.weight, std=0.6)
    return model


@torch.inference_mode()
def test_graphs_of_several_spans_draw_what_plain_calls_draw(on_gpu: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    model = voice()
    with ar_step(model, 3, 40, Sampling()) as step:
        graphed = spoken(step)
    assert len(on_gpu) == 4, "14 keys of text and prompt, then 20 turns: spans of 16, 24, 32 and 40"
    monkeypatch.setattr(module, "uses_graphs", lambda device: False)
    with ar_step(model, 3, 40, Sampling()) as step:
        assert spoken(step) == graphed


@torch.inference_mode()
def test_the_next_batch_of_a_size_finds_the_graphs_of_the_last(on_gpu: list[int]) -> None:
    model = voice()
    with ar_step(model, 3, 40, Sampling()) as first:
        wanted = spoken(first)
        with ar_step(model, 3, 40, Sampling()) as meanwhile:
            assert meanwhile is not first
    captured = len(on_gpu)
    with ar_step(model, 3, 33, Sampling()) as again:
        assert again is first and spoken(again) == wanted
    assert len(on_gpu) == captured
    for other in ((2, 40, Sampling()), (3, 41, Sampling()), (3, 40, Sampling(top_p=0.5))):
        with ar_step(model, *other) as step:
            assert step is not first


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.inference_mode()
def test_no_turn_waits_for_the_device_or_leaves_it(dtype: torch.dtype) -> None:
    """Tensors of the device `meta` have no values: what would wait for one fails, as does what comes from the CPU."""
    step = ARStep(tiny().to("meta", dtype), 3, 40, Sampling(ras_ends=False))
    step._turn(16)
    assert step.group.is_meta and step.group.shape == (3, 2)
    with pytest.raises(RuntimeError, match="meta tensor"):
        step.ended.tolist()
    with pytest.raises(RuntimeError, match="device"):
        step.ar.decode_one_group(step.group, torch.zeros(3, dtype=torch.long), step.cache, 16) + torch.zeros(3, 2, 51)


def test_random_numbers_drawn_together_are_those_drawn_one_by_one() -> None:
    generator = torch.Generator().manual_seed(2)
    for drawn in islice(draw_uniforms([1, 2], 3), 2 * TURNS_AT_ONCE + 1):
        assert torch.equal(drawn[1], torch.rand(3, 2, generator=generator))
