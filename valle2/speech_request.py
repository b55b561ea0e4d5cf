"""What a served model is asked for, checked before it is spoken: the limits that MLflow and the HTTP server share.

The command line reads files of its user's (`valle2.speak`); here come bytes of anybody's, which may be made to take
memory or time.
"""

import base64
import binascii
import io
import math

import soundfile
import torch

from valle2.audio import read_wave
from valle2.errors import ModelError
from valle2.prompt import LONGEST, SHORTEST, check_prompt
from valle2.synthesis import Request
from valle2.types import LARGEST_SEED

LONGEST_TEXT = 1000
"""Characters of a text, and of a prompt's: about a minute of speech."""
LARGEST_PROMPT = 10 * 2**20
"""Bytes of a prompt's file: 30 s in stereo at 48 kHz and 24 bit have 8.6 million."""
MOST_ROWS = 16
"""Texts that MLflow's model says in one request."""
_RATES = (8_000, 192_000)
_COMMON_RATE = 25
"""Hz that a prompt's rate and the model's are multiples of: a resampler's filter for 23,993 Hz would fill 5 GB."""


def limits() -> dict[str, float]:
    """The limits, as served models tell them."""
    return {
        "text_characters": LONGEST_TEXT,
        "prompt_bytes": LARGEST_PROMPT,
        "shortest_prompt_seconds": SHORTEST,
        "longest_prompt_seconds": LONGEST,
    }


def read_request(text: str, prompt_wav: str, prompt_text: str, seed: int, sample_rate: int, name: str) -> Request:
    """Check what was sent, and read its prompt.

    Args:
        text: What to say.
        prompt_wav: Base64 of an audio file: WAV, FLAC, OGG or MP3.
        prompt_text: What the prompt says.
        seed: Of the reading.
        sample_rate: The model's, Hz.
        name: Of the request in messages, such as `row 2`.

    Raises:
        ModelError: A text is empty or too long, the prompt is no audio, too long, short or large, or the seed is out of
            range.
    """
    for what, said in (("text", text), ("prompt_text", prompt_text)):
        if not said.strip():
            raise ModelError(f"{name} has an empty `{what}`; expected 1 to {LONGEST_TEXT:,} characters")
        if len(said) > LONGEST_TEXT:
            raise ModelError(
                f"{name} has a `{what}` of {len(said):,} characters; expected {LONGEST_TEXT:,} at most: send its parts "
                "one by one"
            )
    if not 0 <= seed <= LARGEST_SEED:
        raise ModelError(f"{name} has the seed {seed}; expected 0 to {LARGEST_SEED}")
    content = decode_prompt(prompt_wav, name)
    _check_header(content, sample_rate, name)
    wave = read_wave(content, sample_rate)
    check_prompt(wave, sample_rate, f"the prompt of {name}")
    return Request(text, torch.from_numpy(wave), prompt_text, seed)


def decode_prompt(prompt_wav: str, name: str) -> bytes:
    """The bytes of a prompt's file; line breaks in its base64 do no harm.

    Raises:
        ModelError: There are none, too many, or it is not base64.
    """
    if not prompt_wav.strip():
        raise ModelError(f"{name} has no prompt; give `prompt_wav`, the base64 of an audio file")
    most = 4 * -(-LARGEST_PROMPT // 3)
    encoded = "".join(prompt_wav.split())
    if len(encoded) > most:
        raise ModelError(
            f"the prompt of {name} has {len(encoded) * 3 // 4:,} bytes; expected {LARGEST_PROMPT:,} at most: a few "
            "seconds of one voice are enough"
        )
    try:
        return base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ModelError(f"the prompt of {name} is not base64 ({error}); encode the bytes of an audio file") from error


def _check_header(content: bytes, sample_rate: int, name: str) -> None:
    """Refuse what would take much memory to read: a small file may hold hours, or many channels."""
    try:
        found = soundfile.info(io.BytesIO(content))
    except soundfile.LibsndfileError as error:
        raise ModelError(
            f"the prompt of {name} is not audio that libsndfile reads ({error}); give WAV, FLAC, OGG or MP3"
        ) from error
    if found.channels > 2:
        raise ModelError(f"the prompt of {name} has {found.channels} channels; expected one or two")
    lowest, highest = _RATES
    if not lowest <= found.samplerate <= highest or math.gcd(found.samplerate, sample_rate) < _COMMON_RATE:
        raise ModelError(
            f"the prompt of {name} is at {found.samplerate} Hz; expected a usual rate of {lowest} to {highest} Hz, "
            "such as 16000, 44100 or 48000"
        )
    if found.duration > LONGEST:
        raise ModelError(
            f"the prompt of {name} lasts {found.duration:.2f} s; expected {SHORTEST:.0f} to {LONGEST:.0f} s of one "
            "voice, 3 s are enough"
        )
