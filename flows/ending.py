"""How a run ends: the name and the message of its final state, which Prefect's pages show in their lists."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from prefect.states import Completed, State

if TYPE_CHECKING:
    from flows.runner import Runs
    from flows.workspace import Workspace

Name = Literal["UpToDate", "Promoted", "Rejected", "Waiting", "Completed"]


@dataclass(frozen=True)
class Ending:
    """What became of it."""

    name: Name
    message: str


def ended(space: "Workspace", runs: "Runs") -> State[str]:
    """The final state of a flow run that ends well; its data is the branch that holds the result."""
    ending = runs.ending or Ending("Completed", f"the result is on {space.branch}")
    return Completed(name=ending.name, message=f"{ending.message} ({runs.why})", data=space.branch)
