"""Push, and see for oneself that it is there: `dvc push` ends with 0 even when the data is nowhere.

Every object of a `.dvc` file or a stage is read back from the remote and held against its md5.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from dvc.repo import Repo

from flows.pipeline import dvc_repository
from valle2.errors import StorageError

BLOCK = 1 << 20


@dataclass(frozen=True)
class Pushed:
    """What was verified at the remote."""

    num_objects: int
    num_bytes: int


def push(root: Path, target: str) -> Pushed:
    """Push a stage's outputs, or a `.dvc` file's, and verify each object at the remote by its hash.

    Args:
        root: The workspace.
        target: A stage, or `data.dvc`.

    Raises:
        StorageError: An object is missing at the remote, or altered, and the cache cannot mend it.
    """
    with dvc_repository(root) as repo:
        names = _objects(repo, target)
        repo.push(targets=[target])
        pushed, wrong = _verify(repo, names)
        if wrong:
            _send_again(repo, wrong)
            pushed, wrong = _verify(repo, names)
        if wrong:
            raise StorageError(
                f"{len(wrong)} of {len(names)} objects of {target} are not at the remote {_remote_url(repo)}: "
                f"{wrong[0]} {'is missing' if not _exists(repo, wrong[0]) else 'has other bytes'}; run the same again, "
                "or find out who removes objects there"
            )
        return pushed


def _objects(repo: Repo, target: str) -> list[str]:
    """The md5 of every file and folder listing of a target's outputs."""
    names: set[str] = set()
    for stage in repo.stage.collect(target):
        for out in stage.outs:
            if not out.use_cache or out.hash_info is None:
                continue
            names.add(out.hash_info.value)
            if out.hash_info.isdir:
                listing = Path(out.cache.oid_to_path(out.hash_info.value))
                names |= {row["md5"] for row in json.loads(listing.read_text())}
    return sorted(names)


def _verify(repo: Repo, names: list[str]) -> tuple[Pushed, list[str]]:
    """Read all objects back; returns what is right, and the names of those that are not."""
    wrong, num_bytes = [], 0
    for name in names:
        found = _read(repo, name)
        if found is None or found[0] != name.removesuffix(".dir"):
            wrong.append(name)
        else:
            num_bytes += found[1]
    return Pushed(len(names) - len(wrong), num_bytes), wrong


def _read(repo: Repo, name: str) -> tuple[str, int] | None:
    """The md5 and size of an object at the remote; None when there is none."""
    store = repo.cloud.get_remote_odb(None, "verify", hash_name="md5")
    md5, size = hashlib.md5(usedforsecurity=False), 0
    try:
        with store.fs.open(store.oid_to_path(name), "rb") as file:
            while block := file.read(BLOCK):
                md5.update(block)
                size += len(block)
    except FileNotFoundError:
        return None
    return md5.hexdigest(), size


def _exists(repo: Repo, name: str) -> bool:
    return _read(repo, name) is not None


def _remote_url(repo: Repo) -> str:
    return str(repo.cloud.get_remote_odb(None, "verify", hash_name="md5").path)


def _send_again(repo: Repo, wrong: list[str]) -> None:
    """Copy objects from the cache ourselves: where a folder's listing is there, DVC takes its files for granted."""
    store, cache = repo.cloud.get_remote_odb(None, "verify", hash_name="md5"), repo.cache.local
    for name in wrong:
        path = cache.oid_to_path(name)
        if cache.fs.exists(path):
            if _exists(repo, name):
                store.fs.remove(store.oid_to_path(name))
            with cache.fs.open(path, "rb") as file:
                store.add_bytes(name, file)
