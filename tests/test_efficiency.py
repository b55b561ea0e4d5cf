"""Faster and smaller training is the same training: checkpointed and compiled blocks, dropout, and memory's end."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from valle2.config.train import TrainConfig
from valle2.errors import TrainingError
from valle2.model.ar import ARModel
from valle2.model.layers import Dropout, TransformerShape
from valle2.model.nar import NARModel
from valle2.training.data import Batch
from valle2.training.efficiency import apply, check_compiler, explained_out_of_memory

SHAPE = TransformerShape(num_layers=2, dim=32, num_heads=4, ffn_dim=64, dropout=0.2, max_text_tokens=16, max_frames=64)
ROOT = Path(__file__).parents[1]


def batch(longest: int = 24) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(longest)
    text, codes = (torch.randint(0, 20, size, generator=generator) for size in ((2, 6), (2, 4, longest)))
    return text, torch.tensor([4, 6]), codes, torch.tensor([longest, longest - 8])


def ar_loss(model: Any, longest: int = 24) -> torch.Tensor:
    text, text_lengths, codes, code_lengths = batch(longest)
    loss: torch.Tensor = model.loss(text, text_lengths, codes[:, 0], code_lengths)["loss"]
    return loss


def nar_loss(model: Any, longest: int = 24) -> torch.Tensor:
    text, text_lengths, codes, code_lengths = batch(longest)
    loss: torch.Tensor = model.loss(text, text_lengths, codes, code_lengths, 2, code_lengths // 2)["loss"]
    return loss


MODELS: dict[str, tuple[Callable[[TransformerShape], Any], Callable[..., torch.Tensor]]] = {
    "ar": (lambda shape: ARModel(shape, 20, 2, 20), ar_loss),
    "nar": (lambda shape: NARModel(shape, 20, 4, 20), nar_loss),
}


def gradients(kind: str, shape: TransformerShape, **settings: Any) -> dict[str, torch.Tensor]:
    """Loss and gradients of a seeded model on a seeded batch, dropout's draws included."""
    build, loss_of = MODELS[kind]
    torch.manual_seed(3)
    model = build(shape).train()
    apply(model, TrainConfig(**settings), kind)
    torch.manual_seed(4)
    loss = loss_of(model)
    loss.backward()
    return {"loss": loss.detach()} | {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("kind", MODELS)
def test_checkpointed_blocks_give_the_same_gradients_bit_for_bit(kind: str) -> None:
    plain, checkpointed = gradients(kind, SHAPE), gradients(kind, SHAPE, activation_checkpointing=True)
    assert plain.keys() == checkpointed.keys()
    for name, value in plain.items():
        assert torch.equal(value, checkpointed[name]), name


def test_checkpointed_blocks_keep_less() -> None:
    def kept(**settings: Any) -> int:
        model = ARModel(SHAPE, 20, 2, 20).train()
        apply(model, TrainConfig(**settings), "ar")
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append(x.nbytes) or x, lambda x: x):  # type: ignore[func-returns-value]
            ar_loss(model)
        return sum(sizes)

    assert kept(activation_checkpointing=True) < 0.5 * kept()


def check_compiled(checkpointing: bool) -> None:
    """Compiled blocks against plain ones; runs in a process of its own, where no shapes are checked meanwhile."""
    from torch._dynamo.utils import counters

    # Compiled code draws its random numbers in an order of its own, so that dropout is compared with itself only.
    shape, other = (SHAPE, {"compile": True}) if checkpointing else (replace(SHAPE, dropout=0.0), {})
    plain = gradients("ar", shape, **other)
    compiled = gradients("ar", shape, compile=True, activation_checkpointing=checkpointing)
    for name, value in plain.items():
        torch.testing.assert_close(compiled[name], value, atol=2e-6, rtol=1e-4)
    model = ARModel(SHAPE, 20, 2, 20).train()
    apply(model, TrainConfig(compile=True, activation_checkpointing=checkpointing), "ar")
    ar_loss(model).backward()
    before = counters["stats"]["unique_graphs"]
    for longest in (26, 30, 42):
        ar_loss(model, longest).backward()
    assert counters["stats"]["unique_graphs"] == before > 0
    assert not counters["graph_break"], counters["graph_break"]


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="no C++ compiler")
@pytest.mark.parametrize("checkpointing", [False, True])
def test_compiled_blocks_give_the_same_gradients_and_new_lengths_compile_nothing_anew(checkpointing: bool) -> None:
    done = run_alone(f"from tests.test_efficiency import check_compiled; check_compiled({checkpointing})")
    assert done.returncode == 0, done.stderr


