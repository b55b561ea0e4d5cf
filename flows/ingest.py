"""The data half: from what was taken in to shards of codes. A data engineer runs it; its success triggers `retrain`."""

from prefect import flow
from prefect.events import emit_event
from prefect.settings import get_current_settings

from flows.pipeline import data_digest
from flows.runner import Runs, run_stages
from flows.session import session
from flows.store import push
from flows.workspace import Workspace

TARGET = "data-report"
EVENT = "valle2.ingest.completed"
"""What `infra.automations` triggers retraining by."""


@flow(persist_result=False)
def ingest(revision: str = "HEAD", params: str | None = None, data: str | None = None) -> str:
    """Bring the shards, and the report on them, up to date.

    Args:
        revision: Branch, tag or commit to run at.
        params: Another parameter file than the revision's params.yaml.
        data: Another data folder than the one that the revision's data.dvc names.

    Returns:
        The branch that holds the result, to retrain at.
    """
    with session(revision, params, data) as (space, runs):
        run_data_half(space, runs)
        if any(run.state == "ran" for run in runs.stages):
            tell(space)
        return space.branch


def run_data_half(space: Workspace, runs: Runs) -> None:
    """Push and verify `data/`, then bring the shards and the report on them up to date."""
    push(space.root, "data.dvc")
    space.commit(f"data: {data_digest(space.root)}\n\nRun: {space.run}")
    run_stages(space, TARGET, runs)


def tell(space: Workspace) -> None:
    """Tell the server, if there is one, that there is new data."""
    if get_current_settings().api.url:
        data = data_digest(space.root)
        payload = {"revision": space.branch, "run": space.run, "data": data}
        emit_event(EVENT, {"prefect.resource.id": f"valle2.data.{data}"}, payload=payload)
