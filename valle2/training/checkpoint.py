"""Checkpoints that training goes on from exactly, written beside it.

A checkpoint is a folder `step-N` of torch's distributed format, so that any number of processes can read it; beside the
tensors are `state.json` (counts, curves, the sampler's place, parameters, data and commit) and the checksums of all
files. It is built under another name; a pointer file changes by rename once it is whole. A kill at any moment leaves
the last whole one, and a damaged one is passed over for the one before. There is no random state to keep: every
micro-batch seeds its own draws (`valle2.training.step`). Checkpoints live in the stage's work folder and are no output.
"""

import json
import shutil
import sys
import warnings
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from valle2.errors import TrainingError
from valle2.stage import file_sha256, is_disk_full, write_json, write_text
from valle2.training.distributed import Ranks
from valle2.training.sampler import Place

POINTER = "latest"
BEST = "best"
FACTS = "state.json"
CHECKSUMS = "checksums.json"


@dataclass
class TrainState:
    """All that changes while training.

    Attributes:
        model: The weights, or this process's shards of them.
        optimiser: AdamW and its moments.
        average: Moving average of the weights, empty where there is none.
        step: Updates done, skipped ones included.
        place: The sampler's.
        frames: Codec frames seen, by all processes.
        bad_steps: Non-finite updates since the last good one.
        skipped: All non-finite updates.
        best: Lowest validation loss so far.
        window: Figures of this process's micro-batches since the last point of the curves.
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
    best: float | None = None
    window: list[dict[str, float]] = field(default_factory=list)
    history: list[dict[str, float]] = field(default_factory=list)


class Checkpoints:
    """The checkpoints of one training.

    Args:
        folder: Where they are.
        inputs: Parameters and digests of data that the state belongs to; what has others is refused.
        keep: How many to leave, beside the best.
        ranks: Who writes them together.
        about: What else to say in each, such as the commit.
    """

    def __init__(
        self, folder: Path, inputs: Mapping[str, Any], keep: int, ranks: Ranks, about: Mapping[str, str] | None = None
    ) -> None:
        self._folder, self._inputs, self._keep, self._ranks = folder, _as_read(inputs), keep, ranks
        self._about = dict(about or {})
        for notice in ("torch.distributed is disabled", "TypedStorage is deprecated"):  # by torch's own calls
            warnings.filterwarnings("ignore", message=notice)
        # Beside training, and so in a group of its own.
        self._group = dist.new_group(backend="gloo") if ranks.world_size > 1 else None
        # Kept buffers are page-locked, which only a GPU's driver does.
        self._writer = dcp.FileSystemWriter(folder, cache_staged_state_dict=torch.cuda.is_available())
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._writing: Future[None] | None = None

    def save(self, state: TrainState) -> None:
        """Copy the state aside and write it while training goes on; all ranks have to call it.

        A full disk costs the checkpoint and a line on standard error; the last good one stays.
        """
        self.wait()
        name = f"step-{state.step:08d}"
        building = self._folder / f"{name}.tmp"
        if self._ranks.is_main:
            shutil.rmtree(building, ignore_errors=True)
            self._folder.mkdir(parents=True, exist_ok=True)
        facts = self._facts(state)
        is_best = state.best is not None and bool(state.history) and state.history[-1].get("valid_loss") == state.best
        written = dcp.async_save(
            _tensors(state), checkpoint_id=building, storage_writer=self._writer, process_group=self._group
        )
        self._writing = self._thread.submit(self._finish, written, name, facts, is_best)

    @property
    def is_writing(self) -> bool:
        """Whether the last one is still being written."""
        return self._writing is not None and not self._writing.done()

    def wait(self) -> None:
        """Until the last one is written."""
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.result()

    def load(self, state: TrainState) -> bool:
        """Set the state to the last whole checkpoint's.

        Returns:
            Whether there was one.

        Raises:
            TrainingError: None of them is whole, or it belongs to other parameters or data.
        """
        name = self._ranks.first(self._newest_whole)
        if name is None:
            return False
        facts = json.loads((self._folder / name / FACTS).read_text())
        if found := differences(facts["inputs"], self._inputs):
            raise TrainingError(refusal(self._folder, facts["step"], found))
        tensors = _tensors(state, with_optimiser=facts["optimiser"])
        dcp.load(tensors, checkpoint_id=self._folder / name, process_group=self._group)
        set_model_state_dict(state.model, tensors["model"])
        if facts["optimiser"]:
            set_optimizer_state_dict(state.model, state.optimiser, tensors["optimiser"])
        state.place = Place(*facts["place"])
        for count in ("step", "frames", "bad_steps", "skipped", "best", "history"):
            setattr(state, count, facts[count])
        state.window = facts["window"] if self._ranks.is_main else []
        return True

    def _facts(self, state: TrainState) -> dict[str, Any]:
        window = [figures for own in self._ranks.gather(state.window) for figures in own]
        return {
            "inputs": self._inputs,
            "about": self._about,
            "optimiser": bool(state.optimiser.state),
            "place": [state.place.epoch, state.place.batch],
            "window": window,
            "history": list(state.history),
            **{count: getattr(state, count) for count in ("step", "frames", "bad_steps", "skipped", "best")},
        }

    def _finish(self, written: Future[Any], name: str, facts: dict[str, Any], is_best: bool) -> None:
        """Once the tensors are there: the rest, by the first rank."""
        building = self._folder / f"{name}.tmp"
        try:
            written.result()
            if self._ranks.is_main:
                write_json(building / FACTS, facts)
                write_json(building / CHECKSUMS, {path.name: file_sha256(path) for path in sorted(building.iterdir())})
                shutil.rmtree(self._folder / name, ignore_errors=True)
                building.replace(self._folder / name)
                write_text(self._folder / POINTER, name)
                if is_best:
                    write_text(self._folder / BEST, name)
                self._remove_old()
        except (OSError, dcp.CheckpointException) as error:
            if not _for_want_of_space(error):
                raise
            if self._ranks.is_main:
                shutil.rmtree(building, ignore_errors=True)
                last = _read(self._folder / POINTER)
                print(
                    f"no space left on the disk of {self._folder.absolute()}: checkpoint {name} is not written, the "
                    f"last is {last or 'none'}; training goes on, free some space before the next",
                    file=sys.stderr,
                    flush=True,
                )

    def _remove_old(self) -> None:
        best = _read(self._folder / BEST)
        for old in sorted(self._folder.glob("step-????????"))[: -self._keep]:
            if old.name != best:
                shutil.rmtree(old)
        for unfinished in self._folder.glob("step-*.tmp"):
            shutil.rmtree(unfinished, ignore_errors=True)

    def _newest_whole(self) -> str | None:
        last = _read(self._folder / POINTER)
        if last is None:
            return None
        older = [path.name for path in sorted(self._folder.glob("step-????????"), reverse=True) if path.name < last]
        for name in (last, *older):
            problem = damage(self._folder / name)
            if problem is None:
                return name
            print(f"checkpoint {self._folder / name} is damaged ({problem}); looking for the one before",
                  file=sys.stderr, flush=True)  # fmt: skip
        raise TrainingError(f"none of the checkpoints in {self._folder} is whole; remove that folder to start anew")


def damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint's files; None if nothing is."""
    try:
        sums = json.loads((checkpoint / CHECKSUMS).read_text())
    except (OSError, ValueError):
        return f"no readable {CHECKSUMS}"
    for name, wanted in sums.items():
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        if (found := file_sha256(path)) != wanted:
            return f"the SHA-256 of {name} is {found[:12]}…, written was {wanted[:12]}…"
    return None


