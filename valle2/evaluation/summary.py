"""Per-case scores -> the flat figures of `metrics.json`, with bootstrap intervals over cases."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from valle2.config.evaluate import EvaluateConfig
from valle2.evaluation.statistics import interval

MEANS = (
    "sim_own", "sim_reconstructed", "dnsmos", "dnsmos_sig", "dnsmos_bak", "dnsmos_ovrl", "utmos", "repetition",
    "silence",
)  # fmt: skip
"""Figures that are means over cases."""

Statistic = Callable[[np.ndarray], float]


def summarise(
    cases: Sequence[Mapping[str, Any]], names: Mapping[str, str], settings: EvaluateConfig, seed: int
) -> dict[str, Any]:
    """The figures of all protocols and rows.

    Args:
        cases: As in `cases.json`.
        names: The metrics' models.
        settings: Thresholds, printed beside the figures that they make.
        seed: Of the intervals.

    Returns:
        `[<protocol>_][<row>_]<figure>`, the first protocol without its name and the model's own speech without a row:
        `wer`, `wer_substitutions`,..., `sim_own`, `sim_other`, `sim_wins`, `sim_reconstructed`, `dnsmos`,
        `dnsmos_sig`,..., `inf`, `cut`, `repetition`, `silence`, each with `_low` and `_high` (95 %); `num_cases` and
        `num_speakers`; names and thresholds. SIM to others is left out where there is one speaker only, INF and CUT
        where nobody could end wrongly.
    """
    protocols = list(dict.fromkeys(case["protocol"] for case in cases))
    result: dict[str, Any] = {
        "protocols": ",".join(protocols),
        "inf_trailing_silence_s": settings.trailing_silence,
        "cut_share_of_reference": settings.cut_words_share,
        "num_readings": settings.num_readings,
        **names,
    }
    for place, protocol in enumerate(protocols):
        own = [case for case in cases if case["protocol"] == protocol]
        prefix = f"{protocol.replace('-', '_')}_" if place else ""
        result[f"{prefix}num_cases"] = len(own)
        result[f"{prefix}num_speakers"] = len({case["speaker"] for case in own})
        for row in dict.fromkeys(row for case in own for row in case["rows"]):
            rows = [case["rows"][row] for case in own if row in case["rows"]]
            result |= _figures(rows, prefix + ("" if row == "model" else f"{row}_"), seed)
    return result


def _figures(rows: Sequence[Mapping[str, Any]], prefix: str, seed: int) -> dict[str, float]:
    found: dict[str, float] = {}
    for name, statistic in _statistics(rows).items():
        low, high = interval(len(rows), statistic, seed)
        values = (statistic(np.arange(len(rows))), low, high)
        found |= {
            prefix + name + end: round(value, 6) for end, value in zip(("", "_low", "_high"), values, strict=True)
        }
    return found


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
    for name in MEANS:
        if all(name in row for row in rows):
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
