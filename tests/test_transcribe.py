"""Segments: checked word times, every sample accounted for, and a killed run that goes on to the same bytes."""

import itertools
import shutil
from pathlib import Path
from types import SimpleNamespace

import librosa
import numpy as np
import pytest
import soundfile
from lhotse import MonoCut
from scipy.signal import butter, sosfilt

from tests.corpora import config, declare_speakers, record_voices, rows, tone, write_audio, write_rows
from tests.polyglot import make_polyglot
from valle2.aligner import Sentence, Word, load_aligner
from valle2.asr import Asr, Window, load_asr
from valle2.config.transcribe import TranscribeConfig
from valle2.corpus import transcriber as module
from valle2.corpus.given_text import give_text
from valle2.corpus.ingest import ingest
from valle2.corpus.segments import split, whole
from valle2.corpus.stretches import Stretch, Unit, load, units
from valle2.corpus.transcribe import transcribe
from valle2.corpus.transcriber import Transcriber
from valle2.corpus.words import check_times
from valle2.errors import SourceError
from valle2.stage import tree_sha256

OPTIONS = TranscribeConfig()
RATE = 24_000
SEGMENTS, DROPPED = Path("artifacts/transcribe/segments.jsonl"), Path("artifacts/transcribe/dropped.jsonl")


ANYTHING = Window("x", 0.0, 1.0)


def sentence(text: str, start: float, end: float, window: Window = ANYTHING) -> Sentence:
    words = text.split()
    edges = np.linspace(start, end, len(words) + 1)
    return Sentence(text, tuple(Word(w, a, b, 0.9) for w, a, b in zip(words, edges, edges[1:], strict=False)), window)


class Listener:
    """Hears `One two three.` in every second pair of seconds; stands for WhisperX, which two tests below really run."""

    def find_speech(self, waveform: np.ndarray) -> list[tuple[float, float]]:
        return [(start, start + 1.5) for start in np.arange(0.3, len(waveform) / 16_000 - 1.5, 2.0)]

    def recognise_all(self, waveforms: list[np.ndarray]) -> list[tuple[str, float]]:
        return [("One two three.", -0.2)] * len(waveforms)

    def align(self, windows: list[Window], waveforms: list[np.ndarray]) -> list[tuple[Sentence, ...]]:
        return [(sentence(window.text, window.start, window.end, window),) for window in windows]


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
    assert first["custom"]["asr_text"] == "One two three. One two three. One two three."
    assert first["duration"] == 7.0
    assert accounted()[0] == accounted()[1]


