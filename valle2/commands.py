"""What a user does with models: see where one comes from, list and promote versions. Speaking is `valle2.speak`'s."""

import json
from pathlib import Path
from typing import Annotated

import typer

from valle2.ablate_command import ablate
from valle2.data_commands import register_data
from valle2.gate_command import gate
from valle2.listen_commands import listen, listen_results
from valle2.report_command import report
from valle2.run_commands import register_runs
from valle2.speak import synthesize

CHAMPION = "valle2@champion"


def register_commands(app: typer.Typer) -> None:
    """Add the commands to the `valle2` application."""
    for command in (
        synthesize, lineage, models, card, gate, promote, reject, rollback, ablate, report, listen,
    ):  # fmt: skip
        app.command()(command)
    app.command("listen-results")(listen_results)
    register_data(app)
    register_runs(app)


def lineage(
    model: Annotated[str, typer.Argument(help="valle2@champion, valle2/3, or a voice model folder")] = CHAMPION,
    as_json: Annotated[bool, typer.Option("--json", help="everything, as JSON")] = False,
    show_all: Annotated[bool, typer.Option("--all", help="every shard, recording and segment")] = False,
) -> None:
    """Show what made a model: runs, commits, shards, recordings, voices and their consent."""
    from rich.console import Console

    from valle2.model_lineage import model_lineage
    from valle2.trust.objects import ObjectReader, places
    from valle2.trust.trace import trace
    from valle2.trust.tree import render

    found = model_lineage(model)
    whole = trace(found.digest, found.read, ObjectReader(places(), Path()))
    if as_json:
        print(json.dumps({"model": found.name, **whole.to_json()}, indent=1, sort_keys=True, ensure_ascii=False))
    else:
        Console(soft_wrap=True).print(render(whole, found.name, show_all))


def models() -> None:
    """List the registered voice models."""
    from rich.console import Console
    from rich.table import Table

    from valle2.registry import versions

    table = Table("version", "status", "gate", "figures", "reasons", "lineage")
    for item in versions():
        tags = item.tags
        rules = [
            f"{key.removeprefix('valle2.gate.')} {value}"
            for key, value in sorted(tags.items())
            if key.startswith("valle2.gate.")
        ]
        table.add_row(
            f"{item.name}/{item.version}", tags.get("valle2.status", ""), tags.get("valle2.gate", ""), "\n".join(rules),
            tags.get("valle2.reasons", ""), tags.get("valle2.lineage", "")[:12],
        )  # fmt: skip
    Console().print(table)


def card(model: Annotated[str, typer.Argument(help="valle2@champion or valle2/3")] = CHAMPION) -> None:
    """Print a model card: use, data, consent, figures with intervals, limits and risks, from the facts."""
    from valle2.errors import ModelError
    from valle2.model_card import card_of
    from valle2.registry import resolve

    found = resolve(model)
    if found.version is None:
        raise ModelError(f"{model} is a folder, and cards are of registered models; see `valle2 models`")
    print(card_of(found.name.partition("/")[0], found.version))


def promote(
    version: Annotated[int, typer.Argument(help="number of the version")],
    approver: Annotated[str, typer.Option(help="who decides")],
    reason: Annotated[str, typer.Option(help="why")] = "",
    report: Annotated[
        str, typer.Option(help="the report page that you have read, or its SHA-256; goes into the record")
    ] = "",
) -> None:
    """Make a version that passed the gate the champion."""
    from valle2.promotion import promote as make_champion
    from valle2.stage import file_sha256

    seen = file_sha256(Path(report)) if Path(report).is_file() else report or None
    done = make_champion(version, approver, reason, seen_report=seen)
    before = f", in place of {done.replaced}" if done.replaced else ""
    print(f"{done.model}/{done.version} is champion{before}, by {done.approver} at {done.at}")


def reject(
    version: Annotated[int, typer.Argument(help="number of the version")],
    approver: Annotated[str, typer.Option(help="who decides")],
    reason: Annotated[str, typer.Option(help="why")],
) -> None:
    """Mark a candidate as rejected, with the reason."""
    from valle2.promotion import reject as turn_down

    turn_down(version, approver, reason)
    print(f"valle2/{version} is rejected: {reason}")


def rollback(
    approver: Annotated[str, typer.Option(help="who decides")],
    reason: Annotated[str, typer.Option(help="why")],
) -> None:
    """Make the champion before this one champion again."""
    from valle2.promotion import rollback as restore

    done = restore(approver, reason)
    print(f"{done.model}/{done.version} is champion again; {done.model}/{done.withdrawn} is withdrawn: {reason}")
