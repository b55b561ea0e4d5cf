"""The model half: AR and NAR training and evaluation. Nothing changed means nothing runs.

It runs by schedule, when there is new data, and by hand (prefect.yaml, `infra.automations`), one at a time. Whatever
goes wrong, or is worse, leaves the champion as it is, and the run says so.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from prefect import flow
from prefect.states import State

from flows.ending import ended
from flows.promote import champion, decide, server_run
from flows.runner import Runs, run_stages
from flows.session import session
from flows.turn import turn
from flows.workspace import Workspace
from valle2.errors import Valle2Error

TARGET = "evaluate"


@flow(persist_result=False)
def retrain(
    revision: str = "HEAD",
    params: str | None = None,
    data: str | None = None,
    side_by_side: int = 1,
    promote: bool = True,
    why: str = "",
) -> State[str]:
    """Bring the evaluated model up to date, and hand it to the gate.

    Args:
        revision: Branch, tag or commit to run at, such as the branch that `ingest` returned.
        params: Another parameter file than the revision's params.yaml.
        data: Another data folder than the one that the revision's data.dvc names.
        side_by_side: Commands at a time; 2 trains AR and NAR together where there are cores for both.
        promote: Judge and register the model as well.
        why: What asks for this run, in words, for its summary and tags; found out where it is left empty.

    Returns:
        The branch that holds the result, to promote.
    """
    with session(revision, params, data, why) as (space, runs):
        with retraining(space, runs):
            run_model_half(space, runs, side_by_side)
            if promote:
                decide(space, runs)
        return ended(space, runs)


@contextmanager
def retraining(space: Workspace, runs: Runs) -> Iterator[None]:
    """Hold the only turn; a failure says, too, that the champion stays."""
    with turn(space.home, space.run, wait=server_run() is not None):
        try:
            yield
        except Valle2Error as error:
            stays = f"the champion stays {champion(space.config.promote.model_name)}"
            runs.decision.append(f"decision none, the run failed: {stays}")
            raise type(error)(f"{error}; {stays}") from error


def run_model_half(space: Workspace, runs: Runs, side_by_side: int = 1) -> None:
    """Bring the stages up to the evaluation up to date."""
    run_stages(space, TARGET, runs, side_by_side)
