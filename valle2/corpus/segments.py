"""Recognised words to segments: checked times, padding that never overlaps, and every sample accounted for.

Pure functions over times; who recognises is `valle2.asr`, who stores is `valle2.corpus.transcribe`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from valle2.aligner import Sentence
from valle2.asr import Window
from valle2.config.transcribe import TranscribeConfig
from valle2.corpus.given_text import give_text
from valle2.corpus.turns import Run, merged, overlaps, runs
from valle2.corpus.words import TimedWord, check_times
from valle2.diarisation import Turn
from valle2.text import normalise
from valle2.types import Seconds

OVERLAPPING = "overlapping_speech"


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
    voice: str = ""
    """Who speaks, where voices were told apart."""


def split(
    sentences: Sequence[Sentence], windows: Sequence[Window], num_samples: int, rate: int, config: TranscribeConfig,
    turns: Sequence[Turn] = (),
) -> list[Span]:  # fmt: skip
    """Cut a recording at its sentences, and where the voice changes.

    Args:
        sentences: With word times, s.
        windows: Speech as recognised; one without text is dropped as `no_words`.
        num_samples: Of the recording, at `rate`.
        rate: Hz.
        config: Padding and the least and greatest duration.
        turns: Who speaks when; none if voices were not told apart.

    Returns:
        Spans in order that cover [0, num_samples) without overlap or gap. Reasons: `non_speech`, `no_words`,
        `bad_word_times`, `overlapping_speech`, `too_short`, `too_long`.
    """
    duration = num_samples / rate
    spans = [
        Span(round(window.start * rate), round(window.end * rate), "no_words")
        for window in windows
        if not normalise(window.text, config.language)
    ]
    spans += [span for sentence in sentences for span in _judge(sentence, duration, rate, config, turns)]
    spans = _with_overlaps(spans, turns, rate)
    return cover(
        [_bounded(span, config, rate) for span in _pad(spans, num_samples, round(config.padding * rate))], num_samples
    )


def whole(
    sentences: Sequence[Sentence], text: str, num_samples: int, rate: int, config: TranscribeConfig, voice: str = ""
) -> list[Span]:
    """Keep a recording of one voice whole, with its given text and the word times of that text."""
    words = check_times([word for sentence in sentences for word in sentence.words], num_samples / rate)
    if not normalise(text, config.language):
        return [Span(0, num_samples, "no_words")]
    if not words:
        return [Span(0, num_samples, "bad_word_times")]
    return [_bounded(Span(0, num_samples, "", text, words, sentences[0], voice), config, rate)]


def _judge(
    sentence: Sentence, duration: Seconds, rate: int, config: TranscribeConfig, turns: Sequence[Turn]
) -> list[Span]:
    """The sentence from its first to its last word, cut where the voice changes; its window if no word has a time."""
    words = check_times(sentence.words, duration)
    if words:
        own = runs(words, turns)
        parts = [sentence] if len(own) == 1 else _parts(sentence, own, config.language)
        return [_span(run, part, rate, config.language) for run, part in zip(own, parts, strict=True)]
    times = [time for word in sentence.words for time in (word.start, word.end) if time is not None]
    times = times or [sentence.window.start, sentence.window.end]
    return [Span(round(min(times) * rate), round(max(times) * rate), "bad_word_times")]


def _span(run: Run, sentence: Sentence, rate: int, language: str) -> Span:
    reason = OVERLAPPING if run.overlapped else "" if normalise(sentence.text, language) else "no_words"
    start, end = round(run.words[0].start * rate), round(run.words[-1].end * rate)
    return Span(start, end, reason, sentence.text, run.words, sentence, run.voice)


def _parts(sentence: Sentence, own: Sequence[Run], language: str) -> list[Sentence]:
    """Each run's part of the sentence's text, and of what was recognised where the text was given."""
    texts, position = [], 0
    for run in own:
        first = position = sentence.text.index(run.words[0].text, position)
        for word in run.words:
            position = sentence.text.index(word.text, position) + len(word.text)
        texts.append(sentence.text[first:position])
    windows = [replace(sentence.window, text=text) for text in texts]
    if sentence.window.heard is not None:
        heard = give_text(windows, sentence.window.heard, language)
        windows = [replace(window, heard=item.text) for window, item in zip(windows, heard, strict=True)]
    return [
        Sentence(text, sentence.words, window) for text, window in zip(texts, windows, strict=True)
    ]  # fmt: skip


def _with_overlaps(spans: list[Span], turns: Sequence[Turn], rate: int) -> list[Span]:
    """With all that several say at once, words and what lies between them, as spans of its own."""
    words = [(span.start, span.end) for span in spans if span.reason == OVERLAPPING]
    together = merged([*words, *((round(start * rate), round(end * rate)) for start, end in overlaps(turns))])
    others = [span for span in spans if span.reason != OVERLAPPING]
    return others + [Span(int(start), int(end), OVERLAPPING) for start, end in together]


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
