"""How a benchmark reports: a table on the screen, a JSON file and a plot. Figures are ratios within one run.

It needs torch alone; without matplotlib there is no plot.
"""

import argparse
import json
import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch


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


def main(
    title: str, run: Callable[[argparse.Namespace], Sequence[Figure]], *, training: bool = False, **more: str | float
) -> None:
    """Read the options that all benchmarks share, run one, and report.

    Args:
        title: Of the report.
        run: What measures.
        training: Whether it needs gradients.
        more: Further options and their defaults.
    """
    parser = argparse.ArgumentParser(description=title)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--dim", type=int, default=1024)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=3, help="timings of each, of which the median counts")
    parser.add_argument("--out", type=Path, default=Path("build/benchmarks"))
    for name, default in more.items():
        parser.add_argument(f"--{name}", type=type(default), default=default)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    with torch.inference_mode(not training):
        figures = run(options)
    name = Path(parser.prog).stem if parser.prog != "__main__.py" else "benchmark"
    report(title, name, figures, options)


def report(title: str, name: str, figures: Sequence[Figure], options: argparse.Namespace) -> None:
    """Print, and write `NAME.json` and `NAME.png`."""
    width = max(len(figure.name) for figure in figures)
    print(title)
    for figure in figures:
        bound = "" if figure.wanted is None else f"{'>=' if figure.at_least else '<='} {figure.wanted:g}"
        mark = {None: "", True: "reached", False: "not reached"}[figure.reached]
        print(f"  {figure.name:{width}}  {figure.value:9.3g} {figure.unit:5}  {bound:8}  {mark}".rstrip())
    options.out.mkdir(parents=True, exist_ok=True)
    machine = {"processor": platform.processor() or platform.machine(), "threads": torch.get_num_threads(),
               "torch": torch.__version__}  # fmt: skip
    rows = [asdict(figure) | {"reached": figure.reached} for figure in figures]
    facts = {"title": title, "layers": options.layers, "dim": options.dim, "machine": machine, "figures": rows}
    (options.out / f"{name}.json").write_text(json.dumps(facts, indent=1) + "\n")
    plot(title, figures, options.out / f"{name}.png")


def plot(title: str, figures: Sequence[Figure], path: Path) -> None:
    """Bars of the ratios, with their bounds."""
    try:
        import matplotlib as mpl
        from matplotlib import pyplot
    except ModuleNotFoundError:
        print("no plot: matplotlib is not installed")
        return
    mpl.use("Agg")
    ratios = [figure for figure in figures if figure.unit in ("times", "share")]
    _, axes = pyplot.subplots(figsize=(8, 0.5 * len(ratios) + 1))
    axes.barh([figure.name for figure in ratios], [figure.value for figure in ratios], color="#4878a8")
    for row, figure in enumerate(ratios):
        if figure.wanted is not None:
            axes.plot([figure.wanted] * 2, [row - 0.4, row + 0.4], color="#c03030")
    axes.invert_yaxis()
    axes.set_title(title)
    pyplot.savefig(path, bbox_inches="tight", dpi=120)
    pyplot.close()
