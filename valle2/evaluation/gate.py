"""The quality gate: may this model be champion?

Pure: figures, facts and thresholds in, a verdict with one sentence a rule out. Where the facts come from is
`valle2.gate_facts`'; what is done about the verdict is `valle2.registry`'s and the promote flow's.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from valle2.config.promote import SETTINGS, GateConfig
from valle2.errors import EvaluationError
from valle2.evaluation.statistics import paired

Cases = Sequence[Mapping[str, Any]]
"""As in `cases.json`."""


@dataclass(frozen=True)
class Champion:
    """The model that is to be replaced, on the candidate's own cases.

    Attributes:
        name: Such as `valle2/3`.
        cases: Its scores, as in `cases.json`.
    """

    name: str
    cases: Cases


@dataclass(frozen=True)
class Facts:
    """What the scores do not tell; None is not known, which fails a rule that asks for it.

    Attributes:
        leaked_speakers: Evaluated speakers who were heard in training.
        without_consent: Training voices without a ground for their use.
        has_data_report: Whether there is a report on the very shards that were trained on.
        rtf: Seconds of computing a second of speech.
        slowdown: That, by the champion's, measured side by side.
        unknown: Fact -> why it is not known.
    """

    leaked_speakers: tuple[str, ...] | None = None
    without_consent: tuple[str, ...] | None = None
    has_data_report: bool | None = None
    rtf: float | None = None
    slowdown: float | None = None
    unknown: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class EvalReport:
    """All that the gate looks at.

    Attributes:
        metrics: The content of `artifacts/evaluate/metrics.json`.
        cases: The content of `cases.json`.
        champion: None where there is none yet.
        facts: Beside the scores.
    """

    metrics: Mapping[str, Any]
    cases: Cases = ()
    champion: Champion | None = None
    facts: Facts = Facts()


@dataclass(frozen=True)
class Rule:
    """One rule and what was found.

    Attributes:
        name: A field of `GateConfig`.
        value: The figure; None where there is none.
        threshold: What it is held against.
        passed: Whether it meets that.
        sentence: All of it in words.
        sign: How they are compared.
    """

    name: str
    value: float | None
    threshold: float
    passed: bool
    sentence: str
    sign: Literal["<=", ">="] = "<="

    @property
    def short(self) -> str:
        """The rule as a registry tag, such as `pass 0.12 <= 0.35`."""
        value = "missing" if self.value is None else f"{self.value:.4g}"
        return f"{'pass' if self.passed else 'fail'} {value} {self.sign} {self.threshold:.4g}"


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

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Verdict":
        """The inverse of `to_json`."""
        return cls(content["passed"], tuple(Rule(**rule) for rule in content["rules"]))


def judge(report: EvalReport, rules: GateConfig) -> Verdict:
    """Hold figures and facts against the rules.

    A figure that is missing or not finite fails its rule: a gate that cannot see lets nothing through.

    Args:
        report: What was found.
        rules: The `gate` section of the parameters.
    """
    asked = {name: value for name, value in rules if name not in SETTINGS and value is not None}
    judged = tuple(RULES[name](name, float(threshold), report, rules) for name, threshold in asked.items())
    return Verdict(all(rule.passed for rule in judged), judged)


Judge = Callable[[str, float, EvalReport, GateConfig], Rule]


def _figure(metric: str, meaning: str, sign: Literal["<=", ">="] = "<=") -> Judge:
    """A figure of `metrics.json`, bounded from above or from below."""

    def rule(name: str, threshold: float, report: EvalReport, rules: GateConfig) -> Rule:
        why = f"no figure `{metric}` in the metrics"
        if metric.startswith("hard_"):
            why += "; add `hard` to `evaluate.protocols`"
        return _bounded(name, report.metrics.get(metric), threshold, f"{meaning} ({metric})", why, sign)

    return rule


def _against_champion(metric: str, meaning: str, direction: int, every_protocol: bool = False) -> Judge:
    """A difference from the champion on the same cases; only one that is significant fails."""

    def rule(name: str, threshold: float, report: EvalReport, rules: GateConfig) -> Rule:
        champion = report.champion
        what = f"{meaning} against the champion ({metric})"
        if champion is None:
            return Rule(name, None, threshold, True, f"{what}: there is no other champion to compare with")
        first = report.cases[0]["protocol"] if report.cases and not every_protocol else None
        own = [case for case in report.cases if first in (None, case["protocol"])]
        try:
            found = paired(own, champion.cases, metric)
        except EvaluationError as error:
            return Rule(name, None, threshold, False, f"{what}: {error}")
        worse = direction * found.difference
        low, high = sorted((direction * found.low, direction * found.high))
        failed = worse > threshold and found.p_value < rules.significance
        figures = f"{worse:+.4g} (95 % {low:+.4g} to {high:+.4g}, p = {found.p_value:.4f}, {found.num_pairs} cases)"
        verdict = f"is more than {threshold:.4g}" if failed else f"is not significantly above {threshold:.4g}"
        return Rule(name, worse, threshold, not failed, f"{what}, {champion.name}: {figures} {verdict}")

    return rule


def _speed(fact: Literal["rtf", "slowdown"], meaning: str) -> Judge:
    def rule(name: str, threshold: float, report: EvalReport, rules: GateConfig) -> Rule:
        if fact == "slowdown" and report.champion is None:
            return Rule(name, None, threshold, True, f"{meaning}: there is no other champion to compare with")
        why = report.facts.unknown.get(fact, "it was not measured")
        return _bounded(name, getattr(report.facts, fact), threshold, meaning, why)

    return rule


def _names(fact: Literal["leaked_speakers", "without_consent"], meaning: str) -> Judge:
    """How many there are, and who."""

    def rule(name: str, threshold: float, report: EvalReport, rules: GateConfig) -> Rule:
        found: tuple[str, ...] | None = getattr(report.facts, fact)
        who = f" ({', '.join(found[:5])}{', …' if len(found) > 5 else ''})" if found else ""
        why = report.facts.unknown.get(fact, "it was not looked into")
        return _bounded(name, None if found is None else len(found), threshold, meaning + who, why)

    return rule


def _data_report(name: str, threshold: float, report: EvalReport, rules: GateConfig) -> Rule:
    found = report.facts.has_data_report
    why = report.facts.unknown.get("has_data_report", "nobody looked for one")
    sentence = "there is a report on the data" if found else f"no report on the data: {why}; run `valle2 data-report`"
    return Rule(name, None if found is None else float(found), threshold, bool(found), sentence, ">=")


def _bounded(
    name: str, found: object, threshold: float, meaning: str, why: str, sign: Literal["<=", ">="] = "<="
) -> Rule:
    if isinstance(found, bool) or not isinstance(found, int | float) or not math.isfinite(found):
        return Rule(name, None, threshold, False, f"{meaning}: {why}, so it cannot pass", sign)
    value = float(found)
    passed = value <= threshold if sign == "<=" else value >= threshold
    demand = "at most" if sign == "<=" else "at least"
    verb = "is" if passed else "is not"
    return Rule(name, value, threshold, passed, f"{meaning} {value:.4g} {verb} {demand} {threshold:.4g}", sign)


RULES: Mapping[str, Judge] = {
    "max_wer": _figure("wer", "word error rate"),
    "max_inf": _figure("inf", "share of cases that never end"),
    "max_cut": _figure("cut", "share of cases that end too early"),
    "min_sim_wins": _figure("sim_wins", "share of pairs in which the own voice is the most similar", ">="),
    "min_dnsmos": _figure("dnsmos", "mean P.808 MOS", ">="),
    "min_cases": _figure("num_cases", "number of cases", ">="),
    "max_hard_wer": _figure("hard_wer", "word error rate on hard texts"),
    "max_hard_inf": _figure("hard_inf", "share of hard texts that never end"),
    "max_hard_cut": _figure("hard_cut", "share of hard texts that end too early"),
    "max_wer_rise": _against_champion("wer", "rise of the word error rate", 1),
    "max_sim_drop": _against_champion("sim_own", "drop of the similarity to the own prompt", -1),
    "max_dnsmos_drop": _against_champion("dnsmos", "drop of the mean P.808 MOS", -1),
    "max_inf_rise": _against_champion("inf", "rise of the share that never ends", 1, every_protocol=True),
    "max_rtf": _speed("rtf", "seconds of computing a second of speech"),
    "max_slowdown": _speed("slowdown", "time for the same texts, by the champion's,"),
    "max_leaked_speakers": _names("leaked_speakers", "evaluated speakers who were heard in training"),
    "max_without_consent": _names("without_consent", "training voices without a ground for their use"),
    "require_data_report": _data_report,
}
"""A rule for each field of `GateConfig`."""
