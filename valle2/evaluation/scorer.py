"""The metrics' models, loaded when first asked, and what they said of each piece of audio, kept by content.

A second evaluation of the same audio by the same models computes nothing and loads nothing. What the answers mean is in
`valle2.evaluation.metrics`.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from valle2.asr import ASR_RATE, Asr, cut_out, load_asr
from valle2.audio import change_rate
from valle2.bundled import bundled
from valle2.config.evaluate import EvaluateParams
from valle2.errors import EvaluationError
from valle2.evaluation.metrics import (
    Dnsmos,
    Mos,
    SpeakerEncoder,
    Utmos,
    asr_name,
    dnsmos_name,
    load_speaker_encoder,
    speaker_encoder_name,
)
from valle2.stage import digest, file_sha256, tree_sha256, write_json

SHORTEST = 0.3
"""Seconds of audio that every metric's model takes."""


@dataclass(frozen=True)
class Heard:
    """What the models say of a piece of audio."""

    text: str
    voice: Float[np.ndarray, " d"]
    """Speaker embedding, of length 1."""
    mos: Mos
    utmos: float | None


class Scorer:
    """Asks the metrics' models.

    Args:
        config: Which models.
        folder: Where answers are kept; they stay valid for ever.

    Raises:
        EvaluationError: A model is missing; which, and what to use instead.
    """

    def __init__(self, config: EvaluateParams, folder: Path) -> None:
        self._config, self._folder = config, folder
        settings = config.evaluate
        self.names = {
            "wer_model": asr_name(settings.asr),
            "sim_model": speaker_encoder_name(settings.speaker_encoder),
            "dnsmos_model": dnsmos_name(),
        }
        recogniser = bundled("whisper") if settings.asr == "bundled" else Path(settings.asr)
        weights = tree_sha256(recogniser) if recogniser.is_dir() else ""
        asr = [self.names["wer_model"], weights, config.transcribe.compute_type, config.transcribe.language]
        self._models = {"text": digest(asr), "voice": self.names["sim_model"], "mos": self.names["dnsmos_model"]}
        if settings.utmos:
            path = Path(settings.utmos)
            if not path.is_file():
                raise EvaluationError(
                    f"no UTMOS at {path}; `evaluate.utmos` names a TorchScript file, or is empty: DNSMOS "
                    f"({self.names['dnsmos_model']}) is always measured"
                )
            self._models["utmos"] = file_sha256(path)
            self.names["utmos_model"] = f"UTMOS {path.name}, SHA-256 {self._models['utmos'][:12]}"

    def listen(self, waves: Sequence[Float[np.ndarray, " n"]], sample_rate: int) -> list[Heard]:
        """Ask all models of all pieces; what they have heard before is not computed again.

        Args:
            waves: Mono.
            sample_rate: Of the waves, Hz.
        """
        speeches = _for_models(waves, sample_rate)
        texts = self._ask("text", speeches, self._recognise)
        voices = self._ask("voice", speeches, self._embed)
        scores = self._ask("mos", speeches, self._rate)
        natural = self._ask("utmos", speeches, self._rate_naturalness) if "utmos" in self._models else None
        return [
            Heard(text, np.asarray(voice, np.float32), Mos(**mos), natural[place] if natural else None)
            for place, (text, voice, mos) in enumerate(zip(texts, voices, scores, strict=True))
        ]

    def voices(self, waves: Sequence[Float[np.ndarray, " n"]], sample_rate: int) -> list[Float[np.ndarray, " d"]]:
        """Speaker embeddings alone; see `listen`."""
        found = self._ask("voice", _for_models(waves, sample_rate), self._embed)
        return [np.asarray(voice, np.float32) for voice in found]

    def _ask(self, kind: str, speeches: Sequence[Float[np.ndarray, " n"]], compute: Any) -> list[Any]:
        """Answers of one model, JSON-able; those that are not kept yet are computed together."""
        paths = [self._path(kind, speech) for speech in speeches]
        missing = [place for place, path in enumerate(paths) if not path.is_file()]
        found = compute([speeches[place] for place in missing]) if missing else []
        for place, answer in zip(missing, found, strict=True):
            write_json(paths[place], answer)
        return [json.loads(path.read_text()) for path in paths]

    def _path(self, kind: str, speech: Float[np.ndarray, " n"]) -> Path:
        content = hashlib.sha256(np.ascontiguousarray(speech, np.float32).tobytes()).hexdigest()
        key = digest([kind, self._models[kind], content])
        return self._folder / key[:2] / f"{key}.json"

    def _recognise(self, speeches: Sequence[Float[np.ndarray, " n"]]) -> list[str]:
        """Windows of all pieces as one batch."""
        spans = [self._asr.find_speech(speech) for speech in speeches]
        windows = [cut_out(speech, *span) for speech, found in zip(speeches, spans, strict=True) for span in found]
        texts = iter(self._asr.recognise_all(windows))
        return [" ".join(next(texts)[0] for _ in found).strip() for found in spans]

    def _embed(self, speeches: Sequence[Float[np.ndarray, " n"]]) -> list[list[float]]:
        return [[float(value) for value in self._encoder.embed(speech)] for speech in speeches]

    def _rate(self, speeches: Sequence[Float[np.ndarray, " n"]]) -> list[dict[str, float]]:
        return [asdict(self._dnsmos.rate(speech)) for speech in speeches]

    def _rate_naturalness(self, speeches: Sequence[Float[np.ndarray, " n"]]) -> list[float]:
        return [self._utmos.rate(speech) for speech in speeches]

    @cached_property
    def _asr(self) -> Asr:
        settings = self._config
        return load_asr(
            settings.evaluate.asr, settings.transcribe.compute_type, settings.transcribe.language,
            settings.runtime.num_threads, device=settings.runtime.device,
        )  # fmt: skip

    @cached_property
    def _encoder(self) -> SpeakerEncoder:
        return load_speaker_encoder(self._config.evaluate.speaker_encoder)

    @cached_property
    def _dnsmos(self) -> Dnsmos:
        return Dnsmos()

    @cached_property
    def _utmos(self) -> Utmos:
        return Utmos(Path(self._config.evaluate.utmos))


def _for_models(waves: Sequence[Float[np.ndarray, " n"]], sample_rate: int) -> list[Float[np.ndarray, " m"]]:
    """At the models' rate, and long enough: a model that ends at once says nothing, and is to be scored for it."""
    padded = [np.pad(wave, (0, max(0, round(SHORTEST * sample_rate) - len(wave)))) for wave in waves]
    return [change_rate(wave, sample_rate, ASR_RATE) for wave in padded]
