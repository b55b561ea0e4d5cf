"""Utterances to padded arrays: what a worker of `valle2.training.loader` does. Needs numpy alone."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from valle2.training.codes import Codes
from valle2.training.index import Utterance

Row = Sequence[Utterance]
"""Utterances that are joined in one row of a batch."""


@dataclass(frozen=True)
class Arrays:
    """A batch as `valle2.training.data.Batch` has it, in small types: workers send it through a pipe."""

    ids: list[str]
    text: Int[np.ndarray, "b s"]
    text_lengths: Int[np.ndarray, "b"]
    codes: Int[np.ndarray, "b k t"]
    code_lengths: Int[np.ndarray, "b"]
    text_words: Int[np.ndarray, "b s"]
    code_words: Int[np.ndarray, "b t"]


def pad_rows(read: Codes, rows: Sequence[Row], group_size: int) -> Arrays:
    """Read and pad a batch; each row is clipped at its start to whole groups (3.2)."""
    codes = [np.concatenate([read(utterance) for utterance in row]) for row in rows]
    codes = [row[len(row) % group_size :] for row in codes]
    texts = [np.concatenate([utterance.text for utterance in row]) for row in rows]
    code_lengths, text_lengths = [len(row) for row in codes], [len(text) for text in texts]
    padded_codes = np.zeros((len(rows), codes[0].shape[1], max(code_lengths)), np.int16)
    padded_text = np.zeros((len(rows), max(text_lengths)), np.int32)
    text_words, code_words = np.zeros_like(padded_text), np.zeros_like(padded_codes[:, 0])
    for i, (row, code, text) in enumerate(zip(rows, codes, texts, strict=True)):
        padded_codes[i, :, : len(code)] = code.T
        padded_text[i, : len(text)] = text
        token_words, frame_words = join_words(row)
        text_words[i, : len(text)] = token_words
        code_words[i, : len(code)] = frame_words[len(frame_words) - len(code) :]
    ids = [utterance.id for row in rows for utterance in row]
    lengths = np.array(text_lengths), np.array(code_lengths)
    return Arrays(ids, padded_text, lengths[0], padded_codes, lengths[1], text_words, code_words)


def join_words(row: Row) -> tuple[Int[np.ndarray, "s"], Int[np.ndarray, "t"]]:
    """The number, from 1, of each token's and of each frame's word in a row of utterances."""
    tokens, frames, first = [], [], 1
    for utterance in row:
        token_words, frame_words = utterance.words()
        tokens.append(token_words + first)
        frames.append(frame_words + first)
        first = int(tokens[-1][-1]) + 1
    return np.concatenate(tokens), np.concatenate(frames)
