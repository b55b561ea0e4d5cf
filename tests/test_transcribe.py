"""Segments: checked word times, every sample accounted for, and a killed run that goes on to the same bytes."""

import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lhotse import MonoCut

from tests.corpora import config, declare_speakers, rows, tone, write_audio, write_rows
from valle2.asr import Sentence, Window, Word
from valle2.config.transcribe import TranscribeConfig
from valle2.corpus import transcribe as module
from valle2.corpus.ingest import ingest
from valle2.corpus.segments import check_times, split, whole
from valle2.corpus.transcribe import load_models, transcribe, transcribe_recording
from valle2.errors import SourceError
from valle2.stage import tree_sha256

OPTIONS = TranscribeConfig()
RATE = 24_000
SEGMENTS, DROPPED = Path("artifacts/transcribe/segments.jsonl"), Path("artifacts/transcribe/dropped.jsonl")


def sentence(text: str, start: float, end: float) -> Sentence:
    words = text.split()
    edges = np.linspace(start, end, len(words) + 1)
    return Sentence(text, tuple(Word(w, a, b, 0.9) for w, a, b in zip(words, edges, edges[1:], strict=False)))


class Listener:
    """Hears `one two three.` in every second pair of seconds; stands for WhisperX, which one test below really runs."""

    def transcribe(self, waveform: np.ndarray) -> list[Window]:
        seconds = len(waveform) / 16_000
        return [Window("One two three.", start, start + 1.5) for start in np.arange(0.3, seconds - 1.5, 2.0)]

    def recognise(self, waveform: np.ndarray) -> str:
        return "One two tree."

    def align(self, windows: list[Window], waveform: np.ndarray) -> list[Sentence]:
        return [sentence(window.text, window.start, window.end) for window in windows]


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three ingested recordings of 7 s, without text."""
    monkeypatch.chdir(tmp_path)
    names = ["ann", "bob", "cal"]
    declare_speakers(tmp_path, names)
    for index, name in enumerate(names):
        write_audio(tmp_path / "data/audio" / name / f"{name}.wav", tone(7.0 + index / 7, 200 + 50 * index))
    ingest(config())
    monkeypatch.setattr(module, "load_models", lambda config: (Listener(), Listener()))
    return tmp_path


def accounted() -> tuple[int, int]:
    """Samples taken in, and samples in segments and dropped stretches."""
    taken = sum(MonoCut.from_dict(row).num_samples for row in rows("artifacts/ingest/cuts.jsonl"))
    kept = sum(MonoCut.from_dict(row).num_samples for row in rows(SEGMENTS))
    return taken, kept + sum(row["samples"] for row in rows(DROPPED))


def test_word_times_are_put_in_order_and_gaps_shared() -> None:
    words = [
        Word("a", None, None, None), Word("b", 1.0, 1.4, 0.9), Word("c", 1.38, 1.6, 0.9), Word("d", None, 2.0, None),
        Word("e", None, None, None), Word("f", 2.6, 9.0, 0.9), Word("g", None, None, None),
    ]  # fmt: skip
    timed = check_times(words, 3.0)
    assert [word.text for word in timed] == list("abcdefg")
    times = [time for word in timed for time in (word.start, word.end)]
    assert times == sorted(times)
    assert max(times) <= 3.0
    assert timed[3].start == pytest.approx(1.6)
    assert timed[3].end == pytest.approx(2.1)
    assert timed[3].score is None


@pytest.mark.parametrize(
    "words",
    [
        [Word("a", None, None, None)],
        [Word("a", 2.0, 2.2, 0.9), Word("b", 1.0, 1.2, 0.9)],
        [Word("a", 2.0, 1.0, 0.9)],
        [Word("a", 5.0, 6.0, 0.9)],
    ],
)
def test_unusable_word_times_are_refused(words: list[Word]) -> None:
    assert check_times(words, 3.0) == ()


def test_spans_cover_a_recording_once_whatever_is_heard() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        length = int(rng.integers(1, 40 * RATE))
        sentences = [
            sentence("One two three.", start, start + rng.uniform(-0.5, 25)) for start in rng.uniform(0, 40, 6)
        ]  # fmt: skip
        windows = [Window("" if rng.random() < 0.5 else "x", start, start + 2) for start in rng.uniform(0, 40, 4)]
        spans = split(sentences, windows, length, RATE, OPTIONS)
        edges = [(span.start, span.end) for span in spans]
        assert edges[0][0] == 0
        assert edges[-1][1] == length
        assert all(left[1] == right[0] for left, right in itertools.pairwise(edges))
        assert all(RATE <= span.end - span.start <= 20 * RATE for span in spans if not span.reason)


def test_padding_stops_midway_between_neighbours() -> None:
    spans = split([sentence("One.", 1, 3), sentence("Two.", 3.1, 5)], [], 6 * RATE, RATE, OPTIONS)
    assert [(span.start / RATE, span.end / RATE) for span in spans if not span.reason] == [(0.9, 3.05), (3.05, 5.1)]


def test_given_text_without_words_is_dropped() -> None:
    assert [span.reason for span in whole([], "...", RATE, RATE, OPTIONS)] == ["no_words"]
    assert [span.reason for span in whole([], "text", RATE, RATE, OPTIONS)] == ["bad_word_times"]


def test_every_sample_is_accounted_for(workspace: Path) -> None:
    result = transcribe(config())
    taken, kept = accounted()
    assert taken == kept
    assert "9 segments" in result.figure
    for row in rows(SEGMENTS):
        cut = MonoCut.from_dict(row)
        words = cut.supervisions[0].alignment["word"]
        assert [word.symbol for word in words] == ["One", "two", "three."]
        assert words[0].start == pytest.approx(0.1, abs=0.001)
        assert words[-1].end <= cut.duration
        assert cut.load_audio().shape == (1, cut.num_samples)


def test_given_text_keeps_a_recording_whole_and_stores_what_was_heard(workspace: Path) -> None:
    Path("data/audio/ann/ann.txt").write_text("One two three")
    ingest(config())
    transcribe(config())
    first = rows(SEGMENTS)[0]
    assert first["supervisions"][0]["text"] == "One two three"
    assert first["custom"]["asr_text"] == "One two tree."
    assert first["duration"] == 7.0
    assert accounted()[0] == accounted()[1]


def test_resumed_after_a_kill_is_the_same_bytes(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    transcribe(config())
    uninterrupted = tree_sha256(Path("artifacts/transcribe"))
    shutil.rmtree("artifacts/transcribe")
    shutil.rmtree(".valle2")
    done: list[str] = []

    def killed(recording: MonoCut, **options: Any) -> dict[str, Any]:
        if done:
            raise KeyboardInterrupt
        done.append(recording.id)
        return transcribe_recording(recording, **options)

    monkeypatch.setattr(module, "transcribe_recording", killed)
    with pytest.raises(KeyboardInterrupt):
        transcribe(config())
    assert not Path("artifacts/transcribe").exists()
    with Path("artifacts/.partial/transcribe/recordings.jsonl").open("a") as journal:
        journal.write('["torn line')

    def resumed(recording: MonoCut, **options: Any) -> dict[str, Any]:
        assert recording.id not in done
        return transcribe_recording(recording, **options)

    monkeypatch.setattr(module, "transcribe_recording", resumed)
    transcribe(config())
    assert tree_sha256(Path("artifacts/transcribe")) == uninterrupted


def test_what_is_new_alone_is_transcribed(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    transcribe(config())
    before = rows(Path("artifacts/transcribe/segments.jsonl"))
    path = Path("artifacts/ingest/cuts.jsonl")
    first, *others = rows(path)
    changed = {**first, "custom": {**first["custom"], "licence": "CC-BY-4.0"}}
    write_rows(path, [changed, *others])
    seen: list[str] = []

    def counted(recording: MonoCut, **options: Any) -> dict[str, Any]:
        seen.append(recording.id)
        return transcribe_recording(recording, **options)

    monkeypatch.setattr(module, "transcribe_recording", counted)
    transcribe(config())
    after = rows(Path("artifacts/transcribe/segments.jsonl"))
    assert seen == [first["id"]], "its facts are in its segments"
    assert [row for row in after if row["recording"]["id"] != first["id"]] == [
        row for row in before if row["recording"]["id"] != first["id"]
    ]


def test_no_speech_anywhere_is_an_error(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Listener, "transcribe", lambda self, waveform: [])
    with pytest.raises(SourceError, match="no usable speech in 3 recordings"):
        transcribe(config())


def test_without_ingest_the_command_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SourceError, match="valle2 ingest"):
        transcribe(config())


@pytest.mark.slow
def test_real_whisperx_on_a_voice_of_the_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from demo.corpus import SAMPLE_RATE, make_voice, record

    monkeypatch.chdir(tmp_path)
    said = ["The doctor sees a red house in the kitchen.", "Peter holds three small birds."]
    spoken = record(make_voice(3), said, np.random.default_rng(0))
    declare_speakers(tmp_path, ["ann"])
    write_audio(tmp_path / "data/audio/ann/a.wav", spoken.samples, SAMPLE_RATE)
    truth = {"recording": "ann/a.wav", "segments": [{"text": text} for text in said]}
    Path("data/truth.jsonl").write_text(json.dumps(truth))
    ingest(config())
    result = transcribe(config())
    assert result.facts["wer"] < 0.5
    assert accounted()[0] == accounted()[1]
    before = tree_sha256(Path("artifacts/transcribe"))
    asr, aligner = load_models(config())
    monkeypatch.setattr(module, "load_models", lambda config: (asr, aligner))
    transcribe(config())
    assert tree_sha256(Path("artifacts/transcribe")) == before
