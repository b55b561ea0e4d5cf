"""Training of the AR and the NAR model: one loop for both (VALL-E 2, arXiv:2406.05370, section 4.1.1).

AdamW, linear warm-up, linear decay. A run that is killed at any step and started again ends with the same bytes as one
that was not. What the two models differ in is in `valle2.training.objective`; what a checkpoint holds in
`valle2.training.checkpoint`.
"""

import math
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.utils.deterministic as determinism
from torch import Tensor, nn

from valle2.config.train import TrainConfig, TrainParams
from valle2.errors import TrainingError
from valle2.progress import progress
from valle2.shards import read_manifest
from valle2.stage import digest, file_sha256, output, partial, publish
from valle2.text import Bpe
from valle2.training.checkpoint import TrainState, load_checkpoint, save_checkpoint
from valle2.training.data import Batch, Corpus, collate, pack
from valle2.training.objective import AR, NAR, CodecFacts, Objective, describe
from valle2.training.outputs import write_outputs
from valle2.training.sampler import Sampler, batch_by_frames
from valle2.training.warm_start import warm_start
from valle2.types import Stage, StageResult

FILL = "fill_uninitialized_memory"
"""torch's switch for writing into fresh memory whenever kernels must be deterministic; it costs time for nothing."""


class Tracker(Protocol):
    """Where curves go while training; `valle2.tracking.TrainingRun` is one."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Add points."""


def train_ar(config: TrainParams) -> StageResult:
    """Train the AR model: `artifacts/tokenize/` -> `artifacts/train-ar/`."""
    return _stage(config, AR(config, CodecFacts.of(read_manifest(output("tokenize")))))


def train_nar(config: TrainParams) -> StageResult:
    """Train the NAR model: `artifacts/tokenize/` -> `artifacts/train-nar/`."""
    return _stage(config, NAR(config, CodecFacts.of(read_manifest(output("tokenize")))))


def _stage(config: TrainParams, objective: Objective) -> StageResult:
    from valle2.tracking import training_run

    stage: Stage = "train-ar" if objective.kind == "ar" else "train-nar"
    data = file_sha256(output("tokenize") / "manifest.json")
    bpe = output("curate") / "bpe.json"
    parent = Path(objective.train.warm_start, "model.json") if objective.train.warm_start else None
    inputs = {
        "runtime": config.runtime.model_dump(),
        "train": objective.train.model_dump(),
        "model": {"shape": objective.shape.model_dump(), "group_size": objective.group_size},
        "data": [data, file_sha256(bpe)],
        "parent": file_sha256(parent) if parent and parent.is_file() else None,
    }
    with partial(stage, inputs) as work:
        with training_run(objective.kind, config, data, work) as run:
            facts = train(config, objective, work, run, identity=digest(inputs))
        publish(work / "out", output(stage))
        shutil.rmtree(work)
    figure = f"{facts['steps']} steps, loss {facts['loss']:.3f}, dev {facts.get('valid_loss', math.nan):.3f}"
    return StageResult(figure, facts | {"mlflow_run_id": run.run_id})


def train(config: TrainParams, objective: Objective, work: Path, tracker: Tracker, *, identity: str) -> dict[str, Any]:
    """Train one model in a work folder, going on from its last checkpoint, and write `out/` there.

    Returns:
        Facts for logs and records.

    Raises:
        TrainingError: The data do not fill a batch, the warm start does not fit, or the loss stays non-finite.
    """
    settings, device = objective.train, config.runtime.device
    bpe_file = output("curate") / "bpe.json"
    codec, bpe = CodecFacts.of(read_manifest(output("tokenize"))), Bpe.load(bpe_file)
    corpus, held_out = (
        pack(
            split,
            bpe,
            objective.shape,
            objective.num_codebooks,
            work / "codes",
            with_breaks=settings.word_spans + settings.guide > 0,
        )
        for split in ("train", "dev")
    )
    with deterministic(config.runtime.seed, config.runtime.num_threads):
        sampler = Sampler(corpus, settings, objective.shape, codec.frame_rate, config.runtime.seed, objective.kind)
        state = new_state(objective, bpe.vocab_size, device)
        facts: dict[str, Any] = {
            "parent": None,
            "utterances_left_out": corpus.left_out,
            "bf16": native_bf16(torch.device(device)) and settings.bf16,
        }
        if settings.warm_start:
            bundle = Path(settings.warm_start)
            facts["parent"] = warm_start(state.model, bundle, objective, codec.codes_digest, bpe_file)
            state.average = _average_of(state.model, settings)
        facts["resumed_at"] = state.step if load_checkpoint(state, work / "checkpoints", identity) else 0
        facts |= _run_steps(state, sampler, held_out, objective, tracker, work / "checkpoints", identity, device)
    weights = state.average or state.model.state_dict()
    figures = write_outputs(work / "out", weights, describe(objective, codec, bpe.vocab_size), state.history)
    parameters = sum(parameter.numel() for parameter in state.model.parameters())
    return facts | figures | {"steps": state.step, "skipped": state.skipped, "parameters": parameters}


