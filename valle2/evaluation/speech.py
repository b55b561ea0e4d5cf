"""The speech that is scored, as 16-bit files: what a model says, the speakers' readings, and both through the codec.

`<row>/<case>.wav`; beside it, `<case>.json` says how it ended and how often it repeats itself. What it is worth is
found in `valle2.evaluation.rows`.
"""

import shutil
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from valle2.audio import encode_wave
from valle2.config.evaluate import EvaluateParams
from valle2.evaluation.best_of import SEED_STRIDE
from valle2.evaluation.cases import Case, cases_digest
from valle2.evaluation.metrics import repetition
from valle2.model_folder import model_sha256
from valle2.progress import Advance
from valle2.stage import digest, write_bytes, write_json, write_text
from valle2.synthesis import Request, Synthesizer, join_spoken

BATCH = 16
"""Cases synthesised before their files are written."""


NOTHING_SAID = 0.1
"""Seconds of silence that stand for a text of which a model said nothing at all: metrics need some samples."""


def reading(turn: int) -> str:
    """The row of a model's n-th reading: `model`, `reading-1`,..."""
    return f"reading-{turn}" if turn else "model"


def continued(row: str) -> str:
    """The row of the same speech without its prompt."""
    return "continuation" if row == "model" else f"{row}_continuation"


def make_speech(folder: Path, bundle: Path, cases: Sequence[Case], config: EvaluateParams, advance: Advance) -> int:
    """Synthesise and decode what is not there yet.

    Args:
        folder: Gets the files; speech that other models, cases or settings left there goes.
        bundle: A voice model folder.
        cases: What to say.
        config: Sampling, number of readings, device.
        advance: Told of each utterance.

    Returns:
        The rate of the files, Hz.

    Raises:
        ModelError: The model cannot be loaded, or a prompt is too long for it.
    """
    key = digest([model_sha256(bundle), cases_digest(cases), config.evaluate.sampling.model_dump(mode="json")])
    note = folder / "key"
    if not note.is_file() or note.read_text() != key:
        shutil.rmtree(folder, ignore_errors=True)
        write_text(note, key)
    synthesizer = Synthesizer.from_path(bundle, config.runtime.device)
    for turn in range(config.evaluate.num_readings):
        missing = [case for case in cases if not (folder / reading(turn) / f"{case.id}.json").is_file()]
        advance(len(cases) - len(missing))
        for first in range(0, len(missing), BATCH):
            batch = missing[first : first + BATCH]
            _speak(folder, synthesizer, batch, config, turn)
            advance(len(batch))
    for case in cases:
        _reconstruct(folder, case, synthesizer)
    return synthesizer.sample_rate


def _speak(folder: Path, synthesizer: Synthesizer, cases: Sequence[Case], config: EvaluateParams, turn: int) -> None:
    """One reading of each case. A text that the model cannot read at once is read sentence by sentence."""
    row, rate = reading(turn), synthesizer.sample_rate
    requests = [
        Request(case.text, torch.from_numpy(case.prompt.wave), case.prompt.text, case.seed + SEED_STRIDE * turn)
        for case in cases
    ]
    pieces = [synthesizer.pieces(request) for request in requests]
    parts = iter(synthesizer.synthesize_batch([part for whole in pieces for part in whole], config.evaluate.sampling))
    for case, request, whole in zip(cases, requests, pieces, strict=True):
        spoken = join_spoken(list(islice(parts, len(whole))), rate)
        wave = spoken.waveform if len(spoken.waveform) else torch.zeros(round(NOTHING_SAID * rate))
        if case.said_before is not None:
            _save(folder / continued(row) / f"{case.id}.wav", wave, rate)
            prompt = _encode(synthesizer, request.prompt)
            wave = synthesizer.decoder.decode(torch.cat([prompt, spoken.codes], 1)[None])[0]
        _save(folder / row / f"{case.id}.wav", wave, rate)
        # Last: with it, the case is done.
        about = {
            "finish_reason": spoken.finish_reason,
            "pieces": len(whole),
            "repetition": round(repetition(spoken.codes.cpu().numpy()), 6),
        }
        write_json(folder / row / f"{case.id}.json", about)


def _reconstruct(folder: Path, case: Case, synthesizer: Synthesizer) -> None:
    """The reading and the prompt as they are, and as the codec gives them back."""
    name, rate, decoder = f"{case.id}.wav", synthesizer.sample_rate, synthesizer.decoder
    prompt = torch.from_numpy(case.prompt.wave)
    _save(folder / "prompt" / name, prompt, rate)
    if not (folder / "prompt_reconstruction" / name).is_file():
        again = decoder.decode(_encode(synthesizer, prompt)[None])[0, : len(prompt)]
        _save(folder / "prompt_reconstruction" / name, again, rate)
    if case.reference is None or (folder / "reconstruction" / name).is_file():
        return
    reference = torch.from_numpy(case.reference)
    stored = None if case.codes is None else torch.from_numpy(case.codes.astype(np.int64)).to(synthesizer.device)
    codes = _encode(synthesizer, reference) if stored is None else stored
    waves = {"ground_truth": reference, "reconstruction": decoder.decode(codes[None])[0, : len(reference)]}
    for row, wave in waves.items():
        if case.said_before is not None:
            _save(folder / continued(row) / name, wave[len(prompt) :], rate)
        about = {"repetition": round(repetition(codes.cpu().numpy()), 6)}
        write_json(folder / row / f"{case.id}.json", about)
        _save(folder / row / name, wave, rate)


def _encode(synthesizer: Synthesizer, wave: Float[Tensor, "n"]) -> Int[Tensor, "k t"]:
    return synthesizer.codec.encode(wave[None].to(synthesizer.device))[0]


def _save(path: Path, wave: Float[Tensor, "n"], sample_rate: int) -> None:
    write_bytes(path, encode_wave(wave.cpu().numpy(), sample_rate))
