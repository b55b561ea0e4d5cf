"""How fast the data stages are: hours of audio per hour on the clock.

A time is no part of an output; it is in the stages' logs, and from there in the run's summary, in the lineage records
and in MLflow. Audio that the ledger knew already counts as done, and a resumed stage by its last attempt: both are
faster than a first run.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from valle2.stage import log_file
from valle2.types import STAGES, Seconds, Stage

RATE = "audio_hours_per_hour"


@dataclass(frozen=True)
class Speed:
    """What a stage's log says."""

    stage: Stage
    figure: str
    seconds: Seconds
    """On the clock."""
    audio_seconds: Seconds | None
    """That went in; None of a stage that takes no audio."""
    rate: float | None
    """Hours of audio per hour."""


def rate(facts: Mapping[str, Any], seconds: Seconds) -> dict[str, float]:
    """The rate as a fact, of a stage that says how much audio it took."""
    audio = facts.get("audio_seconds")
    return {} if audio is None else {RATE: round(audio / max(seconds, 0.1), 1)}


def speeds() -> list[Speed]:
    """Of the stages that have a log here, in their order."""
    found = []
    for stage in STAGES:
        path = log_file(stage)
        if path.is_file():
            log = json.loads(path.read_text())
            facts = log.get("facts", {})
            audio, per_hour = facts.get("audio_seconds"), facts.get(RATE)
            found.append(Speed(stage, log.get("figure", ""), log.get("seconds", 0.0), audio, per_hour))
    return found
