"""Where nobody tells who speaks: one speaker a file, or voices told apart by a pipeline of pyannote.audio."""

import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import yaml
from lhotse import MonoCut

from demo.corpus import SAMPLE_RATE
from tests.corpora import CONSENT, config, rows
from tests.diarisers import Talk, talk, write_diarisation, write_pipeline
from valle2.aligner import Sentence, Word
from valle2.asr import Window
from valle2.config.transcribe import TranscribeConfig
from valle2.corpus.ingest import ingest
from valle2.corpus.segments import split
from valle2.corpus.transcribe import transcribe
from valle2.corpus.turns import overlaps, runs
from valle2.corpus.voices import link
from valle2.corpus.words import TimedWord
from valle2.diarisation import Turn, load_diariser
from valle2.errors import ConfigError
from valle2.stage import tree_sha256

CUTS = Path("artifacts/ingest/cuts.jsonl")
SEGMENTS, DROPPED = Path("artifacts/transcribe/segments.jsonl"), Path("artifacts/transcribe/dropped.jsonl")
TALK = [(0, 0.3), (1, 0.02), (0, 0.5), (1, -0.8), (0, 0.4), (1, 0.1)]
"""Voices in turn: at once, after a pause, before the other is done."""


@pytest.fixture(autouse=True)
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def take_in(talks: dict[str, Talk], texts: bool = False, **fields: Any) -> None:
    """Ingest recordings that lie beside one another."""
    for name, spoken in talks.items():
        Path("data/audio").mkdir(parents=True, exist_ok=True)
        soundfile.write(f"data/audio/{name}.wav", spoken.samples, SAMPLE_RATE)
        if texts:
            Path(f"data/audio/{name}.txt").write_text(" ".join(word for word, *_ in spoken.words))
    source = {"name": "c", "path": "audio", "licence": "CC0-1.0", "consent": CONSENT, "speaker_from": "file", **fields}
    Path("data/sources.yaml").write_text(yaml.safe_dump({"sources": [source]}))
    ingest(config())


def accounted() -> tuple[int, int]:
    """Samples taken in, and samples in segments and dropped stretches."""
    taken = sum(MonoCut.from_dict(row).num_samples for row in rows(CUTS))
    kept = sum(MonoCut.from_dict(row).num_samples for row in rows(SEGMENTS))
    return taken, kept + sum(row["samples"] for row in rows(DROPPED))


def voices_in(spoken: Talk, start: float, end: float, margin: float = 0.12) -> set[int]:
    """Who truly speaks between two times, edges left out."""
    return {voice for first, last, voice in spoken.turns if first < end - margin and last > start + margin}


@pytest.mark.parametrize("named", ["file", "source"])
def test_a_speaker_whom_nothing_tells_is_marked_as_assumed(named: str) -> None:
    Path("data/audio").mkdir(parents=True)
    Path("data/audio/b.json").write_text(json.dumps({"speaker": "bob"}))
    take_in({"a": talk([(0, 0.1)]), "b": talk([(1, 0.1)])}, speaker_from=named)
    unknown, told = rows(CUTS)
    assert unknown["supervisions"][0]["speaker"] == ("a" if named == "file" else "c")
    assert unknown["custom"]["speaker_assumed"] is True
    assert told["supervisions"][0]["speaker"] == "bob" and "speaker_assumed" not in told["custom"]


def cut(*turns: Turn) -> list[tuple[str, str, bool]]:
    """Runs of the words a to f, each 0.4 s long and at a whole second."""
    words = [TimedWord(name, start, start + 0.4, 0.9) for start, name in enumerate("abcdef")]
    return [("".join(word.text for word in run.words), run.voice, run.overlapped) for run in runs(words, turns)]


def test_words_go_to_the_voice_that_says_them() -> None:
    assert cut() == [("abcdef", "", False)]
    assert cut(Turn(0.1, 2.25, "x"), Turn(2.27, 5.3, "y")) == [("abc", "x", False), ("def", "y", False)]
    assert cut(Turn(0.1, 0.4, "x"), Turn(4.8, 5.3, "y")) == [("abc", "x", False), ("def", "y", False)], "the nearest"


