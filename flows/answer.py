"""`python -m flows answer`: a person's decision, from a terminal, for a run on a server that waits for it."""

import json
import re
from pathlib import Path
from typing import Any

import httpx
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.responses import SetStateStatus
from prefect.settings import get_current_settings

from flows.approval import Decision, waiting
from valle2.errors import FlowError
from valle2.stage import file_sha256


def answer(run: str, decision: Decision, approver: str, reason: str, report: str | None = None) -> str:
    """Answer for a flow run that waits; it goes on in a new process.

    Args:
        run: Its name or id on the server.
        decision: Whether its model becomes champion.
        approver: Who decides.
        reason: Why.
        report: The report page that the approver has read, as a file or as its SHA-256.

    Returns:
        The version that was decided about, such as `valle2/3`.

    Raises:
        FlowError: No name or reason, no server, no such run waits on it, another report than that of the version was
            read, or the server refuses the answer.
    """
    for what, text in (("approver", approver), ("reason", reason)):
        if not text.strip():
            raise FlowError(f"a decision needs --{what}, found an empty one; it goes into the promotion record")
    found = _find(run)
    questions = _questions(found)
    model, digest = questions["model"]["default"], _only(questions["seen_report"])
    seen = _seen(report)
    if not seen or not digest.startswith(seen):
        what = f"SHA-256 {seen[:12]} was read" if seen else "none was named"
        raise FlowError(
            f"{model} was evaluated with the report of SHA-256 {digest}, and {what}; read that page (on MLflow's "
            f"pages, with the version's run) and name it: --report PAGE, or --report {digest[:12]}"
        )
    given = {"approver": approver, "decision": decision, "reason": reason, "model": model, "seen_report": digest}
    with get_client(sync_client=True) as client:
        result = client.resume_flow_run(found.id, given)
    if result.status != SetStateStatus.ACCEPT:
        raise FlowError(f"the server did not take the answer for {run}: {getattr(result.details, 'reason', '')}")
    return str(model)


def _find(run: str) -> FlowRun:
    if not get_current_settings().api.url:
        raise FlowError("no Prefect server runs here; `make up` starts one, PREFECT_API_URL names one elsewhere")
    runs = waiting()
    found = [item for item in runs if run in (item.name, str(item.id))]
    if not found:
        names = ", ".join(item.name for item in runs) or "none"
        raise FlowError(f"no flow run {run!r} waits for approval; those that do: {names}")
    return found[0]


def _questions(run: FlowRun) -> dict[str, Any]:
    """The form's fields, as the server holds them."""
    keys = run.state.state_details.run_input_keyset if run.state else None
    with get_client(sync_client=True) as client:
        try:
            schema = json.loads(client.read_flow_run_input(run.id, (keys or {})["schema"]))
            return {name: schema["properties"][name] for name in ("model", "seen_report")}
        # Paused by hand; or a moment ago, and its form is not there yet.
        except (KeyError, httpx.HTTPStatusError) as error:
            raise FlowError(f"{run.name} is paused, but asks nothing (yet); look at its page, or try again") from error


def _only(question: dict[str, Any]) -> str:
    return str(question["pattern"]).strip("^$")


def _seen(report: str | None) -> str:
    """The digest of what was read: of a page, or as given; a beginning of 12 digits or more is enough."""
    if not report:
        return ""
    page = Path(report)
    if page.is_file():
        return file_sha256(page)
    if not re.fullmatch(r"[0-9a-f]{12,64}", report.lower()):
        raise FlowError(f"--report {report!r} is neither a file nor a SHA-256 of 12 to 64 digits")
    return report.lower()
