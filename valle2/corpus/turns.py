"""Words to voices: runs of words that one voice says alone.

Turns are told from sound and words from text, so that neither ends exactly where the other does. A word belongs to the
voice that speaks in most of it, and is never cut; what two say at once is nobody's. Who finds turns is
`valle2.diarisation`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from valle2.corpus.words import TimedWord
from valle2.diarisation import Turn
from valle2.types import Seconds

TOUCH = 0.05
"""s of other voices that are no more than two edges that do not meet exactly."""

Interval = tuple[Seconds, Seconds]


@dataclass(frozen=True)
class Run:
    """Words of one voice that nobody else speaks in or between."""

    words: tuple[TimedWord, ...]
    voice: str = ""
    """Empty if no voices were told apart."""
    overlapped: bool = False
    """Somebody else speaks too."""


def runs(words: Sequence[TimedWord], turns: Sequence[Turn]) -> list[Run]:
    """Cut words, in order, wherever the voice changes; without turns there is one run."""
    if not turns:
        return [Run(tuple(words))]
    together = overlaps(turns)
    found: list[Run] = []
    for word in words:
        voice, overlapped = _voice(word, turns), _shared((word.start, word.end), together) > TOUCH
        last = found[-1] if found else None
        if last and (last.voice, last.overlapped) == (voice, overlapped) and _joins(last, word, turns):
            found[-1] = Run((*last.words, word), voice, overlapped)
        else:
            found.append(Run((word,), voice, overlapped))
    return found


def overlaps(turns: Sequence[Turn]) -> list[Interval]:
    """When two or more voices speak at once, in order."""
    own = [
        interval
        for voice in sorted({turn.voice for turn in turns})
        for interval in merged([(turn.start, turn.end) for turn in turns if turn.voice == voice])
    ]
    edges = sorted((time, step) for start, end in own for time, step in ((start, 1), (end, -1)))
    found: list[Interval] = []
    speaking, since = 0, 0.0
    for time, step in edges:
        if speaking >= 2 and time > since:
            found.append((since, time))
        speaking, since = speaking + step, time
    return merged(found)


def merged(intervals: Sequence[Interval]) -> list[Interval]:
    """The same times, in order, where those that touch or overlap are one."""
    found: list[Interval] = []
    for start, end in sorted(intervals):
        if found and start <= found[-1][1]:
            found[-1] = (found[-1][0], max(end, found[-1][1]))
        else:
            found.append((start, end))
    return found


def _voice(word: TimedWord, turns: Sequence[Turn]) -> str:
    """Who speaks in most of a word; else whose turn is nearest."""
    spoken: dict[str, Seconds] = {}
    for turn in turns:
        spoken[turn.voice] = spoken.get(turn.voice, 0.0) + _shared((word.start, word.end), [(turn.start, turn.end)])
    best = max(spoken, key=lambda voice: spoken[voice])
    if spoken[best] > 0:
        return best
    middle = (word.start + word.end) / 2
    return min(turns, key=lambda turn: max(turn.start - middle, middle - turn.end)).voice


def _joins(run: Run, word: TimedWord, turns: Sequence[Turn]) -> bool:
    """Whether nobody else speaks between a run and the word after it."""
    others = merged([(turn.start, turn.end) for turn in turns if turn.voice != run.voice])
    return run.overlapped or _shared((run.words[-1].end, word.start), others) <= TOUCH


def _shared(one: Interval, others: Sequence[Interval]) -> Seconds:
    """s of an interval that lie in others, which do not overlap."""
    return sum(max(min(one[1], end) - max(one[0], start), 0.0) for start, end in others)
