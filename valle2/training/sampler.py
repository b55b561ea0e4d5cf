"""Which utterances make a batch: of about one length, in an order that is a pure function of (seed, epoch).

The place in it is two numbers, so training goes on from anywhere at once, and every rank knows the order of all.
Batches are read and padded in `valle2.training.rows`, ahead of the steps by `valle2.training.loader`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
from jaxtyping import Int

from valle2.config.model import TransformerConfig
from valle2.config.train import TrainConfig
from valle2.training.data import Corpus, check_size
from valle2.training.index import Utterance, Utterances

SPAN_WORDS = (1, 4)
"""Bounds of the words in a span, where utterances are cut into spans."""

MIN_SPAN_FRAMES = 20
"""Shorter spans take one more word in."""

GROWTH_SHARE = 0.25
"""Share of a training from scratch, in whole epochs, in which joined rows grow from single pieces to full length."""

NOISE, JOINED_NOISE = 0.03, 0.1
"""How far lengths are off when rows are sorted by them, so that rows of nearly one length meet others every epoch."""

Batch = list[list[Utterance]]
"""Rows of a batch; a row is one utterance, or several of one speaker."""


@dataclass
class Place:
    """How far the sampler is: `batch` batches of `epoch` were taken."""

    epoch: int = 0
    batch: int = 0


class Batches(Protocol):
    """Batches of a window."""

    def __len__(self) -> int: ...
    def __getitem__(self, place: int, /) -> Batch: ...


class Columns:
    """Batches whose rows are single utterances: numbers, of which utterances are made as they are asked for."""

    def __init__(
        self,
        utterances: Utterances,
        order: Int[np.ndarray, "n"],
        starts: Int[np.ndarray, "m"],
        ends: Int[np.ndarray, "m"],
    ) -> None:
        self._utterances = utterances
        self._order, self._starts, self._ends = order, starts, ends

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, place: int) -> Batch:
        return [[self._utterances[int(i)]] for i in self._order[self._starts[place] : self._ends[place]]]


class Epoch:
    """All batches of an epoch, window by window.

    Args:
        windows: The batches of each.
    """

    def __init__(self, windows: Sequence[Batches]) -> None:
        self._windows = windows
        self._ends = np.cumsum([len(window) for window in windows])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, place: int) -> Batch:
        number = self.window(place)
        return self._windows[number][place - (int(self._ends[number - 1]) if number else 0)]

    def __iter__(self) -> Iterator[Batch]:
        return (self[place] for place in range(len(self)))

    def window(self, place: int) -> int:
        """The number of the window that a batch is from."""
        return int(np.searchsorted(self._ends, place, "right"))


class Sampler:
    """Batches of utterances of about one length, in an order drawn anew in every epoch.

    By default every utterance is a row of its own, as in the paper. A small corpus teaches more when utterances are cut
    into spans of a few words and spans and utterances of one speaker are joined in random company: the
    sentences' grammar no longer says what comes next, only the text does; and prompt and target are joined likewise in
    synthesis. From scratch, joined rows grow over the first epochs: in a short row every word is easily found, and what
    the model learns of words there lets it keep its place in a long one.

    A corpus that is streamed is drawn from window by window: an epoch's batches are those of a few shards, drawn anew
    in every epoch, then those of a few others, so that only these need to be on disk.

    Args:
        corpus: What to draw from.
        settings: Size of batches and joined rows, and shards in a window.
        shape: Bounds of a row.
        frame_rate: Frames per second.
        seed: Of the order.
        kind: Section to name in errors, ar or nar.
        group_size: Frames to a position of the model.

    Raises:
        TrainingError: The corpus does not fill one batch.
    """

    def __init__(
        self,
        corpus: Corpus,
        settings: TrainConfig,
        shape: TransformerConfig,
        frame_rate: float,
        seed: int,
        kind: str,
        group_size: int = 1,
    ) -> None:
        check_size(corpus, settings.batch_frames, frame_rate, kind)
        self.corpus, self.frame_rate, self.seed, self.group_size = corpus, frame_rate, seed, group_size
        self.batch_frames = settings.batch_frames
        self.join_frames = min(round(settings.join_seconds * frame_rate), shape.max_frames)
        self.word_spans, self.max_text = settings.word_spans, shape.max_text_tokens
        self.window_shards = settings.stream_shards
        num_frames = settings.num_steps * settings.accumulate * settings.batch_frames
        self.growing_epochs = 0 if settings.warm_start else int(GROWTH_SHARE * num_frames / corpus.num_frames)
        self._epoch, self._batches = -1, Epoch([[]])
        self._windows: dict[int, list[Int[np.ndarray, " w"]]] = {}

    def take(self, place: Place, count: int) -> tuple[list[Batch], Place]:
        """The next `count` batches and the place behind them."""
        taken = []
        for _ in range(count):
            place = self.locate(place)
            taken.append(self.epoch(place.epoch)[place.batch])
            place = Place(place.epoch, place.batch + 1)
        return taken, place

    def locate(self, place: Place) -> Place:
        """The same place, or the start of the next epoch where one ends."""
        return Place(place.epoch + 1, 0) if place.batch >= len(self.epoch(place.epoch)) else place

    def epoch(self, epoch: int) -> Epoch:
        """All batches of an epoch, the same for the same seed."""
        if epoch != self._epoch:
            rng = np.random.default_rng([self.seed, epoch])
            joined = self.join_frames or self.word_spans
            draw = self._joined if joined else self._single
            self._batches = Epoch([draw(rng, epoch, members) for members in self._members(epoch)])
            self._epoch = epoch
        return self._batches

    def windows(self, epoch: int) -> list[Int[np.ndarray, "w"]]:
        """The shards that each window of an epoch is drawn from; a corpus that is not streamed has no windows."""
        if not self.window_shards:
            return []
        if epoch not in self._windows:
            shards = np.flatnonzero(np.diff(self._shard_ends, prepend=0))
            order = np.random.default_rng([self.seed, epoch, 1]).permutation(shards)
            firsts = range(0, len(order), self.window_shards)
            self._windows = {known: own for known, own in self._windows.items() if known >= epoch - 1}
            self._windows[epoch] = [order[first : first + self.window_shards] for first in firsts]
        return self._windows[epoch]

    @cached_property
    def _shard_ends(self) -> Int[np.ndarray, "s"]:
        """Behind each shard's last utterance."""
        shards = self.corpus.utterances.shards
        return np.searchsorted(shards, np.arange(shards[-1] + 1), "right")

    @cached_property
    def _utterances(self) -> list[Utterance]:
        """All of them as objects: only where they are joined or cut, which is for small corpora."""
        return list(self.corpus.utterances)

    def _members(self, epoch: int) -> list[Int[np.ndarray, "n"]]:
        """The utterances of each window."""
        if not self.window_shards:
            return [np.arange(len(self.corpus.utterances), dtype=np.int32)]
        ends = [0, *self._shard_ends.tolist()]
        return [
            np.concatenate([np.arange(ends[shard], ends[shard + 1], dtype=np.int32) for shard in window])
            for window in self.windows(epoch)
        ]

    def _single(self, rng: np.random.Generator, epoch: int, members: Int[np.ndarray, "n"]) -> Batches:
        """Batches with an utterance to a row."""
        order = members[np.argsort(self._positions[members] * rng.uniform(1 - NOISE, 1 + NOISE, len(members)))]
        starts, ends = cut_batches(self.corpus.utterances.num_frames[order], self.batch_frames)
        shuffled = rng.permutation(len(starts))
        return Columns(self.corpus.utterances, order, starts[shuffled], ends[shuffled])

    @cached_property
    def _positions(self) -> Int[np.ndarray, "n"]:
        """What the model attends to in each utterance, times the group size, so that nothing is rounded."""
        utterances = self.corpus.utterances
        return (utterances.num_frames + self.group_size * utterances.text_lengths()).astype(np.int32)

    def _joined(self, rng: np.random.Generator, epoch: int, members: Int[np.ndarray, "n"]) -> Batches:
        """Batches with rows of spans and utterances."""
        grown = min(epoch / self.growing_epochs, 1.0) if self.growing_epochs else 1.0
        rows = self._rows(rng, self.join_frames * grown, members)
        noise = rng.uniform(1 - JOINED_NOISE, 1 + JOINED_NOISE, len(rows))
        lengths = np.array([sum(utterance.num_frames for utterance in row) for row in rows])
        batches = list(batch_by_frames([rows[i] for i in np.argsort(lengths * noise)], self.batch_frames))
        return [batches[i] for i in rng.permutation(len(batches))]

    def _rows(self, rng: np.random.Generator, join_frames: float, members: Int[np.ndarray, "n"]) -> Batch:
        shuffled = [self._utterances[members[i]] for i in rng.permutation(len(members))]
        pieces = [piece for utterance in shuffled for piece in self._spans(utterance, rng)]
        rows: list[list[Utterance]] = []
        open_rows: dict[str, tuple[list[Utterance], float]] = {}
        for i in rng.permutation(len(pieces)):
            piece = pieces[i]
            row, limit = open_rows.get(piece.speaker, ([], 0.0))
            frames = sum(other.num_frames for other in row) + piece.num_frames
            tokens = sum(len(other.text) for other in row) + len(piece.text)
            if row and frames <= limit and tokens <= self.max_text:
                row.append(piece)
            else:
                rows.append([piece])
                open_rows[piece.speaker] = rows[-1], join_frames * rng.uniform()
        return rows

    def _spans(self, utterance: Utterance, rng: np.random.Generator) -> list[Utterance]:
        """The utterance, or at random its spans."""
        if rng.uniform() >= self.word_spans or not utterance.breaks:
            return [utterance]
        begin, end = (0, 0), (len(utterance.text), utterance.num_frames)
        spans, left = [], int(rng.integers(SPAN_WORDS[0], SPAN_WORDS[1] + 1))
        for place in utterance.breaks:
            left -= 1
            if left <= 0 and place[1] - begin[1] >= MIN_SPAN_FRAMES <= end[1] - place[1]:
                spans.append(utterance.span(begin, place))
                begin, left = place, int(rng.integers(SPAN_WORDS[0], SPAN_WORDS[1] + 1))
        return [*spans, utterance.span(begin, end)]


