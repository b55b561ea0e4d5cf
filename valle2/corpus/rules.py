"""Which segments are kept: one small pure rule for each reason to drop one.

A rule is a function whose name is the reason; it says whether a segment breaks it. To add one, write the function here,
put it into `RULES`, and give its threshold a field in `valle2.config.curate`.
"""

import zlib
from collections.abc import Callable
from dataclasses import dataclass

import jiwer

from valle2.config.curate import Thresholds
from valle2.types import Seconds


@dataclass(frozen=True)
class Facts:
    """What the rules ask of a segment."""

    text: str
    """Normalised."""
    heard: str | None
    """What was recognised where a text was given, normalised."""
    language: str
    """As declared; empty if nobody says."""
    expected_language: str
    rate: float
    """Words per second."""
    usual_rates: tuple[float, float]
    """Of its source, `valle2.corpus.quality.rate_bounds`."""
    dnsmos: float
    clipped: float
    silence: float
    snr: float
    bandwidth: float
    """The last four as `valle2.corpus.sound.measure` gives them."""
    seconds: Seconds = 1.0
    logprob: float | None = None
    """Of the recognised tokens, mean; None where a text was given."""
    aligner_cer: float | None = None
    """Character errors of what the aligner's own model hears."""
    other_language: float = 0.0
    """How sure Whisper is that it is not the expected language."""


_STOCK_PHRASES = frozenset({
    "thank you", "thank you very much", "thank you for watching", "thanks for watching", "thanks for watching bye",
    "please subscribe", "please subscribe to my channel", "subscribe to my channel", "like and subscribe",
    "subtitles by the amaraorg community", "subtitles by the amara org community", "see you next time",
    "see you in the next video", "ill see you next time", "bye", "bye bye", "you",
})  # fmt: skip
_TINY = 1e-9

Rule = Callable[[Facts, Thresholds], bool]


def no_words(facts: Facts, _: Thresholds) -> bool:
    """The text normalises to nothing."""
    return not facts.text


def language(facts: Facts, limits: Thresholds) -> bool:
    """Declared to be in another language, or heard to be."""
    declared = facts.language not in ("", facts.expected_language)
    return declared or facts.other_language >= max(limits.min_other_language, _TINY)


def clipping(facts: Facts, limits: Thresholds) -> bool:
    """Too many samples at full scale."""
    return facts.clipped > limits.max_clipped


def mostly_silence(facts: Facts, limits: Thresholds) -> bool:
    """Too much of it is far below its loudest."""
    return facts.silence > limits.max_silence


def noise(facts: Facts, limits: Thresholds) -> bool:
    """The signal-to-noise ratio is too low."""
    return facts.snr < limits.min_snr


def narrow_band(facts: Facts, limits: Thresholds) -> bool:
    """Nothing is heard above a frequency: a telephone call in a file of a higher rate."""
    return facts.bandwidth < limits.min_bandwidth


def low_quality(facts: Facts, limits: Thresholds) -> bool:
    """P.808 MOS below the least."""
    return facts.dnsmos < limits.min_dnsmos


def repetitive_text(facts: Facts, limits: Thresholds) -> bool:
    """A text that says the same again and again, as Whisper does where it hears nothing.

    Its own measure (Radford et al. 2022, section 4.5): characters per byte of the text compressed by zlib.
    """
    return compression(facts.text) > limits.max_compression


def stock_phrase(facts: Facts, _: Thresholds) -> bool:
    """Recognised to be, as a whole, one of the phrases that Whisper is known to make of music and silence.

    They stem from subtitles (Baranski et al. 2025, "Investigation of Whisper ASR hallucinations induced by non-speech
    audio", table 2).
    """
    return facts.heard is None and facts.text in _STOCK_PHRASES


def unsure_words(facts: Facts, limits: Thresholds) -> bool:
    """The recogniser is not sure of its words (Radford et al. 2022, section 4.5)."""
    return facts.logprob is not None and facts.logprob < limits.min_logprob


def character_rate(facts: Facts, limits: Thresholds) -> bool:
    """More text than can be said in the time."""
    return len(facts.text) > limits.max_characters_per_second * facts.seconds


def bad_alignment(facts: Facts, limits: Thresholds) -> bool:
    """The aligner's own model hears something else; a limit of 1 or more switches the rule off."""
    if facts.aligner_cer is None or limits.max_aligner_cer >= 1:
        return False
    return facts.aligner_cer > limits.max_aligner_cer


def speaking_rate(facts: Facts, _: Thresholds) -> bool:
    """Words per second that are not usual in the source."""
    low, high = facts.usual_rates
    return not low <= facts.rate <= high


def text_disagrees(facts: Facts, limits: Thresholds) -> bool:
    """What was recognised is too far from the given text; a limit of 1 or more switches the rule off."""
    if facts.heard is None or limits.max_given_text_wer >= 1:
        return False
    return agreement_wer(facts.text, facts.heard) > limits.max_given_text_wer


RULES: tuple[Rule, ...] = (
    no_words, language, clipping, mostly_silence, noise, narrow_band, low_quality, repetitive_text, stock_phrase,
    unsure_words, character_rate, bad_alignment, speaking_rate, text_disagrees,
)  # fmt: skip
"""In the order in which they are asked; a segment is dropped for the first that it breaks."""


def broken_rule(facts: Facts, limits: Thresholds) -> str:
    """The reason to drop a segment; empty if it is kept."""
    return next((rule.__name__ for rule in RULES if rule(facts, limits)), "")


def agreement_wer(given: str, recognised: str) -> float:
    """Word errors of the recognised text per given word; both normalised, `given` not empty."""
    return round(float(jiwer.wer(given, recognised)), 5)


def compression(text: str) -> float:
    """Bytes of a text per byte of it compressed; 1.0 for a short or empty one, above 2.4 for a repeated phrase."""
    content = text.encode()
    return len(content) / max(len(zlib.compress(content)), 1)
