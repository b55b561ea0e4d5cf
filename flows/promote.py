"""The gate, the approval and the registry: which model becomes champion, who says so, and why.

A model that misses a threshold is registered as rejected, with the reasons. One that passes is a candidate until it is
approved: by the policy `promote.approval: automatic`, or by a person (`required`). On a server the flow is suspended
until someone answers (`flows.approval`); run directly in a terminal, it asks there; otherwise the candidate waits for
`valle2 promote`. A version is decided about once.
"""

import sys

import typer
from prefect import flow
from prefect.client.schemas.objects import FlowRun
from prefect.context import FlowRunContext
from prefect.exceptions import Pause
from prefect.states import State

from flows.approval import Approval, Decision, ask, asking, report_sha256, suspended, waiting
from flows.ending import Ending, ended
from flows.notices import tell
from flows.pipeline import needed
from flows.registration import EVALUATE, Judged, judged
from flows.runner import Runs, run_stages
from flows.session import label, session
from flows.turn import turn
from flows.workspace import Workspace
from valle2 import promotion
from valle2.errors import FlowError, TrackingError
from valle2.runs import store

POLICY = "the policy promote.approval: automatic"
WAITING = ("candidate", "challenger")
"""What a version is that passed the gate and that nobody has decided about."""


@flow(persist_result=False)
def promote(revision: str = "HEAD", params: str | None = None, data: str | None = None) -> State[str]:
    """Judge, register and perhaps promote the model that a revision has evaluated; nothing is trained.

    Args:
        revision: Branch, tag or commit, such as the branch that `retrain` returned.
        params: Another parameter file than the revision's params.yaml.
        data: Another data folder than the one that the revision's data.dvc names.
    """
    with session(revision, params, data) as (space, runs):
        run_stages(space, EVALUATE, runs, only_cached=True)
        with turn(space.home, space.run, wait=server_run() is not None):
            decide(space, runs)
        return ended(space, runs)


def server_run() -> FlowRun | None:
    """This flow run, if a server started it; a run in a terminal cannot be suspended."""
    context = FlowRunContext.get()
    return context.flow_run if context and context.flow_run and context.flow_run.deployment_id else None


def champion(name: str) -> str:
    """The champion, such as `valle2/3`, in words; also where the registry does not answer."""
    try:
        with store() as client:
            found = client.search_registered_models(f"name='{name}'")
    except TrackingError:
        return "what it is"
    version = found[0].aliases.get("champion") if found else None
    return f"{name}/{version}" if version else "none, as before"


def decide(space: Workspace, runs: Runs) -> None:
    """Take an evaluated model through gate, registry and approval; what was decided goes into the summary.

    Raises:
        FlowError: MLflow does not answer, or the answer was for something else.
    """
    name = space.config.promote.model_name
    _check_registry(space)
    # Only what the model is made of: the same model is the same version, whatever else a run reported on.
    stages = {stage: runs.digests()[stage] for stage in needed(space.root, EVALUATE)}
    verdict, is_new = judged(space, stages, runs)
    model = f"{name}/{verdict.version}"
    runs.decision.append(f"model    {model}{'' if is_new else ', already registered'}")
    status, why = _status(name, verdict.version)
    if status in WAITING:
        _settle(space, runs, verdict)
    elif suspended(space.home):
        runs.decision.append(
            f"decision none: {model} was decided about meanwhile and is {status}; the answer changes nothing"
        )
        runs.ending = Ending("UpToDate", f"{model} was decided about meanwhile and is {status}")
    elif not is_new:
        runs.decision.append(f"decision up to date: {model} is {status}: {why or verdict.found}")
        runs.ending = Ending("UpToDate", f"nothing to decide: {model} is {status}")
    else:
        _reject(space, runs, model, verdict.reasons)


def _check_registry(space: Workspace) -> None:
    try:
        with store() as client:
            client.search_registered_models(max_results=1)
    except TrackingError as error:
        again = f"`python -m flows promote --revision {space.branch}`"
        raise FlowError(f"{error}; the evaluated model is kept, and {again} decides about it then") from error


