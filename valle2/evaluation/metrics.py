"""What the numbers are: word errors, speaker similarity, DNSMOS, and speech that does not end or ends too early.

Each metric names the model that measures it, because figures of different models do not compare (the same system has
SIM .33 with one encoder and .77 with another). Which speech is scored is in `valle2.evaluation.evaluate`.
"""

import importlib.metadata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import jiwer
import numpy as np
from jaxtyping import Float

from valle2.asr import ASR_RATE, quiet
from valle2.errors import EvaluationError
from valle2.text import normalise
from valle2.types import Seconds

NUM_RESAMPLES = 2_000
"""Bootstrap resamples of an interval."""
WAVLM = "microsoft/wavlm-base-plus-sv"
FRAME = 0.02
"""Seconds of one loudness value."""
SILENCE_BELOW_PEAK = 40.0
"""dB under the loudest frame below which a frame is silence."""
SILENCE_FLOOR = -60.0
"""dBFS below which everything is silence."""


@dataclass(frozen=True)
class WordErrors:
    """Errors of a recognised text against what should have been said.

    Attributes:
        diff: Runs of words: what happened (equal, substitute, delete, insert), words wanted, words heard.
    """

    substitutions: int
    deletions: int
    insertions: int
    words: int
    diff: tuple[tuple[str, str, str], ...]

    @property
    def errors(self) -> int:
        """All of them."""
        return self.substitutions + self.deletions + self.insertions

    @property
    def rate(self) -> float:
        """Errors per wanted word; above 1 when more was heard than wanted."""
        return self.errors / max(self.words, 1)


def word_errors(wanted: str, heard: str, language: str = "en") -> WordErrors:
    """Compare texts word by word after `valle2.text.normalise`."""
    reference, hypothesis = normalise(wanted, language), normalise(heard, language)
    if not reference or not hypothesis:
        deleted, inserted = len(reference.split()), len(hypothesis.split())
        kind = "delete" if deleted else "insert"
        return WordErrors(
            0, deleted, inserted, deleted, ((kind, reference, hypothesis),) if deleted or inserted else ()
        )
    found = jiwer.process_words(reference, hypothesis)
    words, said = reference.split(), hypothesis.split()
    diff = tuple(
        (
            chunk.type,
            " ".join(words[chunk.ref_start_idx : chunk.ref_end_idx]),
            " ".join(said[chunk.hyp_start_idx : chunk.hyp_end_idx]),
        )
        for chunk in found.alignments[0]
    )
    return WordErrors(found.substitutions, found.deletions, found.insertions, len(words), diff)


def corpus_wer(errors: Sequence[WordErrors]) -> float:
    """Word error rate over all texts together, so that a long one counts for more."""
    return sum(item.errors for item in errors) / max(sum(item.words for item in errors), 1)


class SpeakerEncoder(Protocol):
    """Maps speech to a direction that tells speakers apart."""

    name: str

    def embed(self, wave: Float[np.ndarray, " n"]) -> Float[np.ndarray, " d"]:
        """A vector of length 1 for a waveform at `ASR_RATE`."""


class Resemblyzer:
    """GE2E speaker encoder that ships inside its package: works offline."""

    def __init__(self) -> None:
        with quiet():
            from resemblyzer import VoiceEncoder

            self._encoder = VoiceEncoder("cpu", verbose=False)
        self.name = f"resemblyzer {importlib.metadata.version('resemblyzer')} (GE2E)"

    def embed(self, wave: Float[np.ndarray, " n"]) -> Float[np.ndarray, " d"]:
        """A vector of length 1, zero for silence."""
        from resemblyzer import preprocess_wav

        with quiet(), np.errstate(all="ignore"):
            speech = preprocess_wav(wave, source_sr=ASR_RATE) if np.any(wave) else wave
            # Its voice activity detection can find nothing in very odd speech; score the whole then.
            speech = speech if len(speech) >= ASR_RATE // 4 else wave
            return _unit(np.nan_to_num(self._encoder.embed_utterance(speech)))


class WavLmSpeakerVerifier:
    """WavLM-SV x-vectors, near to the paper's WavLM-TDNN (4.1.3); fetched from the hub once."""

    def __init__(self) -> None:
        with quiet():
            from transformers import AutoFeatureExtractor, WavLMForXVector

            try:
                self._extractor = AutoFeatureExtractor.from_pretrained(WAVLM)
                self._model = WavLMForXVector.from_pretrained(WAVLM).eval()
            except (OSError, ValueError) as error:
                raise EvaluationError(
                    f"the speaker encoder {WAVLM} cannot be had ({str(error).splitlines()[0]}); connect to the hub "
                    "once, or set `evaluate.speaker_encoder: resemblyzer`, which works offline"
                ) from error
        self.name = WAVLM

    def embed(self, wave: Float[np.ndarray, " n"]) -> Float[np.ndarray, " d"]:
        """A vector of length 1."""
        import torch

        inputs = self._extractor(wave, sampling_rate=ASR_RATE, return_tensors="pt")
        with torch.inference_mode():
            return _unit(self._model(**inputs).embeddings[0].numpy())


