"""From Shar shards to padded batches, over one flat memory-mapped file of codes.

The shards are read through once and packed into the stage's work folder. From then on any utterance is one slice away,
whatever the corpus's size. The order is drawn in `valle2.training.sampler`.
"""

import json
from dataclasses import astuple, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from lhotse.cut import Cut
from torch import Tensor

from valle2.config.model import TransformerConfig
from valle2.shards import load_codes, read_shards
from valle2.stage import output, write_json
from valle2.text import Bpe
from valle2.types import Split


@dataclass(frozen=True)
class Utterance:
    """One line of the packed index: where the codes are, and what is said by whom.

    Attributes:
        id: Cut id.
        speaker: Who.
        text: BPE tokens.
        start: First frame in the packed file.
        num_frames: Frames.
        breaks: Between two words each: tokens and frames before it. Empty where not asked for, or not known.
    """

    id: str
    speaker: str
    text: list[int]
    start: int
    num_frames: int
    breaks: list[tuple[int, int]] = field(default_factory=list)

    def span(self, begin: tuple[int, int], end: tuple[int, int]) -> "Utterance":
        """What lies between two breaks."""
        (token, frame), (last_token, last_frame) = begin, end
        text = self.text[token:last_token]
        inner = [(t - token, f - frame) for t, f in self.breaks if frame < f < last_frame]
        return Utterance(self.id, self.speaker, text, self.start + frame, last_frame - frame, inner)

    def words(self) -> tuple[Int[np.ndarray, "s"], Int[np.ndarray, "t"]]:
        """The number, from 0, of each token's and of each frame's word; one word where nothing is known of words."""
        tokens, frames = (np.zeros(size, np.int64) for size in (len(self.text), self.num_frames))
        for token, frame in self.breaks:
            tokens[token:] += 1
            frames[frame:] += 1
        return tokens, frames


@dataclass(frozen=True)
class Batch:
    """Padded on the right; see the models' `loss` for the meaning.

    Attributes:
        ids: Cut ids, of all utterances in a row where rows are joined.
        num_frames: Frames without padding.
        text_words: Which word of the row each token belongs to, from 1; 0 is padding.
        code_words: Which word is spoken in each frame.
    """

    ids: list[str]
    text: Int[Tensor, "b s"]
    text_lengths: Int[Tensor, "b"]
    codes: Int[Tensor, "b k t"]
    code_lengths: Int[Tensor, "b"]
    text_words: Int[Tensor, "b s"]
    code_words: Int[Tensor, "b t"]

    @property
    def num_frames(self) -> int:
        return int(self.code_lengths.sum())

    def to(self, device: str) -> "Batch":
        """The same on another device."""
        tensors: dict[str, Any] = {
            name: value.to(device) for name, value in vars(self).items() if isinstance(value, torch.Tensor)
        }
        return replace(self, **tensors)


class Corpus:
    """A split's utterances with random access to their codes."""

    def __init__(self, folder: Path, name: str) -> None:
        index = json.loads((folder / f"{name}.json").read_text())
        self.utterances = [
            Utterance(id, speaker, text, start, num_frames, [(token, frame) for token, frame in breaks])
            for id, speaker, text, start, num_frames, breaks in index["utterances"]
        ]
        self.left_out: int = index["left_out"]
        self.num_frames = sum(utterance.num_frames for utterance in self.utterances)
        path = folder / f"{name}.npy"
        self._codes = np.load(path, mmap_mode="r") if self.utterances else np.zeros((0, 0), np.int16)

    def codes(self, utterance: Utterance) -> Int[np.ndarray, "t k"]:
        """Codes of one utterance, time first."""
        return self._codes[utterance.start : utterance.start + utterance.num_frames]


