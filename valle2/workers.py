"""Units of work to workers: local processes, or actors of a Ray cluster.

Each worker loads its models once and has one unit at a time, so that it is known which unit a dead worker had: another
does it again. Results are files that workers write; what comes back is small. Units are taken from an iterator as
workers get free, so that the driver's memory does not grow with the corpus.
"""

import ctypes
import itertools
import logging
import multiprocessing
import os
import pickle
import socket
import threading
import time
import traceback
import uuid
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

from valle2.config.runtime import Runtime
from valle2.config.workers import RayConfig
from valle2.errors import WorkerError
from valle2.stage import ARTIFACTS
from valle2.types import Seconds

TRIES = 3
"""Workers that may die of a unit before it is given up."""

_SETTLE: Seconds = 5.0
"""Between two looks at what room a cluster has."""
_CONNECT: Seconds = 20.0
_PASSED_ON = ("AWS_", "VALLE2_", "FSSPEC_", "HF_")
"""Beginnings of names of environment variables that workers on other machines get too."""


class Named(Protocol):
    """A unit of work; has to be picklable."""

    @property
    def name(self) -> str:
        """What a user knows it by."""
        ...


Task = TypeVar("Task", bound=Named)
Result = TypeVar("Result")


def spread(
    tasks: Iterable[Task], make: Callable[[], Callable[[Task], Result]], runtime: Runtime, ray: RayConfig
) -> Iterator[tuple[Task, Result]]:
    """Do all units, in whatever order they get done.

    Args:
        tasks: Units; taken as workers get free.
        make: Called once in each worker; what it returns is called with one unit at a time. Both are picklable.
        runtime: Without a cluster there are `num_threads` processes on CPU, and one on a GPU. A single worker, or a
            single unit, needs no process of its own.
        ray: The cluster, if one is named here or by RAY_ADDRESS.

    Yields:
        Unit and result. What a worker raises is raised here.

    Raises:
        WorkerError: `TRIES` workers died of the same unit, or the cluster cannot be reached or has no such workers.
    """
    ahead = iter(tasks)
    first = list(itertools.islice(ahead, 2))
    if not first:
        return
    waiting = itertools.chain(first, ahead)
    address = ray.address or os.environ.get("RAY_ADDRESS", "")
    count = runtime.num_threads if runtime.device == "cpu" else 1
    if address:
        with _ray_crew(make, ray, address) as crew:
            yield from _drive(crew, waiting)
    elif count > 1 and len(first) > 1:
        with _local_crew(make, count) as crew:
            yield from _drive(crew, waiting)
    else:
        work = make()
        for task in waiting:
            yield task, work(task)
            _give_back()


@dataclass(frozen=True)
class _Outcome:
    """What became of a unit; errors come as values so that their types outlive the way back."""

    result: Any = None
    error: Exception | None = None
    trace: str = ""


class _Crew(Protocol):
    """Workers; the futures that `give` returns raise `Lost` if the worker died."""

    def has_room(self) -> bool:
        """Whether a worker is free."""
        ...

    def give(self, task: Any) -> "Future[_Outcome]":
        """Have a free worker do it."""
        ...

    def why_lost(self, error: BaseException) -> str | None:
        """How the worker died, if that is what the error says."""
        ...


def _drive(crew: _Crew, tasks: Iterator[Task]) -> Iterator[tuple[Task, Any]]:
    again: deque[Task] = deque()
    running: dict[Future[_Outcome], Task] = {}
    deaths: Counter[str] = Counter()
    exhausted = False
    while True:
        while (again or not exhausted) and crew.has_room():
            next_task = again.popleft() if again else next(tasks, None)
            exhausted = exhausted or next_task is None
            if next_task is not None:
                running[crew.give(next_task)] = next_task
        if exhausted and not running and not again:
            return
        done, _ = wait([*running], timeout=0.5, return_when=FIRST_COMPLETED)
        if not running:
            time.sleep(0.2)  # a cluster's workers take a while to start
        for future in done:
            task = running.pop(future)
            error = future.exception()
            if error is None:
                yield task, _unpack(future.result())
                continue
            if (why := crew.why_lost(error)) is None:
                raise error
            deaths[task.name] += 1
            if deaths[task.name] == TRIES:
                raise WorkerError(
                    f"{TRIES} workers died of {task.name} (the last {why}); see whether memory ran out, have "
                    "fewer workers by `runtime.num_threads` or `ray.cpus_per_worker`, or leave that out of the sources"
                ) from error
            again.append(task)


