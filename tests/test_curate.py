"""Rules, splits, the leakage gate, and a funnel that adds up to the sample."""

import json
import shutil
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from lhotse import MonoCut

from tests.corpora import RATE, config, rows, segment, tone, write_audio, write_rows
from valle2.config.curate import Thresholds
from valle2.config.params import Config
from valle2.corpus import curate as module
from valle2.corpus import measurer, quality, sound
from valle2.corpus.curate import curate
from valle2.corpus.fingerprint import bit_error, duplicate_groups
from valle2.corpus.rules import RULES, Facts, broken_rule
from valle2.corpus.splits import check_leakage, split_speakers, together
from valle2.errors import ConfigError, SourceError
from valle2.stage import tree_sha256

SPEAKERS = ["ann", "bob", "cal", "dan"]


def parameters(**curate: object) -> Config:
    chosen = {
        "min_dnsmos": 1.0,
        "test_speakers": ["ann"],
        "dev_speakers": ["bob"],
        "vocab_size": 60,
        "max_bit_error": 0,
        **curate,
    }
    return config(curate=chosen)


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[MonoCut]:
    """Transcribed segments of four speakers: three sentences each, and 0.5 s that is no speech."""
    monkeypatch.chdir(tmp_path)
    cuts, whole, dropped = [], [], []
    for index, name in enumerate(SPEAKERS):
        path = write_audio(Path("data") / f"{name}.wav", tone(5.0, 200 + 40 * index))
        whole.append(segment(name, name, "", path, 0.0, 5.0))
        cuts += [
            segment(f"{name}-{k}", name, f"Sentence of {name} number {'abc'[k]}.", path, 1.5 * k) for k in range(3)
        ]
        dropped.append({"recording": name, "start": 4.5, "end": 5.0, "samples": 12_000, "reason": "non_speech"})
    write_rows("artifacts/ingest/cuts.jsonl", [cut.to_dict() for cut in whole])
    write(cuts)
    write_rows("artifacts/transcribe/dropped.jsonl", dropped)
    return cuts


def write(cuts: list[MonoCut]) -> None:
    write_rows("artifacts/transcribe/segments.jsonl", [cut.to_dict() for cut in cuts])


def funnel() -> dict:
    return json.loads(Path("artifacts/curate/funnel.json").read_text())


def texts(split: str) -> set[str]:
    return {row["supervisions"][0]["text"] for row in rows(f"artifacts/curate/{split}.jsonl")}


def test_splits_are_disjoint_and_the_funnel_adds_up(workspace: list[MonoCut]) -> None:
    curate(parameters())
    found = funnel()
    assert found["in"]["samples"] == 4 * 5 * 24_000
    parts = [*found["dropped"].values(), *found["kept"].values()]
    assert sum(part["samples"] for part in parts) == found["in"]["samples"]
    assert found["disjoint"] == {
        "utterances": 12,
        "recordings": 4,
        "speakers": 4,
        "sentences": 12,
        "duplicate_groups": 12,
    }
    assert texts("test") == {f"sentence of ann number {k}" for k in "abc"}
    row = rows("artifacts/curate/train.jsonl")[0]
    assert row["custom"]["bandwidth"] <= RATE / 2, "no more than the file can hold"
    assert row["custom"]["raw_text"] == "Sentence of cal number a."
    assert 1 <= row["custom"]["dnsmos"] <= 5


def test_twice_is_the_same_bytes(workspace: list[MonoCut]) -> None:
    curate(parameters())
    before = tree_sha256(Path("artifacts/curate"))
    curate(parameters())
    assert tree_sha256(Path("artifacts/curate")) == before


