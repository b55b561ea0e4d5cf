"""The embedded corpus: big enough, byte-stable, and honest about who is unseen."""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

import demo.corpus
from demo.corpus import make_voice, record, write_corpus
from demo.espeak import SAMPLE_RATE, speak
from demo.grammar import vocabulary


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus") / "data"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo.corpus, "NUM_TRAINING_VOICES", 2)
        patch.setattr(demo.corpus, "NUM_UNSEEN_VOICES", 1)
        patch.setattr(demo.corpus, "TRAINING_SECONDS", 12)
        patch.setattr(demo.corpus, "UNSEEN_SECONDS", 12)
        write_corpus(folder)
    return folder


def test_size_of_the_shipped_corpus() -> None:
    assert len(vocabulary()) >= 120
    assert demo.corpus.NUM_TRAINING_VOICES >= 24
    assert demo.corpus.NUM_UNSEEN_VOICES >= 6
    seconds = demo.corpus.NUM_TRAINING_VOICES * demo.corpus.TRAINING_SECONDS
    assert seconds + demo.corpus.NUM_UNSEEN_VOICES * demo.corpus.UNSEEN_SECONDS >= 40 * 60


def test_speech_does_not_depend_on_what_was_said_before() -> None:
    text, voice = "The doctor finds eleven green bottles.", make_voice(3)
    first = speak(text, voice)
    speak("Anna sees it today.", make_voice(50))
    again = speak(text, voice)
    assert np.array_equal(first.samples, again.samples)
    assert (first.words, first.phones) == (again.words, again.phones)
    assert [word.text for word in first.words] == text.rstrip(".").split()
    assert all(before.end <= after.start for before, after in pairwise(first.words))
    assert all(before.start <= after.start for before, after in pairwise(first.phones))
    assert [phone.name for phone in first.phones[:2]] == ["D", "@2"]


def test_recordings_hold_their_sentences() -> None:
    texts = ["Anna sees it today.", "The captain paints a cold window in the castle."]
    recording = record(make_voice(1), texts, np.random.default_rng(0))
    assert [text for text, _, _ in recording.sentences] == texts
    loud = np.abs(recording.samples.astype(np.int32))
    for _, start, end in recording.sentences:
        assert loud[start:end].max() > 5_000
    pause = recording.samples[recording.sentences[0][2] : recording.sentences[1][1]]
    assert np.abs(pause.astype(np.int32)).max() < 50
    assert 0.35 * SAMPLE_RATE <= len(pause) <= 0.9 * SAMPLE_RATE


def test_every_speaker_has_licence_and_consent(small: Path) -> None:
    rows = [json.loads(line) for line in (small / "espeak-demo" / "speakers.jsonl").read_text().splitlines()]
    folders = {folder.name for folder in (small / "espeak-demo" / "audio").iterdir()}
    assert {row["speaker"] for row in rows} == folders
    assert all(row["licence"] and row["consent"]["basis"] for row in rows)


def test_no_sentence_is_said_twice(small: Path) -> None:
    rows = [json.loads(line) for line in (small / "espeak-demo" / "truth.jsonl").read_text().splitlines()]
    texts = [segment["text"] for row in rows for segment in row["segments"]]
    assert len(texts) == len(set(texts))
