"""The shards that are on disk while a corpus is streamed: those in use, those to come, and as many old ones as fit.

All trainings and ranks of a machine share them. One that is in use is held by a lock that ends with its process, so
that nobody removes it; every file's checksum is verified before it is used, and again whenever it comes back into use.
"""

import fcntl
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing.pool import AsyncResult, ThreadPool
from pathlib import Path
from typing import Any

from valle2.errors import TrainingError
from valle2.shards import ShardFiles
from valle2.training.index import alone
from valle2.types import Split

FETCHERS = 4
"""Shards that are fetched at a time, by threads: they wait for the network and hash, which leaves Python to others."""


class ShardCache:
    """Shards by number, fetched in the background.

    Args:
        find: Finds files of shards, verified.
        split: Whose.
        shards: Their entries in the manifest.
        cache_gb: 10^9 bytes that all files may take.
        kind: Section to name in errors, ar or nar.
    """

    def __init__(
        self, find: ShardFiles, split: Split, shards: Sequence[Mapping[str, Any]], cache_gb: float, kind: str
    ) -> None:
        self._find, self._split, self._shards = find, split, shards
        self._bytes, self._kind = cache_gb * 1e9, kind
        self._threads: ThreadPool | None = None
        self._coming: dict[int, AsyncResult[int]] = {}
        self._held: dict[int, int] = {}

    @property
    def paths(self) -> list[Path]:
        """The files with the codes, there or not."""
        return [self._find.path(self._split, shard["codes"]) for shard in self._shards]

    def check(self, window_shards: int) -> None:
        """Refuse a cache that has no room for three windows: one that ends, the one in use and the next.

        Raises:
            TrainingError: The sentence says how much room it takes.
        """
        largest = sorted((shard["codes"]["bytes"] for shard in self._shards), reverse=True)[: 3 * window_shards]
        if self._find.remote and sum(largest) > self._bytes:
            raise TrainingError(
                f"train_{self._kind}.cache_gb is {self._bytes / 1e9:g}, but three times {window_shards} shards, those "
                f"in use, before and next, take {sum(largest) / 1e9:.2g} GB; raise it, or lower "
                f"train_{self._kind}.stream_shards"
            )

    def want(self, shards: Iterable[int]) -> None:
        """Have shards fetched in the background."""
        self._threads = self._threads or ThreadPool(FETCHERS)
        new = [shard for shard in map(int, shards) if shard not in self._held and shard not in self._coming]
        files = [self._shards[shard]["codes"] for shard in [*self._coming, *new]]
        if new:
            self._evict(sum(file["bytes"] for file in files if not self._find.path(self._split, file).exists()))
        for shard in new:
            self._coming[shard] = self._threads.apply_async(self._hold, (shard,))

    def ready(self, shards: Iterable[int]) -> bool:
        """Whether shards are there, or known not to come."""
        return all(shard in self._held or self._coming[shard].ready() for shard in map(int, shards))

    def hold(self, shards: Iterable[int]) -> None:
        """Wait for shards that are wanted; they stay until they are released.

        Raises:
            ShardError: One is missing or damaged.
            StorageError: The same, of one in a storage; or the storage does not answer.
        """
        for shard in map(int, shards):
            if shard not in self._held:
                self._held[shard] = self._coming[shard].get()
                del self._coming[shard]

    def release(self, shards: Iterable[int]) -> None:
        """Shards are no longer in use here."""
        for shard in map(int, shards):
            if shard in self._held:
                os.close(self._held.pop(shard))

    @contextmanager
    def cuts(self, shard: int) -> Iterator[Path]:
        """The file with a shard's cuts, which stays at least until then."""
        lock = self._fetched(self._shards[shard]["cuts"])
        try:
            yield self._find.path(self._split, self._shards[shard]["cuts"])
        finally:
            os.close(lock)
            self._evict()

    def close(self) -> None:
        """Release all, and fetch no more."""
        if self._threads:
            self._threads.terminate()
            self._threads = None
        for coming in self._coming.values():
            if coming.ready() and coming.successful():
                os.close(coming.get())
        self._coming.clear()
        self.release(list(self._held))

    def _hold(self, shard: int) -> int:
        return self._fetched(self._shards[shard]["codes"])

    def _fetched(self, file: Mapping[str, Any]) -> int:
        """A file that is there, verified, and locked against removal until the descriptor is closed."""
        while True:
            if self._find.remote:
                with alone(self._find.path(self._split, file).parent):
                    path = self._find(self._split, file)
            else:
                path = self._find(self._split, file)
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            fcntl.flock(descriptor, fcntl.LOCK_SH)
            if os.fstat(descriptor).st_nlink:
                if self._find.remote:
                    os.utime(descriptor)
                return descriptor
            os.close(descriptor)

    def _evict(self, coming: int = 0) -> None:
        """Remove what was not used for longest, so that what comes keeps within the bound."""
        if not self._find.remote:
            return
        found = []
        for file in (shard[field] for shard in self._shards for field in ("cuts", "codes")):
            path = self._find.path(self._split, file)
            if path.exists():
                found.append((path.stat().st_mtime_ns, file["bytes"], path))
        total = coming + sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if total <= self._bytes:
                return
            if _remove(path):
                total -= size


def _remove(path: Path) -> bool:
    """Remove a file that nobody uses."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink(missing_ok=True)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True
