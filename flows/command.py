"""A stage's command as a sub-process: its lines are passed on as they come, and nothing of it outlives the run."""

import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from valle2.errors import FlowError

GRACE = 10.0
"""Seconds between asking a command to end and making it end."""
LINES_KEPT = 50
_running: set[int] = set()
"""Process groups of the commands that run."""


def command_environment(workspace: Path, home: Path, run: str) -> dict[str, str]:
    """What a stage's command sees: this interpreter's programs, the workspace's own code, and the shared home.

    Args:
        workspace: Root of the clone that the command runs in; its `valle2` goes before the installed one.
        home: Where runs, records and models of all workspaces are (`VALLE2_HOME`).
        run: The flow run's name, for the tags of what the command writes.
    """
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    return {
        **os.environ,
        "PATH": path,
        "PYTHONPATH": str(workspace),
        "PYTHONUNBUFFERED": "1",
        "VALLE2_HOME": str(home),
        "VALLE2_RUN": run,
    }


def run_command(
    command: str,
    workspace: Path,
    environment: dict[str, str],
    on_line: Callable[[str], None],
    on_start: Callable[[int], None] = lambda pid: None,
) -> None:
    """Run a command to its end.

    Args:
        command: As in dvc.yaml.
        workspace: Folder that it runs in.
        environment: All variables that it sees.
        on_line: Gets each line of its output.
        on_start: Gets its process id, which is its process group's too.

    Raises:
        FlowError: It failed; the message is its own last sentence.
    """
    kept: deque[str] = deque(maxlen=LINES_KEPT)
    process = subprocess.Popen(
        command, shell=True, cwd=workspace, env=environment, text=True, errors="replace", start_new_session=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    _running.add(process.pid)
    try:
        on_start(process.pid)
        assert process.stdout is not None
        for line in process.stdout:
            kept.append(line.rstrip())
            on_line(line.rstrip())
        code = process.wait()
    finally:
        end_group(process.pid, process)
        _running.discard(process.pid)
    if code:
        raise FlowError(_last_sentence(command, code, kept))


def end_group(group: int, process: "subprocess.Popen[str]") -> None:
    """End a process group: ask, wait a while for all of it, then kill. One that has ended is no error.

    A training's command passes the request on to its job, which then ends by itself, however long its checkpoint takes.
    """
    with suppress(ProcessLookupError):
        os.killpg(group, signal.SIGTERM)
        until = time.monotonic() + GRACE
        while time.monotonic() < until:
            process.poll()  # a shell may end before its command
            os.killpg(group, 0)
            time.sleep(0.05)
        os.killpg(group, signal.SIGKILL)


def end_all() -> None:
    """Ask all commands of this process to end, those in other threads too: a run that is cancelled has several."""
    for group in tuple(_running):
        with suppress(ProcessLookupError):
            os.killpg(group, signal.SIGTERM)


def _last_sentence(command: str, code: int, lines: deque[str]) -> str:
    said = [line.removeprefix("valle2: ") for line in lines if line.strip()]
    if code < 0 or code > 128:
        number = -code if code < 0 else code - 128
        name = signal.Signals(number).name if number in set(signal.Signals) else str(number)
        cause = ", which the system does when memory runs out" if name == "SIGKILL" else ""
        return f"`{command}` was ended by {name}{cause}; run the same again, it goes on where it stopped"
    return said[-1] if said else f"`{command}` failed with exit code {code} and said nothing"