def _unpack(outcome: _Outcome) -> Any:
    if outcome.error is not None:
        outcome.error.add_note(f"In a worker:\n{outcome.trace}")
        raise outcome.error
    return outcome.result


class _Worker:
    """In a worker's process: makes the work when the first unit comes."""

    def __init__(self, make: bytes) -> None:
        self._make = make
        self._work: Callable[[Any], Any] | None = None

    def do(self, task: Any) -> _Outcome:
        try:
            if self._work is None:
                self._work = cast(Callable[[Any], Any], pickle.loads(self._make)())
            return _Outcome(self._work(task))
        except Exception as error:  # noqa: BLE001 - raised again by the driver
            return _Outcome(error=_portable(error), trace=traceback.format_exc())
        finally:
            _give_back()


def _give_back() -> None:
    """Free memory to the system: of tensors of ever other sizes, glibc keeps more with every unit."""
    if _trim is not None:
        _trim(0)


_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
"""glibc's; other C libraries have none."""


def _portable(error: Exception) -> Exception:
    """The error itself, if it survives the way to the driver."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # noqa: BLE001 - whatever a package's exception does on its way
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


_worker: _Worker
"""Of a local process."""


def _start(make: bytes) -> None:
    global _worker
    _worker = _Worker(make)
    threading.Thread(target=_die_with_the_driver, daemon=True).start()


def _die_with_the_driver() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _do(task: Any) -> _Outcome:
    return _worker.do(task)


class _LocalCrew:
    """Processes of this machine, each started when it is first needed and replaced when it dies."""

    def __init__(self, pool: Any, count: int) -> None:
        self._pool = pool
        self._count = count
        self._given: list[Future[_Outcome]] = []

    def has_room(self) -> bool:
        self._given = [future for future in self._given if not future.done()]
        return len(self._given) < self._count

    def give(self, task: Any) -> "Future[_Outcome]":
        future: Future[_Outcome] = self._pool.schedule(_do, args=[task])
        self._given.append(future)
        return future

    def why_lost(self, error: BaseException) -> str | None:
        import pebble

        return f"with exit code {error.exitcode}" if isinstance(error, pebble.ProcessExpired) else None


@contextmanager
def _local_crew(make: Callable[[], Any], count: int) -> Iterator[_LocalCrew]:
    import pebble

    context = multiprocessing.get_context("spawn")  # a fork of a process with threads may hang
    pool = pebble.ProcessPool(count, context=context, initializer=_start, initargs=[pickle.dumps(make)])
    try:
        yield _LocalCrew(pool, count)
    finally:
        pool.stop()
        pool.join()


class _RayWorker(_Worker):
    """In an actor's process, somewhere in a cluster."""

    def __init__(self, make: bytes, folder: str, environment: dict[str, str]) -> None:
        os.environ.update(environment)
        super().__init__(make)
        self._folder = folder

    def ready(self, token: str) -> str:
        """Empty, or why this node cannot work."""
        try:
            os.chdir(self._folder)
            found = (ARTIFACTS / ".partial" / ".cluster").read_text()
        except OSError:
            found = ""
        return "" if found == token else socket.gethostname()


