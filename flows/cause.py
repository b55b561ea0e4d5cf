"""Why a run runs: its schedule, new data, or somebody who wants it. It is in the summary and in tags."""

import getpass
from dataclasses import dataclass
from typing import Literal

from prefect.client.schemas.objects import FlowRun

VARIABLE = "VALLE2_WHY"
"""Where the stages' commands find it; a training's MLflow run has it as a tag."""


@dataclass(frozen=True)
class Cause:
    """What made a run start."""

    kind: Literal["schedule", "new-data", "hand"]
    sentence: str

    @property
    def tag(self) -> str:
        """For Prefect, to filter runs by."""
        return f"why:{self.kind}"


def cause_of(run: FlowRun | None, why: str = "") -> Cause:
    """Find out why a run runs.

    Args:
        run: As the server knows it; None where there is none.
        why: What was given with it: by the automation that started it, or by a person.
    """
    if run is not None and run.auto_scheduled:
        at = run.expected_start_time
        return Cause("schedule", f"scheduled at {at:%Y-%m-%d %H:%M} UTC" if at else "scheduled")
    if run is not None and run.created_by is not None and run.created_by.type == "AUTOMATION":
        return Cause("new-data", why or f"started by the automation {run.created_by.display_value}")
    if why:
        return Cause("hand", why if why.startswith("by hand") else f"by hand: {why}")
    if run is not None and run.deployment_id:
        return Cause("hand", "by hand, on Prefect's pages")
    return Cause("hand", by_hand())


def by_hand() -> str:
    """The sentence for who types here."""
    try:
        return f"by hand by {getpass.getuser()}"
    except (KeyError, OSError):  # a user id without a name, as in containers
        return "by hand"