def test_each_rule_has_its_reason(workspace: list[MonoCut], monkeypatch: pytest.MonkeyPatch) -> None:
    cal, dan = workspace[6:9], workspace[9:12]
    cal[0].supervisions[0].text = "…"
    cal[1].supervisions[0].text = cal[2].supervisions[0].text
    dan[0].supervisions[0].text = "one two three four five six seven eight nine ten"
    dan[1].supervisions[0].text = workspace[0].supervisions[0].text
    dan[2].custom["asr_text"] = "nothing like it"
    workspace[3].supervisions[0].language = "de"
    write(workspace)
    monkeypatch.setattr(module.quality.Dnsmos, "p808", lambda self, wave: 3.0)
    curate(parameters(max_given_text_wer=0.5))
    assert {reason: part["count"] for reason, part in funnel()["dropped"].items()} == {
        "duplicate_text": 1, "language": 1, "no_words": 1, "non_speech": 4, "speaking_rate": 1, "text_disagrees": 1,
        "text_leak": 1,
    }  # fmt: skip
    dropped = {row["id"]: row for row in rows("artifacts/curate/dropped.jsonl")}
    assert {name: row["reason"] for name, row in dropped.items()} == {
        "bob-0": "language", "cal-0": "no_words", "cal-2": "duplicate_text", "dan-0": "speaking_rate",
        "dan-1": "text_leak", "dan-2": "text_disagrees",
    }  # fmt: skip
    assert dropped["dan-0"]["words_per_second"] == 6.6667 and dropped["dan-0"]["dnsmos"] == 3.0


def test_quality_rule(workspace: list[MonoCut]) -> None:
    with pytest.raises(SourceError, match=r"none of 12 segments is left \(12 low_quality\)"):
        curate(parameters(min_dnsmos=5.0))
    assert not Path("artifacts/curate").exists()


def test_a_name_that_is_not_there_is_told(workspace: list[MonoCut]) -> None:
    with pytest.raises(ConfigError, match=r"test_speakers` names zoe.*there are ann, bob"):
        curate(parameters(test_speakers=["zoe"]))


def alone(names: Iterable[str]) -> list[tuple[str, str]]:
    """Each with a recording of its own."""
    return [(name, name) for name in names]


def test_too_few_speakers() -> None:
    with pytest.raises(ConfigError, match="leave none for train"):
        split_speakers(alone("ab"), 1, 1, seed=0)
    with pytest.raises(ConfigError, match="asks for 3 speakers and 2 of 2 are free"):
        split_speakers(alone("ab"), 3, 0, seed=0)
    with pytest.raises(ConfigError, match="in test already"):
        split_speakers(alone("abc"), ("a",), ("a",), seed=0)


def test_drawn_speakers_do_not_depend_on_order_or_company() -> None:
    names = [f"speaker {index}" for index in range(50)]
    drawn = split_speakers(alone(names), 5, 5, seed=1)
    assert split_speakers(alone(names[::-1]), 5, 5, seed=1) == drawn
    assert split_speakers(alone(names), 5, 5, seed=2) != drawn
    without = next(name for name in names if drawn[name] == "train")
    assert split_speakers(alone(name for name in names if name != without), 5, 5, seed=1) == {
        name: split for name, split in drawn.items() if name != without
    }


def test_who_speaks_in_one_recording_is_in_one_split() -> None:
    talks = [("a", "1"), ("b", "1"), ("b", "2"), ("c", "2"), ("d", "3"), ("e", "4"), ("f", "4"), ("g", "5")]
    assert together(talks)["c"] == ("a", "b", "c") and together(talks[::-1]) == together(talks)
    named = split_speakers(talks, ("a",), ("e",), seed=0)
    assert named == dict(zip("abcdefg", ["test"] * 3 + ["train"] + ["dev"] * 2 + ["train"], strict=True))
    for seed in range(20):
        drawn = split_speakers(talks, 2, 1, seed=seed)
        assert len({drawn[name] for name in "abc"}) == len({drawn[name] for name in "ef"}) == 1
        assert list(drawn.values()).count("test") == 2 and "dev" in drawn.values()
    assert split_speakers(talks[:5], 0, 2, seed=0)["d"] == "dev", "who fits"
    assert split_speakers(talks[5:7] + talks[:4], 0, 1, seed=0)["f"] == "dev", "else the fewest"
    with pytest.raises(ConfigError, match=r"dev_speakers` names c, who are in test already.* share a recording"):
        split_speakers(talks, ("a",), ("c",), seed=0)


def test_a_recording_of_two_speakers_is_not_torn_apart(workspace: list[MonoCut]) -> None:
    for cut in workspace[6:9]:
        cut.custom["sha256"] = "ann"
    write(workspace)
    curate(parameters())
    assert {row["supervisions"][0]["speaker"] for row in rows("artifacts/curate/test.jsonl")} == {"ann", "cal"}
    assert funnel()["disjoint"]["recordings"] == 3


