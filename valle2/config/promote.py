"""Parameters of `promote`: the gate, and who decides after it."""

from typing import Literal

from pydantic import Field

from valle2.config.section import Fraction, PositiveCount, Section
from valle2.types import Seconds


class GateConfig(Section):
    """Thresholds a model must meet to be champion."""

    max_wer: float = Field(0.35, description="share, word error rate on unseen voices and sentences")
    max_inf: Fraction = Field(0.0, description="share of cases that never end")
    max_cut: Fraction = Field(0.25, description="share of cases that end too early")
    min_sim_wins: Fraction = Field(
        0.8, description="share of pairs in which SIM to the own prompt beats another speaker's prompt"
    )
    min_dnsmos: float = Field(2.0, description="mean P.808 MOS, 1-5")
    min_cases: PositiveCount = Field(12, description="fewer cases prove nothing")


class PromoteConfig(Section):
    """Who decides, after the gate."""

    model_name: str = Field("valle2", description="registered model in MLflow")
    approval: Literal["automatic", "required"] = Field(
        "automatic", description="`required` suspends the flow until a person decides"
    )
    approval_timeout: Seconds = Field(
        7 * 86400.0, description="s until the server gives up asking; the model stays a candidate"
    )