def run_alone(script: str) -> subprocess.CompletedProcess[str]:
    """Run Python in a process of its own."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, env=environment)


def test_names_of_weights_stay() -> None:
    model = ARModel(SHAPE, 20, 2, 20)
    names = list(model.state_dict())
    apply(model, TrainConfig(activation_checkpointing=True, compile=bool(shutil.which("g++"))), "ar")
    assert list(model.state_dict()) == names


def test_compile_without_a_compiler_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(TrainingError, match=r"`train_nar.compile` .* no C\+\+ compiler 'no-such-compiler'.*to false"):
        check_compiler(torch.device("cpu"), "nar")


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropout_drops_its_share_and_keeps_the_mean(share: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    dropout = Dropout(share)
    x = torch.ones(3, 333, 333, dtype=dtype, requires_grad=True)
    y = dropout(x)
    y.sum().backward()
    dropped = (y == 0).float().mean().item()
    assert dropped == pytest.approx(share, abs=0.005)
    if share < 1:
        assert y[y != 0].float().unique().tolist() == pytest.approx([1 / (1 - share)], rel=4e-3)
    assert torch.equal(x.grad == 0, y == 0)
    assert torch.equal(dropout.eval()(x), x)


def test_dropout_draws_all_entries_apart_from_each_other() -> None:
    torch.manual_seed(0)
    dropped = (Dropout(0.5)(torch.ones(1, 64, 4096)) == 0)[0].double()
    for shift in range(1, 9):
        assert (dropped[:, :-shift] * dropped[:, shift:]).mean().item() == pytest.approx(0.25, abs=0.006)
    torch.manual_seed(0)
    assert torch.equal((Dropout(0.5)(torch.ones(1, 64, 4096)) == 0)[0].double(), dropped)


def padded(rows: int, frames: int) -> Batch:
    ones = torch.ones(rows, frames, dtype=torch.long)
    lengths = torch.tensor([frames] * (rows - 1) + [frames // 2])
    return Batch(["a"] * rows, ones, lengths, ones[:, None], lengths, ones, ones)


def test_out_of_memory_names_the_batch_and_what_to_lower() -> None:
    with (
        pytest.raises(TrainingError, match=r"250 frames, 3 rows, the longest of 100 frames; lower train_ar"),
        explained_out_of_memory([padded(1, 50), padded(3, 100)], "ar"),
    ):  # fmt: skip
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")


def test_another_error_is_left_alone() -> None:
    with pytest.raises(RuntimeError, match="a bug"), explained_out_of_memory([padded(1, 50)], "ar"):
        raise RuntimeError("a bug")


def test_a_cpu_that_is_out_of_memory_is_found_out() -> None:
    script = (
        "import resource, torch\n"
        "from tests.test_efficiency import padded\n"
        "from valle2.training.efficiency import explained_out_of_memory\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + 2**28,) * 2)\n"
        "with explained_out_of_memory([padded(2, 30)], 'nar'):\n"
        "    torch.ones(2**31)\n"
    )
    done = run_alone(script)
    assert "valle2.errors.TrainingError: out of memory (" in done.stderr, done.stderr
    assert "in a batch of 45 frames, 2 rows, the longest of 30 frames; lower train_nar.batch_frames" in done.stderr
