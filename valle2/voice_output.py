"""The one way by which speech leaves: `speech_bytes`, for files, streams, MLflow and the HTTP server alike.

Nothing else in the package makes audio of what a voice model said, so what every listener must get (a mark, a
watermark) has one place. Recordings and the evaluation's own files go through `valle2.audio`.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import soundfile
from jaxtyping import Float
from torch import Tensor

from valle2.audio import encode_wave


def speech_bytes(waveform: Float[Tensor, "n"], sample_rate: int, format: Literal["WAV", "RAW"] = "WAV") -> bytes:
    """Speech as 16-bit audio; the same waveform is always the same bytes.

    Args:
        waveform: What a model said, mono, in [-1, 1]; samples beyond are clipped.
        sample_rate: Hz.
        format: A whole file, or little-endian samples alone, such as those of a part of a stream.
    """
    return encode_wave(waveform.cpu().numpy(), sample_rate, format)


@contextmanager
def speech_stream(out: Path, sample_rate: int) -> Iterator[Callable[[Float[Tensor, "n"]], None]]:
    """Take speech in parts: into a WAV file that appears when it is whole, or as samples on standard output (`-`)."""
    if str(out) == "-":

        def play(part: Float[Tensor, "n"]) -> None:
            sys.stdout.buffer.write(speech_bytes(part, sample_rate, "RAW"))
            sys.stdout.buffer.flush()

        yield play
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    building = out.with_name(out.name + ".tmp")

    def write(part: Float[Tensor, "n"]) -> None:
        file.buffer_write(speech_bytes(part, sample_rate, "RAW"), "int16")
        file.flush()

    try:
        with soundfile.SoundFile(building, "w", sample_rate, 1, "PCM_16", format="WAV") as file:
            yield write
        building.replace(out)
    finally:
        building.unlink(missing_ok=True)
