"""What a prompt must be before a model hears it."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from valle2.errors import ModelError
from valle2.prompt import read_prompt


def tone(seconds: float, rate: int, peak: float = 0.5) -> np.ndarray:
    return peak * np.sin(2 * np.pi * 220 * np.arange(round(seconds * rate)) / rate)


def write(path: Path, wave: np.ndarray, rate: int) -> Path:
    soundfile.write(path, wave, rate, subtype="FLOAT")
    return path


def test_several_channels_become_one_at_the_rate_asked_for(tmp_path: Path) -> None:
    wave = np.stack([tone(2, 48_000), tone(2, 48_000)], 1)
    prompt = read_prompt(write(tmp_path / "stereo.wav", wave, 48_000), 24_000)
    assert prompt.wave.shape == (48_000,)
    assert np.abs(prompt.wave[4000:-4000]).max() == pytest.approx(0.5, abs=0.01)
    assert prompt.notes == ()


def test_a_telephones_rate_is_taken_with_a_note(tmp_path: Path) -> None:
    prompt = read_prompt(write(tmp_path / "phone.wav", tone(2, 8_000), 8_000), 24_000)
    assert prompt.wave.shape == (48_000,)
    assert "recorded at 8000 Hz" in prompt.notes[0]


@pytest.mark.parametrize(
    ("wave", "message"),
    [
        (tone(0.3, 24_000), r"lasts 0\.30 s; expected 1 to 30 s"),
        (tone(31, 24_000), r"lasts 31\.00 s; expected 1 to 30 s"),
        (np.zeros(0), "has no samples"),
        (np.zeros(48_000), r"is silent \(peak 0\.00000 of 1\)"),
        (np.clip(tone(2, 24_000, 3.0), -1, 1), r"is clipped: \d+\.\d% of its samples are at full scale"),
        (np.full(48_000, np.nan), "samples that are no numbers"),
    ],
)
def test_a_prompt_that_is_no_use_is_refused(tmp_path: Path, wave: np.ndarray, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        read_prompt(write(tmp_path / "prompt.wav", wave, 24_000), 24_000)


def test_what_is_no_audio_is_refused(tmp_path: Path) -> None:
    (tmp_path / "prompt.wav").write_text("no audio")
    with pytest.raises(ModelError, match="not audio"):
        read_prompt(tmp_path / "prompt.wav", 24_000)
    with pytest.raises(ModelError, match="no prompt at"):
        read_prompt(tmp_path / "none.wav", 24_000)
