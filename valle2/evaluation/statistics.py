"""How sure a figure is, and whether two systems differ: bootstrap intervals and paired tests over cases."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy import stats

from valle2.errors import EvaluationError

NUM_RESAMPLES = 2_000
"""Bootstrap resamples of an interval."""
NUM_PERMUTATIONS = 9_999
"""Of a paired test; its smallest p-value is one in so many."""


def interval(num_cases: int, statistic: Callable[[Float[np.ndarray, " n"]], float], seed: int) -> tuple[float, float]:
    """95 % bootstrap interval over cases.

    Args:
        num_cases: Cases to draw from, with replacement.
        statistic: The figure of the cases with these indices.
        seed: Of the draws; the same seed gives the same interval.
    """
    draws = np.random.default_rng(seed).integers(0, num_cases, (NUM_RESAMPLES, num_cases))
    low, high = np.percentile([statistic(draw) for draw in draws], [2.5, 97.5])
    return float(low), float(high)


@dataclass(frozen=True)
class Paired:
    """Two systems on the same cases.

    Attributes:
        metric: As in `metrics.json`.
        num_pairs: Cases that both have.
        mean_a: The one system's figure over them.
        mean_b: The other's.
        difference: a minus b.
        low: Lower end of its 95 % bootstrap interval over cases.
        high: Upper end.
        p_value: Of a two-sided permutation test that swaps the systems case by case.
    """

    metric: str
    num_pairs: int
    mean_a: float
    mean_b: float
    difference: float
    low: float
    high: float
    p_value: float


def paired(
    a: Sequence[Mapping[str, Any]], b: Sequence[Mapping[str, Any]], metric: str, row: str = "model", seed: int = 0
) -> Paired:
    """Compare two systems on the cases that both have spoken.

    Args:
        a: Cases of the one, as in `cases.json`.
        b: Of the other.
        metric: `wer`, `sim_own`, `dnsmos`, `inf`, `cut`, or another figure that rows hold.
        row: Whose speech.
        seed: Of the draws.

    Raises:
        EvaluationError: They share no case with that figure.
    """
    others = {case["id"]: case["rows"][row] for case in b if row in case["rows"]}
    both = [(case["rows"][row], others[case["id"]]) for case in a if row in case["rows"] and case["id"] in others]
    pairs = [
        (*mine, theirs[0])
        for one, two in both
        if (mine := _counts(one, metric)) is not None and (theirs := _counts(two, metric)) is not None
    ]
    if not pairs:
        raise EvaluationError(
            f"the two evaluations share no case with a figure for {metric}: {len(a)} and {len(b)} cases; evaluate both "
            "by the same protocols"
        )
    first, weight, second = (np.array(values, float) for values in zip(*pairs, strict=True))

    def difference(
        one: Float[np.ndarray, "*n"], two: Float[np.ndarray, "*n"], weights: Float[np.ndarray, "*n"], axis: int = -1
    ) -> Any:
        return (one.sum(axis) - two.sum(axis)) / np.maximum(weights.sum(axis), 1e-12)

    found = float(difference(first, second, weight))
    low = high = found
    p_value = 1.0
    if len(pairs) > 1 and np.any(first != second):
        # The same draws of cases for both systems.
        spread = stats.bootstrap(
            (first, second, weight), difference, paired=True, vectorized=True, n_resamples=NUM_RESAMPLES,
            method="percentile", rng=np.random.default_rng(seed),
        ).confidence_interval  # fmt: skip
        low, high = float(spread.low), float(spread.high)
        p_value = float(
            stats.permutation_test(
                (first, second), lambda one, two, axis: one.sum(axis) - two.sum(axis), permutation_type="samples",
                vectorized=True, n_resamples=NUM_PERMUTATIONS, rng=np.random.default_rng(seed),
            ).pvalue
        )  # fmt: skip
    total = weight.sum()
    return Paired(metric, len(pairs), first.sum() / total, second.sum() / total, found, low, high, p_value)


def _counts(row: Mapping[str, Any], metric: str) -> tuple[float, float] | None:
    """A case's share of a figure and its weight: errors and words for WER, the value and 1 for a mean."""
    if metric == "wer":
        errors = row["errors"]
        return float(errors["substitutions"] + errors["deletions"] + errors["insertions"]), float(errors["words"])
    if metric in ("inf", "cut"):
        ending = row.get("ending")
        return None if ending is None else (float(ending["infinite" if metric == "inf" else "cut"]), 1.0)
    value = row.get(metric)
    return None if value is None else (float(value), 1.0)
