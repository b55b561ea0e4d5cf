"""torchrun on this machine. The job is no child to end with its command: it has its own session, and writes to a file.

A job is found by the key in the environment of its processes, which nothing can leave stale: no note of a process id
that another process has by now, and no gap between a start and its note.
"""

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from valle2.config.launch import LaunchConfig, LauncherName
from valle2.launch.job import KEY_VARIABLE, LOOK_EVERY, Job, Outcome, exit_file, follow, read_outcome
from valle2.launch.node import node_command


class LocalLauncher:
    """Jobs of this machine."""

    name: LauncherName = "local"

    def __init__(self, config: LaunchConfig, folder: Path) -> None:
        self._config = config
        self._folder = folder
        self._log = folder / "log"
        self._started: dict[str, subprocess.Popen[bytes]] = {}

    def find(self, key: str) -> Job | None:
        """The agent that has the key."""
        agents = [process for process in members(key) if _is_agent(process)]
        return Job(key, str(agents[0].pid)) if agents else None

    def submit(self, command: Sequence[str], key: str) -> Job:
        """Start torchrun's agent in a session of its own."""
        end(members(key))  # ranks whose agent was killed would write where the new ones do
        self._folder.mkdir(parents=True, exist_ok=True)
        exit_file(self._folder).unlink(missing_ok=True)
        environment = {**os.environ, KEY_VARIABLE: key, "PYTHONUNBUFFERED": "1"}
        with self._log.open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, *self._words(command)], env=environment, start_new_session=True,
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
            )  # fmt: skip
        job = Job(key, str(process.pid))
        self._started[job.id] = process
        return job

    def logs(self, job: Job) -> Iterator[str]:
        """The lines of its file."""
        return follow(lambda: [self._log] if self._log.is_file() else [], lambda: self._runs(job))

    def wait(self, job: Job) -> Outcome:
        """Until the agent has ended."""
        while self._runs(job):
            time.sleep(LOOK_EVERY)
        outcome = read_outcome(self._folder)
        if outcome.code is None:
            end(members(job.key))
        return outcome

    def cancel(self, job: Job) -> None:
        """SIGTERM to the agent, which passes it on and waits for the ranks."""
        with suppress(psutil.NoSuchProcess):
            psutil.Process(int(job.id)).terminate()

    def show(self, command: Sequence[str], key: str) -> str:
        """The command line."""
        return shlex.join([Path(sys.executable).name, *self._words(command)])

    def _words(self, command: Sequence[str]) -> list[str]:
        return node_command(self._config, self.name, self._folder, command)

    def _runs(self, job: Job) -> bool:
        if job.id in self._started:  # a new process shows an empty environment for a moment
            return self._started[job.id].poll() is None
        try:
            return _has_key(psutil.Process(int(job.id)), job.key)
        except psutil.NoSuchProcess:
            return False


def members(key: str) -> list[psutil.Process]:
    """All processes of a job on this machine."""
    return [process for process in psutil.process_iter() if _has_key(process, key) and process.pid != os.getpid()]


def end(processes: Sequence[psutil.Process]) -> None:
    """Kill what is left of a job."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, timeout=10)


def _has_key(process: psutil.Process, key: str) -> bool:
    try:
        return process.environ().get(KEY_VARIABLE) == key and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:  # it has ended, or is another user's
        return False


def _is_agent(process: psutil.Process) -> bool:
    try:
        return "valle2.launch.node" in process.cmdline()
    except psutil.Error:
        return False
