"""What a user asks of trainings: which there are, what two differ in, which parameters are best."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from valle2.config.params import PARAMS

if TYPE_CHECKING:
    from valle2.runs import Comparison

AsJson = Annotated[bool, typer.Option("--json", help="as JSON")]
NAME = "a run's id, the beginning of it, its name, or a model such as valle2/3"


def register_runs(app: typer.Typer) -> None:
    """Add `valle2 runs …` and `valle2 sweep` to the `valle2` application."""
    runs = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Trainings in MLflow.")
    runs.command("list")(list_runs)
    runs.command("compare")(compare)
    app.add_typer(runs, name="runs")
    app.command()(sweep)


def list_runs(
    limit: Annotated[int, typer.Option(help="how many, newest first")] = 20,
    as_json: AsJson = False,
) -> None:
    """List trainings and sweeps, newest first."""
    from rich.console import Console
    from rich.table import Table

    from valle2 import runs

    found = runs.list_runs(limit)
    if as_json:
        print(json.dumps([asdict(run) for run in found], indent=1))
        return
    table = Table("id", "name", "status", "started (UTC)", "loss", "valid_loss", "sweep")
    for run in found:
        figures = (f"{run.metrics[name]:.4f}" if name in run.metrics else "" for name in ("loss", "valid_loss"))
        table.add_row(run.id[:8], run.name, run.status, run.started, *figures, run.parent[:8])
    Console(soft_wrap=True).print(table)


def compare(
    first: Annotated[str, typer.Argument(help=NAME)],
    second: Annotated[str, typer.Argument(help="what to compare it with")],
    plot: Annotated[Path | None, typer.Option(help="picture of the curves; build/compare-….png if not given")] = None,
    as_json: AsJson = False,
) -> None:
    """Show the parameters in which two trainings differ and their metrics side by side; draw their curves."""
    from valle2 import runs

    pairs = runs.pair(runs.find_runs(first), runs.find_runs(second))
    found = [runs.compare(one, other) for one, other in pairs]
    path = plot or Path("build") / f"compare-{found[0].runs[0].id[:8]}-{found[0].runs[1].id[:8]}.png"
    runs.draw(found, path)
    if as_json:
        print(json.dumps([asdict(one) for one in found] + [{"plot": str(path)}], indent=1))
        return
    for one in found:
        _print(one)
    print(f"plot  {path}")


def _print(found: "Comparison") -> None:
    from rich.console import Console
    from rich.table import Table

    one, other = found.runs
    console = Console(soft_wrap=True)
    params = Table("parameter", one.name, other.name, title="parameters that differ")
    for name, texts in found.params.items():
        params.add_row(name, *("" if text is None else text for text in texts))
    metrics = Table("metric", one.name, "best", other.name, "best", title="metrics: last and best")
    for name, values in found.metrics.items():
        best = found.best.get(name, (None, None))
        metrics.add_row(name, *(_number(value) for pair in zip(values, best, strict=True) for value in pair))
    console.print(params if found.params else "no parameter differs")
    console.print(metrics)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"


def sweep(
    stage: Annotated[Literal["train-ar", "train-nar"], typer.Argument(help="what is trained")],
    settings: Annotated[
        list[str], typer.Option("--set", help="a parameter and its values, such as train_ar.learning_rate=1e-4,3e-4")
    ],
    params: Annotated[Path, typer.Option(help="parameter file that the values are set in; it stays as it is")] = PARAMS,
    as_json: AsJson = False,
) -> None:
    """Train a stage once for each combination of values, on the shards at hand; run it again to go on."""
    from rich.console import Console
    from rich.table import Table

    from valle2 import sweep as sweeping

    done = sweeping.sweep(stage, settings, params)
    if as_json:
        print(json.dumps(asdict(done), indent=1))
    else:
        table = Table(*done.names, "state", "steps", "loss", "valid_loss", "best valid_loss", "run", title=done.name)
        for point in done.points:
            figures = (_number(point.metrics.get(key)) for key in ("step", "loss", "valid_loss", "best_valid_loss"))
            table.add_row(*map(str, point.values), point.state, *figures, point.run_id[:8])
        console = Console(soft_wrap=True)
        console.print(table)
        console.print(f"folders  {done.folder}", markup=False, highlight=False)
    sweeping.check(done)
