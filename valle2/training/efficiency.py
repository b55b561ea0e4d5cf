"""What makes training smaller or faster and leaves its arithmetic alone: checkpointed and compiled blocks, kept memory.

The models know nothing of it: blocks are wrapped in place, and the names of their weights stay. Also here is the
sentence for a batch that does not fit into memory.
"""

import ctypes
import os
import platform
import shutil
import sysconfig
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from valle2.errors import TrainingError
from valle2.model.layers import Block

if TYPE_CHECKING:  # benchmarks.gpu runs without the packages that these need
    from valle2.config.train import TrainConfig
    from valle2.training.data import Batch

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""Of glibc's malloc.h."""

CPU_OUT_OF_MEMORY = ("can't allocate memory", "not enough memory", "could not create a memory object")
"""What torch's and oneDNN's errors say when a CPU's memory is at its end."""


def apply(model: nn.Module, settings: "TrainConfig", kind: str) -> None:
    """Wrap a model's blocks in place as the settings say; its weights, their names and what it computes stay.

    Args:
        model: An AR or NAR model on the device that it is trained on, before it is wrapped for several processes.
        settings: `activation_checkpointing` and `compile`.
        kind: Section to name in errors, ar or nar.

    Raises:
        TrainingError: Compiling is asked for and there is no compiler.
    """
    if settings.compile:
        check_compiler(next(model.parameters()).device, kind)
    for block in model.modules():
        if not isinstance(block, Block):
            continue
        forward: Callable[..., Any] = block.forward
        if settings.compile:
            # Lengths differ from batch to batch: without `dynamic` each new one is compiled anew.
            forward = torch.compile(forward, dynamic=True)
        if settings.activation_checkpointing:
            forward = partial(_checkpointed, forward)
        block.forward = forward  # type: ignore[method-assign]


def _checkpointed(forward: Callable[..., Any], *arguments: Any, **more: Any) -> Any:
    """The forward pass, to be done again in the backward pass with the same random numbers."""
    if not torch.is_grad_enabled():
        return forward(*arguments, **more)
    return checkpoint(forward, *arguments, use_reentrant=False, **more)


def check_compiler(device: torch.device, kind: str) -> None:
    """Make sure that what torch.compile writes can be built.

    Raises:
        TrainingError: It cannot.
    """
    compiler = os.environ.get("CXX", "g++")
    header = Path(sysconfig.get_path("include"), "Python.h")
    missing = None
    if not shutil.which(compiler):
        missing = f"no C++ compiler {compiler!r}"
    elif device.type == "cpu" and not header.is_file():
        missing = f"no {header}"
    if missing:
        raise TrainingError(
            f"`train_{kind}.compile` is true and there is {missing} here; install a C++ compiler and Python's headers "
            f"(Debian: g++ and python3-dev), or set train_{kind}.compile to false"
        )


def keep_freed_memory() -> None:
    """Let this process reuse the memory that it frees, where it otherwise goes back to the system at once.

    A step frees and allocates gigabytes in blocks of tens of megabytes; getting each of them anew, page by page, took
    a tenth of a step. Only glibc is told; elsewhere nothing happens.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


@contextmanager
def explained_out_of_memory(batches: "Sequence[Batch]", kind: str) -> Iterator[None]:
    """Turn torch's error of too little memory into a sentence that names the batch and the settings to lower.

    Args:
        batches: What is trained on inside.
        kind: Section to name, ar or nar.

    Raises:
        TrainingError: Memory did not suffice.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        largest = max(batches, key=lambda batch: batch.codes.shape[0] * batch.codes.shape[-1])
        rows, frames = largest.codes.shape[0], largest.codes.shape[-1]
        raise TrainingError(
            f"out of memory ({str(error).strip().splitlines()[0][:160] or 'MemoryError'}) in a batch of "
            f"{largest.num_frames} frames, {rows} {'row' if rows == 1 else 'rows'}, the longest of {frames} frames; "
            f"lower train_{kind}.batch_frames, or set train_{kind}.activation_checkpointing to true"
        ) from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory is at its end."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return any(part in str(error) for part in CPU_OUT_OF_MEMORY)
