"""How good a segment is: the DNSMOS model, and the speaking rates that are usual.

Who is dropped for it is in `valle2.corpus.rules`.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from valle2.types import Seconds

DNSMOS_RATE = 16_000
"""Hz that DNSMOS takes."""

_WINDOW = 144_160
"""Samples of a DNSMOS window, 9.01 s."""


class Dnsmos:
    """P.808 MOS of a clip, predicted by Microsoft's DNSMOS (the model file of the speechmos package).

    The clip is repeated until it fills a window; a longer one is scored window by window and averaged. Microsoft's
    script moves its window by one second, at nine times the cost.
    """

    def __init__(self) -> None:
        import onnxruntime
        import speechmos

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        model = Path(os.fspath(speechmos.__path__[0])) / "dnsmos_models" / "model_v8.onnx"
        self._session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])

    def p808(self, waveform: Float[np.ndarray, " n"]) -> float:
        """Predicted MOS, 1 to 5, of a mono clip at `DNSMOS_RATE`; safe to call from several threads."""
        if len(waveform) < _WINDOW:
            waveform = np.tile(waveform, -(-_WINDOW // len(waveform)))
        starts = range(0, len(waveform) - _WINDOW + 1, _WINDOW)
        features = np.stack([_log_mel(waveform[start : start + _WINDOW - 160]) for start in starts])
        return round(float(self._session.run(None, {"input_1": features})[0].mean()), 4)


def _log_mel(waveform: Float[np.ndarray, " n"]) -> Float[np.ndarray, "t 120"]:
    """DNSMOS's own features (the constants of its released script)."""
    import librosa

    mel = librosa.feature.melspectrogram(
        y=waveform, sr=DNSMOS_RATE, n_fft=321, hop_length=160, n_mels=120, dtype=np.float32
    )
    scaled: np.ndarray = (librosa.power_to_db(mel, ref=np.max) + 40) / 40
    return scaled.T.astype(np.float32)


def words_per_second(text: str, duration: Seconds) -> float:
    """Speaking rate of a normalised text."""
    return round(len(text.split()) / duration, 4)


def rate_bounds(rates: Sequence[float], spread: float) -> tuple[float, float]:
    """The interval outside which a speaking rate is an outlier: quartiles -/+ `spread` times their distance (Tukey)."""
    if not rates:
        return 0.0, 0.0
    low, high = np.quantile(np.asarray(rates), [0.25, 0.75])
    return round(float(low - spread * (high - low)), 6), round(float(high + spread * (high - low)), 6)
