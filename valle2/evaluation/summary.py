"""Per-case scores -> the flat figures of `metrics.json`, with bootstrap intervals over cases."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from valle2.config.evaluate import EvaluateConfig
from valle2.evaluation.metrics import interval

PREFIXES = {"model": "", "ground_truth": "ground_truth_", "reconstruction": "reconstruction_"}

Statistic = Callable[[np.ndarray], float]


def summarise(
    cases: Sequence[Mapping[str, Any]], names: Mapping[str, str], settings: EvaluateConfig, seed: int
) -> dict[str, Any]:
    """The figures of all rows.

    Args:
        cases: As in `cases.json`.
        names: The metrics' models.
        settings: Thresholds, printed beside the figures that they make.
        seed: Of the intervals.

    Returns:
        `wer`, `sim_own`, `sim_other`, `sim_wins`, `dnsmos`, each with `_low` and `_high` (95 %), `inf` and `cut`; the
        same with `ground_truth_` and `reconstruction_` before it; counts, names and thresholds. SIM to others is left
        out where there is one speaker only.
    """
    result: dict[str, Any] = {
        "num_cases": len(cases),
        "num_speakers": len({case["speaker"] for case in cases}),
        "inf_trailing_silence_s": settings.trailing_silence,
        "cut_share_of_reference": settings.cut_words_share,
        **names,
    }
    for row, prefix in PREFIXES.items():
        rows = [case["rows"][row] for case in cases]
        for name, statistic in _statistics(rows).items():
            result[prefix + name] = round(statistic(np.arange(len(rows))), 6)
            if not name.startswith("wer_"):
                low, high = interval(len(rows), statistic, seed)
                result[f"{prefix}{name}_low"], result[f"{prefix}{name}_high"] = round(low, 6), round(high, 6)
    return result


def _statistics(rows: Sequence[Mapping[str, Any]]) -> dict[str, Statistic]:
    """Each figure as a function of the cases that it is taken over."""
    errors = {
        kind: np.array([row["errors"][kind] for row in rows], float)
        for kind in ("substitutions", "deletions", "insertions", "words")
    }
    total = errors["substitutions"] + errors["deletions"] + errors["insertions"]
    found: dict[str, Statistic] = {"wer": _ratio(total, errors["words"])}
    for kind in ("substitutions", "deletions", "insertions"):
        found[f"wer_{kind}"] = _ratio(errors[kind], errors["words"])
    for name in ("sim_own", "dnsmos"):
        found[name] = _mean([row[name] for row in rows])
    if all(row["sim_others"] for row in rows):
        found["sim_other"] = _mean([float(np.mean(row["sim_others"])) for row in rows])
        pairs = np.array([len(row["sim_others"]) for row in rows], float)
        found["sim_wins"] = _ratio(np.array([row["sim_wins"] for row in rows], float), pairs)
    if all("ending" in row for row in rows):
        found["inf"] = _mean([float(row["ending"]["infinite"]) for row in rows])
        found["cut"] = _mean([float(row["ending"]["cut"]) for row in rows])
    return found


def _ratio(above: np.ndarray, below: np.ndarray) -> Statistic:
    return lambda chosen: float(above[chosen].sum() / max(below[chosen].sum(), 1))


def _mean(values: Sequence[float]) -> Statistic:
    array = np.asarray(values, float)
    return lambda chosen: float(array[chosen].mean())
