"""When each word of a text is said: CTC forced alignment as WhisperX does it, for many windows together.

The models, the trellis over characters, the wildcard for characters that a model does not know and the splitting at
full stops are WhisperX's (Bain et al. 2023, arXiv:2303.00747), and so are the times. WhisperX takes windows one by
one; here the model and the trellis run over a batch of similar length, exactly as if each were alone: padding is kept
out of attention and of the group norm. Whether times can be used is checked in `valle2.corpus.words`.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from rapidfuzz.distance import Levenshtein
from torch import Tensor, nn

from valle2.asr import Window, first_line, quiet
from valle2.bundled import bundled
from valle2.errors import ConfigError
from valle2.text import spell_numbers
from valle2.types import Seconds

_SHORTEST = 400
"""Samples that a wav2vec2 needs for one frame."""
_WITHOUT_BLANKS = ("ja", "zh")
"""Languages in which each character is a word."""
_PUNKT_FILES = ("collocations.tab", "sent_starters.txt", "abbrev_types.txt", "ortho_context.tab")


Spans = list[tuple[int, int, float]]
"""First frame, frame after the last, and mean probability, of each character of a text."""


@dataclass(frozen=True)
class Word:
    """A word as written, with its times where the aligner found them."""

    text: str
    start: Seconds | None
    end: Seconds | None
    score: float | None


@dataclass(frozen=True)
class Sentence:
    """A sentence of a window, with its words in order; times as the window's."""

    text: str
    words: tuple[Word, ...]
    window: Window
    error: float | None = None
    """Character errors, per character, of what the aligner's own model hears there."""


@dataclass(frozen=True)
class _Script:
    """A text made ready: places of the characters that are aligned, their tokens, and the sentences."""

    text: str
    places: tuple[int, ...]
    tokens: tuple[int, ...]
    sentences: tuple[tuple[int, int], ...]