def _run_steps(
    state: TrainState,
    sampler: Sampler,
    held_out: Corpus,
    objective: Objective,
    tracker: Tracker,
    checkpoints: Path,
    identity: str,
    device: str,
) -> dict[str, Any]:
    """Train to the last step: take batches, step, log, validate, checkpoint."""
    settings = objective.train
    start, first, frames_before = time.monotonic(), state.step, state.frames
    with progress(f"train-{objective.kind}", settings.num_steps - state.step, "steps") as advance:
        while state.step < settings.num_steps:
            rows, state.place = sampler.take(state.place, settings.accumulate)
            batches = [collate(sampler.corpus, row, objective.group_size).to(device) for row in rows]
            state.window.append(train_step(state, batches, objective))
            rate = (state.frames - frames_before) / (time.monotonic() - start)
            last = state.step == settings.num_steps
            if state.step % settings.log_every == 0 or last:
                point = _mean(state.window) | {"learning_rate": learning_rate(state.step - 1, settings)}
                state.window = []
                _record(state, point, tracker, {"frames_per_second": rate, "hours_per_hour": rate / sampler.frame_rate})
            if held_out.utterances and (state.step % settings.validate_every == 0 or last):
                _record(state, validate(state, held_out, objective, device), tracker, {})
            if state.step % settings.checkpoint_every == 0 or last:
                save_checkpoint(state, checkpoints, identity, settings.keep_checkpoints)
            advance(1, f"loss {state.window[-1]['loss'] if state.window else state.history[-1].get('loss', 0):.3f}")
    seconds = time.monotonic() - start
    done = state.step - first
    return {
        "seconds_per_step": round(seconds / done, 4) if done else None,
        "frames_per_second": round((state.frames - frames_before) / seconds) if done else None,
        "hours_seen": round(state.frames / sampler.frame_rate / 3600, 3),
    }


def train_step(state: TrainState, batches: list[Batch], objective: Objective) -> dict[str, float]:
    """One update. A non-finite one changes no weights, and is counted.

    Returns:
        Figures of the step, averaged over the accumulated batches.

    Raises:
        TrainingError: Too many non-finite updates in a row.
    """
    settings = objective.train
    for group in state.optimiser.param_groups:
        group["lr"] = learning_rate(state.step, settings)
    figures = []
    for batch in batches:
        with autocast(batch.text.device, settings.bf16):
            losses = objective.loss(state.model, batch)
        total = torch.stack([losses[name] * weight for name, weight in objective.weights.items()]).sum()
        (total / len(batches)).backward()
        figures.append({name: value.item() for name, value in losses.items()})
    norm = nn.utils.clip_grad_norm_(state.model.parameters(), settings.clip_norm).item()
    state.step += 1
    state.frames += sum(batch.num_frames for batch in batches)
    if math.isfinite(norm):
        state.optimiser.step()
        state.bad_steps = 0
        for name, value in state.average.items():
            value.lerp_(state.model.get_parameter(name).detach(), 1 - settings.ema_decay)
    else:
        _count_bad_step(state, batches, settings)
    state.optimiser.zero_grad()
    return _mean(figures) | {"grad_norm": norm}


