"""`valle2 report`: an evaluation as one page, beside a second system if there is one."""

from pathlib import Path
from typing import Annotated

import typer

OUT = Path("build/report.html")
FOLDER = "output of `valle2 evaluate`: metrics.json, cases.json and samples/"


def report(
    folder: Annotated[Path, typer.Argument(help=FOLDER)],
    against: Annotated[Path | None, typer.Option(help="the same of a second system, on the same cases")] = None,
    out: Annotated[Path, typer.Option(help="the page to write")] = OUT,
    name: Annotated[str, typer.Option(help="of the system")] = "VALL-E 2",
    against_name: Annotated[str, typer.Option(help="of the second system")] = "the other system",
) -> None:
    """Make one page of an evaluation: figures, comparison with a second system, and every case to hear."""
    from valle2.errors import EvaluationError
    from valle2.evaluation.evaluation_folder import read_evaluation
    from valle2.evaluation.report import make_page, report_digest
    from valle2.stage import write_text

    page = make_page(read_evaluation(folder, name), read_evaluation(against, against_name) if against else None)
    try:
        write_text(out, page)
    except OSError as error:
        raise EvaluationError(f"cannot write {out} ({error.strerror}); name a page with --out") from error
    print(f"page    {out} ({len(page.encode()) / 1e6:.1f} MB)")
    print(f"digest  {report_digest(out)}")