class Aligner:
    """A loaded wav2vec2 CTC model; for one thread at a time.

    Args:
        model: Of transformers or torchaudio.
        metadata: As `whisperx.load_align_model` gives it.
        batch_size: Windows that the model hears at once.
    """

    def __init__(self, model: nn.Module, metadata: dict[str, Any], device: str, batch_size: int) -> None:
        import nltk
        from whisperx.utils import PUNKT_LANGUAGES

        self._model = model.eval()
        self._tokens: dict[str, int] = metadata["dictionary"]
        self._is_torchaudio = metadata["type"] == "torchaudio"
        self._language: str = metadata["language"]
        self._device = device
        self._batch_size = batch_size
        self._blank = next((self._tokens[name] for name in ("[pad]", "<pad>") if name in self._tokens), 0)
        self._norms = _mask_group_norms(model)
        _ensure_punkt()
        self._splitter = nltk.data.load(f"tokenizers/punkt_tab/{PUNKT_LANGUAGES.get(self._language, 'english')}.pickle")

    def align(
        self, windows: Sequence[Window], waveforms: Sequence[Float[np.ndarray, " n"]]
    ) -> list[tuple[Sentence, ...]]:
        """Split windows at their full stops and time every word.

        Args:
            windows: Texts and when they are said; numbers are spelled before alignment.
            waveforms: Each window's own, mono at `ASR_RATE`.

        Returns:
            Sentences of each window; none of one without text. Words of a window that is too short for its text have no
            times, and times may run backwards: check them.
        """
        scripts = [self._script(spell_numbers(window.text, self._language)) for window in windows]
        order = [place for place, script in enumerate(scripts) if script.tokens]
        order.sort(key=lambda place: len(waveforms[place]))
        found: list[tuple[Sentence, ...]] = [()] * len(windows)
        for first in range(0, len(order), self._batch_size):
            batch = order[first : first + self._batch_size]
            emissions = self._emissions([waveforms[place] for place in batch])
            tokens = [np.asarray(scripts[place].tokens) for place in batch]
            paths = best_paths([self._with_wildcard(emission) for emission in emissions], tokens, self._blank)
            for place, emission, path in zip(batch, emissions, paths, strict=True):
                found[place] = self._sentences(windows[place], scripts[place], emission, path)
        return found

    def _script(self, text: str) -> _Script:
        places, tokens = [], []
        wildcard = max(self._tokens.values()) + 1
        start, end = len(text) - len(text.lstrip()), len(text.rstrip())
        for place, char in enumerate(text):
            sign = char.lower() if self._language in _WITHOUT_BLANKS else char.lower().replace(" ", "|")
            if sign not in (" ", "|") or (sign in self._tokens and start < place < end):
                places.append(place)
                tokens.append(self._tokens.get(sign, wildcard))
        return _Script(text, tuple(places), tuple(tokens), tuple(self._splitter.span_tokenize(text)))

    @torch.inference_mode()
    def _emissions(self, waveforms: Sequence[Float[np.ndarray, " n"]]) -> list[Float[np.ndarray, "t v"]]:
        """Log-probabilities of the model's signs, a frame a row, without those of the padding."""
        lengths = [max(len(wave), _SHORTEST) for wave in waveforms]
        padded = torch.zeros(len(waveforms), max(lengths))
        for row, wave in zip(padded, waveforms, strict=True):
            row[: len(wave)] = torch.from_numpy(np.ascontiguousarray(wave, np.float32))
        sizes = torch.tensor(lengths)
        for norm in self._norms:
            norm.lengths = sizes.to(self._device)
        padded = padded.to(self._device)
        if self._is_torchaudio:
            logits = self._model(padded, lengths=sizes.to(self._device))[0]
        else:
            mask = torch.arange(padded.shape[1])[None] < sizes[:, None]
            logits = self._model(padded, attention_mask=mask.long().to(self._device)).logits
        scores = logits.float().log_softmax(-1).cpu().numpy()
        frames = [_num_frames(self._model, length) for length in lengths]
        return [own[:count] for own, count in zip(scores, frames, strict=True)]

    def _with_wildcard(self, emission: Float[np.ndarray, "t v"]) -> Float[np.ndarray, "t w"]:
        """With one more sign, as probable as the most probable one that is not blank."""
        return np.concatenate([emission, np.delete(emission, self._blank, 1).max(1, keepdims=True)], 1)

    def _sentences(
        self, window: Window, script: _Script, emission: Float[np.ndarray, "t v"], path: Spans | None
    ) -> tuple[Sentence, ...]:
        if path is None:
            words = tuple(Word(word, None, None, None) for word in script.text.split())
            return (Sentence(script.text.strip(), words, window),)
        spans = dict(zip(script.places, path, strict=True))
        seconds = (window.end - window.start) / len(emission)
        found = []
        for first, last in script.sentences:
            ranges = self._words(script.text, first, last)
            words = tuple(_word(script.text, *place, spans, window.start, seconds) for place in ranges)
            own = [spans[place] for place in range(first, last) if place in spans]
            error = self._error(script.text[first:last], emission[own[0][0] : own[-1][1]]) if own else None
            found.append(Sentence(script.text[first:last].strip(), words, window, error))
        return tuple(found)

    def _words(self, text: str, first: int, last: int) -> list[tuple[int, int]]:
        """Start and end of each word between two places of a text."""
        if self._language in _WITHOUT_BLANKS:
            return [(place, place + 1) for place in range(first, last) if text[place].strip()]
        found, place = [], first
        for word in text[first:last].split(" "):
            if word.strip():
                found.append((place, place + len(word)))
            place += len(word) + 1
        return found

    def _error(self, text: str, emission: Float[np.ndarray, "t v"]) -> float:
        """How far the text is from what the model itself hears: its most probable letters, repeats left out."""
        letters = {token: sign for sign, token in self._tokens.items() if sign.isalpha() and len(sign) == 1}
        best = emission.argmax(1)
        heard = [letters[token] for token in best[np.diff(best, prepend=-1) != 0] if token in letters]
        written = [char for char in text.lower() if char in self._tokens and char.isalpha()]
        return round(Levenshtein.distance(written, heard) / max(len(written), 1), 4)


def best_paths(
    emissions: Sequence[Float[np.ndarray, "t v"]], tokens: Sequence[Int[np.ndarray, " s"]], blank: int
) -> list[Spans | None]:
    """The most probable time of each token: WhisperX's trellis and its way back, for a batch at once.

    Args:
        emissions: Log-probabilities of signs by frame; windows may differ in frames.
        tokens: What is said in each window, as columns of its emission.
        blank: Column of the blank.

    Returns:
        A span for each token; None where there are more tokens than frames.
    """
    frames = max(len(emission) for emission in emissions)
    size = max(len(own) for own in tokens)
    trellis = np.zeros((frames + 1, len(emissions), size + 1), np.float32)
    stay = np.zeros((frames, len(emissions), 1), np.float32)
    change = np.zeros((frames, len(emissions), size), np.float32)
    trellis[0, :, 1:] = -np.inf
    for row, (emission, own) in enumerate(zip(emissions, tokens, strict=True)):
        stay[: len(emission), row, 0] = emission[:, blank]
        change[: len(emission), row, : len(own)] = emission[:, own]
        trellis[1 : len(emission) + 1, row, 0] = np.cumsum(emission[:, blank])
        trellis[max(len(emission) + 1 - len(own), 0) : len(emission) + 1, row, 0] = np.inf
    for frame in range(frames):
        kept, moved = trellis[frame, :, 1:] + stay[frame], trellis[frame, :, :-1] + change[frame]
        np.maximum(kept, moved, out=trellis[frame + 1, :, 1:])
    return [
        _walk_back(trellis[: len(emission) + 1, row, : len(own) + 1], emission[:, blank], emission[:, own])
        for row, (emission, own) in enumerate(zip(emissions, tokens, strict=True))
    ]


