"""The gate lets good models through, and says why it stops others. It is pure: no file is read here."""

import numpy as np
import pytest
from pydantic import ValidationError

from valle2.config.promote import SETTINGS, GateConfig
from valle2.evaluation.gate import RULES, Champion, EvalReport, Facts, Verdict, judge

GOOD = {"wer": 0.1, "inf": 0.0, "cut": 0.0, "sim_wins": 0.95, "dnsmos": 3.2, "num_cases": 24}
SEEN = Facts(leaked_speakers=(), without_consent=(), has_data_report=True, rtf=0.5, slowdown=1.1)
EDGES = {"wer": "max_wer", "inf": "max_inf", "cut": "max_cut", "sim_wins": "min_sim_wins", "dnsmos": "min_dnsmos"}


def judged(metrics=GOOD, cases=(), champion=None, facts=SEEN, **rules) -> Verdict:
    return judge(EvalReport(metrics, cases, champion, facts), GateConfig(**rules))


def rule(verdict: Verdict, name: str):
    return next(found for found in verdict.rules if found.name == name)


def case(place: int, errors: int = 0, sim: float = 0.8, dnsmos: float = 3.0, infinite: bool = False, **about):
    row = {
        "errors": {"substitutions": errors, "deletions": 0, "insertions": 0, "words": 10},
        "sim_own": sim, "dnsmos": dnsmos, "ending": {"infinite": infinite, "cut": False},
    }  # fmt: skip
    return {"id": f"c{place}", "protocol": "unseen", "rows": {"model": row}, **about}


def num_errors(cases) -> int:
    return sum(one["rows"]["model"]["errors"]["substitutions"] for one in cases)


def test_every_threshold_has_a_rule():
    assert set(RULES) == set(GateConfig.model_fields) - set(SETTINGS)


def test_good_figures_pass_with_a_sentence_each():
    verdict = judged()
    assert verdict.passed and not verdict.reasons
    assert all(found.sentence for found in verdict.rules)
    assert rule(verdict, "max_wer").short == "pass 0.1 <= 0.35"
    assert Verdict.from_json(verdict.to_json()) == verdict


@pytest.mark.parametrize(
    ("metric", "value"),
    [("wer", 0.9), ("inf", 0.1), ("cut", 0.5), ("sim_wins", 0.5), ("dnsmos", 1.2), ("num_cases", 3)],
)
def test_one_bad_figure_fails_and_is_named(metric, value):
    verdict = judged(GOOD | {metric: value})
    assert not verdict.passed
    assert len(verdict.reasons) == 1
    assert f"({metric}) {value:g} is not" in verdict.reasons[0]


@pytest.mark.parametrize("value", [None, float("nan"), float("inf"), "0.1", True])
def test_a_figure_that_cannot_be_read_fails(value):
    assert not judged(GOOD | {"wer": value}).passed


def test_a_missing_figure_fails():
    verdict = judged({name: value for name, value in GOOD.items() if name != "sim_wins"})
    assert not verdict.passed
    assert "no figure `sim_wins`" in verdict.reasons[0]


def test_thresholds_themselves_pass():
    rules = GateConfig()
    edge = {metric: getattr(rules, name) for metric, name in EDGES.items()} | {"num_cases": rules.min_cases}
    assert judged(edge, facts=SEEN, max_slowdown=1.1).passed


def test_null_switches_a_rule_off_and_a_gate_without_rules_is_refused():
    assert judged(GOOD | {"wer": 0.9}, max_wer=None).passed
    with pytest.raises(ValidationError, match="every rule is null"):
        GateConfig(**dict.fromkeys(RULES))


def test_hard_texts_have_thresholds_of_their_own():
    assert judged(GOOD | {"hard_inf": 0.04}, max_hard_inf=0.05).passed
    assert "hard texts that never end (hard_inf) 0.3" in judged(GOOD | {"hard_inf": 0.3}, max_hard_inf=0.05).reasons[0]
    assert "add `hard` to `evaluate.protocols`" in judged(max_hard_inf=0.05).reasons[0]