def test_resumed_after_a_kill_is_the_same_bytes(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = config(transcribe={"shard_seconds": 7})
    transcribe(settings)
    uninterrupted = tree_sha256(Path("artifacts/transcribe"))
    shutil.rmtree("artifacts/transcribe")
    shutil.rmtree(".valle2")
    done: list[int] = []
    work = Transcriber.__call__

    def killed(self: Transcriber, unit: Unit) -> float:
        if done:
            raise KeyboardInterrupt
        done.append(unit.index)
        return work(self, unit)

    monkeypatch.setattr(Transcriber, "__call__", killed)
    with pytest.raises(KeyboardInterrupt):
        transcribe(settings)
    assert not Path("artifacts/transcribe").exists()
    Path("artifacts/.partial/transcribe/parts/000001.host-1").write_text('{"torn')

    def resumed(self: Transcriber, unit: Unit) -> float:
        assert unit.index not in done
        return work(self, unit)

    monkeypatch.setattr(Transcriber, "__call__", resumed)
    transcribe(settings)
    assert tree_sha256(Path("artifacts/transcribe")) == uninterrupted


def test_what_is_new_alone_is_transcribed(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    transcribe(config())
    before = rows(Path("artifacts/transcribe/segments.jsonl"))
    path = Path("artifacts/ingest/cuts.jsonl")
    first, *others = rows(path)
    changed = {**first, "custom": {**first["custom"], "licence": "CC-BY-4.0"}}
    write_rows(path, [changed, *others])
    seen: list[str] = []
    work = Transcriber.__call__

    def counted(self: Transcriber, unit: Unit) -> float:
        seen.extend(stretch.recording["id"] for stretch in unit.stretches)
        return work(self, unit)

    monkeypatch.setattr(Transcriber, "__call__", counted)
    transcribe(config())
    after = rows(Path("artifacts/transcribe/segments.jsonl"))
    assert seen == [first["id"]], "its facts are in its segments"
    assert [row for row in after if row["recording"]["id"] != first["id"]] == [
        row for row in before if row["recording"]["id"] != first["id"]
    ]


class Multilingual:
    """What `Asr` asks of WhisperX's pipeline; takes a loud voice for German."""

    def __init__(self, is_multilingual: bool) -> None:
        self.model = SimpleNamespace(
            model=SimpleNamespace(is_multilingual=is_multilingual, detect_language=self.detect_language),
            encode=lambda features: features,
        )

    def preprocess(self, asked: dict[str, np.ndarray]) -> dict[str, float]:
        return {"inputs": float(np.abs(asked["inputs"]).max())}

    def detect_language(self, loudness: float) -> list[list[tuple[str, float]]]:
        return [[("<|de|>" if loudness > 0.5 else "<|en|>", 0.9), ("<|fr|>", 0.1)]]


def test_the_language_is_that_of_the_longest_window(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loud = Asr(Multilingual(is_multilingual=True), 8.0, 4)
    quiet, noisy = np.full(32_000, 0.1, np.float32), np.full(16_000, 0.9, np.float32)
    assert loud.identify_language(noisy) == ("de", 0.9)
    assert Asr(Multilingual(is_multilingual=False), 8.0, 4).identify_language(noisy) is None
    monkeypatch.setattr(Listener, "find_speech", lambda self, waveform: [(0.3, 1.8), (2.0, 5.0)])

    def identify(self: Listener, wave: np.ndarray) -> tuple[str, float] | None:
        return loud.identify_language(quiet if len(wave) > 24_000 else noisy)

    monkeypatch.setattr(Listener, "identify_language", identify, raising=False)
    transcribe(config(transcribe={"identify_language": True}))
    found = [row["custom"] for row in rows(SEGMENTS)]
    assert {(facts["heard_language"], facts["heard_language_probability"]) for facts in found} == {("en", 0.9)}


def test_a_multilingual_whisper_tells_the_language_of_each_recording(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    record_voices(tmp_path, ["ann", "bob", "cal"])
    for name, kind, edge in (("ann", "low", 1000), ("bob", "high", 2000)):
        path = Path(f"data/audio/{name}/0.wav")
        samples, rate = soundfile.read(path)
        samples = sosfilt(butter(6, edge, kind, fs=rate, output="sos"), samples)
        soundfile.write(path, samples / np.abs(samples).max() * 0.7, rate)
    ingest(config())
    model = make_polyglot(tmp_path / "polyglot")
    settings = {"model": model, "compute_type": "float32", "identify_language": True, "min_duration": 0.01}
    transcribe(config(transcribe=settings))
    found = {row["supervisions"][0]["speaker"]: row["custom"] for row in rows(SEGMENTS)}
    heard = {name: (facts["heard_language"], facts["heard_language_probability"]) for name, facts in found.items()}
    assert {name: language for name, (language, _) in heard.items()} == {"ann": "de", "bob": "fr", "cal": "de"}
    assert all(0.5 < probability < 1 for _, probability in heard.values())
    asr = load_asr(model, "float32", "en", 1)
    time = np.arange(32_000) / 16_000
    high, low = (np.sin(2 * np.pi * pitch * time).astype(np.float32) for pitch in (5000, 300))
    assert [asr.identify_language(wave)[0] for wave in (high, low)] == ["fr", "de"]
    assert load_asr("bundled", "int8", "en", 1).identify_language(low) is None, "it knows but one"


def test_units_hold_recordings_in_order_and_stretches_of_long_ones() -> None:
    lengths = {"a": 20.0, "b": 30.0, "c": 250.0, "d": 5.0, "e": 60.0}
    texts = {"e": "text", "f": "text"}
    rows = [
        {"id": name, "duration": seconds, "supervisions": [{"text": texts.get(name, "")}]}
        for name, seconds in {**lengths, "f": 300.0}.items()
    ]
    found = list(units(rows, 100.0))
    assert [unit.index for unit in found] == list(range(len(found)))
    held = [[(part.recording["id"], part.index, part.count) for part in unit.stretches] for unit in found]
    assert held == [
        [("a", 0, 1), ("b", 0, 1)],
        [("c", 0, 2)],
        [("c", 1, 2)],
        [("d", 0, 1), ("e", 0, 1)],
        [("f", 0, 3), ("f", 1, 3), ("f", 2, 3)],
    ]
    assert sum(unit.seconds for unit in found) == pytest.approx(665.0)


def test_stretches_of_a_recording_meet_where_it_is_quiet(workspace: Path) -> None:
    silent = np.zeros(int(0.8 * RATE), np.float32)
    said = [tone(9.0, 200), silent, tone(17.0, 300), silent, tone(13.0, 250)]
    write_audio(workspace / "data/audio/ann/long.wav", np.concatenate(said))
    ingest(config())
    (row,) = [row for row in rows("artifacts/ingest/cuts.jsonl") if row["duration"] > 30]
    parts = [load(Stretch(row, place, 3))[0] for place in range(3)]
    assert parts[0].start == 0
    assert sum(part.num_samples for part in parts) == MonoCut.from_dict(row).num_samples
    assert [parts[1].start, parts[2].start] == pytest.approx([9.4, 27.2], abs=0.3)
    transcribe(config(transcribe={"shard_seconds": 12}))
    assert accounted()[0] == accounted()[1]
    assert len({row["id"] for row in rows(SEGMENTS)}) == len(rows(SEGMENTS))


def test_given_text_is_shared_out_as_it_was_recognised() -> None:
    heard = ["the cat sat on", "the mad and slept", "all day"]
    windows = [Window(text, index * 5.0, index * 5.0 + 4.0) for index, text in enumerate(heard)]
    given = "The cat sat on the mat, and slept -- all day."
    found = give_text(windows, given, "en")
    assert [window.text for window in found] == ["The cat sat on", "the mat, and slept --", "all day."]
    assert [window.heard for window in found] == heard
    assert [window.text for window in give_text([Window("", 0.0, 1.0)], given, "en")] == [""]


@pytest.mark.slow
def test_numbers_of_workers_change_no_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    record_voices(tmp_path, ["ann", "bob"])
    ingest(config())
    digests = []
    for threads in (1, 2):
        monkeypatch.setenv("VALLE2_HOME", str(tmp_path / f"home{threads}"))
        settings = config(transcribe={"shard_seconds": 5})
        transcribe(
            settings.model_copy(update={"runtime": settings.runtime.model_copy(update={"num_threads": threads})})
        )
        digests.append(tree_sha256(Path("artifacts/transcribe")))
        shutil.rmtree("artifacts/transcribe")
    assert digests[0] == digests[1]


def test_words_are_where_whisperx_finds_them() -> None:
    import whisperx

    from demo.corpus import make_voice, record

    said = ["The doctor sees a red house in the kitchen.", "Peter holds three small birds.", "Yes."]
    spoken = [
        record(make_voice(index), [text], np.random.default_rng(index)).samples for index, text in enumerate(said)
    ]
    waveforms = [librosa.resample(samples / np.float32(32_768), orig_sr=24_000, target_sr=16_000) for samples in spoken]
    windows = [Window(text, 0.0, len(own) / 16_000) for text, own in zip(said, waveforms, strict=True)]
    aligned = load_aligner("bundled", "en", "cpu", 3).align(windows, waveforms)
    model, about = whisperx.load_align_model("en", "cpu", model_name="demo/models/aligner")
    for window, waveform, (found,) in zip(windows, waveforms, aligned, strict=True):
        segment = {"text": window.text, "start": window.start, "end": window.end}
        (theirs,) = whisperx.align([segment], model, about, waveform, "cpu")["segments"]
        assert [word.text for word in found.words] == [word["word"] for word in theirs["words"]]
        assert [(word.start, word.end) for word in found.words] == [
            (word.get("start"), word.get("end")) for word in theirs["words"]
        ]


def test_no_speech_anywhere_is_an_error(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Listener, "find_speech", lambda self, waveform: [])
    with pytest.raises(SourceError, match=r"no usable speech in 0.01 h \(dropped as non_speech\)"):
        transcribe(config())


def test_without_ingest_the_command_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SourceError, match="valle2 ingest"):
        transcribe(config())


@pytest.mark.slow
def test_real_whisperx_on_a_voice_of_the_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    record_voices(tmp_path, ["ann"])
    ingest(config())
    result = transcribe(config())
    assert result.facts["wer"] < 0.5
    assert accounted()[0] == accounted()[1]
    before = tree_sha256(Path("artifacts/transcribe"))
    models = module.load_models(config())
    monkeypatch.setattr(module, "load_models", lambda config: models)
    transcribe(config())
    assert tree_sha256(Path("artifacts/transcribe")) == before
