"""What a run says at its end: each stage, the model, the decision, and where to look next."""

from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from valle2.types import Seconds

if TYPE_CHECKING:
    from flows.runner import Runs
    from flows.workspace import Workspace

COLOURS = {"ran": "green", "cached": "cyan", "failed": "red"}
REPORT = Path("artifacts/evaluate/report/index.html")
DATA_REPORT = Path("artifacts/data-report/report.html")
SAMPLES = Path("artifacts/evaluate/samples")
REFERENCE = {".ground_truth", ".reconstruction", ".prompt"}
"""Samples that are not the model's."""


def show(space: "Workspace", runs: "Runs") -> None:
    """Print the summary on standard output; where that is no terminal, it is plain and 140 columns wide."""
    console = Console(highlight=False, soft_wrap=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=140)
    table = Table(title=f"run {space.run}", title_justify="left", show_edge=False, pad_edge=False)
    for name in ("stage", "state", "time", "audio h/h", "key figure"):
        table.add_column(name, justify="right" if name in ("time", "audio h/h") else "left", overflow="fold")
    for run in runs.stages:
        state = f"[{COLOURS[run.state]}]{run.state}[/]"
        figure = run.figure if run.state != "cached" else f"{run.figure} (made by run {run.made_by})"
        per_hour = "" if run.audio_rate is None else f"{run.audio_rate:g}"
        table.add_row(run.stage, state, _clock(run.seconds) if run.state != "cached" else "", per_hour, figure)
    console.print()
    console.print(table)
    if runs.why:
        console.print(f"why      {runs.why}", markup=False)
    for line in runs.decision:
        console.print(line, markup=False)
    for line in _where(space):
        console.print(line, markup=False, soft_wrap=True)


def as_markdown(space: "Workspace", runs: "Runs") -> str:
    """The same for Prefect's pages, as an artifact of the run."""
    lines = [f"# Run {space.run}", "", f"It ran because: {runs.why}.", ""]
    lines += [*(line.strip() + "  " for line in runs.decision), ""]
    lines += ["| stage | state | time | key figure |", "|---|---|---:|---|"]
    for run in runs.stages:
        made_by = f" (made by run {run.made_by})" if run.state == "cached" else ""
        figure = " ".join(f"{run.figure}{made_by}".replace("|", "/").split())
        lines.append(f"| {run.stage} | {run.state} | {_clock(run.seconds)} | {figure} |")
    return "\n".join([*lines, "", *(f"    {line}" for line in _where(space))])


def _where(space: "Workspace") -> list[str]:
    """How to open what was made; only what is there."""
    lines = []
    shown = space.home / "latest" if space.is_latest else space.root
    samples = [path for path in sorted((space.root / SAMPLES).glob("*.wav")) if not REFERENCE & set(path.suffixes)]
    for name, page in (("data", DATA_REPORT), ("report", REPORT)):
        if (space.root / page).is_file():
            lines.append(f"{name:8} {_relative(shown / page, space.origin)}")
    if samples:
        lines.append(f"sample   {_relative(shown / SAMPLES / samples[0].name, space.origin)}")
    if (space.home / "mlflow.db").is_file():
        lines.append("MLflow   make mlflow")
    lines.append(f"result   git show {space.branch}")
    return lines


def _relative(path: Path, origin: Path) -> str:
    return str(path.relative_to(origin)) if path.is_relative_to(origin) else str(path)


def _clock(seconds: Seconds) -> str:
    return f"{seconds:.0f} s" if seconds < 60 else f"{int(seconds // 60)} min {int(seconds % 60):02d} s"
