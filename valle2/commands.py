"""What a user does with models: say something, see where a model comes from, list and promote versions."""

import json
import time
from pathlib import Path
from typing import Annotated

import typer

from valle2.config.params import PARAMS, load_config
from valle2.errors import LineageError, ModelError

CHAMPION = "valle2@champion"

Model = Annotated[str, typer.Option(help="valle2@champion, valle2/3, or a voice model folder")]


def register_commands(app: typer.Typer) -> None:
    """Add the commands to the `valle2` application."""
    for command in (synthesize, lineage, models, promote, reject):
        app.command()(command)


def synthesize(
    text: Annotated[str, typer.Option(help="what to say")],
    prompt: Annotated[Path, typer.Option(help="a few seconds of the voice: WAV, FLAC, OGG or MP3")],
    prompt_text: Annotated[str, typer.Option(help="what the prompt says; recognised when left out")] = "",
    model: Model = CHAMPION,
    out: Annotated[Path, typer.Option("--out", "-o", help="WAV file to write")] = Path("speech.wav"),
    seed: Annotated[int, typer.Option(help="other seeds give other readings")] = 0,
    top_p: Annotated[float | None, typer.Option(help="nucleus share, 0 is greedy; by default the model's own")] = None,
    device: Annotated[str, typer.Option(help="torch device")] = "cpu",
) -> None:
    """Say a text in the voice of a prompt."""
    import torch

    from valle2.audio import encode_wave, read_wave
    from valle2.config.sampling import SamplingConfig
    from valle2.registry import resolve
    from valle2.synthesis import Synthesizer

    if not text.strip():
        raise ModelError("nothing to say: `--text` is empty")
    if not prompt.is_file():
        raise ModelError(f"no prompt at {prompt}; name a WAV, FLAC, OGG or MP3 file of a few seconds")
    found = resolve(model)
    synthesizer = Synthesizer.from_path(found.bundle, device)
    wave = read_wave(prompt, synthesizer.sample_rate)
    if not prompt_text:
        prompt_text = _recognise(prompt)
        print(f"prompt: {prompt_text!r} (recognised; correct it with --prompt-text)")
    sampling = synthesizer.sampling
    if top_p is not None:
        sampling = SamplingConfig.model_validate(sampling.model_dump() | {"top_p": top_p})
    start = time.monotonic()
    spoken = synthesizer.synthesize(text, torch.from_numpy(wave), prompt_text, sampling, seed)
    spent = time.monotonic() - start
    seconds = len(spoken.waveform) / synthesizer.sample_rate
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_bytes(encode_wave(spoken.waveform.cpu().numpy(), synthesizer.sample_rate))
    ended = (
        "" if spoken.finish_reason == "eos" else ", stopped at the cap: it may have lost its way, try another --seed"
    )
    factor = spent / seconds if seconds else float("inf")
    print(f"{out}: {seconds:.2f} s of speech by {found.name} in {spent:.2f} s (real-time factor {factor:.2f}){ended}")


def _recognise(prompt: Path) -> str:
    """What a prompt says, by the pipeline's own recogniser."""
    from valle2.asr import ASR_RATE, load_asr
    from valle2.audio import read_wave

    config = load_config(PARAMS) if PARAMS.is_file() else None
    settings = config.transcribe if config else None
    asr = load_asr(
        settings.model if settings else "bundled",
        settings.compute_type if settings else "int8",
        settings.language if settings else "en",
        config.runtime.num_threads if config else 2,
    )
    text = asr.recognise(read_wave(prompt, ASR_RATE))
    if not text:
        raise ModelError(f"no words recognised in {prompt}; say with `--prompt-text` what it says")
    return text


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
