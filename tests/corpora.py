"""Small corpora on disk for the tests of the data stages: pulsed tones stand for voices."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import yaml
from lhotse import AudioSource, MonoCut, Recording, SupervisionSegment

from valle2.config.params import Config, parse_config

RATE = 16_000
CONSENT = {"basis": "synthetic", "record": "tones"}


def tone(seconds: float, pitch: float = 200.0, rate: int = RATE) -> np.ndarray:
    """A pulsed tone, int16."""
    time = np.arange(round(seconds * rate)) / rate
    wave = np.sin(2 * np.pi * pitch * time) * (0.4 + 0.3 * np.sin(2 * np.pi * 3 * time))
    return (wave * 12000).astype(np.int16)


def write_audio(path: Path, samples: np.ndarray, rate: int = RATE) -> Path:
    """Write by suffix; folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, rate)
    return path


def declare_speakers(root: Path, speakers: Iterable[str], **row: Any) -> None:
    """`data/sources.yaml` and `data/speakers.jsonl` for `data/audio/<speaker>/*`."""
    source = {
        "name": "tones", "kind": "folder", "path": "audio", "licence": "CC0-1.0", "speakers": "speakers.jsonl", **row,
    }  # fmt: skip
    (root / "data" / "audio").mkdir(parents=True, exist_ok=True)
    (root / "data" / "sources.yaml").write_text(yaml.safe_dump({"sources": [source]}))
    rows = [{"speaker": speaker, "consent": CONSENT} for speaker in speakers]
    (root / "data" / "speakers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def config(**sections: dict[str, Any]) -> Config:
    """Parameters with one thread."""
    return parse_config({"runtime": {"num_threads": 1}, **sections})


def rows(path: str | Path) -> list[dict[str, Any]]:
    """Rows of a JSONL file."""
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def write_rows(path: str | Path, values: Iterable[dict[str, Any]]) -> None:
    """Write JSONL; folders are made."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text("".join(json.dumps(value) + "\n" for value in values))


def segment(
    name: str, speaker: str, text: str, path: Path, start: float = 0.0, duration: float = 1.5, **custom: Any
) -> MonoCut:
    """A transcribed segment of a file at 24 kHz."""
    info = soundfile.info(path)
    source = AudioSource("file", [0], path.as_posix())
    recording = Recording(
        speaker, [source], info.samplerate, info.frames, info.frames / info.samplerate, channel_ids=[0]
    ).resample(24_000)
    supervision = SupervisionSegment(name, speaker, 0.0, duration, 0, text=text, language="en", speaker=speaker)
    custom = {"source": "tones", "licence": "CC0-1.0", "consent": CONSENT, "sha256": speaker, **custom}
    return MonoCut(name, start, duration, 0, [supervision], recording=recording, custom=custom)


def record_voices(folder: Path, names: list[str], pairs: int = 1) -> None:
    """Recordings of two sentences each by voices of the demo, with the truth beside."""
    from demo.corpus import SAMPLE_RATE, make_voice, record

    declare_speakers(folder, names)
    truth = []
    for index, name in enumerate(names):
        for pair in range(pairs):
            said = SENTENCES[(index * pairs + pair) % len(SENTENCES)]
            spoken = record(make_voice(3 + index), said, np.random.default_rng(index * pairs + pair))
            write_audio(folder / f"data/audio/{name}/{pair}.wav", spoken.samples, SAMPLE_RATE)
            segments = [{"text": text} for text in said]
            truth.append(json.dumps({"recording": f"{name}/{pair}.wav", "segments": segments}) + "\n")
    (folder / "data/truth.jsonl").write_text("".join(truth))


SENTENCES = [
    ["The doctor sees a red house in the kitchen.", "Peter holds three small birds."],
    ["My brother sold his old car last week.", "Where did you leave the keys?"],
    ["They walk along the river every morning.", "A cold wind came over the hill."],
    ["She wrote a long letter to her sister.", "Nobody knew the name of the town."],
    ["The boys play in the garden after school.", "Dinner will be ready at seven."],
]
