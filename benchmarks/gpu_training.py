"""Training on a GPU: MFU of AR and NAR in bfloat16, plain and compiled, the largest batch, and CUDA against the CPU.

`benchmarks.gpu` runs it. It needs torch and this repository alone, so that a step is written out here as
`valle2.training.loop.train_step` does it.
"""

import argparse
import time
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

import benchmarks.bare  # noqa: F401  before the model is imported
from benchmarks.report import Figure
from benchmarks.timing import FRAME_RATE, shape
from valle2.errors import TrainingError
from valle2.model.ar import ARModel
from valle2.model.nar import NARModel
from valle2.training.efficiency import apply, is_out_of_memory
from valle2.training.flops import ar_flops, nar_flops, peak_flops

SECONDS, VOCAB_SIZE, TOKENS_PER_SECOND, CODEBOOK = 12.0, 4000, 4, 3
"""Of an utterance, of a tokenizer; and the codebook that the NAR model is timed on."""

WANTED = {False: 0.45, True: 0.55}
"""MFU to reach, plain and compiled."""


@dataclass
class Rows:
    """A batch of utterances of about `SECONDS`."""

    text: Tensor
    text_lengths: Tensor
    codes: Tensor
    code_lengths: Tensor

    @classmethod
    def drawn(cls, frames: float, device: torch.device, seconds: float = SECONDS) -> "Rows":
        """Random ones, of which the shortest has nine tenths of the longest's frames."""
        generator = torch.Generator().manual_seed(0)
        longest = round(seconds * FRAME_RATE)
        rows = max(round(frames / (0.95 * longest)), 1)
        code_lengths = torch.randint(9 * longest // 10, longest + 1, (rows,), generator=generator)
        text_lengths = (code_lengths / FRAME_RATE * TOKENS_PER_SECOND).long().clamp(min=1)
        text = torch.randint(0, VOCAB_SIZE, (rows, int(text_lengths.max())), generator=generator)
        codes = torch.randint(0, 1024, (rows, 8, int(code_lengths.max())), generator=generator)
        return cls(*(part.to(device) for part in (text, text_lengths, codes, code_lengths)))

    def loss(self, model: nn.Module) -> Tensor:
        """Of one of the two models."""
        if isinstance(model, ARModel):
            return model.loss(self.text, self.text_lengths, self.codes[:, 0], self.code_lengths)["loss"]
        assert isinstance(model, NARModel)
        conditions = self.code_lengths // 4
        return model.loss(self.text, self.text_lengths, self.codes, self.code_lengths, CODEBOOK, conditions)["loss"]

    def flops(self, model: nn.Module) -> float:
        """Forward and backward."""
        text, codes = self.text_lengths.tolist(), self.code_lengths.tolist()
        if isinstance(model, ARModel):
            return ar_flops(model.shape, text, codes, 1)
        assert isinstance(model, NARModel)
        return nar_flops(model.shape, text, codes, [length // 4 for length in codes])


def training(options: argparse.Namespace, device: torch.device) -> list[Figure]:
    """All figures."""
    figures = []
    for kind in ("ar", "nar"):
        figures += losses_apart(options, device, kind)
        for compiled in (False, True):
            try:
                figures += timed_steps(options, device, kind, compiled)
            except (TrainingError, ImportError) as error:
                print(f"{kind.upper()} is not compiled: {error}")
        figures.append(largest_batch(options, device, kind))
    return figures


def build(options: argparse.Namespace, device: torch.device, kind: str, **settings: bool) -> tuple[Any, Any]:
    """A model and its optimiser."""
    torch.manual_seed(0)
    model = ARModel(shape(options), VOCAB_SIZE, 1) if kind == "ar" else NARModel(shape(options), VOCAB_SIZE)
    model.to(device).train()
    chosen: Any = SimpleNamespace(**{"compile": False, "activation_checkpointing": False} | settings)
    apply(model, chosen, kind)
    return model, torch.optim.AdamW(model.parameters(), 1e-4, fused=True)


def step(model: nn.Module, optimiser: torch.optim.Optimizer, rows: Rows) -> None:
    """One update."""
    with torch.autocast(rows.text.device.type, torch.bfloat16):
        loss = rows.loss(model)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimiser.step()
    optimiser.zero_grad()


def step_seconds(model: nn.Module, optimiser: torch.optim.Optimizer, rows: Rows, repeats: int) -> float:
    """Wall time of an update, the best of some."""
    times = []
    for _ in range(repeats):
        wait(rows.text.device)
        start = time.perf_counter()
        step(model, optimiser, rows)
        wait(rows.text.device)
        times.append(time.perf_counter() - start)
    return min(times)


def wait(device: torch.device) -> None:
    """For what the device was given to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed_steps(options: argparse.Namespace, device: torch.device, kind: str, compiled: bool) -> list[Figure]:
    """MFU against the published peak (on a CPU the measured one) and frames a second."""
    model, optimiser = build(options, device, kind, compile=compiled)
    rows = Rows.drawn(options.frames, device, min(options.seconds, SECONDS))
    step_seconds(model, optimiser, rows, 2)
    spent = step_seconds(model, optimiser, rows, 4 * options.repeats)
    name = f"training {kind.upper()}{', compiled' if compiled else ''}"
    rate, peak = rows.flops(model) / spent, peak_flops(device, bf16=True)
    figures = [Figure(f"{name}: frames a second", int(rows.code_lengths.sum()) / spent, "frames/s")]
    if peak is None:
        print(f"no peak is known of {torch.cuda.get_device_name(device)}; {name} does {rate / 1e12:.1f} TFLOP/s")
        return figures
    # A bound for a GPU only: on a CPU this merely shows that the script works.
    return [Figure(f"{name}: MFU", rate / peak, "share", WANTED[compiled] if device.type == "cuda" else None), *figures]


def largest_batch(options: argparse.Namespace, device: torch.device, kind: str) -> Figure:
    """Frames of the largest batch that fits, in steps of half as much again, up to `--largest`."""
    model, optimiser = build(options, device, kind)
    fits, frames = 0, options.frames
    while frames <= max(options.largest, options.frames):
        try:
            rows = Rows.drawn(frames, device, min(options.seconds, SECONDS))
            step(model, optimiser, rows)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            break
        fits, frames = int(rows.code_lengths.sum()), 1.5 * frames
    optimiser.zero_grad()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return Figure(f"training {kind.upper()}: largest batch", fits, "frames")


def losses_apart(options: argparse.Namespace, device: torch.device, kind: str) -> list[Figure]:
    """Loss and gradients in float32, without dropout, on the device against the CPU."""
    found = []
    for place in (torch.device("cpu"), device):
        model, _ = build(options, place, kind)
        loss = Rows.drawn(200, place, 2.0).loss(model.eval())
        loss.backward()
        found.append((loss.item(), torch.cat([one.grad.flatten().cpu() for one in model.parameters()])))
    (loss_here, here), (loss_there, there) = found
    apart = partial(Figure, unit="share", wanted=1e-4, at_least=False)
    return [
        apart(f"training {kind.upper()}: loss, CUDA and CPU apart", abs(loss_there / loss_here - 1)),
        apart(f"training {kind.upper()}: gradients apart", float((there - here).norm() / here.norm()), wanted=1e-3),
    ]
