"""Recognised words to segments: checked times, padding that never overlaps, and every sample accounted for.

Pure functions over times; who recognises is `valle2.asr`, who stores is `valle2.corpus.transcribe`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from valle2.aligner import Sentence, Word
from valle2.asr import Window
from valle2.config.transcribe import TranscribeConfig
from valle2.text import normalise
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


@dataclass(frozen=True)
class Span:
    """A stretch of a recording in samples: a segment if `reason` is empty, else dropped for that reason."""

    start: int
    end: int
    reason: str = ""
    text: str = ""
    words: tuple[TimedWord, ...] = ()
    sentence: Sentence | None = None
    """Of which it was made."""


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


def split(
    sentences: Sequence[Sentence], windows: Sequence[Window], num_samples: int, rate: int, config: TranscribeConfig
) -> list[Span]:
    """Cut a recording at its sentences.

    Args:
        sentences: With word times, s.
        windows: Speech as recognised; one without text is dropped as `no_words`.
        num_samples: Of the recording, at `rate`.
        rate: Hz.
        config: Padding and the least and greatest duration.

    Returns:
        Spans in order that cover [0, num_samples) without overlap or gap. Reasons: `non_speech`, `no_words`,
        `bad_word_times`, `too_short`, `too_long`.
    """
    duration = num_samples / rate
    spans = [
        Span(round(window.start * rate), round(window.end * rate), "no_words")
        for window in windows
        if not normalise(window.text, config.language)
    ]
    spans += [_judge(sentence, duration, rate, config) for sentence in sentences]
    return cover(
        [_bounded(span, config, rate) for span in _pad(spans, num_samples, round(config.padding * rate))], num_samples
    )


def whole(
    sentences: Sequence[Sentence], text: str, num_samples: int, rate: int, config: TranscribeConfig
) -> list[Span]:
    """Keep a recording whole, with its given text and the word times of that text."""
    words = check_times([word for sentence in sentences for word in sentence.words], num_samples / rate)
    if not normalise(text, config.language):
        return [Span(0, num_samples, "no_words")]
    if not words:
        return [Span(0, num_samples, "bad_word_times")]
    return [_bounded(Span(0, num_samples, "", text, words, sentences[0]), config, rate)]


def _judge(sentence: Sentence, duration: Seconds, rate: int, config: TranscribeConfig) -> Span:
    """The sentence from its first to its last word, or its window if no word has a time."""
    words = check_times(sentence.words, duration)
    if words:
        reason = "" if normalise(sentence.text, config.language) else "no_words"
        return Span(round(words[0].start * rate), round(words[-1].end * rate), reason, sentence.text, words, sentence)
    times = [time for word in sentence.words for time in (word.start, word.end) if time is not None]
    times = times or [sentence.window.start, sentence.window.end]
    return Span(round(min(times) * rate), round(max(times) * rate), "bad_word_times")


def _pad(spans: list[Span], num_samples: int, padding: int) -> list[Span]:
    """Widen segments by `padding`, at most to the middle of the gap to a neighbour; clip what overlaps."""
    ordered = sorted(spans, key=lambda span: (span.start, span.end))
    clipped: list[Span] = []
    position = 0
    for span in ordered:
        start, end = min(max(span.start, position), num_samples), min(max(span.end, position), num_samples)
        clipped.append(replace(span, start=start, end=end))
        position = end
    padded = []
    for index, span in enumerate(clipped):
        if span.reason:
            padded.append(span)
            continue
        before = (clipped[index - 1].end + span.start + 1) // 2 if index else 0
        after = (span.end + clipped[index + 1].start) // 2 if index + 1 < len(clipped) else num_samples
        padded.append(replace(span, start=max(span.start - padding, before), end=min(span.end + padding, after)))
    return padded


def _bounded(span: Span, config: TranscribeConfig, rate: int) -> Span:
    if span.reason:
        return span
    length = span.end - span.start
    if length < config.min_duration * rate:
        return Span(span.start, span.end, "too_short")
    if length > config.max_duration * rate:
        return Span(span.start, span.end, "too_long")
    return span


def cover(spans: Sequence[Span], num_samples: int) -> list[Span]:
    """The same spans in order, empty ones left out, with every gap filled by a `non_speech` one."""
    covered: list[Span] = []
    position = 0
    for span in spans:
        if span.end <= span.start:
            continue
        assert span.start >= position, f"spans overlap at sample {span.start}"
        if span.start > position:
            covered.append(Span(position, span.start, "non_speech"))
        covered.append(span)
        position = span.end
    if position < num_samples:
        covered.append(Span(position, num_samples, "non_speech"))
    return covered
