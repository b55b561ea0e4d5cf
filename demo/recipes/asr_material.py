"""The shared training material as Whisper's mel frames, with word times.

    python -m demo.recipes.asr_material --material build/material --work build/whisper
    python -m demo.recipes.asr_material --material build/material --work build/whisper --codec 900

The first line is for the phases before `codec`, the second adds sentences that went through the bundled codec.
"""

import argparse
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torchaudio
from transformers import WhisperFeatureExtractor

from demo.recipes.material import SAMPLE_RATE, Clip, load_material
from valle2.codec import load_codec

ASR_RATE = 16000
MEL_RATE = 100
"""Log-mel frames a second."""
_HOP = ASR_RATE // MEL_RATE


@dataclass
class Utterance:
    """One spoken sentence."""

    text: str
    words: list[tuple[str, int, int]]
    """Each word as written, with its first and last mel frame."""
    log_power: np.ndarray
    """Log10 of mel power, [frames, 80], float16."""
    round_trip: bool
    """Whether it went through the bundled codec."""


@cache
def _filters() -> torch.Tensor:
    return torch.from_numpy(WhisperFeatureExtractor().mel_filters.T.astype(np.float32))


def mel_power(samples: np.ndarray) -> np.ndarray:
    """Whisper's mel power.

    Args:
        samples: float32 at `ASR_RATE`.

    Returns:
        [frames, 80], float32.
    """
    spectrum = torch.stft(torch.from_numpy(samples), 400, _HOP, window=torch.hann_window(400), return_complex=True)
    return (_filters() @ spectrum[:, :-1].abs().square()).T.numpy()


def noise_power(seconds: float, rng: np.random.Generator) -> np.ndarray:
    """Mel power of white noise, each band's mean 1, so that colour is one multiplication away."""
    power = mel_power(rng.standard_normal(int(seconds * ASR_RATE)).astype(np.float32))
    return power / power.mean(axis=0)


def written_words(text: str, words: list[tuple[str, float, float]]) -> list[tuple[str, float, float]]:
    """Every written word with its times (s).

    espeak-ng speaks some pairs, such as "there are" and "in the", as one word and names the first alone; such a pair
    shares its time by its letters.

    Args:
        text: The sentence.
        words: espeak-ng's words.
    """
    written: list[tuple[str, float, float]] = []
    pieces = text.split()
    for index, (_, start, end) in enumerate(words):
        following = words[index + 1][0] if index + 1 < len(words) else None
        group = [pieces.pop(0)]
        while pieces and pieces[0].rstrip(".,") != following:
            group.append(pieces.pop(0))
        letters = np.cumsum([0, *(len(piece.rstrip(".,")) for piece in group)])
        times = start + (end - start) * letters / letters[-1]
        written += [(piece, float(a), float(b)) for piece, a, b in zip(group, times[:-1], times[1:], strict=True)]
    return written


def make_utterance(clip: Clip, samples: np.ndarray, round_trip: bool) -> Utterance:
    """The clip as mel power.

    Args:
        clip: Gives the text and the times.
        samples: int16 or float, at the material's rate; the clip's own or what the codec made of it.
        round_trip: Whether the codec made it.
    """
    wave = torch.from_numpy(samples.astype(np.float32))
    mono = torchaudio.functional.resample(wave / wave.abs().max().clamp_min(1e-6), SAMPLE_RATE, ASR_RATE).numpy()
    log = np.log10(np.maximum(mel_power(np.pad(mono, (0, -len(mono) % _HOP))), 1e-8)).astype(np.float16)
    written = written_words(clip.text, clip.words)
    words = [(word, round(start * MEL_RATE), round(end * MEL_RATE)) for word, start, end in written]
    return Utterance(clip.text, words, log, round_trip)


def save_utterances(path: Path, utterances: list[Utterance]) -> None:
    """Cache utterances in one file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save([(u.text, u.words, torch.from_numpy(u.log_power), u.round_trip) for u in utterances], path)


def load_utterances(folder: Path) -> list[Utterance]:
    """Every utterance cached in the folder's `utterances*.pt`."""
    rows = [row for path in sorted(folder.glob("utterances*.pt")) for row in torch.load(path, weights_only=True)]
    return [Utterance(text, words, log.numpy(), coded) for text, words, log, coded in rows]


def load_round_trips(folder: Path, clips: list[Clip], count: int, level: float = 0.7) -> list[np.ndarray]:
    """What the bundled codec makes of the first clips, from `folder` if it was made there before by the same codec.

    Args:
        folder: Holds one `.npz` for each codec and count.
        clips: The material.
        count: How many of them.
        level: Peak of the waveform that is encoded.

    Returns:
        int16 waveforms as long as their clips, at the material's rate.
    """
    codec = load_codec("bundled")
    path = folder / f"round-trip-{count}-{codec.digest[:12]}.npz"
    if not path.exists():
        waves: list[np.ndarray] = []
        for clip in clips[:count]:
            samples = torch.from_numpy(clip.samples.astype(np.float32))
            wave = codec.decode(codec.encode(level * samples[None] / samples.abs().max()))[0, : len(samples)]
            waves.append((wave * 32767).clamp(-32768, 32767).to(torch.int16).numpy())
        building = path.with_suffix(".tmp.npz")
        np.savez(building, samples=np.concatenate(waves), ends=np.cumsum([len(wave) for wave in waves]))
        building.rename(path)
        return waves
    with np.load(path) as stored:
        return np.split(stored["samples"], stored["ends"][:-1])


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--material", type=Path, default=Path("build/material"))
    parser.add_argument("--work", type=Path, default=Path("build/whisper"))
    parser.add_argument("--codec", type=int, default=0, help="how many sentences to send through the bundled codec")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    clips = load_material(arguments.material)
    if arguments.codec:
        waves = load_round_trips(arguments.material, clips, arguments.codec)
        coded = [make_utterance(clip, wave, round_trip=True) for clip, wave in zip(clips, waves, strict=False)]
        save_utterances(arguments.work / "utterances-coded.pt", coded)
    else:
        clean = [make_utterance(clip, clip.samples, round_trip=False) for clip in clips]
        save_utterances(arguments.work / "utterances-clean.pt", clean)


if __name__ == "__main__":
    main()
