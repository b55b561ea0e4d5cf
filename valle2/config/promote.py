"""Parameters of `promote`: the gate, and who decides after it."""

from typing import Literal, Self

from pydantic import Field, model_validator

from valle2.config.section import Count, Fraction, Positive, PositiveCount, Section
from valle2.types import Seconds

SETTINGS = ("significance",)
"""Fields of the gate that are no rules."""


class GateConfig(Section):
    """Rules a model must meet to be champion; `null` switches one off."""

    max_wer: float | None = Field(0.35, description="share, word error rate on unseen voices and sentences")
    max_inf: Fraction | None = Field(0.0, description="share of cases that never end")
    max_cut: Fraction | None = Field(0.25, description="share of cases that end too early")
    min_sim_wins: Fraction | None = Field(
        0.8, description="share of pairs in which SIM to the own prompt beats another speaker's prompt"
    )
    min_dnsmos: float | None = Field(2.0, description="mean P.808 MOS, 1-5")
    min_cases: PositiveCount | None = Field(12, description="fewer cases prove nothing")
    max_hard_wer: float | None = Field(None, description="share, on the texts of the protocol `hard`")
    max_hard_inf: Fraction | None = Field(None, description="share of the protocol `hard` that never ends")
    max_hard_cut: Fraction | None = Field(None, description="share of the protocol `hard` that ends too early")
    max_wer_rise: float | None = Field(0.05, description="share; significantly more than the champion's is refused")
    max_sim_drop: float | None = Field(0.03, description="of SIM to the own prompt, against the champion")
    max_dnsmos_drop: float | None = Field(0.2, description="of the mean P.808 MOS, against the champion")
    max_inf_rise: Fraction | None = Field(0.05, description="share, over the cases of all protocols")
    significance: Fraction = Field(
        0.05, description="p below which a difference of the same cases is held for one (paired permutation test)"
    )
    max_rtf: Positive | None = Field(None, description="s of computing a second of speech, measured when judged")
    max_slowdown: Positive | None = Field(1.5, description="times the champion's, measured side by side")
    max_leaked_speakers: Count | None = Field(
        0, description="evaluated speakers whom the model, or one that it was trained on from, heard in training"
    )
    max_without_consent: Count | None = Field(0, description="training voices without a ground for their use")
    require_data_report: Literal[True] | None = Field(True, description="the data must have been reported on")

    @model_validator(mode="after")
    def _has_rules(self) -> Self:
        if all(value is None for name, value in self if name not in SETTINGS):
            raise ValueError("every rule is null, so any model would be champion; leave at least one on")
        return self


class PromoteConfig(Section):
    """Who decides, after the gate."""

    model_name: str = Field("valle2", description="registered model in MLflow")
    approval: Literal["automatic", "required"] = Field(
        "automatic", description="`required` suspends the flow until a person decides"
    )
    approval_timeout: Seconds = Field(
        7 * 86400.0, description="s until the server gives up asking; the model stays a candidate"
    )
