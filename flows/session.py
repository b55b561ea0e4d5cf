"""What every flow begins and ends with: the workspace, what is told about it, and the summary."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from prefect import get_run_logger
from prefect.runtime import flow_run

from flows.approval import suspended_at
from flows.git import repository, resolve, uncommitted
from flows.runner import Runs
from flows.summary import show
from flows.workspace import Request, Workspace, workspace
from valle2.tracking import home

NAMES_SHOWN = 3


@contextmanager
def session(revision: str, params: str | None, data: str | None) -> Iterator[tuple[Workspace, Runs]]:
    """Open the workspace of this flow run; show the summary when it ends, well or not.

    Args:
        revision: Branch, tag or commit of the repository in the working folder.
        params: Another parameter file than the revision's.
        data: Another data folder than the revision's data.dvc names.
    """
    origin = repository(Path.cwd())
    changes = uncommitted(origin)
    if changes:
        names = ", ".join(changes[:NAMES_SHOWN]) + (" ..." if len(changes) > NAMES_SHOWN else "")
        print(f"note: {len(changes)} uncommitted changes are not part of this run: {names}", flush=True)
    if branch := suspended_at(home()):
        print(f"this run was suspended: it goes on with what is on {branch}", flush=True)
        revision, params, data = branch, None, None
    request = Request(
        resolve(origin, revision), Path(params).absolute() if params else None, Path(data).absolute() if data else None
    )
    name = f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{flow_run.name or 'run'}"
    with workspace(origin, home(), request, name) as space:
        state = "going on with run" if space.resumed else "run"
        print(f"{state} {space.run} at {request.revision[:12]}", flush=True)
        runs = Runs()
        try:
            yield space, runs
            space.finish()
        finally:
            show(space, runs)
            for line in runs.decision:
                get_run_logger().info("%s", line)
