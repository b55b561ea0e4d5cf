"""What a user asks of data: what became of a recording, what is in a version, what has changed since another."""

import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from valle2.errors import SourceError
from valle2.stage import output
from valle2.types import SPLITS

Run = Annotated[Path | None, typer.Option("--run", help="a run's workspace; else this folder, or the latest")]
AsJson = Annotated[bool, typer.Option("--json", help="as JSON")]


def register_data(app: typer.Typer) -> None:
    """Add `valle2 data …` to the `valle2` application."""
    data = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="What is in the data, and what became of it.")
    for command in (inspect, report, diff):
        data.command()(command)
    app.add_typer(data, name="data")


def enter(folder: Path | None) -> None:
    """Go to a run's workspace: the given one, else this folder if stages ran here, else the run that finished last.

    Raises:
        SourceError: There is none.
    """
    from valle2.tracking import home

    latest = home() / "latest"
    place = folder or (latest if not Path("artifacts").is_dir() and latest.is_dir() else Path())
    if not place.is_dir():
        raise SourceError(f"no run at {place}; give the folder of one, such as .valle2/latest")
    os.chdir(place)


def inspect(
    name: Annotated[str, typer.Argument(help="id of a recording or segment, or a refused file's name")],
    folder: Run = None,
    as_json: AsJson = False,
    png: Annotated[Path | None, typer.Option(help="write a spectrogram with the words")] = None,
    wav: Annotated[Path | None, typer.Option(help="write the sound")] = None,
) -> None:
    """Show everything known of a recording or segment: origin, consent, times, scores, decision, shard."""
    import soundfile

    from valle2.corpus.inspection import draw, inspect

    png, wav = (path and path.absolute() for path in (png, wav))
    enter(folder)
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


def report(folder: Run = None, as_json: AsJson = False) -> None:
    """Show the figures of the data, how fast each stage was, and where the page is."""
    from valle2.throughput import speeds

    enter(folder)
    path = output("data-report") / "metrics.json"
    if not path.is_file():
        raise SourceError(f"no data report in {Path.cwd()}; run `valle2 data-report`, or give --run a run's workspace")
    metrics, page = json.loads(path.read_text()), path.with_name("report.html").absolute()
    if as_json:
        stages = [
            {"stage": speed.stage, "seconds": speed.seconds, "audio_seconds": speed.audio_seconds,
             "audio_hours_per_hour": speed.rate}
            for speed in speeds()
        ]  # fmt: skip
        print(json.dumps({"metrics": metrics, "stages": stages, "page": str(page)}, indent=1, ensure_ascii=False))
        return
    _print_report(metrics)
    print(f"page  {page}")


def _print_report(metrics: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    from valle2.throughput import speeds

    fast = Table("stage", "hours of audio", "time", "audio hours an hour", title="how fast it was")
    for speed in speeds():
        if speed.audio_seconds is not None and speed.rate is not None:
            fast.add_row(speed.stage, f"{speed.audio_seconds / 3600:.4f}", f"{speed.seconds:.0f} s", f"{speed.rate:g}")
    hours = Table("what", "hours", "segments", "speakers", title="what became of the audio")
    hours.add_row("taken in", f"{metrics['hours']['in']:.4f}", "", str(metrics["speakers"]["in"]))
    for reason, value in sorted(metrics["dropped_hours"].items(), key=lambda item: -item[1]):
        hours.add_row(f"dropped: {reason}", f"{value:.4f}", "", "")
    for split in SPLITS:
        kept = (metrics["segments"][split], metrics["speakers"][split])
        hours.add_row(f"kept: {split}", f"{metrics['hours'][split]:.4f}", *map(str, kept))
    console = Console(soft_wrap=True)
    console.print(hours)
    if fast.row_count:
        console.print(fast)


def diff(
    before: Annotated[str, typer.Argument(help="a run's branch, another git revision, or a model such as valle2/3")],
    after: Annotated[str, typer.Argument(help="the same, of the version to compare it with")],
    as_json: Annotated[bool, typer.Option("--json", help="everything, as JSON")] = False,
    show_all: Annotated[bool, typer.Option("--all", help="every recording, segment and speaker")] = False,
) -> None:
    """Show what changed between two versions of the data: recordings, speakers, decisions, hours, parameters, code."""
    from rich.console import Console

    from valle2.trust.changes import compare
    from valle2.trust.changes_tree import render
    from valle2.trust.objects import ObjectReader, places
    from valle2.versions import find_version

    objects = ObjectReader(places(), Path())
    changes = compare(find_version(before), find_version(after), objects)
    if as_json:
        print(json.dumps(changes, indent=1, ensure_ascii=False))
    else:
        Console(soft_wrap=True).print(render(changes, show_all))
