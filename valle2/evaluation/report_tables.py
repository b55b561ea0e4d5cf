"""The report's tables: figures of every protocol and row with intervals, two systems paired, words that go wrong."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from valle2.errors import EvaluationError
from valle2.evaluation.evaluation_folder import in_common
from valle2.evaluation.report_cases import scored, worst_first
from valle2.evaluation.statistics import Paired, paired

SIGNIFICANT = 0.05


@dataclass(frozen=True)
class Column:
    """A figure and how it is shown.

    Attributes:
        title: Above its column.
        digits: Behind the point.
        note: Which way is good.
        share: Whether it is shown in per cent.
        model: Key in `metrics.json` of the name of the model that measures it.
        lower: Whether less is better; None where neither is.
    """

    title: str
    digits: int
    note: str
    share: bool = False
    model: str | None = None
    lower: bool | None = False


COLUMNS = {
    "wer": Column("WER", 1, "lower is better", True, "wer_model", True),
    "sim_own": Column("SIM to own prompt", 3, "higher is better", model="sim_model"),
    "sim_reconstructed": Column("SIM to coded prompt", 3, "higher is better", model="sim_model"),
    "sim_other": Column("SIM to others' prompts", 3, "lower than to the own", model="sim_model", lower=None),
    "sim_wins": Column("Own voice nearest", 1, "share of pairs", True, "sim_model"),
    "dnsmos": Column("DNSMOS P.808", 2, "1 to 5", model="dnsmos_model"),
    "dnsmos_ovrl": Column("DNSMOS OVRL", 2, "1 to 5", model="dnsmos_model"),
    "utmos": Column("UTMOS", 2, "1 to 5", model="utmos_model"),
    "inf": Column("INF", 1, "never ends", True, lower=True),
    "cut": Column("CUT", 1, "ends too early", True, lower=True),
    "repetition": Column("Repeated codes", 1, "of frames", True, lower=None),
    "silence": Column("Silence", 1, "of frames", True, lower=None),
}
ROWS = {
    "model": "{name}",
    "continuation": "{name}, without the prompt",
    "sorted": "{name}, best of {readings} (sorted)",
    "sorted_continuation": "{name}, best of {readings}, without the prompt",
    "oracle": "{name}, best of {readings} by each metric (oracle)",
    "reconstruction": "Codec round trip of the ground truth",
    "reconstruction_continuation": "Codec round trip, without the prompt",
    "ground_truth": "Ground truth (the speaker)",
    "ground_truth_continuation": "Ground truth, without the prompt",
}
"""In the order in which they are shown; others follow by their own names."""


def show(value: float, column: Column) -> str:
    """A figure with its digits, in per cent where it is a share."""
    return f"{100 * value:.{column.digits}f} %" if column.share else f"{value:.{column.digits}f}"


def figure_tables(metrics: Mapping[str, Any], cases: Sequence[Mapping[str, Any]], name: str) -> list[dict[str, Any]]:
    """One table a protocol, a figure a row and a kind of speech a column.

    Args:
        metrics: As in `metrics.json`.
        cases: As in `cases.json`.
        name: Of the system.

    Returns:
        `protocol`, `num_cases`, `num_speakers`, `titles` of the columns, and `rows`: how the figure is shown, the name
        and version of the model that measures it or None, and cells of value, low and high, or None.
    """
    tables = []
    for place, protocol in enumerate(dict.fromkeys(case["protocol"] for case in cases)):
        prefix = f"{protocol.replace('-', '_')}_" if place else ""
        present = {row for case in cases if case["protocol"] == protocol for row in case["rows"]}
        names = [row for row in ROWS if row in present] + sorted(present - set(ROWS))
        keys = [prefix + ("" if row == "model" else f"{row}_") for row in names]
        readings = metrics.get("num_readings", "several")
        tables.append(
            {
                "protocol": protocol,
                "num_cases": metrics.get(f"{prefix}num_cases"),
                "num_speakers": metrics.get(f"{prefix}num_speakers"),
                "titles": [ROWS.get(row, str(row)).format(name=name, readings=readings) for row in names],
                "rows": [
                    (column, metrics.get(column.model or ""), [_cell(metrics, key + figure, column) for key in keys])
                    for figure, column in COLUMNS.items()
                    if any(key + figure in metrics for key in keys)
                ],
            }
        )
    return tables


def _cell(metrics: Mapping[str, Any], key: str, column: Column) -> dict[str, str] | None:
    keys = {"value": key, "low": f"{key}_low", "high": f"{key}_high"}
    if not all(key in metrics for key in keys.values()):
        return None
    return {name: show(metrics[key], column) for name, key in keys.items()}


def comparison(
    one: Sequence[Mapping[str, Any]], other: Sequence[Mapping[str, Any]]
) -> list[tuple[str, list[dict[str, Any]]]]:
    """Two systems on the same cases, protocol by protocol and figure by figure.

    Args:
        one: Cases as in `cases.json`.
        other: Those of the other system.

    Returns:
        Protocol and its rows: `metric`, `pairs`, `one`, `other`, `difference`, `low`, `high`, `p` and `verdict`, all
        to be read.

    Raises:
        EvaluationError: They share no case.
    """
    both = set(in_common(one, other))
    found = []
    for protocol in dict.fromkeys(case["protocol"] for case in one if case["id"] in both):
        pair = [
            [case for case in cases if case["id"] in both and case["protocol"] == protocol] for cases in (one, other)
        ]
        rows = []
        for metric, column in COLUMNS.items():
            if metric == "sim_wins":
                continue  # rows count pairs, of which there are not equally many everywhere
            try:
                rows.append(_compared(paired(pair[0], pair[1], metric), column))
            except EvaluationError:
                continue  # a figure that one of them has not
        found.append((protocol, rows))
    return found


def _compared(found: Paired, column: Column) -> dict[str, Any]:
    better = (found.difference < 0) == column.lower
    verdict = "not told apart"
    if found.p_value < SIGNIFICANT and found.difference:
        verdict = "differs" if column.lower is None else "better" if better else "worse"
    return {
        "metric": column.title, "pairs": found.num_pairs, "verdict": verdict,
        "one": show(found.mean_a, column), "other": show(found.mean_b, column),
        **{name: _signed(getattr(found, name), column) for name in ("difference", "low", "high")},
        "p": "< 0.001" if found.p_value < 0.001 else f"{found.p_value:.3f}",
    }  # fmt: skip


def _signed(value: float, column: Column) -> str:
    text = show(value, column).replace("-", "−")
    return text if value <= 0 else f"+{text}"


def confusions(cases: Sequence[Mapping[str, Any]], most: int = 12) -> list[tuple[str, str, int]]:
    """The words that go wrong most often: what was wanted (or ""), what was heard (or ""), how often."""
    counts: Counter[tuple[str, str]] = Counter()
    for case in cases:
        for kind, wanted, heard in case["rows"]["model"]["errors"]["diff"]:
            if kind != "equal":
                words = (wanted.split() or [""] * len(heard.split()), heard.split() or [""] * len(wanted.split()))
                counts.update(zip(*words, strict=True))
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return [(wanted, heard, count) for (wanted, heard), count in ranked[:most]]


def case_table(cases: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """A case a row, the worst first, as columns: what was said, what was heard, and the model's figures."""
    rows = [
        {
            "case": case["id"], "protocol": case["protocol"], "category": case.get("category") or "",
            "speaker": case["speaker"], "text": case["text"], "prompt": case["prompt_text"],
            **{name: value for name, value in scored(case["rows"]["model"]).items() if name != "diff"},
        }
        for case in worst_first(cases)
    ]  # fmt: skip
    for row in rows:
        row["marks"] = ", ".join(row["marks"])
    return {name: [row[name] for row in rows] for name in rows[0]} if rows else {}


def figure_table(metrics: Mapping[str, Any], cases: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """A figure of a protocol and a kind of speech a row, as columns, with its interval and what measured it."""
    names = ("protocol", "speech", "figure", "value", "low", "high", "measured by")
    rows = [
        (table["protocol"], title, column.title, cell["value"], cell["low"], cell["high"], model or "")
        for table in figure_tables(metrics, cases, "VALL-E 2")
        for column, model, cells in table["rows"]
        for title, cell in zip(table["titles"], cells, strict=True)
        if cell
    ]
    return dict(zip(names, map(list, zip(*rows, strict=True)), strict=True)) if rows else {}
