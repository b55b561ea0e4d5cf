"""One update of the weights, whatever the number of processes that share it.

An update is `accumulate` micro-batches; of W processes, number r does micro-batches r, r + W, and so on. The random
draws of a micro-batch (dropout, codebook, length of the condition) come from a seed of its own, so that an update is
the same but for the order of its sums whoever does what, and goes on exactly after a crash.
"""

import hashlib
import math

import torch
from torch import nn

from valle2.config.train import TrainConfig
from valle2.errors import TrainingError
from valle2.training.checkpoint import TrainState
from valle2.training.data import Batch
from valle2.training.distributed import Ranks, Shared, whole
from valle2.training.objective import Objective


def train_step(
    state: TrainState, shared: Shared, batches: list[Batch], objective: Objective, ranks: Ranks, seed: int
) -> float:
    """One update. A non-finite one changes no weights, and is counted.

    Args:
        state: What is updated; figures of the micro-batches go to its window.
        shared: Its model, as the processes share it.
        batches: This process's micro-batches.
        objective: What is minimised.
        ranks: Who shares the update.
        seed: Of the run.

    Returns:
        Norm of the gradient before clipping.

    Raises:
        TrainingError: Too many non-finite updates in a row.
    """
    settings = objective.train
    for group in state.optimiser.param_groups:
        group["lr"] = learning_rate(state.step, settings)
    figures = []
    for place, batch in enumerate(batches):
        torch.manual_seed(draw_seed(seed, state.step, ranks.rank + place * ranks.world_size))
        with shared.gradients(last=place == len(batches) - 1):
            with autocast(batch.text.device, settings.bf16):
                losses = shared(objective.loss, batch)
            total = torch.stack([losses[name] * weight for name, weight in objective.weights.items()]).sum()
            # Gradients come out as the mean over processes, of which each has its share of the micro-batches.
            (total / len(batches)).backward()
        figures.append({name: value.detach() for name, value in losses.items()})
    norm = whole(nn.utils.clip_grad_norm_(state.model.parameters(), settings.clip_norm)).item()
    state.window += [{name: value.item() for name, value in one.items()} for one in figures]
    if ranks.is_main:
        state.window.append({"grad_norm": norm})
    state.step += 1
    if math.isfinite(norm):
        state.optimiser.step()
        state.bad_steps = 0
        for name, value in state.average.items():
            value.lerp_(state.model.get_parameter(name).detach(), 1 - settings.ema_decay)
    else:
        _count_bad_step(state, batches, settings)
    state.optimiser.zero_grad()
    return norm


def draw_seed(seed: int, step: int, place: int) -> int:
    """Of the draws of an update's micro-batch."""
    return int.from_bytes(hashlib.blake2b(f"{seed} {step} {place}".encode(), digest_size=7).digest())


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


def _count_bad_step(state: TrainState, batches: list[Batch], settings: TrainConfig) -> None:
    state.bad_steps += 1
    state.skipped += 1
    if state.bad_steps >= settings.max_bad_steps:
        cuts = [cut for batch in batches for cut in batch.ids]
        raise TrainingError(
            f"loss or gradient not finite {state.bad_steps} updates in a row, at step {state.step}; lower "
            f"learning_rate or switch bf16 off; the last batch was {', '.join(cuts[:8])}{' …' if len(cuts) > 8 else ''}"
        )
