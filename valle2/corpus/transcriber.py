"""One unit of audio to segments: what a worker of `transcribe` does.

Windows of all recordings in a unit are recognised and aligned together, those of similar length at once. A recording
without text is cut at its sentences. One that came with text is aligned with that, and kept whole if it is short enough
for a segment, else cut at its pauses; what is recognised is stored beside, so that `valle2.corpus.curate` can tell
whether the two agree. Where voices are told apart, a segment has one of them.
"""

import os
import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from lhotse import MonoCut, SupervisionSegment
from lhotse.supervision import AlignmentItem

from valle2.aligner import Aligner, Sentence, load_aligner
from valle2.asr import ASR_RATE, Asr, Window, cut_out, load_asr
from valle2.config.transcribe import TranscribeConfig, TranscribeParams
from valle2.corpus.given_text import give_text
from valle2.corpus.journal import write_jsonl
from valle2.corpus.segments import Span, split, whole
from valle2.corpus.stretches import Stretch, Unit, load
from valle2.corpus.words import TimedWord
from valle2.diarisation import Diarised, Diariser, load_diariser
from valle2.types import Seconds


@dataclass(frozen=True)
class Heard:
    """A stretch as it was recognised."""

    part: MonoCut
    waveform: Float[np.ndarray, " n"]
    windows: list[Window]
    facts: dict[str, Any]
    """What is known of all segments of it."""
    diarised: Diarised | None = None
    """Who speaks when; None if that is known, or not asked."""


class Transcriber:
    """The models, loaded once; call it with a unit and the results are in `folder`.

    Raises:
        ConfigError: The recogniser, the aligner or the diarisation pipeline cannot be loaded.
    """

    def __init__(self, config: TranscribeParams, folder: Path) -> None:
        torch.set_num_threads(1)  # what is written then depends on no thread count
        self._options = config.transcribe
        self._folder = folder
        self._asr, self._aligner = load_models(config)
        name = config.transcribe.diarisation
        self._diariser = load_diariser(name, config.runtime.device) if name else None

    def __call__(self, unit: Unit) -> Seconds:
        rows = transcribe_unit(unit.stretches, self._asr, self._aligner, self._options, self._diariser)
        path = part_file(self._folder, unit)
        # A worker that was given up as lost may still write, so that each has its own name until it is whole.
        building = path.with_suffix(f".{socket.gethostname()}-{os.getpid()}")
        write_jsonl(building, rows)
        building.replace(path)
        return unit.seconds


def part_file(folder: Path, unit: Unit) -> Path:
    """Where a unit's results are."""
    return folder / f"{unit.index:06d}.jsonl"


def load_models(config: TranscribeParams) -> tuple[Asr, Aligner]:
    """The recogniser and the aligner that the parameters name, for one thread."""
    options, device = config.transcribe, config.runtime.device
    asr = load_asr(
        options.model, options.compute_type, options.language, 1, device=device, chunk_size=options.chunk_size,
        batch_size=options.batch_size, vad_step=options.vad_step,
    )  # fmt: skip
    return asr, load_aligner(options.aligner, options.language, device, options.batch_size)


def transcribe_unit(
    stretches: Sequence[Stretch], asr: Asr, aligner: Aligner, config: TranscribeConfig,
    diariser: Diariser | None = None,
) -> list[dict[str, Any]]:  # fmt: skip
    """Segments and dropped parts of each stretch, which together cover each of its samples once.

    Returns:
        A row a stretch: `recording`; `segments`, cuts as dicts; `dropped`, rows of recording, start and end (s),
        samples and reason; and where voices were told apart, `voices` for `valle2.corpus.voices`.
    """
    if stretches[0].count > 1 and stretches[0].recording["supervisions"][0].get("text"):
        return list(_transcribe_with_text(stretches, asr, aligner, config, diariser))
    heard = _hear([load(stretch) for stretch in stretches], asr, config, diariser)
    return list(_align([_with_text(item, config) for item in heard], aligner, config))


def _transcribe_with_text(
    stretches: Sequence[Stretch], asr: Asr, aligner: Aligner, config: TranscribeConfig, diariser: Diariser | None
) -> Iterable[dict[str, Any]]:
    """A long recording with its text: the sound of one stretch is in memory at a time, so that each is read twice."""
    heard = []
    for stretch in stretches:
        (found,) = _hear([load(stretch)], asr, config, diariser)
        heard.append(replace(found, waveform=found.waveform[:0].copy()))
    text = stretches[0].recording["supervisions"][0]["text"]
    given = iter(give_text([window for own in heard for window in own.windows], text, config.language))
    for stretch, own in zip(stretches, heard, strict=True):
        _, waveform = load(stretch)
        yield from _align(
            [replace(own, waveform=waveform, windows=[next(given) for _ in own.windows])], aligner, config
        )


