"""Training runs that are over or under way: which there are, and what two of them differ in."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from valle2.errors import TrackingError
from valle2.outbox import impatient
from valle2.system_metrics import PREFIX
from valle2.tracking import EXPERIMENT, connect, tracking_uri

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient

SHORTEST_PREFIX = 3
Curve = list[tuple[int, float]]


@dataclass(frozen=True)
class TrainedRun:
    """What MLflow knows of a run.

    Attributes:
        id: MLflow's.
        name: Such as `train-ar-1f0c3a`.
        stage: `train-ar`, `train-nar`, or `sweep-train-ar`.
        status: MLflow's, such as `FINISHED`.
        started: UTC.
        params: All parameters by dotted names.
        metrics: Last value of each curve, the load of the machine left out.
        parent: The sweep that it belongs to.
    """

    id: str
    name: str
    stage: str
    status: str
    started: str
    params: dict[str, str]
    metrics: dict[str, float]
    parent: str = ""

    @classmethod
    def of(cls, run: "Run") -> "TrainedRun":
        """Read MLflow's."""
        tags, started = run.data.tags, datetime.fromtimestamp(run.info.start_time / 1000, UTC)
        metrics = {name: value for name, value in run.data.metrics.items() if not name.startswith(PREFIX)}
        return cls(
            run.info.run_id, run.info.run_name or "", tags.get("valle2.stage", ""), run.info.status,
            started.strftime("%Y-%m-%d %H:%M"), run.data.params, metrics, tags.get("mlflow.parentRunId", ""),
        )  # fmt: skip


@dataclass(frozen=True)
class Comparison:
    """Two runs side by side.

    Attributes:
        runs: The two.
        params: Those that differ; None where a run has no such parameter.
        metrics: Last values of all curves.
        best: Best values, of curves of which it is known whether less or more is better.
        curves: Points of the curves that both have.
    """

    runs: tuple[TrainedRun, TrainedRun]
    params: dict[str, tuple[str | None, str | None]]
    metrics: dict[str, tuple[float | None, float | None]]
    best: dict[str, tuple[float | None, float | None]]
    curves: dict[str, tuple[Curve, Curve]] = field(default_factory=dict)


@contextmanager
def store() -> Iterator["MlflowClient"]:
    """The tracking store; what it fails at is one sentence.

    Raises:
        TrackingError: It does not answer.
    """
    from mlflow.exceptions import MlflowException

    with impatient():
        try:
            yield connect()
        except MlflowException as error:
            raise TrackingError(
                f"the tracking store {tracking_uri()} does not answer ({' '.join(str(error).split())[:200]}); start "
                "it, or set MLFLOW_TRACKING_URI to another"
            ) from error


def list_runs(limit: int = 20) -> list[TrainedRun]:
    """The trainings and sweeps, newest first.

    Raises:
        TrackingError: The store does not answer.
    """
    with store() as client:
        return [TrainedRun.of(run) for run in _search(client, limit)]


def find_runs(name: str) -> list[TrainedRun]:
    """Find a run by its id, the beginning of it, or its name; or the two runs of a registered model.

    Args:
        name: Such as `1f0c3a`, `train-ar-1f0c3a`, `valle2/3` or `valle2@champion`.

    Raises:
        TrackingError: There is none, or there are several; or the store does not answer.
    """
    with store() as client:
        if "/" in name or "@" in name:
            return _of_model(client, name)
        runs = [TrainedRun.of(run) for run in _search(client, 10_000)]
        found = [run for run in runs if name in (run.id, run.name)]
        if not found and len(name) >= SHORTEST_PREFIX:
            found = [run for run in runs if run.id.startswith(name)]
    if len(found) == 1:
        return found
    if found:
        which = ", ".join(f"{run.id} ({run.name})" for run in found[:4])
        raise TrackingError(f"{name!r} may be {len(found)} runs: {which}; give more of the id")
    hint = f"the newest are {', '.join(run.name for run in runs[:3])}" if runs else "it has none yet"
    raise TrackingError(f"no run {name!r} in {tracking_uri()}; {hint}; `valle2 runs list` lists them")


