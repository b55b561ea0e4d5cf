"""Batches, made ahead of the steps by workers.

The order is the sampler's, whatever the number of workers and ranks is: micro-batch m of an update goes to rank
m modulo the number of ranks, and each worker makes every so many of a rank's batches. A worker is a process that reads
requests from a pipe and ends when that closes, so none outlives the training, however it ends. It imports numpy alone
and starts in a third of a second; torch's own DataLoader would import torch in each, and answers a worker's death by an
exception in the middle of whatever the training does just then.
"""

import contextlib
import multiprocessing
import pickle
import signal
import threading
import time
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from queue import SimpleQueue
from types import TracebackType
from typing import TYPE_CHECKING

from valle2.errors import TrainingError
from valle2.training.rows import Arrays, pad_rows
from valle2.types import Seconds

if TYPE_CHECKING:
    from valle2.training.codes import Codes
    from valle2.training.data import Batch
    from valle2.training.index import Utterance
    from valle2.training.sampler import Place, Sampler

AHEAD = 3
"""Batches that each worker is ahead."""

Request = list[list["Utterance"]]
"""Rows of a batch."""
Window = tuple[int, int]
"""Epoch, and number in it."""


@dataclass(frozen=True)
class Update:
    """What one rank needs for one update.

    Attributes:
        batches: Its micro-batches.
        place: Behind the update, for the checkpoint; the same on all ranks.
        waited: How long it was waited for.
        padding_share: Share of what the model attends to in these batches that is padding.
        num_frames: Codec frames of the whole update, over all ranks.
    """

    batches: "list[Batch]"
    place: "Place"
    waited: Seconds
    padding_share: float
    num_frames: int


@dataclass
class _Planned:
    """An update whose batches are requested one by one; `windows` are those of the batches that were."""

    place: "Place"
    requests: deque[tuple[Window | None, Request]] = field(default_factory=deque)
    windows: list[Window | None] = field(default_factory=list)
    num_frames: int = 0


