"""What a run has still to tell MLflow: kept in a file first, sent from there in order, and removed once it has arrived.

Points, tags, sounds and pictures of a training go through here, so that a store that is away holds nothing up and a
process that is killed loses nothing. Sending the same again changes nothing there: points keep their times, files their
names. Who opens runs is `valle2.training_run`; what MLflow is asked is in `deliver` alone.
"""

import fcntl
import json
import os
import shutil
import sys
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from valle2.stage import write_bytes

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

MAX_BATCH = 900
"""Points in one `log_batch`; MLflow takes 1,000."""
REFUSALS = {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE", "INVALID_STATE"}
"""Answers that trying again does not change; anything else may be a store that is away."""
SHORT = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
"""MLflow itself would try for minutes before it says that a server is away."""

Event = dict[str, Any]
"""One line of the file: `points`, a `file`, a `tag`, or the `end` of the run."""


@contextmanager
def impatient() -> Iterator[None]:
    """Let MLflow's client say at once that a server is away; what the user has set stays."""
    added = {name: value for name, value in SHORT.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


class Outbox:
    """The unsent events of one run; one process holds it at a time.

    Args:
        folder: Of all outboxes.
        run_id: MLflow's id of the run.
        uri: Of the tracking store that has the run.

    Raises:
        BlockingIOError: Another process holds it.
    """

    def __init__(self, folder: Path, run_id: str, uri: str) -> None:
        self.path, self.run_id, self.uri = folder / f"{run_id}.jsonl", run_id, uri
        self.refused: list[str] = []
        """Why MLflow would not take something."""
        self._files = folder / run_id
        self._lock = threading.Lock()
        folder.mkdir(parents=True, exist_ok=True)
        self._file = _open_alone(self.path)
        self._events = deque(_whole_lines(self._file)[1:])
        self._rewrite()

    def __len__(self) -> int:
        """Points, files and tags that have not arrived."""
        with self._lock:
            return sum(len(event.get("points", [0])) for event in self._events)

    @property
    def last_steps(self) -> dict[str, int]:
        """The last step of each curve with unsent points."""
        with self._lock:
            points = [point for event in self._events for point in event.get("points", [])]
        last: dict[str, int] = {}
        for name, _, _, step in points:
            last[name] = max(step, last.get(name, step))
        return last

    def put(self, event: Event) -> None:
        """Keep an event. A full disk is told; the event is then in memory alone."""
        with self._lock:
            self._events.append(event)
            try:
                self._file.write(json.dumps(event) + "\n")
                self._file.flush()
            except OSError as error:
                print(f"tracking: cannot write {self.path} ({error.strerror}); it is sent from memory", file=sys.stderr)

    def put_file(self, path: str, content: bytes) -> None:
        """Keep a file that the run is to have.

        Args:
            path: In the run's artifacts.
            content: Of the file.

        Raises:
            OSError: It cannot be written.
        """
        write_bytes(self._files / path, content)
        self.put({"file": path})

    def forget_end(self) -> None:
        """Drop the ends of earlier attempts: the run goes on."""
        with self._lock:
            self._events = deque(event for event in self._events if "end" not in event)
            self._rewrite()

    def send(self, client: "MlflowClient") -> None:
        """Send all that there is.

        Raises:
            MlflowException: The store is away; what has not arrived stays. Transports have errors of their own, too.
        """
        from mlflow.exceptions import MlflowException

        while batch := self._next():
            try:
                deliver(client, self.run_id, batch, self._files)
            except MlflowException as error:
                if error.error_code not in REFUSALS:
                    raise
                self.refused.append(" ".join(str(error).split())[:200])
            self._drop(batch)

    def close(self) -> None:
        """Let go of it; an empty one is removed."""
        with self._lock:
            if not self._events:
                self.path.unlink(missing_ok=True)
                shutil.rmtree(self._files, ignore_errors=True)
            self._file.close()

    def _next(self) -> list[Event]:
        """Points that go together, or one other event."""
        batch: list[Event] = []
        size = 0
        with self._lock:
            for event in self._events:
                size += len(event.get("points", []))
                if batch and ("points" not in event or "points" not in batch[0] or size > MAX_BATCH):
                    break
                batch.append(event)
        return batch

    def _drop(self, batch: list[Event]) -> None:
        with self._lock:
            for event in batch:
                self._events.popleft()
                if "file" in event:
                    (self._files / event["file"]).unlink(missing_ok=True)
            if not self._events:
                self._rewrite()

    def _rewrite(self) -> None:
        """Make the file hold just what is unsent."""
        lines = [{"run": self.run_id, "uri": self.uri}, *self._events]
        self._file.seek(0)
        self._file.truncate()
        self._file.write("".join(json.dumps(line) + "\n" for line in lines))
        self._file.flush()


def deliver(client: "MlflowClient", run_id: str, batch: list[Event], files: Path) -> None:
    """Tell MLflow; a second time changes nothing.

    Args:
        client: Of the store.
        run_id: Whose events.
        batch: As `Outbox` puts them together.
        files: Where the files of `file` events are.
    """
    from mlflow.entities import Metric

    match batch[0]:
        case {"points": _}:
            points = [Metric(*point) for event in batch for point in event["points"]]
            client.log_batch(run_id, metrics=points, synchronous=True)
        case {"file": path}:
            if (files / path).is_file():
                folder = Path(path).parent.as_posix()
                client.log_artifact(run_id, str(files / path), None if folder == "." else folder)
        case {"tag": [name, value]}:
            client.set_tag(run_id, name, value)
        case {"end": [status, when]}:
            client.set_terminated(run_id, status, when)


def send_left(client: "MlflowClient", folder: Path, uri: str) -> None:
    """Send what earlier runs could not; what is still refused an answer waits for the next time.

    Args:
        client: Of the store.
        folder: Of all outboxes.
        uri: Of the store; boxes for others are left alone.
    """
    for path in sorted(folder.glob("*.jsonl")):
        try:
            with path.open() as file:
                if json.loads(file.readline() or "{}").get("uri") != uri:
                    continue
            box = Outbox(folder, path.stem, uri)
        except (OSError, ValueError):  # its training lives, or another command sends it
            continue
        number = len(box)
        try:
            with impatient():
                box.send(client)
        except Exception:  # noqa: BLE001 - stores and transports have many; it stays, and the command goes on
            return
        finally:
            box.close()
        if number:
            print(f"tracking: sent {number} kept points and files of run {box.run_id}", file=sys.stderr)
        tell_refused(box)


def tell_refused(box: Outbox) -> None:
    """Say what a store would not take."""
    if box.refused:
        print(f"tracking: {box.uri} refused something of run {box.run_id}: {box.refused[0]}", file=sys.stderr)


def _open_alone(path: Path) -> IO[str]:
    """Open a file that no other process has open so, and that nobody has removed meanwhile."""
    while True:
        file = path.open("a+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise
        if path.exists() and path.stat().st_ino == os.fstat(file.fileno()).st_ino:
            return file
        file.close()


def _whole_lines(file: IO[str]) -> list[Event]:
    """The events of a file; a last line that a kill cut short is none."""
    file.seek(0)
    events = []
    for line in file:
        try:
            events.append(json.loads(line))
        except ValueError:
            break
    return events
