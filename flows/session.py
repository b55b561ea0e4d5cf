"""What every flow begins and ends with: the workspace, what is told about it, and the summary."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from prefect import get_run_logger
from prefect.artifacts import create_markdown_artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun
from prefect.context import FlowRunContext

from flows.approval import suspended
from flows.cause import VARIABLE, cause_of
from flows.git import repository, resolve, uncommitted
from flows.runner import Runs
from flows.summary import as_markdown, show
from flows.workspace import Request, Workspace, workspace
from valle2.tracking import home

NAMES_SHOWN = 3


@contextmanager
def session(revision: str, params: str | None, data: str | None, why: str = "") -> Iterator[tuple[Workspace, Runs]]:
    """Open the workspace of this flow run; show the summary when it ends, well or not.

    Args:
        revision: Branch, tag or commit of the repository in the working folder.
        params: Another parameter file than the revision's.
        data: Another data folder than the revision's data.dvc names.
        why: What was given as the cause of this run; without it, it is found out.
    """
    context = FlowRunContext.get()
    flow_run = context.flow_run if context else None
    cause = cause_of(flow_run, why)
    os.environ[VARIABLE] = cause.sentence
    if flow_run is not None:
        label(flow_run, cause.tag)
    origin = repository(Path.cwd())
    changes = uncommitted(origin)
    if changes:
        names = ", ".join(changes[:NAMES_SHOWN]) + (" ..." if len(changes) > NAMES_SHOWN else "")
        print(f"note: {len(changes)} uncommitted changes are not part of this run: {names}", flush=True)
    if asked := suspended(home()):
        print(f"this run was suspended: it goes on with what is on {asked.branch}", flush=True)
        revision, params, data = asked.branch, None, None
    request = Request(
        resolve(origin, revision), Path(params).absolute() if params else None, Path(data).absolute() if data else None
    )
    name = f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{flow_run.name if flow_run else 'run'}"
    with workspace(origin, home(), request, name) as space:
        state = "going on with run" if space.resumed else "run"
        print(f"{state} {space.run} at {request.revision[:12]}, {cause.sentence}", flush=True)
        runs = Runs(why=cause.sentence)
        try:
            yield space, runs
            space.finish()
        finally:
            show(space, runs)
            for line in runs.decision:
                get_run_logger().info("%s", line)
            create_markdown_artifact(
                as_markdown(space, runs), key="summary", description=f"{cause.sentence}; {' '.join(runs.decision)}"
            )


def label(run: FlowRun, tag: str) -> None:
    """Give a flow run a tag, to find it by on Prefect's pages."""
    if tag not in run.tags:
        run.tags.append(tag)
        with get_client(sync_client=True) as client:
            client.update_flow_run(run.id, tags=run.tags)
