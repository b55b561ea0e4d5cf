"""Waveforms in and out of files: mono float arrays in [-1, 1] here, FLAC, WAV and what libsndfile reads there."""

import io
from pathlib import Path

import numpy as np
import soundfile
import torch
from jaxtyping import Float
from torchaudio.functional import resample

from valle2.errors import ModelError


def read_wave(source: Path | bytes, sample_rate: int) -> Float[np.ndarray, " n"]:
    """Read audio as mono at a given rate.

    Args:
        source: A file, or a file's bytes.
        sample_rate: Hz wanted; the audio is resampled to it.

    Raises:
        ModelError: There is no such file, it is not audio, or there is nothing in it.
    """
    name = str(source) if isinstance(source, Path) else "the given audio"
    if isinstance(source, Path) and not source.is_file():
        raise ModelError(f"no audio file {source}; name a WAV, FLAC, OGG or MP3 file")
    try:
        wave, rate = soundfile.read(
            source if isinstance(source, Path) else io.BytesIO(source), dtype="float32", always_2d=True
        )
    except soundfile.LibsndfileError as error:
        raise ModelError(f"{name} is not audio that libsndfile reads ({error}); give WAV, FLAC, OGG or MP3") from error
    if not len(wave):
        raise ModelError(f"{name} has no samples; give a recording of some seconds")
    return change_rate(wave.mean(axis=1), rate, sample_rate)


def audio_rate(path: Path) -> int:
    """Sample rate in Hz of an audio file, as it is stored."""
    return int(soundfile.info(path).samplerate)


def change_rate(wave: Float[np.ndarray, " n"], rate: int, wanted: int) -> Float[np.ndarray, " m"]:
    """Resample a waveform from one rate in Hz to another."""
    if rate == wanted:
        return wave
    resampled: np.ndarray = resample(torch.from_numpy(np.ascontiguousarray(wave)), rate, wanted).numpy()
    return resampled


def encode_wave(wave: Float[np.ndarray, " n"], sample_rate: int, format: str = "WAV") -> bytes:
    """A 16-bit audio file as bytes; the same samples are always the same bytes."""
    stream = io.BytesIO()
    samples = np.clip(np.rint(wave * 32768), -32768, 32767).astype(np.int16)
    soundfile.write(stream, samples, sample_rate, format=format, subtype="PCM_16")
    return stream.getvalue()
