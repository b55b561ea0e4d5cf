"""Storages that fsspec reads: patient with one that stops answering, and sure of what has arrived there or here."""

import hashlib
import os
import shutil
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import fsspec
import tenacity
from botocore.exceptions import BotoCoreError, ClientError
from fsspec.implementations.local import LocalFileSystem

from valle2.errors import StorageError
from valle2.stage import file_sha256, is_disk_full
from valle2.types import Seconds

NETWORK_ERRORS = (OSError, TimeoutError, aiohttp.ClientError, BotoCoreError, ClientError)
"""What fsspec raises where a storage does not answer or refuses."""
PATIENCE: Seconds = 180.0
"""How long a storage that has answered before may be away."""
BLOCK = 2**20
"""Bytes in memory while an object is copied."""
_TRIES = 3
"""Times that an object is sent before what arrives is believed to stay wrong."""

Answer = TypeVar("Answer")


class Patience:
    """Does again what fails while a storage is away; safe for several threads.

    A storage that has never answered gets no patience: its address or key is wrong.
    """

    def __init__(self) -> None:
        self._answered = threading.Event()

    def __call__(self, location: str, action: Callable[[], Answer]) -> Answer:
        """What the action returns.

        Raises:
            FileNotFoundError: There is no such object.
            OSError: The disk is full.
            StorageError: The storage refuses, has never answered, or is away for too long.
        """
        again = tenacity.Retrying(
            retry=tenacity.retry_if_exception(lambda error: self._answered.is_set() and _is_away(error)),
            wait=tenacity.wait_exponential(0.5, max=5), stop=tenacity.stop_after_delay(PATIENCE),
            before_sleep=lambda state: _tell(location, state), reraise=True,
        )  # fmt: skip
        try:
            found = again(action)
        except FileNotFoundError:
            self._answered.set()
            raise
        except NETWORK_ERRORS as error:
            if is_disk_full(error):
                raise
            raise unreachable(location, error) from error
        self._answered.set()
        return found


def _is_away(error: BaseException) -> bool:
    """Whether an error can pass by itself: not where a storage says no, nor where the disk is at fault."""
    if isinstance(error, FileNotFoundError | PermissionError | IsADirectoryError) or is_disk_full(error):
        return False
    if isinstance(error, ClientError):
        return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)) >= 500
    if isinstance(error, aiohttp.ClientResponseError):
        return error.status >= 500
    return isinstance(error, NETWORK_ERRORS)


def _tell(location: str, state: tenacity.RetryCallState) -> None:
    if state.attempt_number == 1 and state.outcome:
        reason = _reason(state.outcome.exception())
        print(f"{location} does not answer ({reason}); trying on for {PATIENCE:.0f} s", file=sys.stderr, flush=True)


def _reason(error: BaseException | None) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:200]


def unreachable(location: str, error: Exception) -> StorageError:
    """The sentence for a network error."""
    return StorageError(
        f"cannot reach {location} ({_reason(error)}); check the address, the key and the network, and run the same "
        "command again: it goes on where it stopped"
    )


def send(path: Path, url: str, sha256: str, patience: Patience) -> bool:
    """Copy a file to a URL, and read back what has arrived.

    Args:
        path: The file.
        url: Where to; an object with the same bytes that is there already is left alone, another is replaced.
        sha256: Of the file's bytes.
        patience: With the storage.

    Returns:
        Whether it had to be sent.

    Raises:
        StorageError: The storage refuses or does not answer, or other bytes arrive again and again.
    """
    fs, place = _storage(url)
    for attempt in range(_TRIES + 1):
        if patience(url, lambda: _remote_sha256(fs, place)) == sha256:
            return attempt > 0
        if attempt < _TRIES:
            patience(url, lambda: _put(fs, path, place))
    raise StorageError(
        f"{url} has other bytes than were sent, {_TRIES} times; see whether somebody else writes there, or let "
        "`tokenize.to` name another place"
    )


def _storage(url: str) -> tuple[Any, str]:
    try:
        fs, place = fsspec.core.url_to_fs(url)
    except (ValueError, ImportError) as error:
        raise StorageError(f"cannot use {url} ({error}); give a URL such as s3://bucket/folder") from error
    return fs, place


def _put(fs: Any, path: Path, place: str) -> None:
    if isinstance(fs, LocalFileSystem):
        Path(place).parent.mkdir(parents=True, exist_ok=True)
    try:
        fs.put_file(str(path), place)
    except FileNotFoundError as error:
        raise PermissionError(f"no bucket or folder for {place}") from error


def _remote_sha256(fs: Any, place: str) -> str | None:
    fs.invalidate_cache()
    sha256 = hashlib.sha256()
    try:
        with fs.open(place, "rb") as file:
            while block := file.read(BLOCK):
                sha256.update(block)
    except FileNotFoundError:
        return None
    return sha256.hexdigest()


def fetch(url: str, path: Path, sha256: str, patience: Patience) -> None:
    """Copy an object to a file, unless it is there already.

    Args:
        url: Of the object.
        path: The file.
        sha256: Of the bytes that are expected.
        patience: With the storage.

    Raises:
        StorageError: No such object, other bytes, a storage that refuses or does not answer, or a full disk.
    """
    if path.is_file() and file_sha256(path) == sha256:
        return
    fs, place = _storage(url)
    building = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        patience(url, lambda: _get(fs, place, building))
        if (found := file_sha256(building)) != sha256:
            raise StorageError(
                f"{url} is damaged: its SHA-256 is {found[:12]}…, expected {sha256[:12]}…; put the right file "
                "there, or make it anew by the stage that wrote it"
            )
        building.replace(path)
    except FileNotFoundError as error:
        raise StorageError(f"nothing at {url}; put it back, or make it anew by the stage that wrote it") from error
    except OSError as error:
        if is_disk_full(error):
            raise StorageError(f"no space left for {path}; free some, or let VALLE2_HOME name another disk") from error
        raise
    finally:
        building.unlink(missing_ok=True)


def _get(fs: Any, place: str, path: Path) -> None:
    with fs.open(place, "rb") as remote, path.open("wb") as file:
        shutil.copyfileobj(remote, file, BLOCK)
