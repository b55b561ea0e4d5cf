"""What a user does with models: see where one comes from, list and promote versions. Speaking is `valle2.speak`'s."""

import json
import os
from pathlib import Path
from typing import Annotated

import typer

from valle2.errors import LineageError, SourceError
from valle2.speak import synthesize

CHAMPION = "valle2@champion"


def register_commands(app: typer.Typer) -> None:
    """Add the commands to the `valle2` application."""
    for command in (synthesize, lineage, models, promote, reject):
        app.command()(command)
    data = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="What became of recordings and segments.")
    data.command()(inspect)
    app.add_typer(data, name="data")


def inspect(
    name: Annotated[str, typer.Argument(help="id of a recording or segment, or a refused file's name")],
    folder: Annotated[
        Path | None, typer.Option("--run", help="a run's workspace; else this folder, or the latest")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="as JSON")] = False,
    png: Annotated[Path | None, typer.Option(help="write a spectrogram with the words")] = None,
    wav: Annotated[Path | None, typer.Option(help="write the sound")] = None,
) -> None:
    """Show everything known of a recording or segment: origin, consent, times, scores, decision, shard."""
    import soundfile

    from valle2.corpus.inspection import draw, inspect
    from valle2.tracking import home

    latest = home() / "latest"
    place = folder or (latest if not Path("artifacts").is_dir() and latest.is_dir() else Path())
    if not place.is_dir():
        raise SourceError(f"no run at {place}; give the folder of one, such as .valle2/latest")
    png, wav = (path and path.absolute() for path in (png, wav))
    os.chdir(place)
    found = inspect(name)
    if as_json:
        print(json.dumps(found.facts, indent=1, ensure_ascii=False))
    else:
        width = max(len(key) for key in found.facts)
        for key, value in found.facts.items():
            print(f"{key:{width}}  {value}")
    if png:
        draw(found, png)
    if wav:
        try:
            soundfile.write(wav, found.cut.load_audio()[0], found.cut.sampling_rate)
        except (OSError, ValueError, TypeError, soundfile.LibsndfileError) as error:
            raise SourceError(f"cannot write {wav} ({error}); give a .wav in a folder that is there") from error


def lineage(
    model: Annotated[str, typer.Argument(help="valle2@champion, valle2/3, or a voice model folder")] = CHAMPION,
    as_json: Annotated[bool, typer.Option("--json", help="everything, as JSON")] = False,
    show_all: Annotated[bool, typer.Option("--all", help="every shard, recording and segment")] = False,
) -> None:
    """Show what made a model: runs, commits, shards, recordings, voices and their consent."""
    from rich.console import Console

    from valle2.registry import bundle_sha256, resolve
    from valle2.tracking import home
    from valle2.trust.lineage import LineageStore, ModelRecord, StageRecord, records_in
    from valle2.trust.objects import ObjectReader, places
    from valle2.trust.trace import check_files, trace
    from valle2.trust.tree import render

    found = resolve(model)
    if not found.lineage:
        raise LineageError(
            f"{found.name} has no lineage record: none in {found.bundle / 'lineage'} is of these files; models "
            "that the retrain flow made have one"
        )
    carried, store = records_in(found.bundle), LineageStore(home() / "lineage")

    def read(name: str) -> StageRecord | ModelRecord:
        return carried[name] if name in carried else store.get(name)

    record = read(found.lineage)
    if isinstance(record, ModelRecord):
        check_files(record, bundle_sha256(found.bundle), found.name)
    whole = trace(found.lineage, read, ObjectReader(places(), Path()))
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


def promote(
    version: Annotated[int, typer.Argument(help="number of the version")],
    approver: Annotated[str, typer.Option(help="who decides")],
    reason: Annotated[str, typer.Option(help="why")] = "",
) -> None:
    """Make a version that passed the gate the champion."""
    from valle2.registry import promote as make_champion

    done = make_champion(version, approver, reason)
    before = f", in place of {done.replaced}" if done.replaced else ""
    print(f"{done.model}/{done.version} is champion{before}, by {done.approver} at {done.at}")


def reject(
    version: Annotated[int, typer.Argument(help="number of the version")],
    approver: Annotated[str, typer.Option(help="who decides")],
    reason: Annotated[str, typer.Option(help="why")],
) -> None:
    """Mark a candidate as rejected, with the reason."""
    from valle2.registry import reject as turn_down

    turn_down(version, approver, reason)
    print(f"valle2/{version} is rejected: {reason}")
