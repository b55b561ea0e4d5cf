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
from valle2.types import Stage, StageResult

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="From raw speech to a voice model: one command a stage, and what is done with data and models.",
)

Params = Annotated[Path, typer.Option(help="parameter file")]


def _run(stage: Stage, params: Path) -> None:
    config = load_config(params)
    start = time.monotonic()
    result = _stage(stage, config)
    seconds = time.monotonic() - start
    write_json(log_file(stage), {"figure": result.figure, "seconds": round(seconds, 1), "facts": result.facts})
    print(f"{stage}: {result.figure} ({seconds:.0f} s)", flush=True)


def _stage(stage: Stage, config: Config) -> StageResult:
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


@app.command("train-ar")
def train_ar(params: Params = PARAMS) -> None:
    """Train the autoregressive model (codebook 1, groups of G)."""
    _run("train-ar", params)


@app.command("train-nar")
def train_nar(params: Params = PARAMS) -> None:
    """Train the non-autoregressive model (codebooks 2-8)."""
    _run("train-nar", params)


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
    """Entry point: user errors become one sentence and exit code 2."""
    # Read when torch is imported: OpenMP threads that spin while they wait are very slow on cores that others use too.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        app()
    except Valle2Error as error:
        print(f"valle2: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
