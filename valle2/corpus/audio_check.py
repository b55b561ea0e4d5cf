"""Whether a file is whole, audible audio: decoded to the end, in bounded memory."""

import struct
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from valle2.config.ingest import IngestConfig
from valle2.stage import file_sha256

LOUDNESS_WINDOW = 0.05
"""s; silence is judged by the loudest window of this length."""

_BLOCK_WINDOWS = 200
_UNKNOWN_LENGTH = 2**40


@dataclass(frozen=True, slots=True)
class AudioCheck:
    """What decoding told.

    Attributes:
        sha256: Of the file's bytes; empty for an empty file.
        reason: Why the file is no good, as a code; empty if it is good.
        detail: The same as a sentence.
        sample_rate: Hz; 0 if not audio.
        num_channels: In the file.
        num_samples: Decoded, per channel.
        kept: Name of the copy that later stages read; empty where they read the file itself.
    """

    sha256: str
    reason: str = ""
    detail: str = ""
    sample_rate: int = 0
    num_channels: int = 0
    num_samples: int = 0
    kept: str = ""

    def to_dict(self) -> dict[str, Any]:
        """For the journal."""
        return asdict(self)


def check_audio(path: Path, config: IngestConfig) -> AudioCheck:
    """Decode a file whole and judge it.

    Reasons: `missing`, `empty` (no bytes or no samples), `not_audio`, `truncated` (fewer samples than the header says),
    `not_finite` (NaN or infinite samples), `too_short`, `silent`.
    """
    if not path.is_file():
        return AudioCheck("", "missing", "a link that leads nowhere" if path.is_symlink() else "there is no such file")
    if path.stat().st_size == 0:
        return AudioCheck("", "empty", "the file has no bytes")
    try:
        sha256 = file_sha256(path)
    except OSError as denied:
        return AudioCheck("", "unreadable", f"the file cannot be read: {denied.strerror}")
    if path.suffix.lower() == ".raw":
        return AudioCheck(sha256, "not_audio", "samples without a header tell no rate; convert them to wav or flac")
    try:
        with soundfile.SoundFile(path) as file:
            rate, channels, promised = file.samplerate, file.channels, file.frames
            decoded, loudest, error = _decode(file, max(1, int(rate * LOUDNESS_WINDOW)))
    except soundfile.LibsndfileError as problem:
        return AudioCheck(sha256, "not_audio", f"not readable as audio: {problem.error_string}")
    known = AudioCheck(sha256, "", "", rate, channels, decoded)
    if not np.isfinite(loudest):
        return _bad(known, "not_finite", "samples that are no numbers (NaN or infinite); convert the file again")
    missing = _missing_bytes(path)
    if missing or error or (promised < _UNKNOWN_LENGTH and decoded < promised):
        seconds = promised / rate if promised < _UNKNOWN_LENGTH else 0.0
        found = f"{missing} bytes are missing" if missing else f"only {decoded / rate:.2f} s of {seconds:.2f} s decode"
        return _bad(known, "truncated", f"cut short: {found}{f' ({error})' if error else ''}")
    if decoded == 0:
        return _bad(known, "empty", "a header without samples")
    if decoded < config.min_duration * rate:
        return _bad(known, "too_short", f"{decoded / rate:.2f} s; ingest.min_duration is {config.min_duration} s")
    if loudest < 10 ** (config.silence_dbfs / 20):
        level = f"{20 * np.log10(loudest):.0f} dBFS" if loudest > 0 else "digital silence"
        return _bad(known, "silent", f"loudest {level}; ingest.silence_dbfs is {config.silence_dbfs:g}")
    return known


def _bad(check: AudioCheck, reason: str, detail: str) -> AudioCheck:
    return replace(check, reason=reason, detail=detail)


def _decode(file: soundfile.SoundFile, window: int) -> tuple[int, float, str]:
    """Samples decoded, RMS of the first channel's loudest window, and what stopped the decoder early."""
    decoded, loudest = 0, 0.0
    while True:
        try:
            block = file.read(window * _BLOCK_WINDOWS, dtype="float32", always_2d=True)[:, 0]
        except soundfile.LibsndfileError as error:
            return decoded, loudest, str(error.error_string)
        if not len(block):
            return decoded, loudest, ""
        decoded += len(block)
        if not np.isfinite(block).all():
            loudest = np.nan
        whole = len(block) // window * window
        windows = block[:whole].reshape(-1, window) if whole else block[None]
        loudest = float(np.maximum(loudest, np.sqrt((windows**2).mean(axis=1).max())))


def _missing_bytes(path: Path) -> int:
    """Bytes that a WAV's `data` header promises and the file lacks; libsndfile hides it."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(12)
        if len(head) < 12 or head[:4] != b"RIFF" or head[8:] != b"WAVE":
            return 0
        while len(chunk := file.read(8)) == 8:
            name, length = struct.unpack("<4sI", chunk)
            if name == b"data":
                return 0 if length in (0, 0xFFFFFFFF) else max(0, file.tell() + length - size)
            file.seek(length + length % 2, 1)
    return 0