def _walk_back(
    trellis: Float[np.ndarray, "t+1 s+1"], stay: Float[np.ndarray, " t"], change: Float[np.ndarray, "t s"]
) -> Spans | None:
    size = change.shape[1]
    changes = trellis[:-1, :-1] + change > trellis[:-1, 1:] + stay[:, None]
    decisions = changes.tobytes()
    token, frame = size, int(trellis[:, size].argmax())
    steps: list[tuple[int, int, bool]] = []
    while token:
        if not frame:
            return None
        frame -= 1
        changed = bool(decisions[frame * size + token - 1])
        steps.append((token - 1, frame, changed))
        token -= changed
    owners, times, moves = (np.array(column) for column in zip(*reversed(steps), strict=True))
    scores = np.exp(np.where(moves, change[times, owners], stay[times]).astype(np.float64))
    firsts = np.searchsorted(owners, np.arange(size))
    lasts = np.append(firsts[1:], len(owners))
    sums = np.add.reduceat(scores, firsts) / (lasts - firsts)
    return list(zip(times[firsts].tolist(), (times[lasts - 1] + 1).tolist(), sums.tolist(), strict=True))


def _word(
    text: str, first: int, last: int, spans: dict[int, tuple[int, int, float]], offset: Seconds, seconds: float
) -> Word:
    """The word between two places of a text; `seconds` a frame, times from `offset` on."""
    own = [spans[place] for place in range(first, last) if place in spans]
    starts = [round(span[0] * seconds + offset, 3) for span in own]
    ends = [round(span[1] * seconds + offset, 3) for span in own]
    scores = [round(span[2], 3) for span in own]
    return Word(text[first:last], min(starts), max(ends), round(sum(scores) / len(scores), 3))


class _MaskedGroupNorm(nn.Module):
    """A group norm over time, of each channel alone, that leaves a batch's padding out; `lengths` in samples."""

    def __init__(self, norm: nn.GroupNorm, kernel: int, stride: int) -> None:
        super().__init__()
        self.norm = norm
        self.kernel = kernel
        self.stride = stride
        self.lengths = torch.zeros(0)

    def forward(self, hidden: Float[Tensor, "b c t"]) -> Float[Tensor, "b c t"]:
        frames = (self.lengths - self.kernel) // self.stride + 1
        if bool((frames == hidden.shape[-1]).all()):
            normed: Tensor = self.norm(hidden)
            return normed
        mask = (torch.arange(hidden.shape[-1], device=hidden.device) < frames[:, None])[:, None]
        count = frames[:, None, None]
        centred = hidden - (hidden * mask).sum(-1, keepdim=True) / count
        variance = (centred * mask).square().sum(-1, keepdim=True) / count
        scale, shift = self.norm.weight[:, None], self.norm.bias[:, None]
        return centred * torch.rsqrt(variance + self.norm.eps) * scale + shift


def _mask_group_norms(model: nn.Module) -> list[_MaskedGroupNorm]:
    """Put a masked norm in the place of the group norm that a wav2vec2's first layer may have."""
    norms = []
    for layer in model.modules():
        norm = getattr(layer, "layer_norm", None)
        if isinstance(norm, nn.GroupNorm):
            conv = layer.conv
            assert isinstance(conv, nn.Conv1d)
            assert norm.num_groups == norm.num_channels, "a group norm over several channels"
            norms.append(_MaskedGroupNorm(norm, conv.kernel_size[0], conv.stride[0]))
            layer.layer_norm = norms[-1]
    return norms


def _num_frames(model: nn.Module, samples: int) -> int:
    """Frames of a wav2vec2's convolutions, which have no padding."""
    for conv in _feature_extractor(model).conv_layers:
        kernel, stride = conv.conv.kernel_size[0], conv.conv.stride[0]
        samples = (samples - kernel) // stride + 1
    return samples


def _feature_extractor(model: nn.Module) -> Any:
    inner: Any = getattr(model, "wav2vec2", model)  # transformers' CTC head holds the model; torchaudio's is the model
    return inner.feature_extractor


def load_aligner(model: str, language: str, device: str = "cpu", batch_size: int = 4) -> Aligner:
    """Load a word aligner.

    Args:
        model: `bundled`, a Hugging Face wav2vec2 CTC folder or name; empty: WhisperX's choice for the language.
        language: ISO 639-1 code of the speech.
        device: torch device.
        batch_size: Windows that the model hears at once.

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
                f"the word aligner {model!r} for language {language!r} cannot be loaded ({first_line(error)}); "
                "expected `bundled`, a wav2vec2 CTC folder, or a name that can be fetched"
            ) from error
    return Aligner(loaded, metadata, device, batch_size)


def _ensure_punkt() -> None:
    """Give NLTK an untrained sentence splitter if it has none.

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
