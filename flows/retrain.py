"""The model half: AR and NAR training and evaluation. Nothing changed means nothing runs."""

from prefect import flow

from flows.promote import decide
from flows.runner import Runs, run_stages
from flows.session import session
from flows.workspace import Workspace

TARGET = "evaluate"


@flow(persist_result=False)
def retrain(
    revision: str = "HEAD",
    params: str | None = None,
    data: str | None = None,
    side_by_side: int = 1,
    promote: bool = True,
) -> str:
    """Bring the evaluated model up to date, and hand it to the gate.

    Args:
        revision: Branch, tag or commit to run at, such as the branch that `ingest` returned.
        params: Another parameter file than the revision's params.yaml.
        data: Another data folder than the one that the revision's data.dvc names.
        side_by_side: Commands at a time; 2 trains AR and NAR together where there are cores for both.
        promote: Judge and register the model as well.

    Returns:
        The branch that holds the result, to promote.
    """
    with session(revision, params, data) as (space, runs):
        run_model_half(space, runs, side_by_side)
        if promote:
            decide(space, runs)
        return space.branch


def run_model_half(space: Workspace, runs: Runs, side_by_side: int = 1) -> None:
    """Bring the stages up to the evaluation up to date."""
    run_stages(space, TARGET, runs, side_by_side)
