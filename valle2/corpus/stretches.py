"""Units of work: recordings in order, until there is enough audio for one; a long recording is several stretches.

A long recording is cut where it is quietest, so that hours of it never are in memory, and so that several workers share
it. What a unit holds depends on the recordings alone, not on who works on it.
"""

from collections.abc import Iterable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from lhotse import MonoCut

from valle2.asr import ASR_RATE
from valle2.corpus.sound import FRAME, frame_levels
from valle2.types import Seconds

_MARGIN = 10.0
"""s before and after an even cut among which the quietest moment is looked for."""
_QUIET = 15
"""Frames whose mean level is compared: 0.3 s."""


@dataclass(frozen=True)
class Stretch:
    """One of `count` parts of a recording."""

    recording: dict[str, Any]
    """As ingested, a cut as a dict."""
    index: int = 0
    count: int = 1

    @property
    def seconds(self) -> Seconds:
        """About how long it is."""
        return float(self.recording["duration"]) / self.count


@dataclass(frozen=True)
class Unit:
    """What one worker does at a time."""

    index: int
    stretches: tuple[Stretch, ...]

    @property
    def name(self) -> str:
        """What it holds."""
        first, last = (self.stretches[place].recording["id"] for place in (0, -1))
        return f"recording {first}" if first == last else f"recordings {first} to {last}"

    @property
    def seconds(self) -> Seconds:
        """About how much audio there is."""
        return sum(stretch.seconds for stretch in self.stretches)


def units(recordings: Iterable[dict[str, Any]], seconds: Seconds) -> Iterator[Unit]:
    """Put recordings together, in order.

    Args:
        recordings: Cuts as dicts.
        seconds: Of audio in a unit. A recording of more than one and a half times as much is cut into stretches; one
            that came with its text stays in one unit, because the text has to be found again in all of them.
    """
    waiting: list[Stretch] = []
    index = 0
    for recording in recordings:
        count = max(round(recording["duration"] / seconds), 1) if recording["duration"] > 1.5 * seconds else 1
        stretches = [Stretch(recording, place, count) for place in range(count)]
        together = count > 1 and bool(recording["supervisions"][0].get("text"))
        for group in [stretches] if together else [[stretch] for stretch in stretches]:
            size = sum(stretch.seconds for stretch in group)
            if waiting and size + sum(stretch.seconds for stretch in waiting) > 1.2 * seconds:
                yield Unit(index, tuple(waiting))
                index, waiting = index + 1, []
            waiting += group
    if waiting:
        yield Unit(index, tuple(waiting))


def load(stretch: Stretch) -> tuple[MonoCut, Float[np.ndarray, " n"]]:
    """The stretch as a part of its recording, and its samples at `ASR_RATE`."""
    recording = MonoCut.from_dict(deepcopy(stretch.recording))  # it takes its argument apart
    rate = recording.sampling_rate
    start, end = _edge(recording, stretch.index, stretch.count), _edge(recording, stretch.index + 1, stretch.count)
    part = recording
    if stretch.count > 1:
        part = recording.truncate(offset=start / rate, duration=(end - start) / rate, preserve_id=True)
    assert part.num_samples == end - start, f"{recording.id}: {part.num_samples} of {end - start} samples"
    waveform: np.ndarray = part.resample(ASR_RATE).load_audio()[0]
    return part, waveform


def _edge(recording: MonoCut, index: int, count: int) -> int:
    """Sample at which a stretch begins: the quietest moment near an even share of the recording."""
    if index in (0, count):
        return int(recording.num_samples * index / count)
    middle = recording.duration * index / count
    start = max(middle - _MARGIN, 0.0)
    near = recording.truncate(offset=start, duration=min(2 * _MARGIN, recording.duration - start))
    levels = frame_levels(near.resample(ASR_RATE).load_audio()[0], ASR_RATE)
    mean = np.convolve(10 ** (levels / 10), np.ones(min(_QUIET, len(levels))), "valid")
    quietest = (int(mean.argmin()) + _QUIET / 2) * FRAME
    return round((start + quietest) * recording.sampling_rate)
