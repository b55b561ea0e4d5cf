"""Units of work: done once each, by local processes or a Ray cluster, whoever dies on the way."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import psutil
import pytest

from valle2.config.runtime import Runtime
from valle2.config.workers import RayConfig
from valle2.errors import SourceError, WorkerError
from valle2.workers import TRIES, spread

NO_CLUSTER = RayConfig()


@dataclass(frozen=True)
class Item:
    number: int
    does: str = ""

    @property
    def name(self) -> str:
        return f"item {self.number}"


class Worker:
    """Answers with its process; does what an item says."""

    def __init__(self, folder: Path, pause: float = 0.05) -> None:
        self._folder = folder
        self._pause = pause

    def __call__(self, item: Item) -> int:
        time.sleep(self._pause)
        mark = self._folder / str(item.number)
        if item.does == "die" or (item.does == "die once" and not mark.exists()):
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if item.does == "fail":
            raise SourceError("found nothing")
        if item.does == "disk":
            raise OSError(28, "No space left on device")
        return os.getpid()


def do(items: Iterable[Item], folder: Path, threads: int = 2, ray: RayConfig = NO_CLUSTER) -> list[tuple[int, int]]:
    runtime = Runtime(num_threads=threads)
    return [(item.number, process) for item, process in spread(items, partial(Worker, folder), runtime, ray)]


def test_every_item_is_done_once_by_several_processes(tmp_path: Path) -> None:
    found = do(map(Item, range(20)), tmp_path)
    assert sorted(number for number, _ in found) == list(range(20))
    assert len({process for _, process in found} - {os.getpid()}) == 2


def test_one_thread_or_one_item_needs_no_process(tmp_path: Path) -> None:
    assert do(map(Item, range(3)), tmp_path, threads=1) == [(number, os.getpid()) for number in range(3)]
    assert do([Item(7)], tmp_path) == [(7, os.getpid())]
    assert do([], tmp_path) == []


def test_items_are_taken_as_workers_get_free(tmp_path: Path) -> None:
    taken: list[int] = []

    def items() -> Iterator[Item]:
        for number in range(40):
            taken.append(number)
            yield Item(number)

    ahead = [
        len(taken) - done for done, _ in enumerate(spread(items(), partial(Worker, tmp_path), Runtime(), NO_CLUSTER))
    ]
    assert max(ahead) <= 4


def test_what_a_killed_worker_had_is_done_by_another(tmp_path: Path) -> None:
    found = do([Item(number, "die once" if number in (3, 4) else "") for number in range(10)], tmp_path)
    assert sorted(number for number, _ in found) == list(range(10))


def test_an_item_that_kills_every_worker_is_named(tmp_path: Path) -> None:
    with pytest.raises(WorkerError, match=rf"{TRIES} workers died of item 1 \(the last with exit code -9\)"):
        do([Item(0), Item(1, "die"), Item(2)], tmp_path)


def test_errors_of_workers_keep_their_type_and_say_where(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="found nothing") as caught:
        do([Item(0), Item(1, "fail"), Item(2)], tmp_path)
    assert "in __call__" in caught.value.__notes__[0]
    with pytest.raises(OSError, match="No space") as full:
        do([Item(0), Item(1, "disk")], tmp_path)
    assert full.value.errno == 28


def test_workers_end_with_a_killed_driver(tmp_path: Path) -> None:
    code = (
        "from functools import partial; from pathlib import Path; from tests.test_workers import *\n"
        "if __name__ == '__main__':\n"
        "    work = partial(Worker, Path(), 0.2)\n"
        "    for _ in spread(map(Item, range(1000)), work, Runtime(), NO_CLUSTER): print('one', flush=True)\n"
    )
    script = tmp_path / "driver.py"
    script.write_text(code)
    environment = {**os.environ, "PYTHONPATH": str(Path.cwd())}
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, env=environment, cwd=tmp_path) as driver:
        assert driver.stdout is not None
        driver.stdout.readline()
        workers = psutil.Process(driver.pid).children(recursive=True)
        assert len(workers) >= 2
        driver.kill()
        driver.wait()
        _, alive = psutil.wait_procs(workers, timeout=20)
    assert not alive


@pytest.mark.slow
def test_a_cluster_that_loses_a_node_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("PYTHONPATH", str(Path.cwd()))
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.chdir(tmp_path)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        node, _ = [cluster.add_node(num_cpus=1) for _ in range(2)]
        address = RayConfig(address=str(cluster.address))
        found = []
        work = partial(Worker, tmp_path, 0.3)
        items = [Item(number, "die once" if number == 30 else "") for number in range(40)]
        for item, process in spread(items, work, Runtime(), address):
            found.append((item.number, process))
            if len(found) == 12:
                cluster.remove_node(node, allow_graceful=False)
        assert sorted(number for number, _ in found) == list(range(40))
        assert len({process for _, process in found[:12]}) >= 2
        with pytest.raises(SourceError, match="found nothing"):
            do([Item(0), Item(1, "fail")], tmp_path, ray=address)
        with pytest.raises(WorkerError, match=r"no node of the cluster has 1 CPUs and 0\.5 GPUs"):
            do([Item(0)], tmp_path, ray=RayConfig(address=address.address, gpus_per_worker=0.5))
    finally:
        cluster.shutdown()


def test_no_cluster_at_an_address_is_told_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    with pytest.raises(WorkerError, match=r"no Ray cluster at 127\.0\.0\.1:9 .*ray start --head"):
        do([Item(0)], tmp_path)