def test_without_a_champion_there_is_nothing_to_be_worse_than():
    found = rule(judged(), "max_wer_rise")
    assert found.passed and "no other champion" in found.sentence


@pytest.mark.parametrize(
    ("name", "worse"),
    [
        ("max_wer_rise", {"errors": 2}),
        ("max_sim_drop", {"sim": 0.6}),
        ("max_dnsmos_drop", {"dnsmos": 2.5}),
        ("max_inf_rise", {"infinite": True}),
    ],
)
def test_a_model_that_is_worse_than_the_champion_on_the_same_cases_is_refused(name, worse):
    before = Champion("valle2/3", [case(place) for place in range(20)])
    verdict = judged(cases=[case(place, **worse) for place in range(20)], champion=before)
    assert [found.name for found in verdict.rules if not found.passed] == [name]
    assert "valle2/3" in verdict.reasons[0] and "p = 0.0002, 20 cases" in verdict.reasons[0]
    better = Champion("valle2/3", [case(place, **worse) for place in range(20)])
    assert judged(cases=before.cases, champion=better).passed


def test_a_difference_that_chance_explains_does_not_count():
    rng = np.random.default_rng(0)
    first, second = (
        [case(place, errors=int(errors)) for place, errors in enumerate(rng.integers(0, 4, 12))] for _ in range(2)
    )
    better, worse = sorted((first, second), key=num_errors)
    found = rule(judged(cases=worse, champion=Champion("valle2/1", better), max_wer_rise=0.0), "max_wer_rise")
    assert found.value > 0 and found.passed
    assert "is not significantly above" in found.sentence


def test_words_and_voices_are_compared_on_the_first_protocol_and_endings_on_all():
    hard = [case(place, errors=9, infinite=True, protocol="hard", id=f"hard.{place}") for place in range(20)]
    good = [case(place, protocol="hard", id=f"hard.{place}") for place in range(20)]
    own = [case(place) for place in range(20)]
    verdict = judged(cases=own + hard, champion=Champion("valle2/1", own + good))
    assert [found.name for found in verdict.rules if not found.passed] == ["max_inf_rise"]


def test_a_champion_that_was_asked_other_texts_cannot_be_compared_with():
    verdict = judged(cases=[case(1)], champion=Champion("valle2/1", [case(2)]))
    assert not verdict.passed and "share no case" in verdict.reasons[0]


@pytest.mark.parametrize(
    ("facts", "sentence"),
    [
        (Facts(("eve",), (), True), r"heard in training \(eve\) 1 is not at most 0"),
        (Facts((), ("ann", "bob"), True), r"without a ground for their use \(ann, bob\) 2 is not at most 0"),
        (Facts((), (), False, unknown={"has_data_report": "it is of other shards"}), "it is of other shards; run"),
        (Facts(None, (), True, unknown={"leaked_speakers": "no record"}), "no record, so it cannot pass"),
        (Facts((), None, True), "was not looked into, so it cannot pass"),
    ],
)
def test_leaks_missing_consent_and_a_missing_report_are_refused(facts, sentence):
    verdict = judged(facts=facts)
    assert len(verdict.reasons) == 1
    with pytest.raises(AssertionError, match=sentence):
        raise AssertionError(verdict.reasons[0])


def test_a_slower_model_is_refused():
    own = [case(place) for place in range(4)]
    slow = Facts((), (), True, rtf=3.0, slowdown=1.9)
    assert judged(cases=own, facts=slow).passed
    verdict = judged(cases=own, champion=Champion("valle2/1", own), facts=slow, max_rtf=2.5)
    assert len(verdict.reasons) == 2
    assert "by the champion's, 1.9 is not at most 1.5" in verdict.reasons[1]
