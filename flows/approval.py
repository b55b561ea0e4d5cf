"""A person's approval, on a server: the flow run is suspended until someone answers.

A suspended run holds no process and no worker, and lives in the server's database: worker and server may end and start
again meanwhile. Once answered, it goes on in a new process at the branch that holds the evaluated model, so that what
was approved is what is promoted, wherever the revision and the parameter file that it started from have gone. The form
is made for one version and one report: the server takes no answer for another. What is asked for, and what follows, is
`flows.promote`; answering from a terminal is `flows.answer`.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
    FlowRunFilterTags,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.flow_runs import suspend_flow_run
from prefect.input import RunInput
from prefect.runtime import flow_run
from pydantic import Field, ValidationError, create_model

from flows.summary import REPORT
from flows.workspace import Workspace
from valle2.errors import FlowError
from valle2.stage import file_sha256, write_json

Decision = Literal["approve", "reject"]
EXPIRED = "NotPromoted"
"""The state of a run that nobody answered in time; `infra.automations` puts it there."""
GIVEN = r"\S"


class Approval(RunInput):
    """What a person answers when a promotion waits for approval."""

    approver: str = Field(description="who decides", pattern=GIVEN)
    decision: Decision
    reason: str = Field(description="why; it goes into the promotion record", pattern=GIVEN)
    model: str = Field(description="the version that is decided about")
    seen_report: str = Field(description="SHA-256 of the report page that you have read; the description names it")


@dataclass(frozen=True)
class Asked:
    """What a suspended run asks about."""

    branch: str
    model: str
    """Name and version, such as `valle2/3`."""
    report: str
    """SHA-256 of the report page."""


def report_sha256(space: Workspace) -> str:
    """The digest of the page that a person reads before deciding.

    Raises:
        FlowError: The evaluation left none.
    """
    page = space.root / REPORT
    if not page.is_file():
        raise FlowError(
            f"the evaluation left no report page {REPORT} to decide by; run `python -m flows retrain` again"
        )
    return file_sha256(page)


def ask(space: Workspace, model: str, passed: str, attempt: int = 0) -> Approval:
    """Suspend this flow run until a person answers; only the run that goes on afterwards gets past this.

    Args:
        space: Holds the evaluated model; all of it is on its branch.
        model: The version, such as `valle2/3`.
        passed: What the gate found, shown beside the form.
        attempt: A run that nobody answered in time may be retried; it then asks again.

    Raises:
        FlowError: The answer is for another version or another report than those of this run.
    """
    asked = Asked(space.branch, model, report_sha256(space))
    before = suspended(space.home)
    if before is not None and (before.model, before.report) != (model, asked.report):
        raise FlowError(
            f"this run asked about {before.model} with the report {before.report[:12]}, and now holds {model} with "
            f"{asked.report[:12]}: the answer is for the former, so nothing is promoted; start another run"
        )
    space.finish()
    write_json(_note(space.home), asdict(asked))
    timeout, key = int(space.config.promote.approval_timeout), f"approval-{model.rpartition('/')[2]}-{attempt}"
    try:
        return suspend_flow_run(wait_for_input=form(space, asked, passed), timeout=timeout, key=key)
    except ValidationError:  # it has asked before, and there is no answer that fits
        return ask(space, model, passed, attempt + 1)


def form(space: Workspace, asked: Asked, passed: str) -> type[Approval]:
    """The questions, of which the server takes answers for this version and this report alone."""
    fields: dict[str, Any] = {
        "model": (str, Field(asked.model, pattern=f"^{asked.model}$", description="the version that is decided about")),
        "seen_report": (
            str,
            Field(pattern=f"^{asked.report}$", description="SHA-256 of the report page that you have read"),
        ),
    }
    made = create_model("Approval", __base__=Approval, **fields)
    return made.with_initial_data(
        description=f"{asked.model} passed the gate: {passed}.\n\nIts report is {space.root / REPORT}, and in MLflow "
        f"with the run of this version, beside its samples. Its SHA-256 is {asked.report}: give that as the report "
        f"that you have seen. Make {asked.model} champion?"
    )


def suspended(home: Path) -> Asked | None:
    """What this flow run was suspended with; None when it was not."""
    note = _note(home)
    return Asked(**json.loads(note.read_text())) if note.is_file() else None


def waiting(tag: str | None = None) -> list[FlowRun]:
    """The flow runs on the server that wait for an answer.

    Args:
        tag: Only those that have it, such as that of `asking`.
    """
    tags = FlowRunFilterTags(all_=[tag]) if tag else None
    paused = FlowRunFilter(
        state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.PAUSED])), tags=tags
    )  # fmt: skip
    with get_client(sync_client=True) as client:
        return client.read_flow_runs(flow_run_filter=paused)


def asking(model: str) -> str:
    """The tag of a run that waits for a decision about a version."""
    return f"approval:{model}"


def _note(home: Path) -> Path:
    return home / "suspended" / f"{flow_run.id}.json"
