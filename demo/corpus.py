"""The demo's corpus: synthetic recordings of several sentences, seeded and byte-stable.

    python -m demo.corpus data
    python -m demo.corpus build/champion-data --more-voices 156

The first writes `data/` whole: the source declaration, one licence and consent record a speaker, the recordings, and
what was truly said (`truth.jsonl`, used only to score the transcription). The held-out voices speak sentences that no
other voice speaks. The second is the same with more training voices, for the bundled champion. What the recordings are
used for starts in `valle2.corpus.ingest`.
"""

import argparse
import json
import random
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import yaml

from demo.espeak import SAMPLE_RATE, SpokenWord, Voice, speak
from demo.grammar import sentence

SEED = 2406
NUM_TRAINING_VOICES = 44
NUM_UNSEEN_VOICES = 8
TRAINING_SECONDS = 51
UNSEEN_SECONDS = 40


@dataclass(frozen=True)
class Recording:
    """Several sentences of one voice with pauses and a little noise."""

    samples: np.ndarray
    """int16, mono, at `demo.espeak.SAMPLE_RATE`."""
    sentences: list[tuple[str, int, int]]
    """Text, first and last sample of each sentence."""
    words: list[SpokenWord]


def make_voice(index: int) -> Voice:
    """The voice of that number; any number is a voice, and the same one each time."""
    rng = random.Random(f"voice {index}")
    high = rng.random() < 0.5
    low = rng.randint(150, 215) if high else rng.randint(72, 130)
    scale = rng.randint(102, 122) if high else rng.randint(86, 106)
    formants = tuple(scale + rng.randint(-5, 5) for _ in range(4))
    return Voice(
        name=f"voice{index:04d}",
        accent=rng.choice(["en-us", "en-us", "en-gb-x-rp"]),
        pitch=(low, int(low * rng.uniform(1.25, 1.55))),
        formants=(formants[0], formants[1], formants[2], formants[3]),
        tilt=rng.randint(60, 130),
        rate=rng.randint(145, 180),
    )


def record(voice: Voice, sentences: list[str], rng: np.random.Generator) -> Recording:
    """Speak the sentences one after another.

    Args:
        voice: Who speaks.
        sentences: What is said, in order.
        rng: Draws pauses (0.35-0.9 s), level and noise.
    """
    parts: list[np.ndarray] = [np.zeros(int(rng.integers(3000, 12000)), np.int16)]
    spans: list[tuple[str, int, int]] = []
    words: list[SpokenWord] = []
    length = len(parts[0])
    for text in sentences:
        spoken = speak(text, voice)
        spans.append((text, length, length + len(spoken.samples)))
        words += [SpokenWord(word.text, length + word.start, length + word.end) for word in spoken.words]
        pause = np.zeros(int(rng.integers(int(0.35 * SAMPLE_RATE), int(0.9 * SAMPLE_RATE))), np.int16)
        parts += [spoken.samples, pause]
        length += len(spoken.samples) + len(pause)
    clean = np.concatenate(parts).astype(np.int32)
    peak = int(np.abs(clean).max())
    level = int(rng.integers(14000, 24000))
    amplitude = int(rng.integers(15, 45))
    noise = rng.integers(-amplitude, amplitude + 1, len(clean), dtype=np.int32)
    samples = (clean * level // peak + noise).astype(np.int16)
    return Recording(samples, spans, words)


def write_corpus(folder: Path, num_more_voices: int = 0) -> None:
    """Write the corpus, whole or not at all.

    Args:
        folder: Becomes `data/`; one that is there is replaced.
        num_more_voices: Training voices beyond the demo's; its recordings stay what they are.
    """
    building = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(building, ignore_errors=True)
    root = building / "espeak-demo"
    rng = random.Random(SEED)
    said: set[str] = set()
    speakers: list[dict[str, Any]] = []
    truth: list[dict[str, Any]] = []

    def new_sentence() -> str:
        while (text := sentence(rng)) in said:
            pass
        said.add(text)
        return text

    num_demo_voices = NUM_TRAINING_VOICES + NUM_UNSEEN_VOICES
    for index in range(num_demo_voices + num_more_voices):
        voice = make_voice(index)
        unseen = NUM_TRAINING_VOICES <= index < num_demo_voices
        speaker = f"{'unseen' if unseen else 'train'}-{index:02d}"
        seconds = UNSEEN_SECONDS if unseen else TRAINING_SECONDS
        texts: list[str] = []
        spoken = 0.0
        while spoken < seconds - 2:
            texts.append(new_sentence())
            spoken += len(speak(texts[-1], voice).samples) / SAMPLE_RATE + 0.6
        recording = record(voice, texts, np.random.default_rng([SEED, index]))
        path = root / "audio" / speaker / f"{speaker}.wav"
        path.parent.mkdir(parents=True)
        soundfile.write(path, recording.samples, SAMPLE_RATE, subtype="PCM_16")
        truth.append(
            {
                "recording": path.relative_to(root / "audio").as_posix(),
                "segments": [
                    {"text": text, "start": round(start / SAMPLE_RATE, 4), "end": round(end / SAMPLE_RATE, 4)}
                    for text, start, end in recording.sentences
                ],
                "words": [
                    {
                        "word": word.text,
                        "start": round(word.start / SAMPLE_RATE, 4),
                        "end": round(word.end / SAMPLE_RATE, 4),
                    }
                    for word in recording.words
                ],
            }
        )
        speakers.append(
            {
                "speaker": speaker,
                "licence": "CC0-1.0",
                "consent": {
                    "basis": "synthetic",
                    "record": "espeak-ng formant synthesis; no person's voice was recorded",
                    "granted_by": "the Valle2 project",
                    "date": "2026-11-22",
                    "scope": ["training", "evaluation", "synthesis"],
                },
            }
        )
    (root / "speakers.jsonl").write_text("".join(json.dumps(row, sort_keys=True) + "\n" for row in speakers))
    (root / "truth.jsonl").write_text("".join(json.dumps(row, sort_keys=True) + "\n" for row in truth))
    declaration = {
        "sources": [
            {
                "name": "espeak-demo",
                "kind": "folder",
                "path": "espeak-demo/audio",
                "language": "en",
                "licence": "CC0-1.0",
                "attribution": "Valle2 demo corpus, spoken by espeak-ng",
                "speaker_from": "folder",
                "speakers": "espeak-demo/speakers.jsonl",
            }
        ]
    }
    (building / "sources.yaml").write_text(yaml.safe_dump(declaration, sort_keys=False))
    shutil.rmtree(folder, ignore_errors=True)
    building.rename(folder)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("data"))
    parser.add_argument("--more-voices", type=int, default=0, help="training voices beyond the demo's")
    arguments = parser.parse_args()
    write_corpus(arguments.folder, arguments.more_voices)