@pytest.mark.parametrize("kind", ["speaker", "recording", "utterance", "sentence", "duplicate group"])
def test_the_gate_refuses_a_leak(kind: str) -> None:
    def item(name: str) -> SimpleNamespace:
        return SimpleNamespace(id=name, sha256=name, speaker=name, group=name, text=name)

    train, dev, test = item("train"), item("dev"), item("test")
    field = {"recording": "sha256", "utterance": "id", "sentence": "text", "duplicate group": "group"}.get(kind, kind)
    assert check_leakage({"train": [train], "dev": [dev], "test": [test]})["speakers"] == 3
    setattr(train, field, "test")
    with pytest.raises(SourceError, match=rf"the splits leak: .*{kind}"):
        check_leakage({"train": [train], "dev": [dev], "test": [test]})


def test_the_same_sound_in_another_file_is_dropped(workspace: list[MonoCut]) -> None:
    sounds = [speechlike(5.0, RATE, 3000, seed) for seed in range(4)]
    sounds[3][: 2 * RATE] = sounds[2][: 2 * RATE] * 0.5
    for name, wave in zip(SPEAKERS, sounds, strict=True):
        write_audio(Path(f"data/{name}.wav"), wave)
    curate(parameters(max_bit_error=0.25))
    (dropped,) = [row for row in rows("artifacts/curate/dropped.jsonl") if row["reason"] == "duplicate_audio"]
    assert (dropped["id"], dropped["same_as"]) == ("dan-0", "cal-0")
    assert funnel()["sources"]["tones"]["dropped"]["duplicate_audio"]["count"] == 1
    curate(parameters())
    assert "duplicate_audio" not in funnel()["dropped"]


def test_sound_that_is_less_alike_is_the_same_only_with_the_same_words() -> None:
    rng = np.random.default_rng(0)
    clip = rng.integers(0, 2**32, 200, dtype=np.uint32)
    alike = clip ^ np.where(rng.random((200, 32)) < 0.18, np.uint32(1) << np.arange(32, dtype=np.uint32), 0).sum(
        1, dtype=np.uint32
    )
    alike[::20] = clip[::20]
    assert 0.125 < bit_error(clip, alike, 0) < 0.25
    said = "the farmer gently carries it tomorrow"
    for other, group in ((said, 0), (f"and {said}", 0), ("the farmer gently sells it today", 1)):
        assert duplicate_groups([clip, alike], [said, other], 0.25) == [0, group]
    assert duplicate_groups([clip, clip], [said, "nothing like it"], 0.25) == [0, 0]
    assert duplicate_groups([clip, clip], [said, said], 0.0) == [0, 1]


def test_numbers_of_workers_change_no_byte(workspace: list[MonoCut], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measurer, "_UNIT_SECONDS", 3.0)
    settings = parameters()
    digests = []
    for threads in (1, 2):
        shutil.rmtree(".valle2", ignore_errors=True)
        curate(settings.model_copy(update={"runtime": settings.runtime.model_copy(update={"num_threads": threads})}))
        digests.append(tree_sha256(Path("artifacts/curate")))
    assert digests[0] == digests[1]


def test_dnsmos_tells_noise_from_silence_the_same_each_time() -> None:
    model = quality.Dnsmos()
    wave = np.random.default_rng(0).normal(0, 0.1, 30_000).astype(np.float32)
    score = model.p808(wave)
    assert 1 <= score <= 5
    assert quality.Dnsmos().p808(wave) == score
    assert model.p808(np.tile(wave, 12)) == pytest.approx(score, abs=0.5)


def test_rate_bounds_are_tukeys() -> None:
    assert quality.rate_bounds([1, 2, 3, 4, 5], 1.5) == (-1.0, 7.0)


GOOD = Facts("one two three", "one two three", "en", "en", 2.0, (1.0, 4.0), 3.5, 0.0, 0.1, 40.0, 8000.0)


