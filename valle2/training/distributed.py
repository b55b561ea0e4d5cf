"""Processes that train one model together: who they are, what they tell each other, and how the model is shared out.

torchrun says by its environment how many there are; without it there is one, and nothing here costs anything. Gradients
are summed in the same order in every run: what is resumed ends with the bytes of what was not interrupted.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from valle2.errors import TrainingError

Strategy = Literal["ddp", "fsdp"]

FRESH_STORE = "TORCH_DISABLE_SHARE_RDZV_TCP_STORE"
"""Variable for torchrun, to be set to 1: where all attempts share a store, processes that are started again may find
the addresses of those that died, and wait for them."""

_PATIENCE = timedelta(minutes=30)
"""The others wait while the first reads the shards, which may take long."""
_GONE = ("gloo", "nccl", "Connection reset", "Connection closed")
"""Of errors that come of another process's end."""

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """This process among those that train together.

    Attributes:
        rank: Its number; 0 writes what all share.
        world_size: How many there are, W.
        local_size: How many of them are on this machine.
        device: Where it computes.
    """

    rank: int = 0
    world_size: int = 1
    local_size: int = 1
    device: str = "cpu"

    @property
    def is_main(self) -> bool:
        """Whether it is the one that writes."""
        return self.rank == 0

    def barrier(self) -> None:
        """Wait for all."""
        if self.world_size > 1:
            self.any(False)

    def any(self, flag: bool) -> bool:
        """Whether it is so for any of them."""
        if self.world_size == 1:
            return flag
        told = torch.tensor(float(flag))
        dist.all_reduce(told, dist.ReduceOp.MAX)
        return bool(told)

    def sum(self, values: list[float]) -> list[float]:
        """Sums over all."""
        if self.world_size == 1:
            return values
        total = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(total)
        return total.tolist()

    def gather(self, value: T) -> list[T]:
        """What each has, by rank."""
        if self.world_size == 1:
            return [value]
        found: list[Any] = [None] * self.world_size
        dist.all_gather_object(found, value)
        return found

    def first(self, make: Callable[[], T]) -> T:
        """What the first makes, for all."""
        if self.world_size == 1:
            return make()
        told = [make() if self.is_main else None]
        dist.broadcast_object_list(told, src=0)
        return told[0]  # type: ignore[return-value]


@contextmanager
def join_ranks(device: str) -> Iterator[Ranks]:
    """Meet the other processes that torchrun has started; alone, do nothing.

    Raises:
        TrainingError: They cannot be reached, or there are more than GPUs.
    """
    if "RANK" not in os.environ or dist.is_initialized():
        yield Ranks(device=device)
        return
    local = int(os.environ["LOCAL_RANK"])
    backend = "gloo"
    if device != "cpu":
        if local >= torch.cuda.device_count():
            raise TrainingError(
                f"{os.environ['LOCAL_WORLD_SIZE']} processes on this machine and {torch.cuda.device_count()} GPUs; "
                "lower `launch.processes_per_node`, or set runtime.device to cpu"
            )
        device, backend = f"cuda:{local}", "cpu:gloo,cuda:nccl"
        torch.cuda.set_device(local)
    try:
        dist.init_process_group(backend, timeout=_PATIENCE)
    except (RuntimeError, ValueError) as error:
        first_line = str(error).strip().splitlines()[0]
        raise TrainingError(
            f"rank {os.environ['RANK']} of {os.environ['WORLD_SIZE']} cannot reach the others ({first_line}); see "
            "whether the first node can be reached from all, and start the job again"
        ) from error
    try:
        yield Ranks(dist.get_rank(), dist.get_world_size(), int(os.environ["LOCAL_WORLD_SIZE"]), device)
    except RuntimeError as error:
        if any(word in str(error) for word in _GONE):
            raise TrainingError(
                f"rank {dist.get_rank()} of {dist.get_world_size()} lost another rank; what it said stands above; "
                "torchrun starts all of them again, from the last checkpoint"
            ) from error
        raise
    finally:
        dist.destroy_process_group()


class Shared(nn.Module):
    """What is called for each micro-batch, in whatever way the model is shared out.

    Args:
        model: The model; its parameters are replaced by shards where `strategy` is fsdp.
        ranks: Who shares it.
        strategy: `ddp` has the whole model in every process; `fsdp` (FSDP2) a shard of each parameter.
        whole: Blocks that are gathered with what lies outside the blocks, since they are read from outside too.
    """

    def __init__(self, model: nn.Module, ranks: Ranks, strategy: Strategy, whole: tuple[int, ...] = ()) -> None:
        super().__init__()
        self._called = _Called(model)
        self._world_size = ranks.world_size
        self._outer: nn.Module = self._called
        if ranks.world_size > 1 and strategy == "fsdp":
            for place, block in enumerate(model.get_submodule("transformer.blocks").children()):
                if place not in whole:
                    fully_shard(block)
            # Also behind the outermost: between two calls weights are read and set as shards.
            fully_shard(self._called, reshard_after_forward=True)
            for module in self._called.modules():
                if isinstance(module, FSDPModule):
                    # gloo takes a mean for a sum; a sum that is divided afterwards is right everywhere.
                    module.set_force_sum_reduction_for_comms(True)
        elif ranks.world_size > 1:
            # Looking for unused parameters keeps its buckets, and with them the order of sums, the same throughout.
            self._outer = DistributedDataParallel(self._called, find_unused_parameters=True)

    def forward(self, function: Callable[..., T], *arguments: Any) -> T:
        """`function(model, *arguments)`."""
        return self._outer(function, *arguments)

    @contextmanager
    def gradients(self, last: bool) -> Iterator[None]:
        """Around a micro-batch: gradients are exchanged behind the last one of an update."""
        if isinstance(self._outer, FSDPModule):
            self._outer.set_requires_gradient_sync(last)
            yield
        elif isinstance(self._outer, DistributedDataParallel) and not last:
            with self._outer.no_sync():
                yield
        else:
            yield


class _Called(nn.Module):
    """A model that is handed to a function; FSDP and DDP act around a module's forward."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, function: Callable[..., T], *arguments: Any) -> T:
        return function(self.model, *arguments)


def whole(value: Tensor) -> Tensor:
    """A parameter or what is made of it, gathered from its shards; all ranks have to call it."""
    return value.full_tensor() if isinstance(value, DTensor) else value