class _RayCrew:
    """Actors; only those that are up and see the workspace get units. More are started as a cluster grows."""

    def __init__(self, make: Callable[[], Any], config: RayConfig) -> None:
        import ray

        self._ray = ray
        self._config = config
        environment = {name: value for name, value in os.environ.items() if name.startswith(_PASSED_ON)}
        self._arguments = (pickle.dumps(make), str(Path.cwd()), environment)
        self._token = uuid.uuid4().hex
        mark = ARTIFACTS / ".partial" / ".cluster"
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.write_text(self._token)
        self._kind: Any = ray.remote(max_restarts=0, num_cpus=config.cpus_per_worker, num_gpus=config.gpus_per_worker)(
            _RayWorker
        )
        self._starting: dict[Future[str], Any] = {}
        self._free: list[Any] = []
        self._busy: dict[Future[_Outcome], Any] = {}
        self._looked = -_SETTLE

    def has_room(self) -> bool:
        self._look()
        return bool(self._free)

    def give(self, task: Any) -> "Future[_Outcome]":
        actor = self._free.pop()
        future: Future[_Outcome] = actor.do.remote(task).future()
        self._busy[future] = actor
        return future

    def why_lost(self, error: BaseException) -> str | None:
        return f"with {type(error).__name__}" if isinstance(error, self._ray.exceptions.RayActorError) else None

    def _look(self) -> None:
        """Who is up, who is done, and who is missing."""
        for future in [future for future in self._busy if future.done()]:
            actor = self._busy.pop(future)
            if future.exception() is None:
                self._free.append(actor)
            else:
                self._looked = -_SETTLE
        for started in [started for started in self._starting if started.done()]:
            actor = self._starting.pop(started)
            if started.exception() is not None:
                continue
            if host := started.result():
                raise WorkerError(
                    f"the cluster's node {host} does not see {Path.cwd()}; all nodes need the workspace at the same "
                    "place, on a shared file system"
                )
            self._free.append(actor)
        if time.monotonic() - self._looked >= _SETTLE:
            self._looked = time.monotonic()
            for _ in range(len(self._starting) + len(self._free) + len(self._busy), self._size()):
                actor = self._kind.remote(*self._arguments)
                self._starting[actor.ready.remote(self._token).future()] = actor

    def _size(self) -> int:
        if self._config.num_workers:
            return self._config.num_workers
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        room = sum(self._room(node) for node in nodes)
        if not room and nodes:
            largest = max(nodes, key=lambda node: (node.get("GPU", 0), node.get("CPU", 0)))
            raise WorkerError(
                f"no node of the cluster has {self._config.cpus_per_worker:g} CPUs and "
                f"{self._config.gpus_per_worker:g} GPUs for a worker, the largest "
                f"{largest.get('CPU', 0):g} and {largest.get('GPU', 0):g}; lower "
                "`ray.cpus_per_worker` or `ray.gpus_per_worker`"
            )
        return room

    def _room(self, node: dict[str, float]) -> int:
        wanted = {"CPU": self._config.cpus_per_worker, "GPU": self._config.gpus_per_worker}
        return min(int(node.get(name, 0) / amount + 1e-6) for name, amount in wanted.items() if amount)


@contextmanager
def _ray_crew(make: Callable[[], Any], config: RayConfig, address: str) -> Iterator[_RayCrew]:
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else it warns of a change to come
    import ray

    already = ray.is_initialized()
    if not already:
        _check_port(address)
        try:
            ray.init(address, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, RuntimeError, ValueError, OSError) as error:
            raise WorkerError(_unreachable(address, error)) from error
    try:
        yield _RayCrew(make, config)
    finally:
        if not already:
            ray.shutdown()


def _check_port(address: str) -> None:
    """Ray itself tries for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), _CONNECT).close()
    except OSError as error:
        raise WorkerError(_unreachable(address, error)) from error


def _unreachable(address: str, error: Exception) -> str:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return (
        f"no Ray cluster at {address} ({reason}); start one with `ray start --head`, or unset RAY_ADDRESS and "
        "`ray.address` to work in local processes"
    )
