"""Which utterances make a batch: of about one length, in an order that is a pure function of (seed, epoch).

The place in it is two numbers, so training goes on from anywhere at once. Reading them is `valle2.training.data`'s.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from valle2.config.model import TransformerConfig
from valle2.config.train import TrainConfig
from valle2.errors import TrainingError
from valle2.training.data import Corpus, Utterance

SPAN_WORDS = (1, 4)
"""Bounds of the words in a span, where utterances are cut into spans."""

MIN_SPAN_FRAMES = 20
"""Shorter spans take one more word in."""

GROWTH_SHARE = 0.25
"""Share of a training from scratch, in whole epochs, in which joined rows grow from single pieces to full length."""


@dataclass
class Place:
    """How far the sampler is: `batch` batches of `epoch` were taken."""

    epoch: int = 0
    batch: int = 0


class Sampler:
    """Batches of utterances of about one length, in an order drawn anew in every epoch.

    By default every utterance is a row of its own, as in the paper. A small corpus teaches more when utterances are cut
    into spans of a few words and spans and utterances of one speaker are joined in random company: the
    sentences' grammar no longer says what comes next, only the text does; and prompt and target are joined likewise in
    synthesis. From scratch, joined rows grow over the first epochs: in a short row every word is easily found, and what
    the model learns of words there lets it keep its place in a long one.

    Args:
        corpus: What to draw from.
        settings: Size of batches and joined rows.
        shape: Bounds of a row.
        frame_rate: Frames per second.
        seed: Of the order.
        kind: Section to name in errors, ar or nar.

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
    ) -> None:
        self.corpus, self.frame_rate, self.seed = corpus, frame_rate, seed
        self.batch_frames = settings.batch_frames
        self.join_frames = min(round(settings.join_seconds * frame_rate), shape.max_frames)
        self.word_spans, self.max_text = settings.word_spans, shape.max_text_tokens
        if corpus.num_frames < self.batch_frames:
            raise TrainingError(
                f"training set too small for the batch: {len(corpus.utterances)} utterances with {corpus.num_frames} "
                f"frames ({corpus.num_frames / frame_rate:.0f} s), less than one batch of {self.batch_frames} frames; "
                f"add data, or lower train_{kind}.batch_frames"
            )
        num_frames = settings.num_steps * settings.accumulate * settings.batch_frames
        self.growing_epochs = 0 if settings.warm_start else int(GROWTH_SHARE * num_frames / corpus.num_frames)
        self._epoch = -1
        self._batches: list[list[list[Utterance]]] = []

    def take(self, place: Place, count: int) -> tuple[list[list[list[Utterance]]], Place]:
        """The next `count` batches (batch, row, utterances in the row) and the place behind them."""
        taken = []
        for _ in range(count):
            if place.batch >= len(self.epoch(place.epoch)):
                place = Place(place.epoch + 1, 0)
            taken.append(self.epoch(place.epoch)[place.batch])
            place = Place(place.epoch, place.batch + 1)
        return taken, place

    def epoch(self, epoch: int) -> list[list[list[Utterance]]]:
        """All batches of an epoch, the same for the same seed."""
        if epoch != self._epoch:
            rng = np.random.default_rng([self.seed, epoch])
            grown = min(epoch / self.growing_epochs, 1.0) if self.growing_epochs else 1.0
            rows = self._rows(rng, self.join_frames * grown)
            # A little noise, so that rows of nearly one length meet others in every epoch.
            noise = rng.uniform(0.9, 1.1, len(rows))
            lengths = np.array([sum(utterance.num_frames for utterance in row) for row in rows])
            batches = list(batch_by_frames([rows[i] for i in np.argsort(lengths * noise)], self.batch_frames))
            self._batches = [batches[i] for i in rng.permutation(len(batches))]
            self._epoch = epoch
        return self._batches

    def _rows(self, rng: np.random.Generator, join_frames: float) -> list[list[Utterance]]:
        shuffled = [self.corpus.utterances[i] for i in rng.permutation(len(self.corpus.utterances))]
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