def pack(
    split: Split, bpe: Bpe, shape: TransformerConfig, num_codebooks: int, folder: Path, *, with_breaks: bool = False
) -> Corpus:
    """Read a split's shards into one file, or reuse the file of an earlier attempt.

    Utterances beyond the position tables are left out and counted.

    Args:
        split: Which.
        bpe: Tokenizer of the text.
        shape: Bounds of text and frames.
        num_codebooks: How many codebooks to keep, from the first; the AR model needs one.
        folder: The stage's work folder.
        with_breaks: Whether to keep where words meet.
    """
    if not (folder / f"{split}.json").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        rows: list[Utterance] = []
        end = left_out = 0
        with (folder / f"{split}.raw").open("wb") as file:
            for cut in read_shards(output("tokenize"), split):
                text = bpe.encode(cut.supervisions[0].text)
                codes = load_codes(cut)[:num_codebooks]
                if len(text) > shape.max_text_tokens or codes.shape[1] > shape.max_frames or not text:
                    left_out += 1
                    continue
                file.write(np.ascontiguousarray(codes.T, dtype=np.int16).tobytes())
                breaks = word_breaks(cut, bpe, text, codes.shape[1]) if with_breaks else []
                rows.append(Utterance(cut.id, cut.supervisions[0].speaker, text, end, codes.shape[1], breaks))
                end += codes.shape[1]
        if rows:
            raw = np.memmap(folder / f"{split}.raw", np.int16, "r", shape=(end, num_codebooks))
            np.save(folder / f"{split}.npy", raw)
        (folder / f"{split}.raw").unlink()
        write_json(folder / f"{split}.json", {"utterances": list(map(astuple, rows)), "left_out": left_out})
    return Corpus(folder, split)


def word_breaks(cut: Cut, bpe: Bpe, text: list[int], num_frames: int) -> list[tuple[int, int]]:
    """Where a cut can be divided between two words, as (tokens before, frames before).

    None where the words of the text are not those with times (numbers, for example, are other words when spelt out),
    or where a token spans two words.
    """
    spoken = cut.supervisions[0]
    timed = (spoken.alignment or {}).get("word", [])
    words = [bpe.encode(word) for word in spoken.text.split()]
    if len(timed) != len(words) or [token for word in words for token in word] != text:
        return []
    breaks, tokens, last = [], 0, 0
    for word, item, following in zip(words, timed, timed[1:], strict=False):
        tokens += len(word)
        frame = round((item.end + following.start) / 2 / cut.duration * num_frames)
        if last < frame < num_frames:
            breaks.append((tokens, frame))
            last = frame
    return breaks


def collate(corpus: Corpus, rows: list[list[Utterance]], group_size: int) -> Batch:
    """Read and pad a batch; each row is clipped at its start to whole groups (3.2)."""
    codes = [np.concatenate([corpus.codes(utterance) for utterance in row]) for row in rows]
    codes = [row[len(row) % group_size :] for row in codes]
    texts = [np.concatenate([utterance.text for utterance in row]) for row in rows]
    code_lengths, text_lengths = [len(row) for row in codes], [len(text) for text in texts]
    padded_codes = np.zeros((len(rows), codes[0].shape[1], max(code_lengths)), np.int64)
    padded_text = np.zeros((len(rows), max(text_lengths)), np.int64)
    text_words, code_words = np.zeros_like(padded_text), np.zeros_like(padded_codes[:, 0])
    for i, (row, code, text) in enumerate(zip(rows, codes, texts, strict=True)):
        padded_codes[i, :, : len(code)] = code.T
        padded_text[i, : len(text)] = text
        token_words, frame_words = join_words(row)
        text_words[i, : len(text)] = token_words
        code_words[i, : len(code)] = frame_words[len(frame_words) - len(code) :]
    return Batch(
        ids=[utterance.id for row in rows for utterance in row],
        text=torch.from_numpy(padded_text),
        text_lengths=torch.tensor(text_lengths),
        codes=torch.from_numpy(padded_codes),
        code_lengths=torch.tensor(code_lengths),
        text_words=torch.from_numpy(text_words),
        code_words=torch.from_numpy(code_words),
    )


def join_words(row: list[Utterance]) -> tuple[Int[np.ndarray, "s"], Int[np.ndarray, "t"]]:
    """The number, from 1, of each token's and of each frame's word in a row of utterances."""
    tokens, frames, first = [], [], 1
    for utterance in row:
        token_words, frame_words = utterance.words()
        tokens.append(token_words + first)
        frames.append(frame_words + first)
        first = int(tokens[-1][-1]) + 1
    return np.concatenate(tokens), np.concatenate(frames)
