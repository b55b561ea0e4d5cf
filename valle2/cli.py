"""The `valle2` command: one sub-command a stage, and what a user does with models.

Imports of a stage's code happen inside its command, so that `valle2 --help` is instant.
"""

import os
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from valle2.commands import register_commands
from valle2.config.params import PARAMS, Config, load_config
from valle2.corpus.sources import Recipe, SourceKind, SpeakerFrom
from valle2.errors import Valle2Error
from valle2.stage import log_file, write_json
from valle2.throughput import rate
from valle2.types import Stage, StageResult

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="From raw speech to a voice model: one command a stage, and what is done with data and models.",
)

Params = Annotated[Path, typer.Option(help="parameter file")]


DryRun = Annotated[bool, typer.Option("--dry-run", help="show the job that `launch` in the parameters asks for")]


def _train(stage: Stage, params: Path, dry_run: bool) -> None:
    from valle2.launch.stage import launch, show

    config, command = load_config(params), ["-m", "valle2.cli", stage, "--params", str(params)]
    if dry_run:
        print(show(stage, config, command))
    elif not launch(stage, config, command):
        _run(stage, params)


def _run(stage: Stage, params: Path) -> None:
    config = load_config(params)
    start = time.monotonic()
    result = _stage(stage, config)
    if result is None:
        return  # rank 0 of a job tells for all
    seconds = time.monotonic() - start
    speed = rate(result.facts, seconds)
    log = {"figure": result.figure, "seconds": round(seconds, 1), "facts": result.facts | speed}
    write_json(log_file(stage), log)
    told = "".join(f", {per_hour:g} h of audio an hour" for per_hour in speed.values())
    print(f"{stage}: {result.figure} ({seconds:.0f} s{told})", flush=True)


def _stage(stage: Stage, config: Config) -> StageResult | None:
    """Its result; None where another process of the same job tells it."""
    match stage:
        case "ingest":
            from valle2.corpus.ingest import ingest

            return ingest(config)
        case "transcribe":
            from valle2.corpus.transcribe import transcribe

            return transcribe(config)
        case "curate":
            from valle2.corpus.curate import curate

            return curate(config)
        case "tokenize":
            from valle2.corpus.tokenize import tokenize

            return tokenize(config)
        case "data-report":
            from valle2.corpus.data_report import data_report

            return data_report(config)
        case "train-ar":
            from valle2.training.loop import train_ar

            return train_ar(config)
        case "train-nar":
            from valle2.training.loop import train_nar

            return train_nar(config)
        case "evaluate":
            from valle2.evaluation.evaluate import evaluate

            return evaluate(config)


@app.command()
def ingest(
    params: Params = PARAMS,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="show what would be taken and refused, and why")] = False,
) -> None:
    """Declared sources -> validated recordings with speaker, licence and consent."""
    if dry_run:
        from valle2.corpus.preview import show

        show(load_config(params))
    else:
        _run("ingest", params)


@app.command()
def transcribe(params: Params = PARAMS) -> None:
    """Recordings -> segments with text and word times (WhisperX)."""
    _run("transcribe", params)


@app.command()
def curate(params: Params = PARAMS) -> None:
    """Segments -> filtered, speaker-disjoint splits, BPE and retention funnel."""
    _run("curate", params)


@app.command()
def tokenize(params: Params = PARAMS) -> None:
    """Splits -> EnCodec codes in byte-stable Shar shards."""
    _run("tokenize", params)


@app.command("data-report")
def data_report(params: Params = PARAMS) -> None:
    """What came in, what was dropped and why, what was kept: a page to look at and listen to, and metrics."""
    _run("data-report", params)


@app.command("train-ar")
def train_ar(params: Params = PARAMS, dry_run: DryRun = False) -> None:
    """Train the autoregressive model (codebook 1, groups of G)."""
    _train("train-ar", params, dry_run)


@app.command("train-nar")
def train_nar(params: Params = PARAMS, dry_run: DryRun = False) -> None:
    """Train the non-autoregressive model (codebooks 2-8)."""
    _train("train-nar", params, dry_run)


@app.command()
def evaluate(params: Params = PARAMS) -> None:
    """Synthesise and score unseen voices and sentences; write metrics and the report page."""
    _run("evaluate", params)


@app.command()
def declare(
    path: Annotated[str, typer.Argument(help="root of the audio: a folder, or a URL such as s3://bucket/corpus")],
    licence: Annotated[str, typer.Option(help="licence of all of it, such as CC-BY-4.0")],
    consent_basis: Annotated[str, typer.Option(help="why these voices may be used, such as 'signed form'")],
    to: Annotated[Path, typer.Option(help="data folder to make or add to")] = Path("data"),
    kind: Annotated[
        SourceKind, typer.Option(help="plain audio, a corpus lhotse knows, Lhotse manifests, or tar files (WebDataset)")
    ] = "folder",
    recipe: Annotated[Recipe | None, typer.Option(help="lhotse's recipe, for kind lhotse")] = None,
    table: Annotated[str, typer.Option(help="CSV, TSV or JSONL below PATH that says what each file is")] = "",
    name: Annotated[str, typer.Option(help="of the source; the folder's name if empty")] = "",
    attribution: Annotated[str, typer.Option(help="whom to name")] = "",
    consent_record: Annotated[str, typer.Option(help="where the proof of consent is")] = "",
    speaker_from: Annotated[
        SpeakerFrom,
        typer.Option(help="what names the speaker: the first folder below PATH, the file, or one for the whole source"),
    ] = "folder",
    language: Annotated[str, typer.Option(help="ISO 639-1 code of the speech")] = "en",
    in_place: Annotated[bool, typer.Option("--in-place", help="leave the audio where it is, do not copy it")] = False,
) -> None:
    """Take in audio: copy it into a data folder, with licence and consent declared."""
    from valle2.corpus import declare as declaring

    declaration = declaring.declare(
        path, to, name=name, consent_basis=consent_basis, consent_record=consent_record, in_place=in_place, kind=kind,
        recipe=recipe, table=table, licence=licence, attribution=attribution, speaker_from=speaker_from,
        language=language,
    )  # fmt: skip
    print(f"declared in {declaration}; now run `valle2 ingest`")


register_commands(app)


def main() -> None:
    """Entry point: user errors become one sentence and exit code 2, or 75 where the same command goes on."""
    # Read when torch is imported: OpenMP threads that spin while they wait are very slow on cores that others use too.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        app()
    except Valle2Error as error:
        print(f"valle2: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
