"""Where a stage's outputs are, and how they appear: resumable, and whole or not at all.

A stage works in `artifacts/.partial/<stage>`, which survives a crash as long as its inputs are the same, and publishes
its output by rename. Times and run ids go to `artifacts/.log/<stage>.json`, which is no output.
"""

import errno
import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from valle2.errors import StorageError
from valle2.types import Stage

ARTIFACTS = Path("artifacts")
"""Folder of all stage outputs, relative to the repository root that every command runs in."""


def output(stage: Stage) -> Path:
    """The folder of a stage's outputs, such as `artifacts/train-ar`."""
    return ARTIFACTS / stage


def log_file(stage: Stage) -> Path:
    """The stage's log record: key figure, seconds, MLflow run id."""
    return ARTIFACTS / ".log" / f"{stage}.json"


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(value: Any) -> str:
    """SHA-256 of a JSON-able value in canonical form."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def tree_sha256(*paths: Path) -> str:
    """SHA-256 over the names and bytes of files and folders, missing ones left out."""
    entries = {entry for path in paths for entry in (path, *path.rglob("*"))}
    files = sorted(entry for entry in entries if entry.is_file())
    return digest([[file.as_posix(), file_sha256(file)] for file in files])


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically, keys sorted, with a final newline: the same value is always the same bytes."""
    write_text(path, json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    building = path.with_name(path.name + ".tmp")
    building.write_bytes(content)
    building.replace(path)


def is_disk_full(error: BaseException) -> bool:
    """Whether an error says that no space is left."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def partial(stage: Stage, inputs: Any) -> Iterator[Path]:
    """The stage's work folder, kept over a crash and started anew when its inputs have changed.

    Args:
        stage: Whose folder.
        inputs: JSON-able value that changes whenever the work must not be reused: parameters and input digests.

    Yields:
        The folder. Put the output into its `out`, and call `finish` in the end.

    Raises:
        StorageError: The disk is full.
    """
    folder = ARTIFACTS / ".partial" / stage
    key = folder / "key"
    wanted = digest(inputs)
    _go_back(folder)
    try:
        if not key.is_file() or key.read_text() != wanted:
            shutil.rmtree(folder, ignore_errors=True)
            write_text(key, wanted)
        yield folder
    except OSError as error:
        if is_disk_full(error):
            raise StorageError(
                f"no space left on the disk of {Path.cwd() / ARTIFACTS} during {stage}; free some and run the same "
                "command again, it goes on where it stopped"
            ) from error
        raise


def finish(work: Path, stage: Stage) -> None:
    """Make `work/out` the stage's output and drop the rest of the work folder.

    The folder leaves its place first, in one step: a crash later on is told from one before (see `partial`), when much
    of the work may be in `out` alone.
    """
    done = work.with_name(f"{work.name}.done")
    work.replace(done)
    publish(done / "out", output(stage))
    shutil.rmtree(done)


def _go_back(work: Path) -> None:
    """After a crash in `finish`: what was not published yet is work to go on with, the rest can go."""
    done = work.with_name(f"{work.name}.done")
    if (done / "out").is_dir():
        shutil.rmtree(work, ignore_errors=True)
        done.replace(work)
    shutil.rmtree(done, ignore_errors=True)


def publish(work: Path, target: Path) -> None:
    """Put a finished file or folder in its place by rename, replacing what was there."""
    target.parent.mkdir(parents=True, exist_ok=True)
    old = target.with_name(target.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if target.is_dir():
        target.replace(old)
    work.replace(target)
    shutil.rmtree(old, ignore_errors=True)
