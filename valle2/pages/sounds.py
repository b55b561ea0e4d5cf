"""Sounds that a page carries within itself: kept as text, each once, and made audio only when somebody listens.

MP3 where many are to fit into one page: every browser plays it, Safari on phones included, which plays Opus in Ogg only
since its latest versions; the same samples are the same bytes, which libsndfile's Ogg (a random serial number) is not.
WAV where a lossy codec would be heard as if it were the system's, at twelve times the size. FLAC would be half of that,
but Chromium fails to seek in one of eight that libsndfile writes.
"""

import base64
import hashlib
import io
from typing import Literal

import numpy as np
import soundfile
from jaxtyping import Float

from valle2.audio import encode_wave

MP3_LEVEL = 0.7
"""libsndfile's compression of MP3 at a variable rate: about 32 kbit/s for speech at 24 kHz."""
KEY_LENGTH = 16


class Sounds:
    """The sounds of one page, as base64 by the digest of their bytes.

    Attributes:
        kind: Media type of all of them.
        texts: Key to base64, in the order in which they came.
    """

    def __init__(self, format: Literal["MP3", "WAV"]) -> None:
        self._format = format
        self.kind = {"MP3": "audio/mpeg", "WAV": "audio/wav"}[format]
        self.texts: dict[str, str] = {}

    @property
    def size(self) -> int:
        """Bytes that they take of the page."""
        return sum(map(len, self.texts.values()))

    def add(self, wave: Float[np.ndarray, " n"], sample_rate: int) -> str:
        """Keep a sound.

        Args:
            wave: Mono, in [-1, 1].
            sample_rate: Hz.

        Returns:
            Its key; the same sound is kept once and has the same key.
        """
        data = encode_mp3(wave, sample_rate) if self._format == "MP3" else encode_wave(wave, sample_rate)
        key = hashlib.sha256(data).hexdigest()[:KEY_LENGTH]
        self.texts.setdefault(key, base64.b64encode(data).decode())
        return key


def encode_mp3(wave: Float[np.ndarray, " n"], sample_rate: int) -> bytes:
    """Speech as MP3; the same samples are always the same bytes, and the same length when decoded."""
    stream = io.BytesIO()
    soundfile.write(
        stream, np.clip(wave, -1, 1), sample_rate, format="MP3", subtype="MPEG_LAYER_III",
        bitrate_mode="VARIABLE", compression_level=MP3_LEVEL,
    )  # fmt: skip
    return stream.getvalue()