def differences(theirs: Mapping[str, Any], ours: Mapping[str, Any], prefix: str = "") -> list[str]:
    """What differs between two trees of parameters, in words."""
    found: list[str] = []
    for name in dict.fromkeys([*theirs, *ours]):
        one, other = theirs.get(name), ours.get(name)
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            found += differences(one, other, f"{prefix}{name}.")
        elif one != other:
            found.append(f"{prefix}{name} is {_short(one)} there and {_short(other)} here")
    return found


def refusal(folder: Path, step: int, found: list[str]) -> str:
    """Why a checkpoint is not gone on from, and what to do."""
    return (
        f"{folder} holds a training at step {step} that belongs to other parameters or data: {'; '.join(found)}; "
        f"change these back to go on, or remove {folder} to start anew"
    )


def refuse_other_training(folder: Path, inputs: Mapping[str, Any]) -> None:
    """Rather than lose an unfinished training of other parameters or data.

    Raises:
        TrainingError: There is one; the message names every difference.
    """
    name = _read(folder / POINTER)
    try:
        facts = json.loads((folder / str(name) / FACTS).read_text())
    except (OSError, ValueError):
        return
    if found := differences(facts["inputs"], _as_read(inputs)):
        raise TrainingError(refusal(folder, facts["step"], found))


def _as_read(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """As they come back from a file."""
    read: dict[str, Any] = json.loads(json.dumps(inputs))
    return read


def _tensors(state: TrainState, with_optimiser: bool | None = None) -> dict[str, Any]:
    """The state's tensors, under names that depend on no number of processes."""
    tensors: dict[str, Any] = {"model": get_model_state_dict(state.model), "average": state.average}
    # Before the first update there is none, and asking would make one.
    if bool(state.optimiser.state) if with_optimiser is None else with_optimiser:
        tensors["optimiser"] = get_optimizer_state_dict(state.model, state.optimiser)
    return tensors


def _for_want_of_space(error: BaseException) -> bool:
    if isinstance(error, dcp.CheckpointException):
        return any(_for_want_of_space(own) for own, _ in error.failures.values())
    return is_disk_full(error) or "No space left" in str(error)


def _read(path: Path) -> str | None:
    return path.read_text().strip() if path.is_file() else None


def _short(value: Any) -> str:
    return f"{value[:12]}…" if isinstance(value, str) and len(value) > 40 else str(value)
