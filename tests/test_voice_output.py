"""All speech leaves through one function; no other module of the package makes audio of what a model said."""

import ast
import io
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from valle2.voice_output import speech_bytes, speech_stream

ROOT = Path(__file__).resolve().parents[1]
ALLOWED = {
    "valle2/audio.py": "where audio is encoded, for recordings and speech",
    "valle2/voice_output.py": "the one way out",
    "valle2/corpus/": "recordings on their way to shards, and samples of them to hear",
    "valle2/data_commands.py": "a segment of the corpus, looked at",
    "valle2/evaluation/": "the evaluation's own files, which its judges hear unmarked",
    "valle2/pages/": "samples and recordings of a report's page, which its readers compare",
    "valle2/training_run.py": "samples of a training in progress, kept with its run",
}
WRITERS = {"encode_wave", "buffer_write", "writeframes", "writeframesraw"}
METHODS = {("soundfile", "write"), ("torchaudio", "save"), ("wavfile", "write"), ("wave", "open"), ("av", "open")}


def writes_audio(tree: ast.AST) -> Iterator[int]:
    """Lines that make an audio file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module in ("soundfile", "torchaudio", "scipy.io.wavfile", "wave"):
            yield from (node.lineno for alias in node.names if alias.name in ("write", "save", "open", "SoundFile"))
        if not isinstance(node, ast.Call):
            continue
        match node.func:
            case ast.Name(id=name) if name in WRITERS:
                yield node.lineno
            case ast.Attribute(attr="SoundFile"):
                mode = [*node.args[1:2], *(word.value for word in node.keywords if word.arg == "mode")]
                if any(not isinstance(value, ast.Constant) or value.value != "r" for value in mode):
                    yield node.lineno
            case ast.Attribute(attr=name) if name in WRITERS:
                yield node.lineno
            case ast.Attribute(value=ast.Name(id=module) | ast.Attribute(attr=module), attr=name):
                if (module, name) in METHODS:
                    yield node.lineno


def test_no_other_module_makes_audio_of_speech() -> None:
    found = {
        f"{path.relative_to(ROOT)}:{line}"
        for path in sorted((ROOT / "valle2").rglob("*.py"))
        for line in writes_audio(ast.parse(path.read_text()))
    }
    assert not [place for place in found if not place.startswith(tuple(ALLOWED))]
    unused = [allowed for allowed in ALLOWED if not any(place.startswith(allowed) for place in found)]
    assert not unused, "an exception that nothing needs"


@pytest.mark.parametrize(
    "line",
    [
        "soundfile.write(path, wave, 24000)",
        "encode_wave(wave, 24000)",
        "valle2.audio.encode_wave(wave, 24000)",
        "with soundfile.SoundFile(path, 'w', 24000, 1) as file: pass",
        "soundfile.SoundFile(path, mode='w')",
        "torchaudio.save(path, wave, 24000)",
        "scipy.io.wavfile.write(path, 24000, wave)",
        "wave.open(path, 'wb')",
        "from soundfile import write",
    ],
)
def test_each_way_to_write_audio_is_found(line: str) -> None:
    assert list(writes_audio(ast.parse(line))) == [1]


def test_reading_audio_is_not_writing_it() -> None:
    assert not list(writes_audio(ast.parse("soundfile.read(path)\nsoundfile.SoundFile(path)\nsoundfile.info(path)")))


def test_a_stream_is_the_same_file_as_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waveform = torch.linspace(-1.2, 1.2, 1000)
    whole = speech_bytes(waveform, 24_000)
    read, rate = soundfile.read(io.BytesIO(whole))
    assert rate == 24_000 and np.abs(read - waveform.clamp(-1, 1).numpy()).max() < 1e-4
    with speech_stream(tmp_path / "new" / "a.wav", 24_000) as write:
        for part in waveform.split(300):
            write(part)
        assert not (tmp_path / "new" / "a.wav").exists()
    assert (tmp_path / "new" / "a.wav").read_bytes() == whole
    piped = io.TextIOWrapper(io.BytesIO())
    monkeypatch.setattr(sys, "stdout", piped)
    with speech_stream(Path("-"), 24_000) as write:
        for part in waveform.split(300):
            write(part)
    assert whole.endswith(piped.buffer.getvalue()) and len(piped.buffer.getvalue()) == 2000


def test_a_stream_that_breaks_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), speech_stream(tmp_path / "a.wav", 24_000) as write:
        write(torch.zeros(10))
        raise RuntimeError
    assert not list(tmp_path.iterdir())
