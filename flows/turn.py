"""One retraining at a time: two at once would each judge against a champion that the other is about to replace.

On a server the deployment's concurrency limit queues them before they start; this is for all others, such as one in a
terminal beside one on the server. The operating system lets go of the turn however a run ends.
"""

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from valle2.errors import FlowError
from valle2.types import Seconds

POLL: Seconds = 2.0


@contextmanager
def turn(home: Path, run: str, wait: bool) -> Iterator[None]:
    """Hold the only turn of this repository's `.valle2`.

    Args:
        home: `.valle2`.
        run: Who holds it, for the others' message.
        wait: Until it is free, rather than be refused.

    Raises:
        FlowError: Another run has it, and `wait` is off.
    """
    with _file(home).open("a+") as file:
        told = False
        while not _hold(file.fileno()):
            if not wait:
                raise FlowError(_busy(home))
            if not told:
                print(f"{_busy(home)}: this run waits for it", flush=True)
            told = True
            time.sleep(POLL)
        file.truncate(0)
        json.dump({"run": run, "pid": os.getpid(), "since": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"}, file)
        file.flush()
        yield


def check_turn(home: Path) -> None:
    """Tell at once that another retraining runs, before anything is loaded.

    Raises:
        FlowError: One does.
    """
    if not _file(home).is_file():
        return
    with _file(home).open("a+") as file:
        if not _hold(file.fileno()):
            raise FlowError(_busy(home))


def _file(home: Path) -> Path:
    home.mkdir(parents=True, exist_ok=True)
    return home / "retraining.lock"


def _hold(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _busy(home: Path) -> str:
    text = _file(home).read_text()
    held = json.loads(text) if text else {"run": "another", "pid": "?", "since": "a moment ago"}
    return (
        f"run {held['run']} (process {held['pid']}) is retraining since {held['since']}, and two at once would judge "
        "against a champion that is about to change; wait for its end, or stop it"
    )
