"""`valle2 synthesize`: one text, a long one, a stream, or a list of texts with their prompts.

The speaking is `valle2.synthesis`'s; here are files, progress and what is printed.
"""

import hashlib
import json
import re
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from valle2.config.params import PARAMS, load_config
from valle2.errors import ConfigError, ModelError, StorageError
from valle2.stage import write_bytes, write_text
from valle2.types import LARGEST_SEED

if TYPE_CHECKING:
    from valle2.asr import Asr
    from valle2.config.sampling import SamplingConfig
    from valle2.evaluation.best_of import Judges
    from valle2.synthesis import Request, Synthesis, Synthesizer

CAP_EXIT = 3
"""Exit code when a text did not come to its end."""
LONGEST_TEXT = 10_000
"""Characters of one text."""
BATCH = 8
"""Texts of a list that are spoken at once, before their files are written."""


@dataclass(frozen=True)
class Options:
    """What is the same for all texts of a call."""

    sampling: "SamplingConfig"
    best_of: int
    choice: Literal["sort", "sim", "wer"]


@dataclass(frozen=True)
class Line:
    """A line of a list of texts."""

    id: str
    text: str
    prompt: Path
    prompt_text: str
    seed: int


def synthesize(
    text: Annotated[str, typer.Option(help="what to say; - reads it from standard input; a .jsonl file is a list")],
    prompt: Annotated[Path | None, typer.Option(help="1-30 s of the voice: WAV, FLAC, OGG or MP3")] = None,
    prompt_text: Annotated[str, typer.Option(help="what the prompt says; recognised when left out")] = "",
    model: Annotated[str, typer.Option(help="valle2@champion, valle2/3, or a voice model folder")] = "valle2@champion",
    out: Annotated[
        Path, typer.Option("--out", "-o", help="WAV file, a folder for a list; - with --stream: 16-bit PCM to stdout")
    ] = Path("speech.wav"),
    stream: Annotated[bool, typer.Option("--stream", help="write while still speaking")] = False,
    best_of: Annotated[int, typer.Option(min=1, help="readings, of which the best is kept")] = 1,
    choice: Annotated[
        Literal["sort", "sim", "wer"], typer.Option(help="best in the paper's order, or in one figure alone")
    ] = "sort",
    seed: Annotated[int, typer.Option(min=0, max=LARGEST_SEED, help="other seeds give other readings")] = 0,
    top_p: Annotated[
        float | None, typer.Option(min=0, max=1, help="nucleus share, 0 is greedy; by default the model's own")
    ] = None,
    max_seconds: Annotated[
        float | None,
        typer.Option(min=0.02, help="s of speech after which a sentence is cut off; by default the model's own"),
    ] = None,
    device: Annotated[str, typer.Option(help="torch device")] = "cpu",
    weights: Annotated[
        Literal["float32", "bfloat16", "int8"], typer.Option(help="precision that the model runs with")
    ] = "float32",
) -> None:
    """Say a text in the voice of a prompt.

    A list has a line for each text: {"text": ..., "prompt": ..., "prompt_text": ..., "id": ..., "seed": ...}; all but
    the text may be left out where the command line gives it. The folder gets ID.wav for each, and manifest.jsonl.

    Exit code 3: the speech is written, but did not come to its end before the cap.
    """
    from valle2.config.sampling import SamplingConfig
    from valle2.registry import resolve
    from valle2.synthesis import Synthesizer

    if stream and best_of > 1:
        raise ConfigError("--stream plays a reading before it is known how good it is; leave out --best-of")
    listed = text.endswith(".jsonl")
    lines = read_list(Path(text), prompt, prompt_text, seed) if listed else []
    if not listed:
        text = check_text(sys.stdin.read() if text == "-" else text)
        if prompt is None:
            raise ConfigError("no voice: give --prompt, a few seconds of audio")
        lines = [Line("speech", text, prompt, prompt_text, seed)]
    check_out(out, folder=listed, stream=stream)
    found = resolve(model)
    synthesizer = Synthesizer.from_path(found.bundle, device, weights)
    changes = {name: value for name, value in (("top_p", top_p), ("max_seconds", max_seconds)) if value is not None}
    options = Options(SamplingConfig.model_validate(synthesizer.sampling.model_dump() | changes), best_of, choice)
    if listed:
        _speak_list(synthesizer, lines, out, options, found.name, found.lineage)
    elif stream:
        _speak_stream(synthesizer, lines[0], out, options, found.name)
    else:
        _speak_one(synthesizer, lines[0], out, options, found.name)


def check_text(text: str) -> str:
    """A text that can be said.

    Raises:
        ModelError: It is empty or too long.
    """
    if not text.strip():
        raise ModelError("nothing to say: the text is empty")
    if len(text) > LONGEST_TEXT:
        raise ModelError(
            f"the text has {len(text):,} characters, expected {LONGEST_TEXT:,} at most; give its parts as a .jsonl list"
        )
    return text