def test_edges_that_hardly_overlap_are_no_overlap() -> None:
    assert cut(Turn(0.1, 2.44, "x"), Turn(2.36, 5.3, "y")) == [("abc", "x", False), ("def", "y", False)]
    assert cut(Turn(0.1, 2.44, "x"), Turn(2.3, 5.3, "y")) == [("ab", "x", False), ("c", "x", True), ("def", "y", False)]


def test_who_says_something_between_words_ends_the_run() -> None:
    turns = (Turn(0.0, 5.4, "x"), Turn(2.6, 2.9, "y"))
    assert cut(*turns) == [("abc", "x", False), ("def", "x", False)]
    assert overlaps(turns) == [(2.6, 2.9)]


def test_overlaps_are_where_two_or_more_speak() -> None:
    turns = [Turn(0, 3, "x"), Turn(1, 2, "y"), Turn(1.5, 4, "z"), Turn(4, 5, "x")]
    assert overlaps(turns) == [(1, 3)]


def test_parts_of_a_sentence_share_its_text_and_what_was_heard() -> None:
    names = "Yes, I do. No, you don't.".split()
    words = tuple(Word(name, start, start + 0.8, 0.9) for start, name in enumerate(names))
    sentence = Sentence(" ".join(names), words, Window("", 0.0, 6.0, heard="yes I do know you don't"), 0.2)
    turns = [Turn(0.0, 2.9, "x"), Turn(2.95, 6.0, "y")]
    spans = [span for span in split([sentence], [], 144_000, 24_000, TranscribeConfig(), turns) if not span.reason]
    assert [(span.text, span.voice) for span in spans] == [("Yes, I do.", "x"), ("No, you don't.", "y")]
    assert [span.sentence.window.heard for span in spans if span.sentence] == ["yes I do", "know you don't"]


def test_spans_cover_a_recording_once_whoever_speaks_when() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        starts = rng.uniform(0, 40, 5)
        sentences = [
            Sentence("a b c", tuple(Word(name, start + k, start + k + 0.7, 0.9) for k, name in enumerate("abc")),
                     Window("a b c", start, start + 3)) for start in starts
        ]  # fmt: skip
        turns = [Turn(start, start + rng.uniform(0.1, 8), str(rng.integers(3))) for start in rng.uniform(0, 40, 8)]
        length = int(rng.integers(1, 40 * 24_000))
        spans = split(sentences, [], length, 24_000, TranscribeConfig(), turns)
        assert sum(span.end - span.start for span in spans) == length
        assert all(left.end == right.start for left, right in itertools.pairwise(spans))
        for span in spans:
            if not span.reason:
                shared = [
                    min(span.end / 24_000, end) - max(span.start / 24_000, start) for start, end in overlaps(turns)
                ]
                assert max([0.0, *shared]) < 0.06


def test_voices_of_stretches_are_put_together_by_their_embeddings() -> None:
    x, y, z = np.eye(3)
    near = (0.9 * x + 0.436 * y).tolist()
    assert link([[x, y], [y, x], [z], [near]], 0.7) == [[0, 1], [1, 0], [2], [0]]
    assert link([[x], [x, near]], 0.7) == [[0], [0, 1]], "two of one stretch are two"
    assert link([[(), ()], [()]], 0.7) == [[0, 1], [2]], "without embeddings none is known again"


@pytest.mark.parametrize("write", [write_pipeline, write_diarisation])
def test_each_segment_has_one_voice_and_its_own_words(write: Callable[[Path], str]) -> None:
    spoken = {"two": talk(TALK), "one": talk([(1, 0.3), (1, 0.4)], seed=1)}
    take_in(spoken)
    transcribe(config(transcribe={"diarisation": write(Path("pipeline"))}))
    taken, kept = accounted()
    assert taken == kept
    speakers: dict[str, set[int]] = {}
    for row in rows(SEGMENTS):
        name, about = row["recording"]["id"], row["supervisions"][0]
        truth = spoken[name.removeprefix("c-")]
        heard = voices_in(truth, row["start"], row["start"] + row["duration"])
        assert len(heard) == 1, f"{about['text']} is said by {heard}"
        speakers.setdefault(about["speaker"], set()).update(heard)
        assert row["custom"]["diarised"] and not {"speaker_assumed", "voice"} & set(row["custom"])
    assert speakers == {"c-two-spk00": {0}, "c-two-spk01": {1}, "one": {1}}, "one voice alone keeps the file's name"
    dropped = [row for row in rows(DROPPED) if row["reason"] == "overlapping_speech"]
    assert dropped and {row["recording"] for row in dropped} == {"c-two"}
    (_, last, _), (first, _, _) = spoken["two"].turns[2:4]
    assert min(row["start"] for row in dropped) < first + 0.1 and max(row["end"] for row in dropped) > last - 0.1