def _hear(
    parts: Sequence[tuple[MonoCut, Float[np.ndarray, " n"]]], asr: Asr, config: TranscribeConfig,
    diariser: Diariser | None,
) -> list[Heard]:  # fmt: skip
    speech = [asr.find_speech(waveform) for _, waveform in parts]
    pieces = [cut_out(waveform, *span) for (_, waveform), spans in zip(parts, speech, strict=True) for span in spans]
    texts = iter(asr.recognise_all(pieces))
    found = []
    for (part, waveform), spans in zip(parts, speech, strict=True):
        windows = []
        for span in spans:
            text, logprob = next(texts)
            windows.append(Window(text, *span, logprob))
        facts = _language(waveform, spans, asr) if config.identify_language and spans else {}
        unknown = (part.custom or {}).get("speaker_assumed")
        found.append(Heard(part, waveform, windows, facts, diariser(waveform) if diariser and unknown else None))
    return found


def _language(waveform: Float[np.ndarray, " n"], spans: Sequence[tuple[Seconds, Seconds]], asr: Asr) -> dict[str, Any]:
    """What language the longest window is in, as far as the model can tell."""
    longest = max(spans, key=lambda span: span[1] - span[0])
    found = asr.identify_language(cut_out(waveform, *longest))
    return {"heard_language": found[0], "heard_language_probability": round(found[1], 4)} if found else {}


def _with_text(heard: Heard, config: TranscribeConfig) -> Heard:
    """The given text, if there is one, in the place of what was recognised."""
    text, duration = heard.part.supervisions[0].text, len(heard.waveform) / ASR_RATE
    if not text:
        return heard
    if heard.part.duration <= config.max_duration:
        recognised = " ".join(window.text for window in heard.windows).strip()
        return replace(heard, windows=[Window(text, 0.0, duration, heard=recognised)])
    return replace(heard, windows=give_text(heard.windows, text, config.language))


def _align(items: Sequence[Heard], aligner: Aligner, config: TranscribeConfig) -> Iterable[dict[str, Any]]:
    windows = [window for item in items for window in item.windows]
    pieces = [cut_out(item.waveform, window.start, window.end) for item in items for window in item.windows]
    aligned = iter(aligner.align(windows, pieces))
    for item in items:
        part = item.part
        about = part.supervisions[0]
        sentences = [sentence for _ in item.windows for sentence in next(aligned)]
        sentences = _joined(sentences) if about.text else sentences
        turns = item.diarised.turns if item.diarised else ()
        voices = {turn.voice for turn in turns}
        if about.text and part.duration <= config.max_duration and len(voices) <= 1:
            spans = whole(sentences, about.text, part.num_samples, part.sampling_rate, config, "".join(voices))
        else:
            spans = split(sentences, item.windows, part.num_samples, part.sampling_rate, config, turns)
        row = _row(part, spans, item.facts)
        yield row | ({"voices": item.diarised.voices} if item.diarised else {})


def _joined(sentences: Iterable[Sentence]) -> list[Sentence]:
    """Those of one window as one: what is recognised can only be compared with the whole of it."""
    found: list[Sentence] = []
    for sentence in sentences:
        if found and found[-1].window is sentence.window:
            before = found.pop()
            text, words = f"{before.text} {sentence.text}", before.words + sentence.words
            sentence = replace(before, text=text, words=words, error=None)
        found.append(sentence)
    return found


def _row(part: MonoCut, spans: Sequence[Span], facts: dict[str, Any]) -> dict[str, Any]:
    rate = part.sampling_rate
    accounted = sum(span.end - span.start for span in spans)
    assert accounted == part.num_samples, f"{part.id}: {accounted} of {part.num_samples} samples"
    dropped = [
        {
            "recording": part.id, "start": part.start + span.start / rate, "end": part.start + span.end / rate,
            "samples": span.end - span.start, "reason": span.reason,
        }
        for span in spans if span.reason
    ]  # fmt: skip
    segments = [_segment(part, span, facts).to_dict() for span in spans if not span.reason]
    return {"recording": part.id, "segments": segments, "dropped": dropped}


def _segment(part: MonoCut, span: Span, facts: dict[str, Any]) -> MonoCut:
    """A cut, as yet under its recording's name."""
    rate = part.sampling_rate
    offset, duration = span.start / rate, (span.end - span.start) / rate
    about = part.supervisions[0]
    supervision = SupervisionSegment(
        part.id, part.recording.id, 0.0, duration, 0, text=span.text, language=about.language, speaker=about.speaker,
        alignment={"word": [_item(word, offset, duration) for word in span.words]},
    )  # fmt: skip
    custom = {**(part.custom or {}), **facts, **_scores(span), **({"voice": span.voice} if span.voice else {})}
    cut = MonoCut(part.id, part.start + offset, duration, 0, [supervision], recording=part.recording, custom=custom)
    assert cut.num_samples == span.end - span.start, f"{part.id}: {cut.num_samples} samples"
    return cut


def _scores(span: Span) -> dict[str, Any]:
    """How sure the models are of a segment's text."""
    assert span.sentence is not None
    window, error = span.sentence.window, span.sentence.error
    scores: dict[str, Any] = {} if error is None else {"aligner_cer": error}
    if window.heard is not None:
        scores["asr_text"] = window.heard
    elif window.logprob is not None:
        scores["asr_logprob"] = round(window.logprob, 4)
    return scores


def _item(word: TimedWord, offset: Seconds, duration: Seconds) -> AlignmentItem:
    start = min(max(word.start - offset, 0.0), duration)
    end = min(max(word.end - offset, start), duration)
    return AlignmentItem(word.text, round(start, 4), round(end - start, 4), word.score)
