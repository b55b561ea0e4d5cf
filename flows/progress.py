"""How far a stage's command is, as an artifact on Prefect's pages: its plain lines say it, see `valle2.progress`."""

import time
from typing import cast
from uuid import UUID

from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.context import FlowRunContext, TaskRunContext

from valle2.progress import read_line
from valle2.types import Seconds

UPDATE_EVERY: Seconds = 5.0
"""A request each time; a command says more."""


class StageProgress:
    """The progress artifact of the task or flow that this is called in; none where Prefect runs neither.

    An artifact is a courtesy: a server that fails to take it stops no stage.
    """

    def __init__(self, stage: str) -> None:
        self._stage = stage
        self._artifact: UUID | None = None
        self._last = -UPDATE_EVERY
        self._wanted = TaskRunContext.get() is not None or FlowRunContext.get() is not None

    def __enter__(self) -> "StageProgress":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._show(100.0, "done")

    def tell(self, line: str) -> None:
        """Look at a line of the command."""
        now = time.monotonic()
        found = read_line(line) if self._wanted and now - self._last >= UPDATE_EVERY else None
        if found is not None and found.title == self._stage:
            self._last = now
            share = 100 * found.done / max(found.total, 1)
            self._show(min(share, 100.0), str(found).removeprefix(f"{found.title}: "))

    def _show(self, percent: float, description: str) -> None:
        if not self._wanted:
            return
        try:
            if self._artifact is None:
                made = create_progress_artifact(percent, key=self._stage, description=description)
                self._artifact = cast(UUID, made)  # a coroutine in coroutines only
            else:
                update_progress_artifact(self._artifact, percent, description=description)
        except Exception:  # noqa: BLE001 - Prefect's client has many; the stage goes on without
            self._wanted = False
