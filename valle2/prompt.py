"""The prompt: a few seconds of a voice from a file, checked before a model hears it."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from valle2.audio import audio_rate, read_wave
from valle2.errors import ModelError
from valle2.types import Seconds

SHORTEST: Seconds = 1.0
LONGEST: Seconds = 30.0
"""Bounds of the acoustic condition that the NAR model is trained with (VALL-E 2, section 3.3.2), 1 s at the least."""
SILENCE = 1e-3
"""Peak, of 1, below which nothing is said: -60 dBFS."""
FULL_SCALE = 0.999
CLIPPED_SHARE = 0.005
"""Share of samples at full scale above which a recording is clipped; in speech that fits its scale it is near 0."""
WIDE_BAND = 16_000
"""Hz; lower rates lack half of what tells consonants apart."""


@dataclass(frozen=True)
class Prompt:
    """What was read.

    Attributes:
        wave: Mono, at the rate asked for, in [-1, 1].
        notes: What the user should know of it.
    """

    wave: Float[np.ndarray, " n"]
    notes: tuple[str, ...]


def read_prompt(path: Path, sample_rate: int) -> Prompt:
    """Read and check a prompt; several channels are mixed into one.

    Args:
        path: WAV, FLAC, OGG or MP3.
        sample_rate: Hz wanted.

    Raises:
        ModelError: It is no audio, too short, too long, silent or clipped.
    """
    if not path.is_file():
        raise ModelError(f"no prompt at {path}; name a WAV, FLAC, OGG or MP3 file of a few seconds")
    wave = read_wave(path, sample_rate)
    check_prompt(wave, sample_rate, f"the prompt {path}")
    rate = audio_rate(path)
    notes = () if rate >= WIDE_BAND else (
        f"the prompt was recorded at {rate} Hz; the speech will sound as dull as it does, better give {WIDE_BAND} Hz "
        "or more",
    )  # fmt: skip
    return Prompt(wave, notes)


def check_prompt(wave: Float[np.ndarray, " n"], sample_rate: int, name: str) -> None:
    """Make sure that a model can hear a voice in a prompt.

    Args:
        wave: Mono, in [-1, 1].
        sample_rate: Hz.
        name: What messages call it.

    Raises:
        ModelError: It is too short, too long, silent or clipped.
    """
    seconds = len(wave) / sample_rate
    if not SHORTEST <= seconds <= LONGEST:
        raise ModelError(
            f"{name} lasts {seconds:.2f} s; expected {SHORTEST:.0f} to {LONGEST:.0f} s of one voice, 3 s are enough"
        )
    peak = np.abs(wave).max()
    if not np.isfinite(peak):
        raise ModelError(f"{name} has samples that are no numbers; save it again as 16-bit audio")
    if peak < SILENCE:
        raise ModelError(f"{name} is silent (peak {peak:.5f} of 1); record it louder")
    clipped = float(np.mean(np.abs(wave) >= FULL_SCALE))
    if clipped > CLIPPED_SHARE:
        raise ModelError(
            f"{name} is clipped: {clipped:.1%} of its samples are at full scale; record it at a lower level"
        )