def load_speaker_encoder(name: Literal["resemblyzer", "wavlm-sv"]) -> SpeakerEncoder:
    """Load SIM's model.

    Raises:
        EvaluationError: It is not on this machine and cannot be fetched.
    """
    return Resemblyzer() if name == "resemblyzer" else WavLmSpeakerVerifier()


@dataclass(frozen=True)
class Similarity:
    """How near one piece of speech is to each speaker's prompt (cosine)."""

    own: float
    others: tuple[float, ...]

    @property
    def wins(self) -> int:
        """Other speakers whose prompt is less like it than the own one."""
        return sum(self.own > other for other in self.others)


def similarity(
    speech: Float[np.ndarray, " d"], own: Float[np.ndarray, " d"], others: Sequence[Float[np.ndarray, " d"]]
) -> Similarity:
    """Cosines of embeddings of length 1."""
    return Similarity(float(speech @ own), tuple(float(speech @ other) for other in others))


@dataclass(frozen=True)
class Ending:
    """How an utterance ended.

    Attributes:
        infinite: It had no end of its own (INF): the cap was reached, or silence trailed on.
        cut: It ended before the text did (CUT).
        trailing_silence: Seconds after the last sound.
        speech_seconds: Seconds from the first sound to the last.
    """

    infinite: bool
    cut: bool
    trailing_silence: Seconds
    speech_seconds: Seconds


def ending(
    wave: Float[np.ndarray, " n"],
    sample_rate: int,
    finish_reason: Literal["eos", "cap"],
    reference_seconds: Seconds,
    *,
    max_trailing_silence: Seconds,
    min_share: float,
) -> Ending:
    """Judge an ending. The thresholds are ours, and are printed beside the figures; they are not ELLA-V's.

    Args:
        wave: Synthesised speech.
        sample_rate: Its rate in Hz.
        finish_reason: Why decoding stopped.
        reference_seconds: From first to last sound of the same text spoken by the speaker.
        max_trailing_silence: More counts as an utterance that does not end.
        min_share: Speech shorter than this share of `reference_seconds` ended too early.
    """
    first, last = _sound(wave, sample_rate)
    speech = last - first
    trailing = len(wave) / sample_rate - last
    infinite = finish_reason == "cap" or trailing > max_trailing_silence
    return Ending(infinite, not infinite and speech < min_share * reference_seconds, trailing, speech)


def sound_seconds(wave: Float[np.ndarray, " n"], sample_rate: int) -> Seconds:
    """Seconds from the first sound to the last."""
    first, last = _sound(wave, sample_rate)
    return last - first


def _sound(wave: Float[np.ndarray, " n"], sample_rate: int) -> tuple[Seconds, Seconds]:
    """Times of the first and the last frame that is no silence; both 0 if all is silence."""
    hop = round(FRAME * sample_rate)
    if len(wave) < hop:
        return 0.0, 0.0
    frames = wave[: len(wave) // hop * hop].astype(np.float64).reshape(-1, hop)
    level = 10 * np.log10(np.mean(frames**2, axis=1) + 1e-12)
    loud = np.flatnonzero((level > SILENCE_FLOOR) & (level > level.max() - SILENCE_BELOW_PEAK))
    return (float(loud[0] * FRAME), float((loud[-1] + 1) * FRAME)) if len(loud) else (0.0, 0.0)


def interval(num_cases: int, statistic: Callable[[Float[np.ndarray, " n"]], float], seed: int) -> tuple[float, float]:
    """95 % bootstrap interval over cases.

    Args:
        num_cases: Cases to draw from, with replacement.
        statistic: The figure of the cases with these indices.
        seed: Of the draws; the same seed gives the same interval.
    """
    draws = np.random.default_rng(seed).integers(0, num_cases, (NUM_RESAMPLES, num_cases))
    low, high = np.percentile([statistic(draw) for draw in draws], [2.5, 97.5])
    return float(low), float(high)


def _unit(vector: Float[np.ndarray, " d"]) -> Float[np.ndarray, " d"]:
    length = float(np.linalg.norm(vector))
    return vector / length if length > 0 else vector


def dnsmos_name() -> str:
    """DNSMOS's model as it is printed (the P.808 one, 4.1.3); `valle2.corpus.quality.Dnsmos` runs it."""
    return f"DNSMOS P.808 (model_v8 of speechmos {importlib.metadata.version('speechmos')})"


def asr_name(model: str) -> str:
    """WER's model as it is printed: which Whisper, by which WhisperX."""
    version = importlib.metadata.version("whisperx")
    which = "bundled Whisper" if model == "bundled" else Path(model).name
    return f"{which}, whisperx {version}"
