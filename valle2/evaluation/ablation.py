"""What does each idea bring? The same texts, prompts and seeds with RAS on and off, by top_p, by group size.

Each point of the grid is a whole evaluation (`valle2.evaluation.evaluate.evaluate_model`), kept in a folder of its own,
so that an ablation that was stopped goes on, and one that grows computes only what is new.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from valle2.config.evaluate import EvaluateConfig, EvaluateParams
from valle2.config.sampling import SamplingConfig
from valle2.errors import ConfigError
from valle2.evaluation.cases import Case, cases_digest
from valle2.evaluation.evaluate import evaluate_model
from valle2.evaluation.statistics import Paired, paired
from valle2.evaluation.summary import summarise
from valle2.model_folder import model_sha256, read_facts
from valle2.stage import digest, write_json, write_text

RAS = {
    "RAS": {"ras_window": 10, "count_self": True},
    "RAS, not counting itself": {"ras_window": 10, "count_self": False},
    "no RAS": {"ras_window": 0},
}
"""Repetition aware sampling as printed in Algorithm 1, as it would be if the sum began at k = 1, and not at all."""
TABLE = {"wer": 100, "inf": 100, "cut": 100, "sim_own": 1, "dnsmos": 1, "repetition": 100}
"""Columns, and what they are multiplied by: 100 for per cent."""
TESTED = ("wer", "sim_own", "dnsmos")


@dataclass(frozen=True)
class Point:
    """One way to speak.

    Attributes:
        model: The model's label, such as `G = 2`.
        bundle: Its folder.
        ras: A key of `RAS`, or `as evaluated`.
        sampling: All settings.
        num_readings: Of each text; more than one is five-time sampling.
    """

    model: str
    bundle: Path
    ras: str
    sampling: SamplingConfig
    num_readings: int = 1


@dataclass(frozen=True)
class Result:
    """What came of a point: figures as in `metrics.json`, and how it differs from the first point."""

    point: Point
    figures: dict[str, Any]
    tests: tuple[Paired, ...]

    def to_json(self) -> dict[str, Any]:
        """All of it."""
        return {
            "model": self.point.model,
            "ras": self.point.ras,
            "num_readings": self.point.num_readings,
            "sampling": self.point.sampling.model_dump(),
            "figures": self.figures,
            "against_first": {test.metric: vars(test) for test in self.tests},
        }


def grid(models: Sequence[Path], settings: EvaluateConfig, top_ps: Sequence[float], num_readings: int) -> list[Point]:
    """The points: each model as it was evaluated, the first with every kind of RAS at every top_p, and read often.

    Args:
        models: Voice model folders, labelled by their group size.
        settings: As evaluated.
        top_ps: Nucleus shares; none leaves RAS out.
        num_readings: For five-time sampling; 1 leaves it out.

    Raises:
        ConfigError: Two models have the same group size.
    """
    labels = {f"G = {read_facts(folder)['group_size']}": folder for folder in models}
    if len(labels) < len(models):
        raise ConfigError(f"two of {', '.join(map(str, models))} have the same group size; give one of each")
    points = [Point(label, folder, "as evaluated", settings.sampling) for label, folder in labels.items()]
    first = points[0]
    points += [
        Point(first.model, first.bundle, name, settings.sampling.model_copy(update={"top_p": top_p, **changes}))
        for name, changes in RAS.items()
        for top_p in top_ps
    ]
    if num_readings > 1:
        points.append(Point(first.model, first.bundle, "as evaluated", settings.sampling, num_readings))
    return points


def ablate(points: Sequence[Point], cases: Sequence[Case], config: EvaluateParams, out: Path) -> list[Result]:
    """Evaluate every point, and write `ablation.json`, `ablation.md` and `ablation.png`.

    Args:
        points: The first is what the others are tested against.
        cases: The same for all.
        config: The metrics' models, thresholds and seed.
        out: The folder; `work/` in it keeps speech.

    Returns:
        A result a point.
    """
    results: list[Result] = []
    first: list[dict[str, Any]] = []
    for place, point in enumerate(points, 1):
        print(f"ablate: {place}/{len(points)}: {_title(point)}", flush=True)
        changes = {"sampling": point.sampling, "num_readings": point.num_readings}
        settings = config.model_copy(update={"evaluate": config.evaluate.model_copy(update=changes)})
        key = digest([model_sha256(point.bundle), cases_digest(cases), point.sampling.model_dump()])
        scored, names = evaluate_model(point.bundle, cases, settings, out / "work" / key[:16])
        first = first or scored
        figures = summarise(scored, names, settings.evaluate, config.runtime.seed)
        tests = tuple(paired(scored, first, metric) for metric in TESTED)
        results.append(Result(point, figures, tests))
        write_json(out / "ablation.json", [result.to_json() for result in results])
    write_text(out / "ablation.md", "\n".join(_tables(results)) + "\n")
    _draw(results, out / "ablation.png")
    return results


def _title(point: Point) -> str:
    often = f", read {point.num_readings} times" if point.num_readings > 1 else ""
    return f"{point.model}, {point.ras}, top_p {point.sampling.top_p:g}{often}"


def _tables(results: Sequence[Result]) -> Iterator[str]:
    """Markdown: a row a point; behind it, which figures differ from the first point's."""
    figures = results[0].figures
    heads = [name.upper() if name in ("wer", "inf", "cut") else name for name in TABLE]
    yield f"{figures['num_cases']} texts by protocol {figures['protocols'].split(',')[0]}; small: 95 % intervals."
    yield f"WER by {figures['wer_model']}; SIM by {figures['sim_model']}; {figures['dnsmos_model']}."
    yield ""
    yield "| model | sampling | " + " | ".join(heads) + " | differs from the first (p < 0.05) |"
    yield "|---" * (len(heads) + 3) + "|"
    for result in results:
        rows = {"": ""} if result.point.num_readings == 1 else {"": "", "sorted_": ", sorted", "oracle_": ", oracle"}
        for prefix, title in rows.items():
            cells = [_cell(result.figures, prefix + name, scale) for name, scale in TABLE.items()]
            differs = "" if prefix else ", ".join(
                f"{test.metric} {test.difference:+.3f} (p = {test.p_value:.4f})"
                for test in result.tests if test.p_value < 0.05
            )  # fmt: skip
            sampling = _title(result.point).removeprefix(f"{result.point.model}, ")
            yield f"| {result.point.model} | {sampling}{title} | " + " | ".join(cells) + f" | {differs} |"