def _status(name: str, version: int) -> tuple[str, str]:
    """A version's status, and why it is that, if it says."""
    with store() as client:
        tags = client.get_model_version(name, str(version)).tags
    return tags.get("valle2.status", "unknown"), tags.get("valle2.reasons", "")


def _reject(space: Workspace, runs: Runs, model: str, reasons: list[str]) -> None:
    stays = f"the champion stays {champion(space.config.promote.model_name)}"
    runs.decision += [
        "decision rejected by the gate:",
        *(f"           {reason}" for reason in reasons),
        f"         {stays}",
    ]
    runs.ending = Ending("Rejected", f"{model} was rejected by the gate: {'; '.join(reasons)}; {stays}")
    tell("model.rejected", model, f"rejected by the gate: {'; '.join(reasons)}; {stays}", _run_name(space),
         "Read its report on MLflow's pages; the next run with new data or parameters tries again.")  # fmt: skip


def _settle(space: Workspace, runs: Runs, verdict: Judged) -> None:
    """Let the policy or a person decide about a version that passed the gate."""
    name = space.config.promote.model_name
    model = f"{name}/{verdict.version}"
    run = server_run()
    others = [item.name for item in waiting(asking(model)) if item.id != run.id] if run else []
    if others:
        where = f"it waits for approval in run {others[0]}"
        runs.decision.append(f"decision up to date: {model} passed the gate, and {where}")
        runs.ending = Ending("UpToDate", f"nothing to do: {model} passed the gate, and {where}")
        return
    approval = _approval(space, runs, model, verdict)
    if approval is None:
        hint = f"`valle2 promote {verdict.version} --approver NAME --reason WHY`"
        runs.decision.append(f"decision challenger: it passed the gate and waits for approval: {hint}")
        runs.ending = Ending("Waiting", f"{model} passed the gate and waits for approval")
        return
    _apply(space, runs, approval, verdict.version)


def _approval(space: Workspace, runs: Runs, model: str, verdict: Judged) -> Approval | None:
    settings = space.config.promote
    if settings.approval == "automatic":
        return Approval(approver=POLICY, decision="approve", reason=verdict.found, model=model, seen_report="")
    promotion.challenge(verdict.version, settings.model_name)
    if run := server_run():
        label(run, asking(model))
        try:
            return ask(space, model, verdict.found)
        except Pause:
            hint = f"`python -m flows answer {run.name} approve --approver NAME --reason WHY --report PAGE`"
            runs.decision.append(f"decision waits for approval: it passed the gate: {hint}")
            tell("approval.wanted", model, f"passed the gate and waits for approval: {verdict.found}", run.name,
                 f"Listen to its samples, read its report on MLflow's pages, and decide: {hint}")  # fmt: skip
            raise
    if sys.stdin.isatty():
        print(f"{model} passed the gate: {verdict.found}", flush=True)
        decision: Decision = "approve" if typer.confirm("make it champion?") else "reject"
        return Approval(
            approver=typer.prompt("your name"), decision=decision, reason=typer.prompt("reason"), model=model,
            seen_report=report_sha256(space),
        )  # fmt: skip
    return None


def _apply(space: Workspace, runs: Runs, approval: Approval, version: int) -> None:
    name, run = space.config.promote.model_name, _run_name(space)
    model, before = f"{name}/{version}", champion(name)
    if approval.decision == "approve":
        promotion.promote(
            version, approval.approver, approval.reason, name, seen_report=approval.seen_report or None
        )  # fmt: skip
        said = f"champion, approved by {approval.approver}: {approval.reason}; before it: {before}"
        tell("champion.changed", model, said, run, "`valle2 rollback --approver NAME` brings the one before it back.")
        runs.ending = Ending("Promoted", f"{model} is {said}")
    else:
        promotion.reject(version, approval.approver, approval.reason, name)
        said = f"rejected by {approval.approver}: {approval.reason}; the champion stays {before}"
        tell("model.rejected", model, said, run, "Nothing; the next run with new data or parameters tries again.")
        runs.ending = Ending("Rejected", f"{model} was {said}")
    runs.decision.append(f"decision {said}")


def _run_name(space: Workspace) -> str:
    run = server_run()
    return run.name if run else space.run
