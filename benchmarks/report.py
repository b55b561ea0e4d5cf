"""How a benchmark reports: a table on the screen, a JSON file and a plot. Figures are ratios within one run."""

import argparse
import json
import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import matplotlib as mpl
import torch
from matplotlib import pyplot
from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Figure:
    """One measured figure.

    Attributes:
        name: What was measured.
        value: Its value.
        unit: `times`, `share`, `ms`, `s` or `GB/s`.
        wanted: Bound to reach; None where there is none.
        at_least: Whether the bound is a lower one.
    """

    name: str
    value: float
    unit: str = "times"
    wanted: float | None = None
    at_least: bool = True

    @property
    def reached(self) -> bool | None:
        """Whether the bound is kept; None where there is none."""
        if self.wanted is None:
            return None
        return self.value >= self.wanted if self.at_least else self.value <= self.wanted


def main(title: str, run: Callable[[argparse.Namespace], Sequence[Figure]]) -> None:
    """Read the options that all benchmarks share, run one, and report."""
    parser = argparse.ArgumentParser(description=title)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--dim", type=int, default=1024)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=3, help="timings of each, of which the median counts")
    parser.add_argument("--out", type=Path, default=Path("build/benchmarks"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    with torch.inference_mode():
        figures = run(options)
    name = Path(parser.prog).stem if parser.prog != "__main__.py" else "benchmark"
    report(title, name, figures, options)


def report(title: str, name: str, figures: Sequence[Figure], options: argparse.Namespace) -> None:
    """Print, and write `NAME.json` and `NAME.png`."""
    table = Table("figure", "measured", "wanted", "", title=title, title_justify="left")
    for figure in figures:
        bound = "" if figure.wanted is None else f"{'>=' if figure.at_least else '<='} {figure.wanted:g}"
        mark = {None: "", True: "reached", False: "not reached"}[figure.reached]
        table.add_row(figure.name, f"{figure.value:.3g} {figure.unit}", bound, mark)
    Console().print(table)
    options.out.mkdir(parents=True, exist_ok=True)
    machine = {"processor": platform.processor() or platform.machine(), "threads": torch.get_num_threads(),
               "torch": torch.__version__}  # fmt: skip
    rows = [asdict(figure) | {"reached": figure.reached} for figure in figures]
    facts = {"title": title, "layers": options.layers, "dim": options.dim, "machine": machine, "figures": rows}
    (options.out / f"{name}.json").write_text(json.dumps(facts, indent=1) + "\n")
    mpl.use("Agg")
    ratios = [figure for figure in figures if figure.unit in ("times", "share")]
    _, axes = pyplot.subplots(figsize=(8, 0.5 * len(ratios) + 1))
    axes.barh([figure.name for figure in ratios], [figure.value for figure in ratios], color="#4878a8")
    for row, figure in enumerate(ratios):
        if figure.wanted is not None:
            axes.plot([figure.wanted] * 2, [row - 0.4, row + 0.4], color="#c03030")
    axes.invert_yaxis()
    axes.set_title(title)
    pyplot.savefig(options.out / f"{name}.png", bbox_inches="tight", dpi=120)
    pyplot.close()