def _cell(figures: Mapping[str, Any], name: str, scale: float) -> str:
    if name not in figures:
        return "–"
    digits = 1 if scale == 100 else 3
    value, low, high = (scale * figures[name + end] for end in ("", "_low", "_high"))
    return f"{value:.{digits}f} <small>{low:.{digits}f} to {high:.{digits}f}</small>"


def _draw(results: Sequence[Result], path: Path) -> None:
    """Figures by top_p, a curve a kind of RAS; and by group size."""
    from matplotlib.figure import Figure

    by_top_p = [result for result in results if result.point.ras in RAS]
    by_model = [result for result in results if result.point.ras == "as evaluated" and result.point.num_readings == 1]
    panels = [part for part in (by_top_p, by_model if len(by_model) > 1 else []) if part]
    if not panels:
        return
    figure = Figure(figsize=(3.2 * len(TABLE), 2.8 * len(panels)), layout="constrained")
    axes = figure.subplots(len(panels), len(TABLE), squeeze=False)
    for row, part in zip(axes, panels, strict=True):
        for plot, (name, scale) in zip(row, TABLE.items(), strict=True):
            for label in dict.fromkeys(result.point.ras for result in part):
                shown = [result for result in part if result.point.ras == label and name in result.figures]
                xs = [
                    result.point.sampling.top_p if part is by_top_p else float(result.point.model.split()[-1])
                    for result in shown
                ]
                values = [[scale * result.figures[name + end] for result in shown] for end in ("", "_low", "_high")]
                plot.plot(xs, values[0], marker="o", markersize=3, label=label)
                plot.fill_between(xs, values[1], values[2], alpha=0.12)
            plot.set_title(f"{name}, %" if scale == 100 else name, fontsize=9)
            plot.set_xlabel("top_p" if part is by_top_p else "group size G", fontsize=8)
            plot.tick_params(labelsize=7)
        row[0].legend(fontsize=6)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
