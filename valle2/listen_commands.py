"""`valle2 listen` and `valle2 listen-results`: a listening test for people, and what they said."""

import json
import secrets
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from valle2.report_command import FOLDER

if TYPE_CHECKING:
    from valle2.evaluation.listening_results import Opinion


def listen(
    folder: Annotated[Path, typer.Argument(help=FOLDER)],
    out: Annotated[Path, typer.Option(help="the page for raters; the key is written beside it")],
    against: Annotated[Path | None, typer.Option(help="the same of a second system, for CMOS as well")] = None,
    cases: Annotated[int, typer.Option(min=1, help="how many, at most")] = 20,
    ground_truth: Annotated[
        bool, typer.Option("--ground-truth", help="let the speakers' own readings be rated, too, as a hidden anchor")
    ] = False,
    seed: Annotated[int, typer.Option(help="of the choice of cases")] = 0,
    name: Annotated[str, typer.Option(help="of the system, in the key alone")] = "VALL-E 2",
    against_name: Annotated[str, typer.Option(help="of the second system, in the key alone")] = "the other system",
) -> None:
    """Make a listening test as one page: SMOS, and CMOS of two systems; blind, in an order of each rater's own."""
    from valle2.errors import EvaluationError
    from valle2.evaluation.evaluation_folder import read_evaluation
    from valle2.evaluation.listening import make_test
    from valle2.stage import write_json, write_text

    systems = [read_evaluation(folder, name)] + ([read_evaluation(against, against_name)] if against else [])
    key_file = out.with_suffix(".key.json")
    before = _read_key(key_file) if key_file.is_file() else None
    secret = before["secret"] if before else secrets.token_hex(16)
    made = make_test(systems, num_cases=cases, with_ground_truth=ground_truth, seed=seed, secret=secret)
    if before is not None and before["test"] != made.key["test"]:
        raise EvaluationError(
            f"{key_file} is the key of another test, whose answers could not be read without it; name another page "
            "with --out"
        )
    try:
        write_json(key_file, made.key)
        write_text(out, made.page)
    except OSError as error:
        raise EvaluationError(f"cannot write {out} ({error.strerror}); name a page with --out") from error
    print(f"page  {out} ({len(made.page.encode()) / 1e6:.1f} MB), {len(made.key['trials'])} questions, for raters")
    print(f"key   {key_file}, for you alone; `valle2 listen-results` reads it")


def listen_results(
    key: Annotated[Path, typer.Argument(help="the key of the test")],
    results: Annotated[list[Path], typer.Argument(help="files that the raters have saved")],
    seed: Annotated[int, typer.Option(help="of the intervals")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="as JSON")] = False,
) -> None:
    """Show what raters said: SMOS and CMOS with 95 % intervals over raters and cases, and tests between systems."""
    from valle2.evaluation.listening_results import summarise_opinions

    opinions = summarise_opinions(_read_key(key), results, seed)
    if as_json:
        print(json.dumps([asdict(opinion) for opinion in opinions], indent=1, ensure_ascii=False))
    else:
        _print(opinions)


def _print(opinions: "list[Opinion]") -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("measure", "of", "against", "mean", "95 % interval", "p", "answers", "raters", "cases")
    for one in opinions:
        p = "" if one.p_value is None else "< 0.001" if one.p_value < 0.001 else f"{one.p_value:.3f}"
        figures = (f"{one.mean:.2f}", f"{one.low:.2f} to {one.high:.2f}", p)
        table.add_row(
            one.measure, one.system, one.against or "", *figures, str(one.num_answers), str(one.num_raters),
            str(one.num_cases),
        )  # fmt: skip
    console = Console(soft_wrap=True)
    console.print(table)
    if min(one.num_raters for one in opinions) == 1:
        console.print("One rater alone: the interval is over cases, and says nothing of what others would hear.")


def _read_key(path: Path) -> dict[str, Any]:
    from valle2.errors import EvaluationError

    try:
        key = json.loads(path.read_text())
    except OSError as error:
        raise EvaluationError(f"cannot read the key {path} ({error.strerror}); `valle2 listen` writes it") from error
    except ValueError as error:
        raise EvaluationError(f"the key {path} is no JSON ({error}); `valle2 listen` writes it") from error
    if not isinstance(key, dict) or not {"test", "secret", "systems", "trials"} <= key.keys():
        raise EvaluationError(f"{path} is no key of a listening test; `valle2 listen` writes it beside the page")
    return key