class Loader:
    """Updates without end, from a place on.

    with Loader(sampler, state.place, accumulate=4, num_workers=2) as loader:
        for update in loader:

    Args:
        sampler: The order.
        place: Where to begin.
        accumulate: Micro-batches of an update, over all ranks; a multiple of their number.
        num_workers: Processes; 0: batches are made when they are asked for.
        rank: Which share.
        world_size: Number of ranks.
        kind: Section to name in errors, ar or nar.

    Raises:
        TrainingError: There are more ranks than batches in an epoch.
    """

    def __init__(
        self,
        sampler: "Sampler",
        place: "Place",
        *,
        accumulate: int = 1,
        num_workers: int = 0,
        rank: int = 0,
        world_size: int = 1,
        kind: str = "ar",
    ) -> None:
        if accumulate % world_size:
            raise TrainingError(
                f"train_{kind}.accumulate is {accumulate}, which {world_size} ranks cannot share evenly; set it to a "
                f"multiple of {world_size}"
            )
        if len(sampler.epoch(place.epoch)) < world_size:
            raise TrainingError(
                f"more ranks than batches: {world_size} ranks, and an epoch has {len(sampler.epoch(place.epoch))} of "
                f"{sampler.batch_frames} frames; start fewer ranks, lower train_{kind}.batch_frames or add data"
            )
        self._sampler, self._next_place, self._accumulate = sampler, place, accumulate
        self._rank, self._world_size = rank, world_size
        self._planned: deque[_Planned] = deque()
        self._windows: deque[Window] = deque()
        self._cache, codes, group_size = sampler.corpus.cache, sampler.corpus.codes, sampler.group_size
        self._maker: _InLine | _Crew = (
            _Crew(codes, group_size, num_workers, kind) if num_workers else _InLine(codes, group_size)
        )
        self._ahead = AHEAD * num_workers

    def __enter__(self) -> "Loader":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the workers, and let go of the shards."""
        self._maker.close()
        if self._cache:
            self._cache.close()

    def __iter__(self) -> Iterator[Update]:
        return self

    def __next__(self) -> Update:
        """The next update.

        Raises:
            TrainingError: A worker was killed.
            ShardError: A shard is missing or damaged.
            StorageError: The same, of one in a storage; or the storage does not answer.
        """
        from valle2.training.data import Batch, padding_share

        began = time.monotonic()
        self._request(self._accumulate // self._world_size)
        current = self._planned[0]
        batches = []
        for window in current.windows:
            batches.append(Batch.of(self._maker.take()))
            self._release_before(window)
        self._planned.popleft()
        self._request(0)
        waited = time.monotonic() - began
        return Update(
            batches, current.place, waited, padding_share(batches, self._sampler.group_size), current.num_frames
        )

    def _request(self, needed: int) -> None:
        """Have batches made: those of the next update, and as many ahead as there is room and there are shards for."""
        while True:
            planned = next((one for one in self._planned if one.requests), None)
            asked = sum(len(one.windows) for one in self._planned)
            if asked >= max(needed, self._ahead):
                return
            if planned is None:
                self._plan()
                continue
            window, rows = planned.requests[0]
            if window and not self._open(window, must=asked < needed):
                return
            planned.requests.popleft()
            planned.windows.append(window)
            self._maker.ask(rows)

    def _plan(self) -> None:
        """Draw one more update."""
        place, own = self._next_place, _Planned(self._next_place)
        for number in range(self._accumulate):
            at = self._sampler.locate(place)
            epoch = self._sampler.epoch(at.epoch)
            own.num_frames += sum(one.num_frames for row in epoch[at.batch] for one in row)
            if number % self._world_size == self._rank:
                window = (at.epoch, epoch.window(at.batch)) if self._cache else None
                own.requests.append((window, epoch[at.batch]))
            place = replace(at, batch=at.batch + 1)
        own.place = self._next_place = place
        self._planned.append(own)

    def _open(self, window: Window, *, must: bool) -> bool:
        """Whether the shards of a window are there; if they must be, wait for them. The next ones are fetched then."""
        assert self._cache
        if window in self._windows:
            return True
        if not must and len(self._windows) > 1:
            return False  # the disk has room for one that ends, one in use and the next
        shards = self._shards(window)
        self._cache.want(shards)
        if not must and not self._cache.ready(shards):
            return False
        self._cache.hold(shards)
        self._windows.append(window)
        self._cache.want(self._shards(self._after(window)))
        return True

    def _after(self, window: Window) -> Window:
        epoch, number = window
        return (epoch, number + 1) if number + 1 < len(self._sampler.windows(epoch)) else (epoch + 1, 0)

    def _shards(self, window: Window) -> Sequence[int]:
        epoch, number = window
        return [int(shard) for shard in self._sampler.windows(epoch)[number]]

    def _release_before(self, window: Window | None) -> None:
        """A batch of a window is there, so none of an earlier one is being made."""
        while window and self._windows[0] != window:
            old = self._shards(self._windows.popleft())
            still = {shard for kept in self._windows for shard in self._shards(kept)}
            assert self._cache
            self._cache.release(shard for shard in old if shard not in still)


class _InLine:
    """Makes batches when they are taken."""

    def __init__(self, codes: "Codes", group_size: int) -> None:
        self._codes, self._group_size = codes, group_size
        self._asked: deque[Request] = deque()

    def ask(self, rows: Request) -> None:
        self._asked.append(rows)

    def take(self) -> Arrays:
        return pad_rows(self._codes, self._asked.popleft(), self._group_size)

    def close(self) -> None:
        self._asked.clear()


class _Crew:
    """Worker processes that make batches in turn; a thread takes what they have made out of their pipes."""

    def __init__(self, codes: "Codes", group_size: int, count: int, kind: str) -> None:
        context = multiprocessing.get_context("spawn")  # a fork of a process with threads may hang
        self._kind, self._turn = kind, 0
        self._pipes: list[Connection] = []
        self._processes: list[BaseProcess] = []
        for number in range(count):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=_work, args=(theirs, codes, group_size), name=f"loader-{number}", daemon=True
            )
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)
        # Also where nobody closes: Python would wait for them at its end.
        self._end = weakref.finalize(self, _end, self._processes)
        self._asked: SimpleQueue[int | None] = SimpleQueue()
        self._made: SimpleQueue[Arrays | Exception] = SimpleQueue()
        self._thread = threading.Thread(target=self._receive, name="loader", daemon=True)
        self._thread.start()

    def ask(self, rows: Request) -> None:
        # A worker that is dead is found out where its batch is missed.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._pipes[self._turn].send_bytes(pickle.dumps(rows))
        self._asked.put(self._turn)
        self._turn = (self._turn + 1) % len(self._pipes)

    def take(self) -> Arrays:
        made = self._made.get()
        if isinstance(made, Exception):
            self._made.put(made)
            raise made
        return made

    def close(self) -> None:
        self._asked.put(None)
        self._end()
        self._thread.join()
        for pipe in self._pipes:
            pipe.close()

    def _receive(self) -> None:
        while (number := self._asked.get()) is not None:
            pipe, process = self._pipes[number], self._processes[number]
            try:
                wait([pipe, process.sentinel])
                self._made.put(pickle.loads(pipe.recv_bytes()))
            except (EOFError, OSError):
                process.join()
                self._made.put(
                    TrainingError(
                        f"a worker that makes batches died with exit code {process.exitcode}; see whether memory ran "
                        f"out, have fewer by train_{self._kind}.num_workers, and run the same command again: it goes "
                        "on from the last checkpoint"
                    )
                )
                return


def _work(pipe: Connection, codes: "Codes", group_size: int) -> None:
    """A worker: batches for requests, until the pipe closes."""
    # The training ends its workers; what is meant for it, from a terminal or a scheduler, does not.
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, signal.SIG_IGN)
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            made = _make(codes, pickle.loads(pipe.recv_bytes()), group_size)
            pipe.send_bytes(pickle.dumps(made, pickle.HIGHEST_PROTOCOL))


def _make(codes: "Codes", rows: Request, group_size: int) -> Arrays | Exception:
    """A batch, or the error, which is raised where the batch is taken."""
    try:
        return pad_rows(codes, rows, group_size)
    except Exception as error:  # noqa: BLE001 - raised again by the training
        return error


def _end(processes: Sequence[BaseProcess]) -> None:
    for process in processes:
        process.kill()
        process.join()
