"""Decoding and training on a GPU: speed in bfloat16, shares of what the hardware allows, and CUDA against the CPU.

python -m benchmarks.gpu

It needs torch, numpy and this repository, nothing else, so that it runs on a machine that has no more; compiled
training wants a C++ compiler too, and is left out where there is none. Real-time factors are those of AR and NAR; the
codec, which needs packages of its own, is not in them. Training is in `benchmarks.gpu_training`.
"""

import argparse
from collections.abc import Callable, Sequence
from functools import partial

import torch

import benchmarks.bare  # noqa: F401  before the model is imported
from benchmarks.gpu_training import training
from benchmarks.report import Figure, main
from benchmarks.timing import (
    FRAME_RATE,
    TEXT_TOKENS,
    ar_seconds,
    build_ar,
    build_nar,
    bytes_read,
    inputs,
    median_seconds,
)
from valle2.decoding import generate_codes, pad
from valle2.model import step
from valle2.model.ar import ARModel
from valle2.model.nar import NARModel
from valle2.model.sampling import Sampling

GROUP_SIZES = (1, 2, 4, 8)
BATCH_SIZES = (1, 8, 64)
COMPARED_SECONDS = 2.0
"""Speech that CUDA and CPU both say."""


def run(options: argparse.Namespace) -> Sequence[Figure]:
    """All figures."""
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SystemExit("no CUDA device here; this benchmark wants one (--device cpu tries the script alone)")
    # float32 is to mean float32 where CUDA is compared with the CPU.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    with torch.inference_mode(False):
        trained = training(options, device)
    return [*compared(options, device), *speeds(options, device), *trained]


def compared(options: argparse.Namespace, device: torch.device) -> list[Figure]:
    """CUDA against the CPU in float32, and graphs against plain calls."""
    figures = []
    for size in (1, 8):
        here, there = build_ar(options, size), build_ar(options, size).to(device)
        figures.append(
            Figure(f"largest difference of scores, G = {size}", scores_apart(here, there), "std", 1e-3, False)
        )
        on_cpu, on_device = said(here), said(there)
        graphs, step.uses_graphs = step.uses_graphs, lambda _: False
        plain = said(there)
        step.uses_graphs = graphs
        figures += [
            Figure(f"codes the same with graphs and without, G = {size}", same(on_device, plain), "share", 1.0),
            Figure(f"codes the same on both devices, G = {size}", same(on_cpu, on_device), "share"),
        ]
    found = [refine(build_nar(options, device=place), 2, COMPARED_SECONDS).cpu() for place in ("cpu", device)]
    figures.append(Figure("codes of the NAR model the same on both devices", same(*found), "share"))
    return figures


def scores_apart(here: ARModel, there: ARModel) -> float:
    """Largest difference of the next group's scores after a prompt, in standard deviations of the scores."""
    text, lengths, prompts = inputs(2)
    codes, frames = pad([prompt[0] for prompt in prompts], text.device)
    wanted = here.prefill(text, lengths, codes, frames)[0]
    place = there.separators.device
    found = there.prefill(*(part.to(place) for part in (text, lengths, codes, frames)))[0].cpu()
    finite = wanted.isfinite()
    return float((found - wanted)[finite].abs().max() / wanted[finite].std())


def said(ar: ARModel) -> torch.Tensor:
    """Codebook 0 of two utterances."""
    text, lengths, prompts = inputs(2, ar.separators.device)
    spoken = generate_codes(ar, text, lengths, prompts, [1, 2], Sampling(), round(COMPARED_SECONDS * FRAME_RATE))
    return torch.stack([codes.cpu() for codes, _, _ in spoken])


def same(one: torch.Tensor, other: torch.Tensor) -> float:
    """Share of equal entries."""
    return float((one == other).float().mean())


def whole_speech(batch_size: int, seconds: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Text, its lengths, and codes of prompt and speech."""
    text, lengths, prompts = inputs(batch_size)
    new = torch.randint(
        0, 1024, (batch_size, 8, round(seconds * FRAME_RATE)), generator=torch.Generator().manual_seed(2)
    )
    return text, lengths, torch.cat([torch.stack(prompts), new], 2)


def speeds(options: argparse.Namespace, device: torch.device) -> list[Figure]:
    """Real-time factors, and what share of the memory's bandwidth a turn of the AR loop makes use of."""
    weights = "bfloat16" if device.type == "cuda" else "float32"
    size = torch.empty(0, dtype=getattr(torch, weights)).element_size()
    nar = build_nar(options, weights, device)
    nar_seconds = {batch: timed(device, partial(refine, nar, batch, options.seconds), options) for batch in BATCH_SIZES}
    source = torch.ones(2**28 // 4, device=device)
    target = torch.empty_like(source)
    bandwidth = 2 * 2**28 / timed(device, partial(target.copy_, source), options)
    figures = [Figure("bytes read and written by a copy", bandwidth / 1e9, "GB/s")]
    for group_size in GROUP_SIZES:
        ar = build_ar(options, group_size, weights, device=device)
        for batch in BATCH_SIZES:
            spent = timed(device, partial(ar_seconds, ar, options.seconds, batch), options)
            keys = TEXT_TOKENS + 2 + (224 + options.seconds * FRAME_RATE / 2) / group_size
            turn = spent / (options.seconds * FRAME_RATE / group_size)
            share = bytes_read(options, group_size, size, batch, keys) / turn / bandwidth
            factor = (spent + nar_seconds[batch]) / (batch * options.seconds)
            name = f"G = {group_size}, batch {batch}"
            figures += [
                Figure(f"{name}: real-time factor", factor),
                Figure(f"{name}: turn of the AR loop", turn * 1e3, "ms"),
                Figure(f"{name}: share of the bandwidth", share, "share"),
            ]
        del ar
    return figures


def refine(nar: NARModel, batch_size: int, seconds: float) -> torch.Tensor:
    """All codes of a batch, by the seven passes."""
    device = nar.separators.device
    text, lengths, codes = (part.to(device) for part in whole_speech(batch_size, seconds))
    frames = torch.full((batch_size,), codes.shape[2], device=device)
    return nar.generate(text, lengths, codes, frames, torch.full_like(frames, 224))


def timed(device: torch.device, work: Callable[[], object], options: argparse.Namespace) -> float:
    """Median wall time, to the end of what the device was given to do."""

    def whole() -> None:
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return median_seconds(whole, options.repeats)


if __name__ == "__main__":
    main("Decoding and training on a GPU", run, device="cuda", seconds=10.0, frames=24000.0, largest=256000.0)
