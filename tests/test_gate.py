"""The gate lets good figures through, and says why it stops others."""

import pytest

from valle2.config.promote import GateConfig
from valle2.evaluation.gate import BOUNDS, judge

GOOD = {"wer": 0.1, "inf": 0.0, "cut": 0.0, "sim_wins": 0.95, "dnsmos": 3.2, "num_cases": 24}


def test_every_threshold_has_a_rule():
    assert set(BOUNDS) == set(GateConfig.model_fields)


def test_good_figures_pass_with_a_sentence_each():
    verdict = judge(GOOD, GateConfig())
    assert verdict.passed and not verdict.reasons
    assert all(rule.sentence for rule in verdict.rules)
    assert {rule.name: rule.short for rule in verdict.rules}["max_wer"] == "pass 0.1 <= 0.35"


@pytest.mark.parametrize(
    ("metric", "value"),
    [("wer", 0.9), ("inf", 0.1), ("cut", 0.5), ("sim_wins", 0.5), ("dnsmos", 1.2), ("num_cases", 3)],
)
def test_one_bad_figure_fails_and_is_named(metric, value):
    verdict = judge(GOOD | {metric: value}, GateConfig())
    assert not verdict.passed
    assert len(verdict.reasons) == 1
    assert f"({metric}) {value:g} is not" in verdict.reasons[0]


@pytest.mark.parametrize("value", [None, float("nan"), float("inf"), "0.1", True])
def test_a_figure_that_cannot_be_read_fails(value):
    assert not judge(GOOD | {"wer": value}, GateConfig()).passed


def test_a_missing_figure_fails():
    verdict = judge({name: value for name, value in GOOD.items() if name != "sim_wins"}, GateConfig())
    assert not verdict.passed
    assert "no figure `sim_wins`" in verdict.reasons[0]


def test_thresholds_themselves_pass():
    rules = GateConfig()
    edge = {bound.metric: getattr(rules, name) for name, bound in BOUNDS.items()}
    assert judge(edge, rules).passed