def check_out(out: Path, *, folder: bool, stream: bool) -> None:
    """Make sure, before anything is spoken, that it can be written.

    Args:
        out: As on the command line.
        folder: Whether it is to be a folder.
        stream: Whether `-` is standard output.

    Raises:
        ConfigError: A file is given for a folder, or the other way round.
        StorageError: It cannot be written.
    """
    if str(out) == "-":
        if not stream:
            raise ConfigError("--out - writes samples while they are spoken; give --stream with it, or a file")
        return
    if folder and (out.suffix == ".wav" or out.is_file()):
        raise ConfigError(f"a list of texts makes several files; give a folder with --out, not {out}")
    if not folder and out.is_dir():
        raise ConfigError(f"{out} is a folder; give a file with --out, such as {out / 'speech.wav'}")
    place = out if folder else out.parent
    try:
        place.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        raise StorageError(f"cannot write to {place} ({error.strerror}); give another place with --out") from error


def read_list(path: Path, prompt: Path | None, prompt_text: str, seed: int) -> list[Line]:
    """Read a .jsonl list of texts; prompts are named relative to it.

    Args:
        path: The list.
        prompt: Of lines that name none.
        prompt_text: What that prompt says.
        seed: Of the first line that names none; the next ones count up.

    Raises:
        ConfigError: It is missing, or a line is not as expected.
    """
    if not path.is_file():
        raise ConfigError(f"no list of texts at {path}")
    known = {"text", "prompt", "prompt_text", "id", "seed"}
    lines: list[Line] = []
    for number, raw in enumerate(path.read_text().splitlines(), 1):
        if not raw.strip():
            continue
        try:
            row = json.loads(raw)
        except ValueError:
            row = None
        if not isinstance(row, dict) or not isinstance(row.get("text"), str) or not set(row) <= known:
            raise ConfigError(
                f'line {number} of {path} is {raw[:60]!r}; expected {{"text": ...}} and, as needed, '
                f"{', '.join(sorted(known - {'text'}))}"
            )
        own = path.parent / str(row["prompt"]) if row.get("prompt") else prompt
        if own is None:
            raise ConfigError(f"line {number} of {path} names no prompt; add one to it, or give --prompt for all")
        said = str(row.get("prompt_text") or ("" if row.get("prompt") else prompt_text))
        name = str(row.get("id") or f"{number:04d}")
        if not re.fullmatch(r"[\w.-]+", name) or name in {line.id for line in lines}:
            raise ConfigError(
                f"line {number} of {path} has the id {name!r}; expected letters, digits, '.', '-' and '_', once each"
            )
        own_seed = row.get("seed", seed + len(lines))
        if not isinstance(own_seed, int) or not 0 <= own_seed <= LARGEST_SEED:
            raise ConfigError(f"line {number} of {path} has the seed {own_seed!r}; expected a whole number from 0")
        lines.append(Line(name, check_text(row["text"]), own, said, own_seed))
    if not lines:
        raise ConfigError(f"the list {path} has no line")
    return lines


def _speak_one(synthesizer: "Synthesizer", line: Line, out: Path, options: Options, name: str) -> None:
    from valle2.voice_output import speech_bytes

    [request] = _requests(synthesizer, [line])
    judges = _judges() if options.best_of > 1 else None
    start = time.monotonic()
    [(spoken, note)] = _speak(synthesizer, [request], options, judges)
    spent = time.monotonic() - start
    write_bytes(out, speech_bytes(spoken.waveform, synthesizer.sample_rate))
    seconds = len(spoken.waveform) / synthesizer.sample_rate
    _report(str(out), seconds, spent, name, note)
    _finish(["" if spoken.finish_reason == "eos" else str(out)])


def _speak_stream(synthesizer: "Synthesizer", line: Line, out: Path, options: Options, name: str) -> None:
    from valle2.voice_output import speech_stream

    [request] = _requests(synthesizer, [line])
    start = time.monotonic()
    first, samples, reasons = 0.0, 0, []
    with speech_stream(out, synthesizer.sample_rate) as play:
        for sentence in synthesizer.sentences(request):
            for chunk in synthesizer.stream(sentence, options.sampling):
                play(chunk.waveform)
                first = first or time.monotonic() - start
                samples += len(chunk.waveform)
                if chunk.finish_reason:
                    reasons.append(chunk.finish_reason)
    spent = time.monotonic() - start
    _report(str(out), samples / synthesizer.sample_rate, spent, name, f", first audio after {first:.2f} s")
    _finish([str(out) if "cap" in reasons else ""])