def autocast(device: torch.device, bf16: bool) -> torch.autocast:
    """bfloat16, if it is asked for and the device multiplies it natively.

    A processor that does not has torch emulate it, at 40 times the cost of float32.
    """
    return torch.autocast(device.type, torch.bfloat16, enabled=bf16 and native_bf16(device))


def native_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 itself."""
    return device.type != "cpu" or torch.cpu._is_avx512_bf16_supported()  # torch has no public name for it yet


def learning_rate(step: int, settings: TrainConfig) -> float:
    """Linear warm-up to the peak, then linear decay (4.1.1)."""
    if step < settings.warmup_steps:
        return settings.learning_rate * (step + 1) / settings.warmup_steps
    left = (settings.num_steps - step) / max(settings.num_steps - settings.warmup_steps, 1)
    return settings.learning_rate * (settings.final_rate_share + (1 - settings.final_rate_share) * left)


@torch.no_grad()
def validate(state: TrainState, held_out: Corpus, objective: Objective, device: str) -> dict[str, float]:
    """Figures on the dev split, with the averaged weights where there are some."""
    rows = [[utterance] for utterance in sorted(held_out.utterances, key=lambda one: one.num_frames)]
    model, settings = state.model.eval(), objective.train
    current = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    model.load_state_dict(state.average or current)
    total: dict[str, float] = {}
    for batch_rows in batch_by_frames(rows, settings.batch_frames):
        batch = collate(held_out, batch_rows, objective.group_size).to(device)
        with autocast(batch.text.device, settings.bf16):
            figures = objective.validate(model, batch)
        share = batch.num_frames / held_out.num_frames
        for name, value in figures.items():
            total[f"valid_{name}"] = total.get(f"valid_{name}", 0.0) + value.item() * share
    model.load_state_dict(current)
    model.train()
    return total


def new_state(objective: Objective, vocab_size: int, device: str) -> TrainState:
    """A model with random weights and its optimiser."""
    model, settings = objective.build(vocab_size).to(device).train(), objective.train
    optimiser = torch.optim.AdamW(
        model.parameters(), settings.learning_rate, weight_decay=settings.weight_decay, fused=True
    )
    return TrainState(model, optimiser, _average_of(model, settings))


@contextmanager
def deterministic(seed: int, num_threads: int) -> Iterator[None]:
    """The same numbers in every run on the same machine: seed, threads, and no kernel whose order of sums varies."""
    before = torch.are_deterministic_algorithms_enabled(), getattr(determinism, FILL)
    torch.set_num_threads(num_threads)
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True, warn_only=torch.cuda.is_available())
    setattr(determinism, FILL, False)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        setattr(determinism, FILL, before[1])


def _average_of(model: nn.Module, settings: TrainConfig) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.named_parameters()} if settings.ema_decay else {}


def _count_bad_step(state: TrainState, batches: list[Batch], settings: TrainConfig) -> None:
    state.bad_steps += 1
    state.skipped += 1
    if state.bad_steps >= settings.max_bad_steps:
        cuts = [cut for batch in batches for cut in batch.ids]
        raise TrainingError(
            f"loss or gradient not finite {state.bad_steps} updates in a row, at step {state.step}; lower "
            f"learning_rate or switch bf16 off; the last batch was {', '.join(cuts[:8])}{' …' if len(cuts) > 8 else ''}"
        )


def _mean(figures: list[dict[str, float]]) -> dict[str, float]:
    """Mean of each figure over the steps that have it."""
    names = dict.fromkeys(name for one in figures for name in one)
    return {name: _finite_mean([one[name] for one in figures if name in one]) for name in names}


def _finite_mean(values: list[float]) -> float:
    finite = [value for value in values if math.isfinite(value)]
    return sum(finite) / len(finite) if finite else math.nan


def _record(state: TrainState, point: dict[str, float], tracker: Tracker, speed: dict[str, float]) -> None:
    """Add a point to the history, which is an output, and with the speed, which must not be, to the tracker."""
    rounded = {name: round(value, 6) if name != "learning_rate" else value for name, value in point.items()}
    if state.history and state.history[-1]["step"] == state.step:
        state.history[-1] |= rounded
    else:
        state.history.append({"step": state.step, **rounded})
    tracker.log(state.step, point | speed)
