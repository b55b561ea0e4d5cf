"""Jobs and launchers: one small interface to torchrun on this machine, Slurm and Kubernetes.

A job is all processes of one training. It outlives the stage command that submitted it, and the next one finds it by
its key, which is equal for the same training in the same workspace: a job is never submitted twice. Every job writes
its exit code into the workspace, so that a command that comes later knows how it ended.
"""

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

from valle2.config.launch import LaunchConfig, LauncherName
from valle2.stage import ARTIFACTS, write_json
from valle2.types import Seconds, Stage

JOBS = ARTIFACTS / ".jobs"
KEY_VARIABLE = "VALLE2_JOB"
"""In the environment of every process of a job: its key."""
PREEMPTED = 75
"""EX_TEMPFAIL: stopped on request, with a checkpoint; the same command goes on from there."""
LOOK_EVERY: Seconds = 0.2
ARRIVAL: Seconds = 30.0
"""For what another machine wrote to be seen here, on a shared file system that looks now and then."""


@dataclass(frozen=True)
class Job:
    """One training's processes.

    Attributes:
        key: Equal for the same training in the same workspace.
        id: The launcher's own name of it: process id, Slurm's number, name of a TrainJob.
    """

    key: str
    id: str


@dataclass(frozen=True)
class Outcome:
    """How a job ended: its exit code, or None where it left none because it, or its machine, was killed."""

    code: int | None


class Launcher(Protocol):
    """Starts jobs, and finds them again."""

    @property
    def name(self) -> LauncherName:
        """As in `launch.launcher`."""
        ...

    def find(self, key: str) -> Job | None:
        """The job of a key, if it is queued or runs."""
        ...

    def submit(self, command: Sequence[str], key: str) -> Job:
        """Start a job whose ranks run `python` with the command's words."""
        ...

    def logs(self, job: Job) -> Iterator[str]:
        """All lines that it has written, then those that it writes, until it ends."""
        ...

    def wait(self, job: Job) -> Outcome:
        """Wait until it has ended."""
        ...

    def cancel(self, job: Job) -> None:
        """Ask it to end; it has `launch.grace_seconds` for a checkpoint. Returns at once."""
        ...

    def show(self, command: Sequence[str], key: str) -> str:
        """What `submit` would submit, as text."""
        ...


@dataclass(frozen=True)
class Note:
    """What a workspace knows of a stage's job; written before it is submitted, removed when its end has been told."""

    key: str
    launcher: LauncherName

    def write(self, folder: Path) -> None:
        """Note it."""
        write_json(folder / "job.json", asdict(self))

    @classmethod
    def read(cls, folder: Path) -> "Note | None":
        """The stage's, if its last job has not been told the end of."""
        path = folder / "job.json"
        return cls(**json.loads(path.read_text())) if path.is_file() else None

    @staticmethod
    def remove(folder: Path) -> None:
        """The job has ended, and someone knows."""
        (folder / "job.json").unlink(missing_ok=True)


def job_folder(stage: Stage) -> Path:
    """Where a stage's job keeps log, exit code and note."""
    return (JOBS / stage).absolute()


def exit_file(folder: Path) -> Path:
    """Where the job's first node writes its exit code."""
    return folder / "exit"


def read_outcome(folder: Path, patience: Seconds = 0.0) -> Outcome:
    """How the last job ended.

    Args:
        folder: The stage's job folder.
        patience: How long the file may take to arrive from another machine.
    """
    path = exit_file(folder)
    until = time.monotonic() + patience
    while not path.is_file() and time.monotonic() < until:
        time.sleep(LOOK_EVERY)
        os.utime(folder)  # has a network file system look again
    return Outcome(int(path.read_text()) if path.is_file() else None)


def job_name(folder: Path, key: str) -> str:
    """What a cluster calls the job."""
    return f"valle2-{folder.name}-{key[:12]}"


def make_launcher(name: LauncherName, config: LaunchConfig, folder: Path) -> Launcher:
    """A launcher; those of clusters load their packages."""
    match name:
        case "local":
            from valle2.launch.local import LocalLauncher

            return LocalLauncher(config, folder)
        case "slurm":
            from valle2.launch.slurm import SlurmLauncher

            return SlurmLauncher(config, folder)
        case "kubernetes":
            from valle2.launch.kubernetes import KubernetesLauncher

            return KubernetesLauncher(config, folder)


def follow(paths: Callable[[], list[Path]], running: Callable[[], bool]) -> Iterator[str]:
    """Lines of growing files, until what writes them has ended and all is read."""
    read: dict[Path, int] = {}
    while True:
        ended = not running()  # asked before reading, so that nothing written before the end is missed
        for path in paths():
            with path.open("rb") as file:
                file.seek(read.get(path, 0))
                new = file.read()
            whole = new if ended else new[: new.rfind(b"\n") + 1]
            read[path] = read.get(path, 0) + len(whole)
            yield from whole.decode(errors="replace").splitlines()
        if ended:
            return
        time.sleep(LOOK_EVERY)
