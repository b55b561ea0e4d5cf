"""What strangers send is checked before it takes memory or time, and each mistake is one sentence."""

import base64
import io

import numpy as np
import pytest
import soundfile

from valle2.errors import ModelError
from valle2.speech_request import LARGEST_PROMPT, LONGEST_TEXT, read_request

RATE = 24_000


def encoded(seconds: float = 2.0, rate: int = RATE, channels: int = 1, format: str = "WAV") -> str:
    wave = 0.5 * np.sin(2 * np.pi * 220 * np.arange(round(seconds * rate)) / rate)
    stream = io.BytesIO()
    soundfile.write(stream, np.stack([wave] * channels, 1), rate, format=format)
    return base64.b64encode(stream.getvalue()).decode()


def test_a_prompt_of_any_format_arrives_at_the_models_rate() -> None:
    for format in ("WAV", "FLAC", "OGG"):
        sent = encoded(2.0, 44_100, 2, format)
        wrapped = "\n".join(sent[start : start + 76] for start in range(0, len(sent), 76))
        request = read_request("two boats", wrapped, "a house", 7, RATE, "the request")
        assert abs(len(request.prompt) - 48_000) <= 1 and request.prompt.ndim == 1
        assert (request.text, request.prompt_text, request.seed) == ("two boats", "a house", 7)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"text": " \n"}, "the request has an empty `text`; expected 1 to 1,000 characters"),
        ({"prompt_text": ""}, "the request has an empty `prompt_text`"),
        ({"text": "a" * (LONGEST_TEXT + 1)}, "has a `text` of 1,001 characters; expected 1,000 at most"),
        ({"seed": -1}, "has the seed -1; expected 0 to"),
        ({"prompt_wav": ""}, "has no prompt; give `prompt_wav`"),
        ({"prompt_wav": "not base64!"}, "is not base64"),
        ({"prompt_wav": "YWJj" * 20}, "is not audio that libsndfile reads"),
        ({"prompt_wav": "A" * (LARGEST_PROMPT * 4 // 3 + 8)}, r"has 10,485,765 bytes; expected 10,485,760 at most"),
        ({"prompt_wav": encoded(0.4)}, r"lasts 0\.40 s; expected 1 to 30 s"),
        ({"prompt_wav": encoded(40, 8_000)}, r"lasts 40\.00 s; expected 1 to 30 s"),
        ({"prompt_wav": encoded(1, 8_000, 3)}, "has 3 channels; expected one or two"),
        ({"prompt_wav": encoded(2, 23_993)}, "is at 23993 Hz; expected a usual rate of 8000 to 192000 Hz"),
        ({"prompt_wav": encoded(2, 4_000)}, "is at 4000 Hz; expected a usual rate"),
    ],
)
def test_what_is_beyond_the_limits_is_refused(changes: dict[str, object], sentence: str) -> None:
    given = {"text": "two boats", "prompt_wav": encoded(), "prompt_text": "a house", "seed": 0} | changes
    with pytest.raises(ModelError, match=sentence) as caught:
        read_request(**given, sample_rate=RATE, name="the request")  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_hours_in_a_small_file_are_refused_before_they_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.BytesIO()
    soundfile.write(stream, np.zeros(3600 * 8_000, np.int16), 8_000, format="FLAC")
    assert len(stream.getvalue()) < 200_000
    monkeypatch.setattr("valle2.speech_request.read_wave", None)
    with pytest.raises(ModelError, match=r"lasts 3600\.00 s"):
        read_request("a", base64.b64encode(stream.getvalue()).decode(), "a", 0, RATE, "the request")
