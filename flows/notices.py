"""What a run tells the world: events, which `infra.automations` sends to a webhook where one is set.

A run that fails, or that nobody answers, needs no event of ours: Prefect has one for every state.
"""

from typing import Literal

from prefect.events import emit_event
from prefect.settings import get_current_settings

Kind = Literal["champion.changed", "approval.wanted", "model.rejected"]
EVENTS = ("valle2.champion.changed", "valle2.approval.wanted", "valle2.model.rejected")


def tell(kind: Kind, model: str, decision: str, run: str, todo: str) -> None:
    """Tell the server, if there is one, what became of a model.

    Args:
        kind: What happened.
        model: Name and version, such as `valle2/3`.
        decision: In a sentence, with the reasons.
        run: Of the flow.
        todo: What a person should do now.
    """
    if not get_current_settings().api.url:
        return
    name, _, version = model.rpartition("/")
    payload = {
        "text": f"{model}: {decision} (run {run}). {todo}",
        "model": name, "version": version, "decision": decision, "run": run, "todo": todo,
    }  # fmt: skip
    emit_event(f"valle2.{kind}", {"prefect.resource.id": f"valle2.model.{name}.{version}"}, payload=payload)
