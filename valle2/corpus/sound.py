"""What a waveform tells about how it was recorded: pure functions of its samples."""

from typing import Any

import numpy as np
from jaxtyping import Float

FRAME = 0.02
"""s; loudness is judged in frames of this length."""

_SILENT = 40.0
"""dB below the loudest frame under which a frame is silent."""
_BAND_FLOOR = 60.0
"""dB below its strongest band under which a spectrum holds nothing."""
_FULL_SCALE = 0.999
_TINY = 1e-12
_WINDOW = 4096


def measure(wave: Float[np.ndarray, " n"], sample_rate: int, source_rate: int) -> dict[str, float]:
    """All of them, rounded as they are stored: `clipped` and `silence` (shares), `snr` (dB), `bandwidth` (Hz).

    Args:
        wave: Samples in [-1, 1].
        sample_rate: Theirs, Hz.
        source_rate: That of the file, Hz; above half of it there are but traces of the resampling.
    """
    levels = frame_levels(wave, sample_rate)
    return {
        "clipped": round(clipped(wave), 5),
        "silence": round(silence(levels), 4),
        "snr": round(snr(levels), 2),
        "bandwidth": round(min(bandwidth(wave, sample_rate), source_rate / 2), 1),
    }


def source_rate(recording: dict[str, Any]) -> int:
    """Sampling rate of a recording's file, Hz, of a Lhotse recording as a dict, resampled or not."""
    for transform in recording.get("transforms") or []:
        facts = transform.get("kwargs", transform)
        if "source_sampling_rate" in facts:
            return int(facts["source_sampling_rate"])
    return int(recording["sampling_rate"])


def frame_levels(wave: Float[np.ndarray, " n"], sample_rate: int) -> Float[np.ndarray, " t"]:
    """Level of each frame in dBFS; a clip shorter than a frame is one."""
    size = min(round(FRAME * sample_rate), len(wave))
    frames = wave[: len(wave) // size * size].reshape(-1, size)
    levels: np.ndarray = 10 * np.log10((frames.astype(np.float64) ** 2).mean(1) + _TINY)
    return levels


def clipped(wave: Float[np.ndarray, " n"]) -> float:
    """Share of samples at full scale."""
    return float((np.abs(wave) >= _FULL_SCALE).mean())


def silence(levels: Float[np.ndarray, " t"]) -> float:
    """Share of frames far below the loudest."""
    return float((levels < levels.max() - _SILENT).mean())


def snr(levels: Float[np.ndarray, " t"]) -> float:
    """Signal-to-noise ratio in dB, estimated: loud frames (95th percentile) against the quietest (5th).

    Speech without a pause has no quiet frame, so that the ratio comes out too low there.
    """
    quiet, loud = np.percentile(levels, [5, 95])
    return float(loud - quiet)


def bandwidth(wave: Float[np.ndarray, " n"], sample_rate: int) -> float:
    """Highest frequency, in Hz, at which the mean spectrum holds anything: 4 kHz for a call in a file of 48 kHz."""
    from scipy.signal import welch

    frequencies, power = welch(wave, sample_rate, nperseg=min(_WINDOW, len(wave)))
    level = 10 * np.log10(power + 1e-20)
    heard = np.flatnonzero(level > level.max() - _BAND_FLOOR)
    return float(frequencies[heard[-1]])