def _speak_list(
    synthesizer: "Synthesizer", lines: list[Line], folder: Path, options: Options, name: str, lineage: str | None
) -> None:
    from valle2.voice_output import speech_bytes

    requests = _requests(synthesizer, lines)
    judges = _judges() if options.best_of > 1 else None
    start, total, rows, capped = time.monotonic(), 0.0, [], []
    for first in range(0, len(lines), BATCH):
        part = slice(first, first + BATCH)
        for line, request, (spoken, _) in zip(
            lines[part], requests[part], _speak(synthesizer, requests[part], options, judges), strict=True
        ):
            content = speech_bytes(spoken.waveform, synthesizer.sample_rate)
            write_bytes(folder / f"{line.id}.wav", content)
            seconds = len(spoken.waveform) / synthesizer.sample_rate
            total += seconds
            capped += [line.id] if spoken.finish_reason == "cap" else []
            rows.append({
                "id": line.id, "file": f"{line.id}.wav", "sha256": hashlib.sha256(content).hexdigest(),
                "seconds": round(seconds, 3), "text": line.text, "prompt": str(line.prompt),
                "prompt_text": request.prompt_text, "seed": line.seed, "finish_reason": spoken.finish_reason,
                "model": name, "lineage": lineage,
            })  # fmt: skip
    manifest = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    write_text(folder / "manifest.jsonl", manifest)
    _report(f"{folder}: {len(rows)} texts", total, time.monotonic() - start, name, "")
    _finish(capped)


def _speak(
    synthesizer: "Synthesizer", requests: "list[Request]", options: Options, judges: "Judges | None"
) -> "list[tuple[Synthesis, str]]":
    """Speak texts of any length, in one batch; with each, a note on how it was chosen."""
    from valle2.evaluation.best_of import choose, read_often
    from valle2.progress import progress
    from valle2.synthesis import join_spoken

    pieces = [synthesizer.sentences(request) for request in requests]
    every = [piece for text in pieces for piece in text]
    expected = options.best_of * sum(synthesizer.expected_seconds(piece) for piece in every)
    rate = synthesizer.codec.frame_rate
    with progress("synthesize", expected, "s of audio") as advance:
        if judges is None:
            spoken = synthesizer.synthesize_batch(every, options.sampling, lambda num: advance(num / rate))
            notes = [""] * len(every)
        else:
            readings = read_often(
                synthesizer, every, options.best_of, judges, options.sampling, lambda num: advance(num / rate)
            )
            best = [choose(each, options.choice) for each in readings]
            spoken = [reading.synthesis for reading in best]
            notes = [
                f", best of {options.best_of} (seed {one.seed}, SIM {one.sim:.2f}, WER {one.wer:.0%})" for one in best
            ]
    done, place = [], 0
    for text in pieces:
        parts = spoken[place : place + len(text)]
        note = notes[place] if len(text) == 1 else f", {len(text)} sentences"
        done.append((join_spoken(parts, synthesizer.sample_rate), note))
        place += len(text)
    return done


def _requests(synthesizer: "Synthesizer", lines: list[Line]) -> "list[Request]":
    """Read each prompt once; what it says is recognised where nobody says it."""
    import torch

    from valle2.prompt import read_prompt
    from valle2.synthesis import Request

    waves: dict[Path, Any] = {}
    said: dict[Path, str] = {}
    asr = None
    for line in lines:
        if line.prompt not in waves:
            prompt = read_prompt(line.prompt, synthesizer.sample_rate)
            for note in prompt.notes:
                print(f"{line.prompt}: {note}", file=sys.stderr)
            waves[line.prompt] = torch.from_numpy(prompt.wave)
        if not line.prompt_text and line.prompt not in said:
            asr = asr or _load_asr()
            said[line.prompt] = _recognise(asr, line.prompt)
            print(f"prompt: {said[line.prompt]!r} (recognised; correct it with the prompt's text)", file=sys.stderr)
    return [Request(line.text, waves[line.prompt], line.prompt_text or said[line.prompt], line.seed) for line in lines]


def _load_asr() -> "Asr":
    """The pipeline's own recogniser."""
    from valle2.asr import load_asr

    if not PARAMS.is_file():
        return load_asr("bundled", "int8", "en", 2)
    config = load_config(PARAMS)
    settings = config.transcribe
    return load_asr(settings.model, settings.compute_type, settings.language, config.runtime.num_threads)


def _judges() -> "Judges":
    """Those of the evaluation."""
    from valle2.evaluation.best_of import Judges
    from valle2.evaluation.metrics import load_speaker_encoder

    name = load_config(PARAMS).evaluate.speaker_encoder if PARAMS.is_file() else "resemblyzer"
    return Judges(_load_asr(), load_speaker_encoder(name))


def _recognise(asr: "Asr", prompt: Path) -> str:
    from valle2.asr import ASR_RATE
    from valle2.audio import read_wave

    text = asr.recognise(read_wave(prompt, ASR_RATE))
    if not text:
        raise ModelError(f"no words recognised in {prompt}; say what it says with --prompt-text")
    return text


def _report(what: str, seconds: float, spent: float, name: str, note: str) -> None:
    factor = spent / seconds if seconds else float("inf")
    print(
        f"{what}: {seconds:.2f} s of speech by {name} in {spent:.2f} s (real-time factor {factor:.2f}){note}",
        file=sys.stderr,
    )


def _finish(capped: list[str]) -> None:
    """Exit code 3 where something was cut off."""
    capped = [name for name in capped if name]
    if capped:
        print(
            f"valle2: {', '.join(capped)}: finish_reason cap: stopped before the text had ended, it may have lost its "
            "way; try another --seed, or a larger --max-seconds",
            file=sys.stderr,
        )
        raise typer.Exit(CAP_EXIT)
