"""Words with times that can be relied on."""

from collections.abc import Sequence
from dataclasses import dataclass

from valle2.aligner import Word
from valle2.types import Seconds

BACKWARDS = 0.05
"""s; a word that starts this much before the one ahead of it has no usable time."""


@dataclass(frozen=True)
class TimedWord:
    """A word with times that can be relied on: in order, inside the recording."""

    text: str
    start: Seconds
    end: Seconds
    score: float | None
    """The aligner's; None if the times were interpolated."""


def check_times(words: Sequence[Word], duration: Seconds) -> tuple[TimedWord, ...]:
    """Word times that run forwards inside [0, duration]; words without a time get one between their neighbours.

    Returns:
        As many words as given, or none if too little can be relied on: no word has times, or they run backwards.
    """
    timed: list[TimedWord | None] = []
    previous = 0.0
    last_start = 0.0
    for word in words:
        if word.start is None or word.end is None:
            timed.append(None)
            continue
        if word.start < last_start - BACKWARDS or word.end < word.start or word.start > duration:
            return ()
        last_start = word.start
        start = min(max(word.start, previous), duration)
        previous = min(max(word.end, start), duration)
        timed.append(TimedWord(word.text, start, previous, word.score))
    if not any(timed):
        return ()
    return _interpolate(words, timed)


def _interpolate(words: Sequence[Word], timed: list[TimedWord | None]) -> tuple[TimedWord, ...]:
    """Share each gap evenly among the words in it; before the first and after the last known word there is none."""
    whole: list[TimedWord] = []
    index = 0
    while index < len(timed):
        known = timed[index]
        if known is not None:
            whole.append(known)
            index += 1
            continue
        stop = next((i for i in range(index, len(timed)) if timed[i] is not None), len(timed))
        following = timed[stop] if stop < len(timed) else None
        left = whole[-1].end if whole else (following.start if following else 0.0)
        right = following.start if following else left
        step = (right - left) / (stop - index)
        for place, word in enumerate(words[index:stop]):
            whole.append(TimedWord(word.text, left + place * step, left + (place + 1) * step, None))
        index = stop
    return tuple(whole)
