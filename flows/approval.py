"""A person's approval, on a server: the flow run is suspended until someone answers.

A suspended run holds no process and no worker. Once answered, it goes on in a new process at the branch that holds the
evaluated model, so that what was approved is what is promoted, wherever the revision and the parameter file that it
started from have gone meanwhile. What is asked for, and what follows, is `flows.promote`.
"""

import json
from pathlib import Path
from typing import Literal

from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterState, FlowRunFilterStateType
from prefect.client.schemas.objects import StateType
from prefect.client.schemas.responses import SetStateStatus
from prefect.flow_runs import suspend_flow_run
from prefect.input import RunInput
from prefect.runtime import flow_run
from prefect.settings import get_current_settings
from pydantic import Field, ValidationError

from flows.workspace import Workspace
from valle2.errors import FlowError
from valle2.stage import write_json

Decision = Literal["approve", "reject"]


class Approval(RunInput):
    """What a person answers when a promotion waits for approval."""

    approver: str = Field(min_length=1, description="who decides")
    decision: Decision
    reason: str = Field(min_length=1, description="why; it goes into the promotion record")


def ask(space: Workspace, version: int, passed: str, attempt: int = 0) -> Approval:
    """Suspend this flow run until a person answers; only the run that goes on afterwards gets past this.

    Args:
        space: Holds the evaluated model; all of it is on its branch.
        version: In the registry.
        passed: What the gate found, shown beside the form.
        attempt: A run that nobody answered in time may be retried; it then asks again.
    """
    settings = space.config.promote
    form = Approval.with_initial_data(
        description=f"{settings.model_name}/{version} passed the gate: {passed}. Its report and samples are in "
        "MLflow, with the run of this version. Make it champion?"
    )
    space.finish()
    write_json(_note(space.home), {"branch": space.branch})
    try:
        return suspend_flow_run(
            wait_for_input=form, timeout=int(settings.approval_timeout), key=f"approval-{version}-{attempt}"
        )
    except ValidationError:  # it has asked before, and there is no answer
        return ask(space, version, passed, attempt + 1)


def suspended_at(home: Path) -> str | None:
    """The branch at which this flow run was suspended; None when it was not."""
    note = _note(home)
    return json.loads(note.read_text())["branch"] if note.is_file() else None


def answer(run: str, decision: Decision, approver: str, reason: str) -> None:
    """Answer for a flow run that waits; it goes on in a new process.

    Args:
        run: Its name or id on the server.
        decision: Whether its model becomes champion.
        approver: Who decides.
        reason: Why.

    Raises:
        FlowError: There is no server, no such run waits on it, or it refuses the answer.
    """
    if not get_current_settings().api.url:
        raise FlowError("no Prefect server runs here; `make up` starts one, PREFECT_API_URL names one elsewhere")
    paused = FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.PAUSED])))
    with get_client(sync_client=True) as client:
        waiting = client.read_flow_runs(flow_run_filter=paused)
        found = [item for item in waiting if run in (item.name, str(item.id))]
        if not found:
            names = ", ".join(item.name for item in waiting) or "none"
            raise FlowError(f"no flow run {run!r} waits for approval; those that do: {names}")
        given = {"approver": approver, "decision": decision, "reason": reason}
        result = client.resume_flow_run(found[0].id, given)
    if result.status != SetStateStatus.ACCEPT:
        raise FlowError(f"the server did not take the answer for {run}: {getattr(result.details, 'reason', '')}")


def _note(home: Path) -> Path:
    return home / "suspended" / f"{flow_run.id}.json"
