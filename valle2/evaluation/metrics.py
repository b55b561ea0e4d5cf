"""What the numbers are: word errors, speaker similarity, DNSMOS, UTMOS, repetition, silence, and wrong endings.

Each metric names the model that measures it, because figures of different models do not compare (the same system has
SIM .33 with one encoder and .77 with another). Which speech is scored is in `valle2.evaluation.evaluate`.
"""

import importlib.metadata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import jiwer
import numpy as np
from jaxtyping import Bool, Float, Int

from valle2.asr import ASR_RATE, quiet
from valle2.errors import EvaluationError
from valle2.text import normalise
from valle2.types import Seconds

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
        self.name = speaker_encoder_name("resemblyzer")

    def embed(self, wave: Float[np.ndarray, " n"]) -> Float[np.ndarray, " d"]:
        """A vector of length 1, zero for silence."""
        from resemblyzer import preprocess_wav

        if not np.any(wave):  # the encoder would find a voice in it, near to all others
            return np.zeros(self._encoder.linear.out_features, np.float32)
        with quiet(), np.errstate(all="ignore"):
            speech = preprocess_wav(wave, source_sr=ASR_RATE)
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


def speaker_encoder_name(name: Literal["resemblyzer", "wavlm-sv"]) -> str:
    """SIM's model as it is printed."""
    return WAVLM if name == "wavlm-sv" else f"resemblyzer {importlib.metadata.version('resemblyzer')} (GE2E)"


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
    loud = np.flatnonzero(_loud(wave, sample_rate))
    return (float(loud[0] * FRAME), float((loud[-1] + 1) * FRAME)) if len(loud) else (0.0, 0.0)


def _loud(wave: Float[np.ndarray, " n"], sample_rate: int) -> Bool[np.ndarray, " t"]:
    """Which frames are no silence."""
    hop = round(FRAME * sample_rate)
    if len(wave) < hop:
        return np.zeros(0, bool)
    frames = wave[: len(wave) // hop * hop].astype(np.float64).reshape(-1, hop)
    level = 10 * np.log10(np.mean(frames**2, axis=1) + 1e-12)
    return (level > SILENCE_FLOOR) & (level > level.max() - SILENCE_BELOW_PEAK)


def _unit(vector: Float[np.ndarray, " d"]) -> Float[np.ndarray, " d"]:
    length = float(np.linalg.norm(vector))
    return vector / length if length > 0 else vector


@dataclass(frozen=True)
class Mos:
    """DNSMOS of a clip, 1 to 5: P.808 (4.1.3), and P.835's signal, background and overall quality."""

    p808: float
    sig: float
    bak: float
    ovrl: float


class Dnsmos:
    """Microsoft's DNSMOS as the speechmos package runs it, windows of 9.01 s that move by one second."""

    def __init__(self) -> None:
        import speechmos.dnsmos

        self._speechmos = speechmos.dnsmos

    def rate(self, wave: Float[np.ndarray, " n"]) -> Mos:
        """Scores of a clip at `ASR_RATE`; what is above full scale is clipped, as it would be in a file."""
        found = self._speechmos.run(np.clip(wave, -1, 1), ASR_RATE)
        return Mos(*(float(found[name]) for name in ("p808_mos", "sig_mos", "bak_mos", "ovrl_mos")))


def dnsmos_name() -> str:
    """DNSMOS's models as they are printed."""
    version = importlib.metadata.version("speechmos")
    return f"DNSMOS P.808 (model_v8) and P.835 (sig_bak_ovr) of speechmos {version}"


class Utmos:
    """UTMOS from a TorchScript file, which is asked with (wave [B, N], sample rate), as SpeechMOS's predictors are."""

    def __init__(self, path: Path) -> None:
        import torch

        try:
            self._model = torch.jit.load(str(path)).eval()
        except (RuntimeError, ValueError, OSError) as error:
            raise EvaluationError(
                f"UTMOS cannot be loaded from {path} ({str(error).splitlines()[0]}); `evaluate.utmos` names a "
                "TorchScript file, or is empty: DNSMOS is always measured"
            ) from error

    def rate(self, wave: Float[np.ndarray, " n"]) -> float:
        """Score of a clip at `ASR_RATE`, 1 to 5."""
        import torch

        with torch.inference_mode():
            return float(self._model(torch.from_numpy(wave)[None].float(), ASR_RATE).squeeze())


def repetition(codes: Int[np.ndarray, "k t"]) -> float:
    """Share of frames whose first code is the one before it; a model that is caught in a loop has many."""
    return float(np.mean(codes[0, 1:] == codes[0, :-1])) if codes.shape[1] > 1 else 0.0


def silence(wave: Float[np.ndarray, " n"], sample_rate: int) -> float:
    """Share of 20 ms frames that are silence: 40 dB under the loudest, or below -60 dBFS."""
    loud = _loud(wave, sample_rate)
    return float(1 - loud.mean()) if len(loud) else 1.0


def asr_name(model: str) -> str:
    """WER's model as it is printed: which Whisper, by which WhisperX."""
    version = importlib.metadata.version("whisperx")
    which = "bundled Whisper" if model == "bundled" else Path(model).name
    return f"{which}, whisperx {version}"
