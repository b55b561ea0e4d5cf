"""What raters of a listening test have said: means with intervals over raters and cases, and tests between systems.

Answers of one rater, and answers about one case, are alike, so that an interval that drew single answers would be too
narrow. The bootstrap draws raters and cases, each by themselves, and weighs an answer by how often both were drawn
(Owen 2007, the pigeonhole bootstrap, doi:10.1214/07-AOAS122). Tests swap the systems case by case, as in
`valle2.evaluation.statistics`, in the means over raters.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas
from scipy import stats

from valle2.errors import EvaluationError
from valle2.evaluation.statistics import NUM_PERMUTATIONS, NUM_RESAMPLES

SCALES = {"smos": frozenset(half / 2 for half in range(2, 11)), "cmos": frozenset(map(float, range(-3, 4)))}


@dataclass(frozen=True)
class Opinion:
    """A mean of opinions.

    Attributes:
        measure: `SMOS`, `SMOS difference` or `CMOS`.
        system: Whose; of a difference or a comparison, the one that is better where the mean is above zero.
        against: The other system, or None.
        mean: Over answers.
        low: Lower end of the 95 % interval over raters and cases.
        high: Upper end.
        num_answers: Of a difference, pairs of them.
        num_raters: Who gave them.
        num_cases: Of which.
        p_value: Of a difference or a comparison.
    """

    measure: str
    system: str
    against: str | None
    mean: float
    low: float
    high: float
    num_answers: int
    num_raters: int
    num_cases: int
    p_value: float | None = None


def summarise_opinions(key: Mapping[str, Any], results: Sequence[Path], seed: int = 0) -> list[Opinion]:
    """What the raters think, system by system and pair by pair.

    Args:
        key: As `valle2 listen` writes it.
        results: Files that raters have saved.
        seed: Of the draws.

    Raises:
        EvaluationError: A file is no result, is of another test, is one rater's second, or has an answer that the test
            does not know.
    """
    answers = read_answers(key, results)
    found = []
    smos = answers[answers.kind == "smos"]
    tables = {name: smos[smos.system == name] for name in key["systems"]}
    for name, table in tables.items():
        if len(table):
            found.append(_opinion("SMOS", name, None, table, seed))
    for one, other in combinations(key["systems"], 2):
        pairs = tables[one].merge(tables[other], on=["rater", "case"], suffixes=("", "_other"))
        if len(pairs):
            pairs["score"] -= pairs["score_other"]
            found.append(_opinion("SMOS difference", one, other, pairs, seed))
    compared = answers[answers.kind == "cmos"]
    if len(compared):
        found.append(_opinion("CMOS", key["systems"][0], key["systems"][1], compared, seed))
    return found


def read_answers(key: Mapping[str, Any], results: Sequence[Path]) -> pandas.DataFrame:
    """All answers as rows of `rater`, `kind`, `case`, `system` and `score`.

    A comparison's score says how much better the key's first system is than its second, in whichever order they were
    heard.

    Raises:
        EvaluationError: As for `summarise_opinions`.
    """
    rows: list[dict[str, Any]] = []
    raters: dict[str, Path] = {}
    for path in results:
        result = _read(path)
        if result["test"] != key["test"]:
            raise EvaluationError(
                f"{path} holds answers to test {result['test']}, the key is that of test {key['test']}; give the key "
                "that was written beside the page of these answers"
            )
        rater = " ".join(str(result["rater"]).split())
        if rater.casefold() in raters:
            raise EvaluationError(
                f"{path} is of rater {rater}, as is {raters[rater.casefold()]}; leave one of them out: a rater who "
                "counts twice makes the intervals too narrow"
            )
        raters[rater.casefold()] = path
        rows += [{"rater": rater, **row} for row in _rows(key, result, path)]
    if not rows:
        raise EvaluationError("no answer in the results; a rater saves them with the test's last button")
    return pandas.DataFrame(rows)


def _rows(key: Mapping[str, Any], result: Mapping[str, Any], path: Path) -> Iterator[dict[str, Any]]:
    seen = set()
    for answer in result["answers"]:
        trial = key["trials"].get(answer.get("trial"))
        order, score = answer.get("order"), answer.get("score")
        if (
            trial is None
            or answer["trial"] in seen
            or sorted(order or []) != sorted(trial["stimuli"])
            or score not in SCALES[trial["kind"]]
        ):
            raise EvaluationError(
                f"{path} has an answer that the test cannot have got ({json.dumps(answer)[:120]}); ask the rater to "
                "save the answers again"
            )
        seen.add(answer["trial"])
        # A comparison's score says what the second is worth beside the first.
        system = trial["stimuli"][order[-1]]
        sign = -1 if trial["kind"] == "cmos" and system != key["systems"][0] else 1
        yield {"kind": trial["kind"], "case": trial["case"], "system": system, "score": float(sign * score)}


def _opinion(measure: str, system: str, against: str | None, table: pandas.DataFrame, seed: int) -> Opinion:
    low, high = crossed_interval(table, seed)
    return Opinion(
        measure, system, against, float(table.score.mean()), low, high, len(table), table.rater.nunique(),
        table.case.nunique(), None if against is None else _p_value(table, seed),
    )  # fmt: skip


def crossed_interval(table: pandas.DataFrame, seed: int) -> tuple[float, float]:
    """95 % bootstrap interval of the mean score over raters and cases, both drawn with replacement.

    Args:
        table: Rows of `rater`, `case` and `score`.
        seed: Of the draws.
    """
    rng = np.random.default_rng(seed)
    weights = np.ones((NUM_RESAMPLES, len(table)))
    for name in ("rater", "case"):
        place, values = pandas.factorize(table[name])
        drawn = rng.multinomial(len(values), np.full(len(values), 1 / len(values)), NUM_RESAMPLES)
        weights *= drawn[:, place]
    total = weights.sum(axis=1)
    # Where not every rater has judged every case, a draw may hold no answer at all.
    means = (weights[total > 0] @ table.score.to_numpy()) / total[total > 0]
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def _p_value(table: pandas.DataFrame, seed: int) -> float:
    """Two-sided, of a permutation test that swaps the systems case by case."""
    means = table.groupby("case").score.mean().to_numpy()
    if len(means) < 2 or not np.any(means):
        return 1.0
    found = stats.permutation_test(
        (means, -means), lambda one, other, axis: one.mean(axis) - other.mean(axis), permutation_type="samples",
        vectorized=True, n_resamples=NUM_PERMUTATIONS, rng=np.random.default_rng(seed),
    )  # fmt: skip
    return float(found.pvalue)


def _read(path: Path) -> dict[str, Any]:
    try:
        result = json.loads(path.read_text())
    except OSError as error:
        raise EvaluationError(f"cannot read {path} ({error.strerror}); name a file that a rater has saved") from error
    except ValueError as error:
        raise EvaluationError(f"{path} is no JSON ({error}); name a file that a rater has saved") from error
    if not isinstance(result, dict) or not {"test", "rater", "answers"} <= result.keys():
        raise EvaluationError(f"{path} holds no answers to a listening test; name a file that a rater has saved")
    return result
