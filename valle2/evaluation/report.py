"""The evaluation as one page that needs no server: figures, learning curves, funnel, and every case to hear.

The same results are always the same bytes, so that a digest names what an approver has seen. What the figures are is in
`valle2.evaluation.metrics`; the tables are made in `report_tables`, the cases in `report_cases`, and what the page does
when it is sorted, filtered and driven by keys is in `report.js`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from valle2.errors import EvaluationError
from valle2.evaluation.evaluation_folder import Evaluation, in_common
from valle2.evaluation.figures import Series, curves
from valle2.evaluation.report_cases import case_views
from valle2.evaluation.report_tables import comparison, confusions, figure_tables
from valle2.pages.page import funnel_rows, render
from valle2.pages.sounds import Sounds
from valle2.stage import file_sha256, write_text

TEMPLATE = "report.html.j2"
CURVES = {
    "loss": "loss, nats a code",
    "top1": "share of codes right at first",
    "top10": "share of codes right among ten",
}


def write_report(
    folder: Path,
    metrics: Mapping[str, Any],
    cases: Sequence[Mapping[str, Any]],
    samples: Path,
    context: Mapping[str, Any],
) -> Path:
    """Write `index.html` of one system.

    Args:
        folder: Where it goes.
        metrics: As in `metrics.json`.
        cases: As in `cases.json`.
        samples: Folder with `<case>.<row>.wav`.
        context: `history` (kind -> points) and `funnel` (content of `funnel.json`, or None).

    Returns:
        The page's path.
    """
    write_text(folder / "index.html", make_page(Evaluation(metrics, cases, samples, context)))
    return folder / "index.html"


def make_page(system: Evaluation, other: Evaluation | None = None) -> str:
    """The page of a system, beside another one on the cases that both have spoken.

    Raises:
        EvaluationError: There is another one, and they share no case.
    """
    sounds = Sounds("MP3")
    if other:
        both = set(in_common(system.cases, other.cases))
        shared = [case for case in other.cases if case["id"] in both]
        other = Evaluation(other.metrics, shared, other.samples, other.context, other.name)
    views = case_views(system, other, sounds)
    return render(
        Path(__file__).with_name(TEMPLATE),
        system=system,
        other=other,
        metrics=system.metrics,
        tables=figure_tables(system.metrics, system.cases, system.name),
        compared=comparison(system.cases, other.cases) if other else [],
        curves=_curves(system.context.get("history") or {}),
        funnel=funnel_rows(system.context.get("funnel")),
        confusions=confusions(system.cases),
        cases=views,
        protocols=list(dict.fromkeys(case["protocol"] for case in system.cases)),
        categories=sorted({case["category"] for case in system.cases if case.get("category")}),
        speakers=len({case["speaker"] for case in system.cases}),
        sounds=sounds,
    )


def report_digest(place: Path) -> str:
    """What names a page that somebody has seen: the SHA-256 of its bytes.

    Args:
        place: The page, the folder that holds its `index.html`, or an output folder of the evaluate stage.

    Raises:
        EvaluationError: There is no page.
    """
    for page in (place, place / "index.html", place / "report" / "index.html"):
        if page.is_file():
            return file_sha256(page)
    raise EvaluationError(f"no report page at {place}; `valle2 evaluate` writes artifacts/evaluate/report/index.html")


def _curves(history: Mapping[str, Sequence[Mapping[str, float]]]) -> list[str]:
    found = []
    for kind, points in sorted(history.items()):
        for name, meaning in CURVES.items():
            series = [
                Series(label, tuple((point["step"], point[key]) for point in points if point.get(key) is not None))
                for label, key in (("train", name), ("dev", f"valid_{name}"))
            ]
            found.append(curves(f"{kind.upper()}: {meaning}", [one for one in series if one.points]))
    return [svg for svg in found if svg]