def pair(first: Sequence[TrainedRun], second: Sequence[TrainedRun]) -> list[tuple[TrainedRun, TrainedRun]]:
    """Which runs to compare: single ones as they are, those of models by their stage.

    Raises:
        TrackingError: No two are of the same stage.
    """
    if len(first) == len(second) == 1:
        return [(first[0], second[0])]
    pairs = [(one, other) for one in first for other in second if one.stage == other.stage]
    if not pairs:
        stages = [", ".join(run.stage for run in side) for side in (first, second)]
        raise TrackingError(f"there is nothing to compare: one side is {stages[0]}, the other {stages[1]}")
    return pairs


def compare(one: TrainedRun, other: TrainedRun) -> Comparison:
    """What two runs differ in, and how they went.

    Raises:
        TrackingError: The store does not answer.
    """
    both = (one, other)
    names = sorted({name for run in both for name in run.params})
    params = {name: (one.params.get(name), other.params.get(name)) for name in names}
    metrics = sorted({name for run in both for name in run.metrics})
    with store() as client:
        histories = {
            name: tuple(_curve(client, run.id, name) if name in run.metrics else [] for run in both) for name in metrics
        }
    best = {name: (_best(name, a), _best(name, b)) for name, (a, b) in histories.items()}
    return Comparison(
        both,
        {name: values for name, values in params.items() if values[0] != values[1]},
        {name: (one.metrics.get(name), other.metrics.get(name)) for name in metrics},
        {name: values for name, values in best.items() if values != (None, None)},
        {name: (a, b) for name, (a, b) in histories.items() if a and b},
    )


def draw(comparisons: Sequence[Comparison], path: Path) -> None:
    """Write a picture of the curves that the runs share, one small plot each.

    Raises:
        TrackingError: The place cannot be written, or its suffix names no picture.
    """
    from matplotlib.figure import Figure

    plots = [(each, name) for each in comparisons for name in each.curves]
    columns = min(4, max(1, len(plots)))
    rows = max(1, math.ceil(len(plots) / columns))
    figure = Figure(figsize=(4.0 * columns, 2.8 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes, (each, name) in zip(grid.flat, plots, strict=False):
        for run, curve in zip(each.runs, each.curves[name], strict=True):
            axes.plot(*zip(*curve, strict=True), marker="." if len(curve) < 20 else "", label=run.name)
        axes.set_title(f"{each.runs[0].stage}: {name}" if len(comparisons) > 1 else name, fontsize=9)
        axes.tick_params(labelsize=7)
        axes.legend(fontsize=6)
    for axes in list(grid.flat)[len(plots) :]:
        axes.set_axis_off()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=110)
    except (OSError, ValueError) as error:
        raise TrackingError(f"cannot draw {path} ({' '.join(str(error).split())}); give --plot a .png") from error


def _search(client: "MlflowClient", limit: int) -> Iterator["Run"]:
    experiment = client.get_experiment_by_name(EXPERIMENT)
    token: str | None = None
    while experiment is not None and limit > 0:
        found = client.search_runs(
            [experiment.experiment_id], "tags.`valle2.stage` LIKE '%train-%'", max_results=min(limit, 1000),
            order_by=["attributes.start_time DESC"], page_token=token,
        )  # fmt: skip
        yield from found
        limit, token = limit - len(found), found.token
        if not token:
            return


def _of_model(client: "MlflowClient", name: str) -> list[TrainedRun]:
    from mlflow.exceptions import MlflowException

    model, at, alias = name.partition("@")
    model, _, number = (model, "", "") if at else name.rpartition("/")
    try:
        version = client.get_model_version_by_alias(model, alias) if at else client.get_model_version(model, number)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        raise TrackingError(f"no registered model {name} in {tracking_uri()}; `valle2 models` lists them") from error
    ids = [version.tags[tag] for tag in ("valle2.run.ar", "valle2.run.nar") if version.tags.get(tag)]
    if not ids:
        raise TrackingError(f"{name} names no training runs; models that the retrain flow made do")
    return [TrainedRun.of(client.get_run(one)) for one in ids]


def _curve(client: "MlflowClient", run_id: str, name: str) -> Curve:
    points = {point.step: point.value for point in client.get_metric_history(run_id, name)}
    return [(step, value) for step, value in sorted(points.items()) if math.isfinite(value)]


def _best(name: str, curve: Curve) -> float | None:
    values = [value for _, value in curve]
    if not values:
        return None
    return min(values) if "loss" in name else max(values) if "top1" in name else None
