"""Room on the disk: enough to begin, and one sentence where it ends."""

import errno
import os
import shutil
from pathlib import Path

from valle2.errors import StorageError

NEEDED = 200_000_000
"""Bytes that a run takes at least: a clone, Prefect's database and the small models' work."""
FULL = 1_000_000
"""A disk with less is full: tools that fail on it name no error number."""


def is_full(error: BaseException | None) -> bool:
    """Whether an error is that of a full disk; `shutil` gathers several errors in one, as text."""
    number = getattr(error, "errno", None)
    return number in (errno.ENOSPC, errno.EDQUOT) or (
        isinstance(error, shutil.Error) and os.strerror(errno.ENOSPC) in str(error)
    )


def free_bytes(root: Path) -> int:
    """What is left on the disk of a folder."""
    return shutil.disk_usage(root).free


def check_space(root: Path) -> None:
    """Refuse a run for which not even the tools have room: without it, Prefect's own database fails first.

    Raises:
        StorageError: Less than `NEEDED` is free.
    """
    if (free := free_bytes(root)) < NEEDED:
        raise StorageError(
            f"{free / 1e6:.0f} MB are free on the disk of {root}, and a run needs {NEEDED / 1e6:.0f} MB at least; free "
            "some and run the same again"
        )


def no_space(root: Path) -> StorageError:
    """What to say when the disk is full."""
    return StorageError(f"no space left on the disk of {root}; free some and run the same again, it goes on")