def test_without_a_pipeline_there_is_one_speaker_a_file() -> None:
    take_in({"two": talk(TALK)})
    transcribe(config())
    assert {row["supervisions"][0]["speaker"] for row in rows(SEGMENTS)} == {"two"}
    assert all(row["custom"]["speaker_assumed"] for row in rows(SEGMENTS))
    assert accounted()[0] == accounted()[1]


def test_given_text_is_cut_at_turns() -> None:
    spoken = talk(TALK[:4], seed=2)
    take_in({"a": spoken}, texts=True)
    transcribe(config(transcribe={"diarisation": write_pipeline(Path("pipeline"))}))
    assert accounted()[0] == accounted()[1]
    found = rows(SEGMENTS)
    assert {row["supervisions"][0]["speaker"] for row in found} == {"c-a-spk00", "c-a-spk01"}
    for row in found:
        (voice,) = voices_in(spoken, row["start"], row["start"] + row["duration"])
        said = [word for word, _, _, own in spoken.words if own == voice]
        assert set(row["supervisions"][0]["text"].split()) <= set(said)
        assert row["custom"]["asr_text"]


@pytest.mark.slow
def test_a_long_recording_keeps_its_voices_whoever_works_on_it(monkeypatch: pytest.MonkeyPatch) -> None:
    spoken = talk([*TALK[:2], *[(1, 0.6), (0, 0.6)] * 3])
    take_in({"long": spoken})
    pipeline = write_diarisation(Path("pipeline"))
    digests = []
    for threads in (1, 2):
        monkeypatch.setenv("VALLE2_HOME", str(Path(f"home{threads}").absolute()))
        settings = config(runtime={"num_threads": threads}, transcribe={"diarisation": pipeline, "shard_seconds": 10})
        transcribe(settings)
        digests.append(tree_sha256(Path("artifacts/transcribe")))
        if threads == 1:
            check_voices(spoken)
            shutil.rmtree("artifacts/transcribe")
    assert digests[0] == digests[1]


def check_voices(spoken: Talk) -> None:
    speakers: dict[str, set[int]] = {}
    for row in rows(SEGMENTS):
        heard = voices_in(spoken, row["start"], row["start"] + row["duration"])
        speakers.setdefault(row["supervisions"][0]["speaker"], set()).update(heard)
    assert speakers == {"c-long-spk00": {0}, "c-long-spk01": {1}}
    assert accounted()[0] == accounted()[1]


def test_a_pipeline_that_is_not_there_is_told_before_anything_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    take_in({"a": talk([(0, 0.1)])})
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for name, told in {
        "nowhere/at/all": "nowhere/at/all, which is not there",
        "data": r"data, a folder without config\.yaml",
        "pyannote/speaker-diarization-3.1": r"accept its conditions on the model hub and set HF_TOKEN",
    }.items():
        with pytest.raises(ConfigError, match=told) as caught:
            transcribe(config(transcribe={"diarisation": name}))
        assert "\n" not in str(caught.value)
    assert not Path("artifacts/.partial/transcribe").exists()


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("pipeline: {name: tests.diarisers.Nobody}", "Nobody"),
        ("pipeline: {name: no.such.module.Class}", "No module named"),
        ("pipeline: {name: tests.diarisers.HummingMicrophones, params: {colour: red}}", "colour"),
        ("pipeline: [", "while parsing"),
        ("params: {}", "pipeline"),
        ("pipeline: {name: SpeakerDiarization, params: {segmentation: gone.bin}}", "cannot be loaded"),
    ],
)
def test_a_broken_pipeline_is_one_sentence(content: str, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    Path("pipeline").mkdir()
    Path("pipeline/config.yaml").write_text(content)
    with pytest.raises(ConfigError, match=told) as caught:
        load_diariser("pipeline", "cpu")
    assert "\n" not in str(caught.value) and "config.yaml" in str(caught.value)
