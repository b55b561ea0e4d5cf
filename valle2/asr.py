"""Speech recognition and word alignment with WhisperX: the only importer of whisperx.

Everything works offline with local folders: the voice activity detection ships inside whisperx, audio comes as arrays
(no ffmpeg), and NLTK's sentence splitter is given an untrained model where none is installed. What becomes of the words
is in `valle2.corpus.transcribe`; the scores of `valle2.evaluation` use the same recogniser.
"""

import json
import logging
import math
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from valle2.bundled import bundled
from valle2.errors import ConfigError
from valle2.text import spell_numbers
from valle2.types import Seconds

ASR_RATE = 16_000
"""Hz; of every waveform here."""

WHISPER_VOCABULARY = 51_864
"""Tokens of the smallest genuine Whisper; a model with fewer lacks the tokens that WhisperX suppresses."""

_LONGEST_WINDOW = 30
_PUNKT_FILES = ("collocations.tab", "sent_starters.txt", "abbrev_types.txt", "ortho_context.tab")


@dataclass(frozen=True)
class Word:
    """A word as written, with its times where the aligner found them."""

    text: str
    start: Seconds | None
    end: Seconds | None
    score: float | None


@dataclass(frozen=True)
class Window:
    """A stretch of speech, and its text; times from the start of the waveform."""

    text: str
    start: Seconds
    end: Seconds


@dataclass(frozen=True)
class Sentence:
    """A sentence of a window, with its words in order; times from the start of the waveform."""

    text: str
    words: tuple[Word, ...]


class Asr:
    """A loaded WhisperX pipeline: voice activity detection and batched recognition; several threads may share it."""

    def __init__(self, pipeline: Any, chunk_size: Seconds, batch_size: int) -> None:
        self._pipeline = pipeline
        self._chunk_size = chunk_size
        self._batch_size = batch_size

    def transcribe(self, waveform: Float[np.ndarray, " n"]) -> list[Window]:
        """Find speech and recognise it.

        Args:
            waveform: Mono at `ASR_RATE`, in [-1, 1].

        Returns:
            Windows in order of time, each at most `chunk_size` long; none if nobody speaks.
        """
        found = self._pipeline.transcribe(
            np.ascontiguousarray(waveform, np.float32), batch_size=self._batch_size, chunk_size=self._chunk_size
        )
        return [Window(item["text"].strip(), item["start"], item["end"]) for item in found["segments"]]

    def recognise(self, waveform: Float[np.ndarray, " n"]) -> str:
        """All that is said, as one text; empty if nobody speaks."""
        return " ".join(window.text for window in self.transcribe(waveform)).strip()


class Aligner:
    """A loaded wav2vec2 CTC model that finds each word's time; several threads may share it."""

    def __init__(self, model: Any, metadata: dict[str, Any], language: str, device: str) -> None:
        self._model = model
        self._metadata = metadata
        self._language = language
        self._device = device

    def align(self, windows: Sequence[Window], waveform: Float[np.ndarray, " n"]) -> list[Sentence]:
        """Split windows at their full stops and time every word.

        Args:
            windows: Texts and where they are said; numbers are spelled before alignment.
            waveform: Mono at `ASR_RATE`.

        Returns:
            Sentences in order of time. A word's times may be missing, and may run backwards: check them.
        """
        import whisperx

        texts = [(spell_numbers(window.text, self._language), window) for window in windows]
        segments = [{"text": text, "start": window.start, "end": window.end} for text, window in texts if text.strip()]
        found = whisperx.align(
            segments, self._model, self._metadata, np.ascontiguousarray(waveform, np.float32), self._device
        )
        return [
            Sentence(item["text"].strip(), tuple(_word(word) for word in item["words"])) for item in found["segments"]
        ]


def load_asr(
    model: str, compute_type: str, language: str, num_threads: int, *,
    device: str = "cpu", chunk_size: Seconds = 8.0, batch_size: int = 4,
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

    Raises:
        ConfigError: There is no such model, it is not loadable, or the device lacks the compute type.
    """
    if chunk_size > _LONGEST_WINDOW:
        raise ConfigError(f"`transcribe.chunk_size` is {chunk_size} s; Whisper takes {_LONGEST_WINDOW} s at most")
    path = bundled("whisper") if model == "bundled" else Path(model)
    kind, _, index = device.partition(":")
    with quiet():
        import whisperx

        try:
            pipeline = whisperx.load_model(
                str(path), kind, int(index or 0), compute_type=compute_type, language=language, threads=num_threads,
                asr_options=_asr_options(path),
            )  # fmt: skip
        except (OSError, ValueError, RuntimeError) as error:
            raise ConfigError(
                f"Whisper {model!r} cannot be loaded ({_first_line(error)}); expected `bundled`, a CTranslate2 folder, "
                f"or a model name that can be fetched, with a compute type that {kind} has (now {compute_type})"
            ) from error
    # It tells of every silent clip and every odd segment; both are in the stage's records.
    logging.getLogger("whisperx").setLevel(logging.ERROR)
    return Asr(pipeline, chunk_size, batch_size)


def load_aligner(model: str, language: str, device: str = "cpu") -> Aligner:
    """Load a word aligner.

    Args:
        model: `bundled`, a Hugging Face wav2vec2 CTC folder or name; empty: WhisperX's choice for the language.
        language: ISO 639-1 code of the speech.
        device: torch device.

    Raises:
        ConfigError: There is no such model, or WhisperX has none for the language.
    """
    name = str(bundled("aligner")) if model == "bundled" else model or None
    with quiet():
        import whisperx

        try:
            loaded, metadata = whisperx.load_align_model(language, device, model_name=name)
        except (OSError, ValueError, RuntimeError) as error:
            raise ConfigError(
                f"the word aligner {model!r} for language {language!r} cannot be loaded ({_first_line(error)}); "
                "expected `bundled`, a wav2vec2 CTC folder, or a name that can be fetched"
            ) from error
    _ensure_punkt()
    return Aligner(loaded.eval(), metadata, language, device)


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


def _asr_options(folder: Path) -> dict[str, Any]:
    """What WhisperX must be told for a Whisper with a small vocabulary."""
    path = folder / "vocabulary.json"
    if not path.is_file() or len(json.loads(path.read_text())) >= WHISPER_VOCABULARY:
        return {}
    return {"suppress_tokens": [], "suppress_blank": False}


def _ensure_punkt() -> None:
    """Give NLTK an untrained sentence splitter if it has none; whisperx would try a download.

    Untrained, it splits at a full stop before a blank, whatever the language.
    """
    import nltk
    from whisperx.utils import PUNKT_LANGUAGES

    try:
        nltk.data.find("tokenizers/punkt_tab/english/")
    except LookupError:
        root = Path(tempfile.mkdtemp(prefix="valle2-punkt-"))
        for language in {"english", *PUNKT_LANGUAGES.values()}:
            folder = root / "tokenizers" / "punkt_tab" / language
            folder.mkdir(parents=True)
            for name in _PUNKT_FILES:
                (folder / name).write_text("")
        nltk.data.path.insert(0, str(root))


def _word(item: dict[str, Any]) -> Word:
    def number(key: str) -> float | None:
        value = item.get(key)
        return float(value) if value is not None and math.isfinite(value) else None

    return Word(item["word"], number("start"), number("end"), number("score"))


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).split("\n")[0]