@pytest.mark.parametrize(
    ("reason", "changed"),
    [
        ("no_words", {"text": ""}),
        ("language", {"language": "de"}),
        ("clipping", {"clipped": 0.006}),
        ("mostly_silence", {"silence": 0.61}),
        ("noise", {"snr": 4.9}),
        ("narrow_band", {"bandwidth": 6900.0}),
        ("low_quality", {"dnsmos": 2.4}),
        ("repetitive_text", {"text": "thank you " * 20}),
        ("stock_phrase", {"text": "thanks for watching", "heard": None}),
        ("unsure_words", {"logprob": -1.1}),
        ("character_rate", {"seconds": 0.2}),
        ("bad_alignment", {"aligner_cer": 0.6}),
        ("speaking_rate", {"rate": 4.1}),
        ("text_disagrees", {"heard": "one two"}),
    ],
)
def test_each_rule_is_broken_by_its_own_fact_alone(reason: str, changed: dict[str, Any]) -> None:
    limits = Thresholds(min_bandwidth=7000, max_given_text_wer=0.3, max_aligner_cer=0.5)
    assert broken_rule(GOOD, limits) == ""
    assert broken_rule(replace(GOOD, **changed), limits) == reason
    assert reason in [rule.__name__ for rule in RULES]


def test_a_language_that_is_heard_counts_as_one_that_is_declared() -> None:
    assert broken_rule(replace(GOOD, other_language=0.81), Thresholds()) == "language"
    assert broken_rule(replace(GOOD, other_language=0.79), Thresholds()) == ""
    assert broken_rule(GOOD, Thresholds(min_other_language=0)) == "", "nothing else was heard"


def test_every_rule_is_tested() -> None:
    [mark] = test_each_rule_is_broken_by_its_own_fact_alone.pytestmark  # type: ignore[attr-defined]
    assert [case[0] for case in mark.args[1]] == [rule.__name__ for rule in RULES]


def test_a_source_may_have_thresholds_of_its_own(workspace: list[MonoCut]) -> None:
    with pytest.raises(SourceError, match="12 low_quality"):
        curate(parameters(sources={"tones": {"min_dnsmos": 5.0}}))
    curate(parameters(sources={"another": {"min_dnsmos": 5.0}}))
    with pytest.raises(ConfigError, match=r"source tones sets min_dnsmoss; expected one of .*min_dnsmos,"):
        parameters(sources={"tones": {"min_dnsmoss": 5.0}})


def speechlike(seconds: float, rate: int, top: float, seed: int = 1) -> np.ndarray:
    """Noise up to a frequency, in syllables with pauses, over a faint floor."""
    rng = np.random.default_rng(seed)
    spectrum = np.fft.rfft(rng.normal(size=round(seconds * rate)))
    spectrum[np.fft.rfftfreq(round(seconds * rate), 1 / rate) > top] = 0
    times = np.arange(round(seconds * rate)) / rate
    wave = np.fft.irfft(spectrum, len(times)) * np.clip(np.sin(2 * np.pi * 2 * times) + 0.5, 0, 1)
    return (0.1 * wave / wave.std() + 3e-5 * rng.normal(size=len(times))).astype(np.float32)


@pytest.mark.parametrize("top", [3400, 4000, 8000])
def test_bandwidth_is_that_of_the_speech_not_of_the_file(top: float) -> None:
    wave = speechlike(4.0, 48_000, top)
    assert sound.bandwidth(wave, 48_000) == pytest.approx(top, abs=150)


def test_measures_of_a_waveform() -> None:
    wave = speechlike(4.0, 24_000, 8000)
    clean = sound.measure(wave, 24_000, 24_000)
    assert clean["clipped"] == 0 and clean["silence"] == pytest.approx(1 / 3, abs=0.06)
    assert clean["snr"] > 60
    loud = sound.measure(np.clip(30 * wave, -1, 1), 24_000, 24_000)
    assert loud["clipped"] > 0.3
    noisy = sound.measure(wave + np.random.default_rng(2).normal(0, 0.07, len(wave)).astype(np.float32), 24_000, 24_000)
    assert noisy["snr"] < 10 and noisy["silence"] == 0
    assert sound.measure(wave[:10], 24_000, 24_000).keys() == clean.keys()


def test_what_resampling_leaves_is_no_bandwidth() -> None:
    wave = speechlike(2.0, 24_000, 9500)
    assert sound.measure(wave, 24_000, 16_000)["bandwidth"] == 8000


def test_the_rate_of_a_file_is_known_behind_its_resampling(tmp_path: Path) -> None:
    cut = segment("a", "ann", "", write_audio(tmp_path / "a.wav", tone(2.0)))
    assert cut.sampling_rate == 24_000
    assert sound.source_rate(cut.recording.to_dict()) == RATE
    assert sound.source_rate({"sampling_rate": 22_050}) == 22_050
