"""A corpus with lengths like those of LibriSpeech's training set, and its batches: ours, and padded ones at random."""

import argparse
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import numpy as np
import torch
import torch.nn.functional as F

from valle2.config.model import TransformerConfig
from valle2.config.train import TrainConfig
from valle2.text import train_bpe
from valle2.training import data
from valle2.training.data import Batch, Corpus, Utterance
from valle2.training.sampler import Sampler

FRAME_RATE = 75.0
WORDS_PER_SECOND = 2.7
WORDS = (
    "the of and to a in that he was it his with as for had you not be her is at on by which have or from this".split()
)


def seconds(num: int, rng: np.random.Generator) -> np.ndarray:
    """Lengths that resemble LibriSpeech train (mean 12.3 s, most of 11 to 17 s, a tail down to 1.5 s).

    Three quarters are normal around 14.2 s with a deviation of 1.5 s, one quarter even from 1.5 to 12 s. Drawn, not
    read: a stand-in for the corpus.
    """
    drawn = np.where(rng.uniform(size=num) < 0.75, rng.normal(14.2, 1.5, num), rng.uniform(1.5, 12, num))
    return drawn.clip(1.5, 24.5)


def lengths_of(folder: str, num: int, rng: np.random.Generator) -> np.ndarray:
    """Lengths of the recordings in a folder, or drawn ones where it is empty."""
    if not folder:
        return seconds(num, rng)
    import soundfile

    files = sorted(Path(folder).rglob("*.flac"))
    return np.array([soundfile.info(str(file)).duration for file in files])


@contextmanager
def corpus(options: argparse.Namespace, folder: str = "") -> Iterator[Corpus]:
    """Random codes of these lengths, packed as a training packs them."""
    rng = np.random.default_rng(0)
    cuts = [cut(i, length, rng) for i, length in enumerate(lengths_of(folder, options.utterances, rng))]
    bpe = train_bpe([cut.supervisions[0].text for cut in cuts[:200]], 400)
    with (
        tempfile.TemporaryDirectory() as place,
        patch.object(data, "read_shards", lambda root, split: cuts),
        patch.object(data, "load_codes", lambda cut: cut.codes),
    ):
        yield data.pack("train", bpe, TransformerConfig(), 8, Path(place))


def cut(i: int, length: float, rng: np.random.Generator) -> SimpleNamespace:
    """An utterance with what `pack` reads of one."""
    text = " ".join(rng.choice(WORDS, max(round(length * WORDS_PER_SECOND), 1)))
    codes = rng.integers(0, 1024, (8, round(length * FRAME_RATE))).astype(np.int16)
    said = SimpleNamespace(text=text, speaker=f"s{i % 50}", alignment=None)
    return SimpleNamespace(id=f"{i}", supervisions=[said], codes=codes, duration=length)


def ours(corpus: Corpus, batch_frames: int, epoch: int = 0) -> list[list[list[Utterance]]]:
    """The sampler's batches of an epoch."""
    settings = TrainConfig(batch_frames=batch_frames)
    return Sampler(corpus, settings, TransformerConfig(), FRAME_RATE, 1, "ar").epoch(epoch)


def at_random(batches: list[list[list[Utterance]]], batch_frames: int) -> list[list[list[Utterance]]]:
    """The same rows in random batches, each of as many rows as have the budget's frames on average."""
    rows = [row for batch in batches for row in batch]
    frames = sum(utterance.num_frames for row in rows for utterance in row)
    size = max(round(batch_frames * len(rows) / frames), 1)
    order = np.random.default_rng(1).permutation(len(rows))
    return [[rows[i] for i in order[start : start + size]] for start in range(0, len(rows), size)]


def of_fixed_size(batches: list[list[list[Utterance]]], batch_frames: int) -> list[list[list[Utterance]]]:
    """The same rows in random batches that hold as many rows as fit the budget at the longest row's length."""
    rows = [row for batch in batches for row in batch]
    longest = max(sum(utterance.num_frames for utterance in row) for row in rows)
    size = max(batch_frames // longest, 1)
    order = np.random.default_rng(2).permutation(len(rows))
    return [[rows[i] for i in order[start : start + size]] for start in range(0, len(rows) // size * size, size)]


def fill(batch: Batch, num_frames: int, num_text: int) -> Batch:
    """Widen a batch to a fixed size; padding is computed as if it were speech, as it is in a rectangle."""
    wider = {
        "codes": F.pad(batch.codes, (0, num_frames - batch.codes.shape[-1])),
        "code_words": F.pad(batch.code_words, (0, num_frames - batch.code_words.shape[-1])),
        "text": F.pad(batch.text, (0, num_text - batch.text.shape[-1])),
        "text_words": F.pad(batch.text_words, (0, num_text - batch.text_words.shape[-1])),
        "code_lengths": torch.full_like(batch.code_lengths, num_frames),
        "text_lengths": torch.full_like(batch.text_lengths, num_text),
    }
    return replace(batch, **wider)


def padding_share(batches: list[list[list[Utterance]]]) -> float:
    """Share of a rectangle's tokens, text and frames joined, that are padding."""
    real = padded = 0
    for batch in batches:
        tokens = [sum(len(utterance.text) + utterance.num_frames for utterance in row) + 2 for row in batch]
        real, padded = real + sum(tokens), padded + len(tokens) * max(tokens)
    return 1 - real / padded
