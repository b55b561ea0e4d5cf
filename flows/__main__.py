"""`python -m flows factory|ingest|retrain|promote`: run a flow here and now, with no server needed.

`python -m flows answer` decides for a run on a server that waits for approval.
"""

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from flows.disk import check_space
from flows.git import repository, resolve
from flows.settings import check_server, set_local
from flows.turn import check_turn
from infra.services import running_server
from valle2.config.params import load_config
from valle2.errors import Valle2Error
from valle2.tracking import home

app = typer.Typer(
    add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None, help=__doc__
)

Revision = Annotated[str, typer.Option(help="branch, tag or commit to run at")]
Params = Annotated[str | None, typer.Option(help="another parameter file than the revision's params.yaml")]
Data = Annotated[str | None, typer.Option(help="another data folder than the one that data.dvc names")]
Jobs = Annotated[int, typer.Option(help="commands at a time; 2 trains AR and NAR together")]


@app.command()
def factory(revision: Revision = "HEAD", params: Params = None, data: Data = None, side_by_side: Jobs = 1) -> None:
    """The whole: ingest, retrain, promote."""
    check(revision, params, alone=True)
    from flows.factory import factory

    factory(revision, params, data, side_by_side)


@app.command()
def ingest(revision: Revision = "HEAD", params: Params = None, data: Data = None) -> None:
    """The data half: sources to shards."""
    check(revision, params)
    from flows.ingest import ingest

    ingest(revision, params, data)


@app.command()
def retrain(
    revision: Revision = "HEAD",
    params: Params = None,
    data: Data = None,
    side_by_side: Jobs = 1,
    on_server: Annotated[
        bool, typer.Option("--on-server", help="queue it on the server that `make up` started")
    ] = False,
) -> None:
    """The model half: shards to an evaluated and judged model."""
    check(revision, params, alone=not on_server)
    if on_server:
        from flows.queue import enqueue

        print(f"queued as {enqueue(revision, params, data, side_by_side)}; Prefect's pages show how it goes")
        return
    from flows.retrain import retrain

    retrain(revision, params, data, side_by_side)


@app.command()
def promote(revision: Revision = "HEAD", params: Params = None, data: Data = None) -> None:
    """The gate, the approval and the registry, for a revision that `retrain` has evaluated."""
    check(revision, params)
    from flows.promote import promote

    promote(revision, params, data)


@app.command()
def answer(
    run: Annotated[str, typer.Argument(help="the flow run that waits, by its name on Prefect's pages")],
    decision: Annotated[Literal["approve", "reject"], typer.Argument(help="approve or reject")],
    approver: Annotated[str, typer.Option(help="who decides")],
    reason: Annotated[str, typer.Option(help="why; it goes into the promotion record")],
    report: Annotated[str | None, typer.Option(help="the report page that was read, as a file or its SHA-256")] = None,
) -> None:
    """Decide for a run on the server that waits for approval."""
    check_server()
    from flows.answer import answer

    model = answer(run, decision, approver, reason, report)
    print(f"{run}: {decision} {model}, by {approver}; the run goes on")


def check(revision: str, params: str | None, alone: bool = False) -> None:
    """Tell a user's mistakes, and what is away, at once, before Prefect is loaded.

    Args:
        revision: To run at.
        params: Another parameter file.
        alone: Whether another retraining must not run.
    """
    check_server()
    if alone:
        check_turn(home())
    origin = repository(Path.cwd())
    check_space(origin)
    resolve(origin, revision)
    load_config(Path(params) if params else origin / "params.yaml")


def main() -> None:
    """Entry point: user errors become one sentence and exit code 2."""
    set_local(running_server())
    try:
        app()
    except Valle2Error as error:
        print(f"valle2: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("valle2: interrupted; run the same again, it goes on where it stopped", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
