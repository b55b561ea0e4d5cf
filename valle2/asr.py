"""Speech recognition with WhisperX's pipeline.

Everything works offline with local folders: the voice activity detection ships inside whisperx, and audio comes as
arrays (no ffmpeg). When each word is said is found by `valle2.aligner`; what becomes of the words is in
`valle2.corpus.transcribe`; the scores of `valle2.evaluation` use the same recogniser.
"""

import json
import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from valle2.bundled import bundled
from valle2.errors import ConfigError
from valle2.types import Seconds

ASR_RATE = 16_000
"""Hz; of every waveform here."""

WHISPER_VOCABULARY = 51_864
"""Tokens of the smallest genuine Whisper; a model with fewer lacks the tokens that WhisperX suppresses."""

_LONGEST_WINDOW = 30


@dataclass(frozen=True)
class Window:
    """A stretch of speech, and its text; times from the start of the waveform."""

    text: str
    start: Seconds
    end: Seconds
    logprob: float | None = None
    """Of the recognised tokens, mean; None if the text was given."""
    heard: str | None = None
    """What was recognised where `text` was given."""


class Asr:
    """A loaded WhisperX pipeline: voice activity detection and batched recognition; several threads may share it."""

    def __init__(self, pipeline: Any, chunk_size: Seconds, batch_size: int) -> None:
        self._pipeline = pipeline
        self._chunk_size = chunk_size
        self._batch_size = batch_size

    def find_speech(self, waveform: Float[np.ndarray, " n"]) -> list[tuple[Seconds, Seconds]]:
        """Where somebody speaks: start and end of windows in order, each at most `chunk_size` long."""
        vad, options = self._pipeline.vad_model, self._pipeline._vad_params
        scores = vad({"waveform": vad.preprocess_audio(_samples(waveform)), "sample_rate": ASR_RATE})
        found = vad.merge_chunks(scores, self._chunk_size, onset=options["vad_onset"], offset=options["vad_offset"])
        return [(round(item["start"], 3), round(item["end"], 3)) for item in found]

    def recognise_all(self, waveforms: Sequence[Float[np.ndarray, " n"]]) -> list[tuple[str, float]]:
        """Recognise windows, those of similar length together: a batch is done when its longest text is.

        Args:
            waveforms: Each at most 30 s of speech at `ASR_RATE`.

        Returns:
            Text and mean log-probability of its tokens, in the order given.
        """
        order = sorted(range(len(waveforms)), key=lambda place: len(waveforms[place]))
        found: dict[int, tuple[str, float]] = {}
        for first in range(0, len(order), self._batch_size):
            batch = order[first : first + self._batch_size]
            features = [self._pipeline.preprocess({"inputs": _samples(waveforms[place])})["inputs"] for place in batch]
            heard = self._pipeline._forward({"inputs": torch.stack(features)})
            texts = [text.strip() for text in heard["text"]]
            found |= dict(zip(batch, zip(texts, heard["avg_logprob"], strict=True), strict=True))
        return [found[place] for place in range(len(waveforms))]

    def transcribe(self, waveform: Float[np.ndarray, " n"]) -> list[Window]:
        """Find speech and recognise it.

        Args:
            waveform: Mono at `ASR_RATE`, in [-1, 1].

        Returns:
            Windows in order of time; none if nobody speaks.
        """
        spans = self.find_speech(waveform)
        heard = self.recognise_all([cut_out(waveform, *span) for span in spans])
        return [Window(text, *span, logprob) for (text, logprob), span in zip(heard, spans, strict=True)]

    def recognise(self, waveform: Float[np.ndarray, " n"]) -> str:
        """All that is said, as one text; empty if nobody speaks."""
        return " ".join(window.text for window in self.transcribe(waveform)).strip()

    def identify_language(self, waveform: Float[np.ndarray, " n"]) -> tuple[str, float] | None:
        """The language of at most 30 s of speech, ISO 639-1, and its probability; None if the model knows but one."""
        model = self._pipeline.model
        if not model.model.is_multilingual:
            return None
        features = self._pipeline.preprocess({"inputs": _samples(waveform)[: _LONGEST_WINDOW * ASR_RATE]})["inputs"]
        token, probability = model.model.detect_language(model.encode(features))[0][0]
        return token.strip("<|>"), float(probability)


def cut_out(waveform: Float[np.ndarray, " n"], start: Seconds, end: Seconds) -> Float[np.ndarray, " m"]:
    """The samples between two times of a waveform at `ASR_RATE`."""
    return waveform[int(start * ASR_RATE) : int(end * ASR_RATE)]


def _samples(waveform: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    return np.ascontiguousarray(waveform, np.float32)


def load_asr(
    model: str, compute_type: str, language: str, num_threads: int, *,
    device: str = "cpu", chunk_size: Seconds = 8.0, batch_size: int = 4, vad_step: Seconds = 0.5,
) -> Asr:  # fmt: skip
    """Load a recogniser.

    Args:
        model: `bundled`, a CTranslate2 folder, or a WhisperX model name such as `large-v3` (fetched once).
        compute_type: Of the weights: int8, float16, float32.
        language: ISO 639-1 code of the speech.
        num_threads: CPU threads.
        device: torch device.
        chunk_size: Longest window, at most 30 s (Whisper's context).
        batch_size: Windows recognised at once.
        vad_step: Between the 5 s windows of voice activity detection; WhisperX takes 0.5.

    Raises:
        ConfigError: There is no such model, it is not loadable, or the device lacks the compute type.
    """
    if chunk_size > _LONGEST_WINDOW:
        raise ConfigError(f"`transcribe.chunk_size` is {chunk_size} s; Whisper takes {_LONGEST_WINDOW} s at most")
    path = bundled("whisper") if model == "bundled" else Path(model)
    kind, _, index = device.partition(":")
    with quiet():
        unreported()
        import whisperx

        try:
            pipeline = whisperx.load_model(
                str(path), kind, int(index or 0), compute_type=compute_type, language=language, threads=num_threads,
                asr_options=_asr_options(path),
            )  # fmt: skip
        except (OSError, ValueError, RuntimeError) as error:
            raise ConfigError(
                f"Whisper {model!r} cannot be loaded ({first_line(error)}); expected `bundled`, a CTranslate2 folder, "
                f"or a model name that can be fetched, with a compute type that {kind} has (now {compute_type})"
            ) from error
    # It tells of every silent clip and every odd segment; both are in the stage's records.
    logging.getLogger("whisperx").setLevel(logging.ERROR)
    pipeline.vad_model.vad_pipeline._segmentation.step = vad_step
    return Asr(pipeline, chunk_size, batch_size)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep packages' notices of versions and migrations from the user's screen while they load; for one thread."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before = logging.root.manager.disable
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(before)


def unreported() -> None:
    """Unless the user has said otherwise, pyannote does not tell its makers what is loaded and how long audio is."""
    os.environ.setdefault("PYANNOTE_METRICS_ENABLED", "false")


def _asr_options(folder: Path) -> dict[str, Any]:
    """What WhisperX must be told for a Whisper with a small vocabulary."""
    path = folder / "vocabulary.json"
    if not path.is_file() or len(json.loads(path.read_text())) >= WHISPER_VOCABULARY:
        return {}
    return {"suppress_tokens": [], "suppress_blank": False}


def first_line(error: Exception) -> str:
    """What an error says, without the lines that follow."""
    return (str(error).strip() or type(error).__name__).split("\n")[0]
