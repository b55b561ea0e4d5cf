"""The page of a data version: one file that needs no server, with samples to hear.

What the figures are is in `valle2.corpus.figures`; what all pages share in `valle2.pages`.
"""

from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from valle2.corpus.samples import MAX_SECONDS
from valle2.pages.bars import histogram
from valle2.pages.page import data_uri, funnel_rows, render
from valle2.stage import write_text
from valle2.types import SPLITS

TEMPLATE = "data_report.html.j2"
SPEAKERS_SHOWN = 50
_MEANS = ("mean_kept", "mean_dropped")


def write_page(path: Path, report: Mapping[str, Any], sounds: Sequence[bytes | None]) -> None:
    """Write the page.

    Args:
        path: Where it goes.
        report: As in `report.json`.
        sounds: FLAC files of `report["samples"]`; None where there is none.
    """
    funnel = report["funnel"]
    page = render(
        Path(__file__).with_name(TEMPLATE),
        report=report,
        metrics=report["metrics"],
        funnel=funnel_rows(funnel),
        sources={name: funnel_rows(of) for name, of in funnel["sources"].items()},
        speakers=_speakers(report["speakers"]),
        charts=[_chart(of) for of in report["measures"].values() if any(of["kept"]) or any(of["dropped"])],
        traits=_traits(report),
        splits=SPLITS,
        samples=_samples(report["samples"], sounds),
        max_seconds=MAX_SECONDS,
    )
    write_text(path, page)


def _speakers(speakers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The first of them, and the rest as one row."""
    shown, rest = speakers[:SPEAKERS_SHOWN], speakers[SPEAKERS_SHOWN:]
    longest = max((row["in"] for row in speakers), default=0.0) or 1e-9
    rows = [
        {
            **row,
            "width": round(100 * row["kept"] / longest, 1),
            "lost": round(100 * (row["in"] - row["kept"]) / longest, 1),
        }
        for row in shown
    ]
    others = {name: round(sum(row[name] for row in rest), 5) for name in ("in", "kept")}
    return {"rows": rows, "rest": {"count": len(rest), **others} if rest else None}


def _chart(of: Mapping[str, Any]) -> dict[str, Any]:
    edges = of["edges"]
    bins = [
        {"from": f"{low:g}", "to": f"{high:g}", "kept": kept, "dropped": dropped}
        for low, high, kept, dropped in zip(edges, edges[1:], of["kept"], of["dropped"], strict=False)
        if kept or dropped
    ]
    series = [("kept", of["kept"]), ("dropped", of["dropped"])]
    means = ["–" if of[name] is None else f"{of[name]:.{0 if of[name] >= 1000 else 3}f}" for name in _MEANS]
    return {**of, "means": means, "svg": histogram(f"{of['title']}, {of['unit']}", edges, series), "bins": bins}


def _traits(report: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Tables of hours taken in and kept."""
    kinds = {"Language": "languages", "Licence": "licences", "Ground of consent": "consent"}
    return [
        (title, {name or "not told": hours for name, hours in report[kind].items()}) for title, kind in kinds.items()
    ]


def _samples(samples: Sequence[Mapping[str, Any]], sounds: Sequence[bytes | None]) -> list[dict[str, Any]]:
    """Samples by outcome, as they come."""
    rows = [
        {**sample, "sound": data_uri(sound, "audio/flac") if sound else None}
        for sample, sound in zip(samples, sounds, strict=True)
    ]
    return [
        {"outcome": outcome, "is_kept": is_kept, "rows": list(own)}
        for (outcome, is_kept), own in groupby(rows, key=lambda row: (row["outcome"], row["is_kept"]))
    ]
