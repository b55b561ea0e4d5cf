"""Checkpoints that training goes on from exactly: everything that the next step depends on, or nothing.

A checkpoint is a folder of its own, named by a pointer file that changes by rename once the folder is whole. A kill at
any moment leaves the last whole one. They live in the stage's work folder and are no output of it.
"""

import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from valle2.errors import TrainingError
from valle2.stage import write_text
from valle2.training.sampler import Place

POINTER = "latest"
STATE = "state.pt"


@dataclass
class TrainState:
    """All that changes while training.

    Attributes:
        model: The weights.
        optimiser: AdamW and its moments.
        average: Moving average of the weights, empty where there is none.
        step: Updates done, skipped ones included.
        place: The sampler's.
        frames: Codec frames seen.
        bad_steps: Non-finite updates since the last good one.
        skipped: All non-finite updates.
        window: Metrics of the updates since the last point of the curves.
        history: Points of the curves.
    """

    model: nn.Module
    optimiser: torch.optim.Optimizer
    average: dict[str, Tensor] = field(default_factory=dict)
    step: int = 0
    place: Place = field(default_factory=Place)
    frames: int = 0
    bad_steps: int = 0
    skipped: int = 0
    window: list[dict[str, float]] = field(default_factory=list)
    history: list[dict[str, float]] = field(default_factory=list)


def save_checkpoint(state: TrainState, folder: Path, identity: str, keep: int) -> None:
    """Write a checkpoint, point at it, and remove those before the last `keep`.

    Args:
        state: What to save.
        folder: Folder of all checkpoints.
        identity: Digest of the parameters and data that the state belongs to.
        keep: How many to leave.
    """
    name = f"step-{state.step:08d}"
    building = folder / f"{name}.tmp"
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(parents=True)
    with (building / STATE).open("wb") as file:
        torch.save(_pack(state, identity), file)
        file.flush()
        os.fsync(file.fileno())
    shutil.rmtree(folder / name, ignore_errors=True)
    building.replace(folder / name)
    write_text(folder / POINTER, name)
    for old in sorted(folder.glob("step-????????"))[:-keep]:
        shutil.rmtree(old)


def load_checkpoint(state: TrainState, folder: Path, identity: str) -> bool:
    """Set the state to the last checkpoint's, the random numbers included.

    Returns:
        Whether there was one.

    Raises:
        TrainingError: It cannot be read, or belongs to other parameters or data.
    """
    pointer = folder / POINTER
    if not pointer.is_file():
        return False
    path = folder / pointer.read_text() / STATE
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError) as error:
        raise TrainingError(f"checkpoint {path} cannot be read ({error}); remove {folder} to start anew") from error
    if saved["identity"] != identity:
        raise TrainingError(f"checkpoint {path} belongs to other parameters or data; remove {folder} to start anew")
    _unpack(state, saved)
    return True


def _pack(state: TrainState, identity: str) -> dict[str, Any]:
    return {
        "identity": identity,
        "model": state.model.state_dict(),
        "optimiser": state.optimiser.state_dict(),
        "average": state.average,
        "rng": torch.get_rng_state(),
        "cuda_rng": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "place": (state.place.epoch, state.place.batch),
        "counts": (state.step, state.frames, state.bad_steps, state.skipped),
        "window": state.window,
        "history": state.history,
    }


def _unpack(state: TrainState, saved: dict[str, Any]) -> None:
    state.model.load_state_dict(saved["model"])
    state.optimiser.load_state_dict(saved["optimiser"])
    for name, value in saved["average"].items():
        state.average[name].copy_(value)
    torch.set_rng_state(saved["rng"])
    if saved["cuda_rng"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(saved["cuda_rng"])
    state.place = Place(*saved["place"])
    state.step, state.frames, state.bad_steps, state.skipped = saved["counts"]
    state.window, state.history = saved["window"], saved["history"]
