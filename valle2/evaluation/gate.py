"""The quality gate: may this model be champion?

Pure: figures and thresholds in, a verdict with one sentence a rule out. What is done about it is `valle2.registry`'s
and the promote flow's.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from valle2.config.promote import GateConfig


@dataclass(frozen=True)
class Bound:
    """What a threshold bounds: a figure of `metrics.json`, from above or from below."""

    metric: str
    upper: bool
    meaning: str


BOUNDS = {
    "max_wer": Bound("wer", True, "word error rate"),
    "max_inf": Bound("inf", True, "share of cases that never end"),
    "max_cut": Bound("cut", True, "share of cases that end too early"),
    "min_sim_wins": Bound("sim_wins", False, "share of pairs in which the own voice is the most similar"),
    "min_dnsmos": Bound("dnsmos", False, "mean P.808 MOS"),
    "min_cases": Bound("num_cases", False, "number of cases"),
}
"""One entry for each field of `GateConfig`."""


@dataclass(frozen=True)
class Rule:
    """One threshold and what was found."""

    name: str
    value: float | None
    threshold: float
    passed: bool
    sentence: str

    @property
    def short(self) -> str:
        """The rule as a registry tag, such as `pass 0.12 <= 0.35`."""
        sign = "<=" if BOUNDS[self.name].upper else ">="
        value = "missing" if self.value is None else f"{self.value:.4g}"
        return f"{'pass' if self.passed else 'fail'} {value} {sign} {self.threshold:.4g}"


@dataclass(frozen=True)
class Verdict:
    """All rules; the model passes when every rule does."""

    passed: bool
    rules: tuple[Rule, ...]

    @property
    def reasons(self) -> list[str]:
        """The sentences of the rules that failed."""
        return [rule.sentence for rule in self.rules if not rule.passed]

    def to_json(self) -> dict[str, Any]:
        """For lineage records and tags."""
        return {"passed": self.passed, "rules": [asdict(rule) for rule in self.rules]}


def judge(metrics: Mapping[str, Any], rules: GateConfig) -> Verdict:
    """Hold figures against thresholds.

    A figure that is missing or not finite fails its rule: a gate that cannot see lets nothing through.

    Args:
        metrics: The content of `artifacts/evaluate/metrics.json`.
        rules: The `gate` section of the parameters.
    """
    judged = tuple(_rule(name, metrics, getattr(rules, name)) for name in type(rules).model_fields)
    return Verdict(all(rule.passed for rule in judged), judged)


def _rule(name: str, metrics: Mapping[str, Any], threshold: float) -> Rule:
    bound = BOUNDS[name]
    found = metrics.get(bound.metric)
    if isinstance(found, bool) or not isinstance(found, int | float) or not math.isfinite(found):
        sentence = f"{bound.meaning}: no figure `{bound.metric}` in the metrics, so it cannot pass"
        return Rule(name, None, threshold, False, sentence)
    value = float(found)
    passed = value <= threshold if bound.upper else value >= threshold
    demand = "at most" if bound.upper else "at least"
    verb = "is" if passed else "is not"
    sentence = f"{bound.meaning} ({bound.metric}) {value:.4g} {verb} {demand} {threshold:.4g}"
    return Rule(name, value, threshold, passed, sentence)
