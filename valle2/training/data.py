"""From Shar shards to padded batches.

Unless it is streamed (`valle2.training.streaming`), a split is read through once and packed into one flat
memory-mapped file of codes in the stage's work folder. From then on any utterance is one slice away, whatever the
corpus's size. The order is drawn in `valle2.training.sampler`; batches are made ahead in `valle2.training.loader`.
"""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from lhotse.cut import Cut
from torch import Tensor

from valle2.config.model import TransformerConfig
from valle2.errors import TrainingError
from valle2.shards import load_codes, read_shards
from valle2.stage import output
from valle2.text import Bpe
from valle2.training.cache import ShardCache
from valle2.training.codes import Codes, PackedCodes
from valle2.training.index import ArrayWriter, IndexWriter, Utterance, Utterances, alone
from valle2.training.rows import Arrays, Row, pad_rows
from valle2.types import Split


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

    @classmethod
    def of(cls, arrays: Arrays) -> "Batch":
        """Tensors of the types that models take."""
        return cls(arrays.ids, *(torch.from_numpy(getattr(arrays, name)).long() for name in _TENSORS))

    @property
    def num_frames(self) -> int:
        return int(self.code_lengths.sum())

    def positions(self, group_size: int) -> tuple[int, int]:
        """What the model attends to: text tokens and groups of frames, without and with padding.

        Models put a row's groups right behind its text (`valle2.model.layers.join`), so a row is padded once.
        """
        lengths = self.text_lengths + self.code_lengths // group_size
        return int(lengths.sum()), len(lengths) * int(lengths.max())

    def to(self, device: str) -> "Batch":
        """The same on another device."""
        tensors: dict[str, Any] = {
            name: value.to(device) for name, value in vars(self).items() if isinstance(value, torch.Tensor)
        }
        return replace(self, **tensors)


_TENSORS = ("text", "text_lengths", "codes", "code_lengths", "text_words", "code_words")


def padding_share(batches: Sequence[Batch], group_size: int) -> float:
    """Share of the positions of batches that are padding."""
    counts = [batch.positions(group_size) for batch in batches]
    return 1 - sum(used for used, _ in counts) / sum(padded for _, padded in counts)


class Corpus:
    """A split's utterances with random access to their codes.

    Args:
        folder: Where `pack` put it.
        name: Of the split.
        codes: What reads the codes; None: the packed file.
        cache: The shards, where the corpus is streamed.
    """

    def __init__(self, folder: Path, name: str, codes: Codes | None = None, cache: ShardCache | None = None) -> None:
        self.name = name
        self.utterances = Utterances(folder / name)
        self.left_out: int = self.utterances.facts["left_out"]
        self.num_frames: int = self.utterances.facts["frames"]
        self.codes = codes or PackedCodes(folder / name / "codes.npy")
        """Gives the codes of one utterance, time first."""
        self.cache = cache


def pack(
    split: Split, bpe: Bpe, shape: TransformerConfig, num_codebooks: int, folder: Path, *, with_breaks: bool = False
) -> Corpus:
    """Read a split's shards into one file, or reuse the file of an earlier attempt.

    Utterances beyond the position tables are left out and counted. Ranks of one machine may call this at once: one of
    them reads, the others wait.

    Args:
        split: Which.
        bpe: Tokenizer of the text.
        shape: Bounds of text and frames.
        num_codebooks: How many codebooks to keep, from the first; the AR model needs one.
        folder: The stage's work folder.
        with_breaks: Whether to keep where words meet.
    """
    with alone(folder):
        if not (folder / split).is_dir():
            with (
                IndexWriter(folder / split) as index,
                closing(ArrayWriter(index.building / "codes.npy", "<i2", num_codebooks)) as array,
            ):
                end = 0
                for cut in read_shards(output("tokenize"), split):
                    text = bpe.encode(cut.supervisions[0].text)
                    codes = load_codes(cut)[:num_codebooks]
                    if not fits(len(text), codes.shape[1], shape):
                        index.leave_out()
                        continue
                    breaks = word_breaks(cut, bpe, text, codes.shape[1]) if with_breaks else []
                    index.add(Utterance(cut.id, cut.supervisions[0].speaker, text, end, codes.shape[1], breaks))
                    array.extend(codes.T)
                    end += codes.shape[1]
    return Corpus(folder, split)


def fits(num_tokens: int, num_frames: int, shape: TransformerConfig) -> bool:
    """Whether an utterance can be a row: not empty, and not beyond the position tables."""
    return 0 < num_tokens <= shape.max_text_tokens and 0 < num_frames <= shape.max_frames


def check_size(corpus: Corpus, batch_frames: int, frame_rate: float, kind: str) -> None:
    """Refuse a training set that does not fill one batch.

    Raises:
        TrainingError: The sentence says whether there is too little, or it is too long for the model.
    """
    count, left_out = len(corpus.utterances), corpus.left_out
    if not count and not left_out:
        raise TrainingError(
            f"the {corpus.name} split is empty; see `artifacts/curate/funnel.json` for what dropped its segments"
        )
    if not count:
        raise TrainingError(
            f"all {left_out} utterances of the {corpus.name} split are longer than the model's position tables; raise "
            f"model.{kind}.max_text_tokens or model.{kind}.max_frames"
        )
    if corpus.num_frames < batch_frames:
        more = f" ({left_out} more are longer than model.{kind}'s position tables)" if left_out else ""
        raise TrainingError(
            f"training set too small for the batch: {count} utterances{more} with {corpus.num_frames} "
            f"frames ({corpus.num_frames / frame_rate:.0f} s), less than one batch of {batch_frames} frames; "
            f"add data, or lower train_{kind}.batch_frames"
        )


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


def collate(corpus: Corpus, rows: Sequence[Row], group_size: int) -> Batch:
    """Read and pad a batch; each row is clipped at its start to whole groups (3.2)."""
    return Batch.of(pad_rows(corpus.codes, rows, group_size))