def cut_batches(frames: Int[np.ndarray, "n"], batch_frames: int) -> tuple[Int[np.ndarray, "m"], Int[np.ndarray, "m"]]:
    """Cut rows in their order into batches of at most `batch_frames` frames with padding, one row at least.

    Args:
        frames: Of each row.
        batch_frames: Bound of rows times frames in the longest row.

    Returns:
        Where each batch starts and ends.
    """
    # For all rows at once: where would a batch end that starts there?
    lengths = frames.astype(np.int64)
    highest = lengths.copy()
    ends = np.arange(1, len(lengths) + 1)
    growing = np.arange(len(lengths))
    while len(growing := growing[ends[growing] < len(lengths)]):
        size = ends[growing] - growing + 1
        high = np.maximum(highest[growing], lengths[ends[growing]])
        inside = size * high <= batch_frames
        growing = growing[inside]
        highest[growing] = high[inside]
        ends[growing] += 1
    starts, start, jumps = [], 0, ends.data
    while start < len(lengths):
        starts.append(start)
        start = jumps[start]
    chosen = np.array(starts, np.int32)
    return chosen, ends[chosen].astype(np.int32)


def batch_by_frames(rows: list[list[Utterance]], batch_frames: int) -> Iterator[list[list[Utterance]]]:
    """Cut a list of rows, sorted by length, into batches of at most `batch_frames` frames, one row at least."""
    batch: list[list[Utterance]] = []
    total = 0
    for row in rows:
        frames = sum(utterance.num_frames for utterance in row)
        if batch and total + frames > batch_frames:
            yield batch
            batch, total = [], 0
        batch.append(row)
        total += frames
    if batch:
        yield batch
