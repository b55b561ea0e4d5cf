"""Training material of the bundled models: the demo's grammar spoken by many voices, and real speech.

    python -m demo.recipes.material FOLDER

renders it once; the recipes read it back. No voice and no sentence of the demo's corpus is in it, so the corpus's
held-out speakers stay unseen by the bundled models too. Levels and noise are the recipes' business.
"""

import json
import random
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import torch
import torchaudio

from demo.corpus import SEED, make_voice
from demo.espeak import SAMPLE_RATE as ESPEAK_RATE
from demo.espeak import Spoken, speak
from demo.grammar import sentence

SAMPLE_RATE = 24_000
"""Rate (Hz) of all material."""
FIRST_VOICE = 1000
"""Voices below belong to the demo's corpus, held-out ones among them."""
NUM_RESERVED_SENTENCES = 2500
"""The corpus draws its sentences from the start of its seeded stream; this many cover it more than twice."""


@dataclass(frozen=True)
class Clip:
    """One utterance; all times are in seconds from its start."""

    samples: np.ndarray
    """int16, mono, at `SAMPLE_RATE`."""
    text: str
    words: list[tuple[str, float, float]]
    phones: list[tuple[str, float]]
    """In espeak-ng's notation, without stress and length, and when each starts; pauses have an empty name."""
    voice: int


def reserved_sentences() -> set[str]:
    """Sentences that the demo's corpus may say, held-out ones among them."""
    rng = random.Random(SEED)
    said: set[str] = set()
    while len(said) < NUM_RESERVED_SENTENCES:
        said.add(sentence(rng))
    return said


def resample(samples: np.ndarray, rate: int) -> np.ndarray:
    """Bring int16 samples from `rate` (Hz) to `SAMPLE_RATE`."""
    wave = torch.from_numpy(samples.astype(np.float32))
    wave = torchaudio.functional.resample(wave, rate, SAMPLE_RATE)
    return wave.round().clamp(-32768, 32767).to(torch.int16).numpy()


def timed_phones(spoken: Spoken) -> list[tuple[str, float]]:
    """Phones without stress and length, and when each starts, s; pauses have an empty name."""
    return [(phone.name.strip("',_:"), phone.start / ESPEAK_RATE) for phone in spoken.phones]


def render(num_sentences: int, num_voices: int, seed: int = 1) -> list[Clip]:
    """Speak new sentences, voice after voice.

    Args:
        num_sentences: How many; no two alike.
        num_voices: How many voices share them, in turn.
        seed: Draws the sentences.
    """
    rng = random.Random(f"material {seed}")
    said = reserved_sentences()
    clips: list[Clip] = []
    while len(clips) < num_sentences:
        text = sentence(rng)
        if text in said:
            continue
        said.add(text)
        voice = FIRST_VOICE + len(clips) % num_voices
        spoken = speak(text, make_voice(voice))
        words = [(word.text, word.start / ESPEAK_RATE, word.end / ESPEAK_RATE) for word in spoken.words]
        clips.append(Clip(resample(spoken.samples, ESPEAK_RATE), text, words, timed_phones(spoken), voice))
    return clips


def load_material(folder: Path, num_sentences: int = 3000, num_voices: int = 300, seed: int = 1) -> list[Clip]:
    """The clips of `render`, from `folder` if they were rendered there before.

    Args:
        folder: Holds one `.npz` for each choice of the other arguments.
        num_sentences: As in `render`.
        num_voices: As in `render`.
        seed: As in `render`.
    """
    path = folder / f"material-{num_sentences}x{num_voices}-{seed}.npz"
    if not path.exists():
        clips = render(num_sentences, num_voices, seed)
        about = json.dumps([vars(clip) | {"samples": None} for clip in clips])
        folder.mkdir(parents=True, exist_ok=True)
        building = path.with_suffix(".tmp.npz")
        ends = np.cumsum([len(clip.samples) for clip in clips])
        np.savez(building, samples=np.concatenate([clip.samples for clip in clips]), ends=ends, about=np.array(about))
        building.rename(path)
        return clips
    with np.load(path) as stored:
        waves = np.split(stored["samples"], stored["ends"][:-1])
        about_rows = json.loads(str(stored["about"]))
    return [
        Clip(
            wave,
            row["text"],
            [(word, start, end) for word, start, end in row["words"]],
            [(phone, start) for phone, start in row["phones"]],
            row["voice"],
        )
        for wave, row in zip(waves, about_rows, strict=True)
    ]


def load_real_speech(folder: Path) -> list[np.ndarray]:
    """Every FLAC of a folder as int16 mono at `SAMPLE_RATE`.

    Args:
        folder: Searched at any depth; files of any rate, the first channel is taken.
    """
    waves: list[np.ndarray] = []
    for path in sorted(folder.rglob("*.flac")):
        samples, rate = soundfile.read(path, dtype="int16", always_2d=True)
        waves.append(resample(samples[:, 0], rate))
    return waves


if __name__ == "__main__":
    load_material(Path(sys.argv[1]))
