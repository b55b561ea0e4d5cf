"""Metrics tell known truths, cases are fair, and a model of ten steps is evaluated, resumed and rejected."""

import json
import re
import shutil

import numpy as np
import pytest
import soundfile
import torch
from lhotse import MonoCut, Recording, SupervisionSegment
from lhotse.supervision import AlignmentItem

from tests import fabricated
from valle2.config.evaluate import EvaluateConfig
from valle2.config.params import Config
from valle2.config.promote import GateConfig
from valle2.errors import EvaluationError
from valle2.evaluation import evaluate as stage
from valle2.evaluation import scorer
from valle2.evaluation.cases import choose_cases, choose_prompt, cut_prompt
from valle2.evaluation.figures import Series, curves
from valle2.evaluation.gate import EvalReport, judge
from valle2.evaluation.metrics import corpus_wer, ending, similarity, sound_seconds, word_errors
from valle2.evaluation.report import write_report
from valle2.evaluation.statistics import interval
from valle2.evaluation.summary import summarise
from valle2.shards import read_manifest
from valle2.stage import file_sha256, output, write_json
from valle2.synthesis import Synthesis, Synthesizer
from valle2.training.loop import train
from valle2.training.objective import AR, NAR, CodecFacts

RATE = 16_000


def tone(seconds: float, level: float = 0.3) -> np.ndarray:
    return (level * np.sin(np.arange(round(seconds * RATE)) * 0.2)).astype(np.float32)


def judged(wave: np.ndarray, reason: str = "eos", reference: float = 2.0):
    return ending(wave, RATE, reason, reference, max_trailing_silence=2.0, min_share=0.5)


def test_word_errors_are_counted_by_kind():
    found = word_errors("The cat sat, on 2 mats!", "a cat on two mats mats")
    assert (found.substitutions, found.deletions, found.insertions, found.words) == (1, 1, 1, 6)
    assert found.rate == 0.5
    assert [kind for kind, _, _ in found.diff] == ["substitute", "equal", "delete", "equal", "insert", "equal"]


def test_saying_nothing_is_all_wrong_and_saying_it_right_is_not():
    assert word_errors("one two", "").rate == 1.0
    assert word_errors("One, two.", "one two").rate == 0.0
    assert word_errors("", "one two").insertions == 2


def test_a_long_text_weighs_more():
    errors = [word_errors("a b c d e f g h i", "a b c d e f g h i"), word_errors("a", "b")]
    assert corpus_wer(errors) == 0.1


def test_normal_speech_ends_well():
    found = judged(np.concatenate([tone(1.8), np.zeros(RATE // 2, np.float32)]))
    assert not found.infinite and not found.cut
    assert found.trailing_silence == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize(
    ("wave", "reason", "infinite", "cut"),
    [
        (tone(5), "cap", True, False),
        (np.concatenate([tone(1.8), np.zeros(3 * RATE, np.float32)]), "eos", True, False),
        (tone(0.5), "eos", False, True),
        (np.zeros(RATE, np.float32), "eos", False, True),
        (np.zeros(0, np.float32), "eos", False, True),
        (np.concatenate([tone(0.4), np.zeros(RATE, np.float32)]), "eos", False, True),
    ],
)
def test_bad_endings_are_told_apart(wave, reason, infinite, cut):
    found = judged(wave, reason)
    assert (found.infinite, found.cut) == (infinite, cut)


def test_silence_around_speech_is_no_speech():
    quiet = np.zeros(RATE, np.float32)
    assert sound_seconds(np.concatenate([quiet, tone(1.0), quiet]), RATE) == pytest.approx(1.0, abs=0.05)


def test_similarity_counts_the_speakers_it_beats():
    own, near, far = np.array([1.0, 0.0]), np.array([0.9, 0.1]), np.array([0.0, 1.0])
    found = similarity(own, near, [own, far])
    assert found.own == pytest.approx(0.9)
    assert found.wins == 1


def test_intervals_are_seeded_and_hold_the_figure():
    values = np.arange(20.0)
    found = interval(20, lambda chosen: float(values[chosen].mean()), 7)
    assert found == interval(20, lambda chosen: float(values[chosen].mean()), 7)
    assert found[0] < values.mean() < found[1]


def test_a_prompt_ends_with_a_word_and_says_just_that():
    words = [AlignmentItem(word, start, 0.8) for word, start in (("The", 0.0), ("Red", 1.0), ("boat.", 2.5))]
    said = SupervisionSegment("a", "a", 0, 4, text="the red boat", alignment={"word": words})
    cut = MonoCut("a", 0, 4, 0, [said], None, Recording("a", [], RATE, 4 * RATE, 4))
    assert cut_prompt(cut, 3.0, "en") == ("the red", pytest.approx(1.82))
    assert cut_prompt(cut, 4.0, "en") == ("the red boat", 4)
    assert cut_prompt(cut, 0.5, "en") == ("", 0.0)


def test_short_utterances_follow_one_another_as_a_prompt():
    cuts = [MonoCut(str(seconds), 0, seconds, 0) for seconds in (2.0, 5.0, 3.0, 1.0)]
    assert [cut.id for cut in choose_prompt(cuts, 4.0)] == ["5.0"]
    assert [cut.id for cut in choose_prompt(cuts, 6.0)] == ["2.0", "3.0", "1.0"]
    assert [cut.id for cut in choose_prompt(cuts, 7.0)] == ["2.0", "5.0"]
    assert choose_prompt([], 7.0) == []


def test_curves_are_drawn_and_none_is_no_picture():
    svg = curves("loss", [Series("train", ((1, 5.0), (2, 4.0), (3, float("nan"))))])
    assert svg == curves("loss", [Series("train", ((1, 5.0), (2, 4.0), (3, float("nan"))))])
    assert "<polyline" in svg and "nan" not in svg
    assert curves("loss", [Series("train", ())]) == ""


class Silent:
    """A tracker that keeps nothing."""

    def log(self, step, metrics):
        pass


class Deaf:
    """Stands for the recogniser, which takes long to load: it hears no words."""

    calls = 0

    def find_speech(self, waveform):
        Deaf.calls += 1
        return []

    def recognise_all(self, waveforms):
        assert waveforms == []
        return []


def with_settings(config: Config, **settings) -> Config:
    return config.model_copy(update={"evaluate": EvaluateConfig(**{**config.evaluate.model_dump(), **settings})})


def train_ten_steps(config) -> None:
    codec = CodecFacts.of(read_manifest(output("tokenize")))
    for name, objective in (("train-ar", AR(config, codec)), ("train-nar", NAR(config, codec))):
        shutil.rmtree(output(name), ignore_errors=True)
        work = output(name).with_name(f"{name}.work")
        work.mkdir()
        train(config, objective, work, Silent(), inputs={})
        (work / "out").rename(output(name))


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """A model of ten steps, evaluated."""
    folder = tmp_path_factory.mktemp("evaluated")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(scorer, "load_asr", lambda *args, **options: Deaf())
        config = fabricated.workspace(folder)
        train_ten_steps(config)
        result = stage.evaluate(config)
        yield config, result


def test_a_model_of_ten_steps_is_rejected(evaluated):
    metrics = json.loads((output("evaluate") / "metrics.json").read_text())
    verdict = judge(EvalReport(metrics), GateConfig())
    assert not verdict.passed
    assert any("word error rate (wer) 1 is not at most" in reason for reason in verdict.reasons)
    assert metrics["num_cases"] == 4 and metrics["num_speakers"] == 2
    assert metrics["sim_model"].startswith("resemblyzer") and "P.808" in metrics["dnsmos_model"]
    assert metrics["ground_truth_sim_wins"] == 1.0


def test_a_model_that_says_nothing_is_scored_and_cut(evaluated, monkeypatch, tmp_path):
    config, _ = evaluated

    def end_at_once(self, requests, *_):
        nothing = torch.zeros(0), torch.zeros(8, 0, dtype=torch.long)
        return [Synthesis(nothing[0], nothing[1], "eos", 1) for _ in requests]

    monkeypatch.setattr(Synthesizer, "synthesize_batch", end_at_once)
    cases = choose_cases(output("tokenize"), config)[:2]
    scored, _ = stage.evaluate_model(output("evaluate") / "model", cases, config, tmp_path)
    for case in scored:
        row = case["rows"]["model"]
        assert row["ending"]["cut"] and row["errors"]["deletions"] == row["errors"]["words"] > 0
        assert row["sim_own"] == 0.0 and 1 <= row["dnsmos"] <= 5


def test_the_voice_model_is_assembled(evaluated):
    names = {path.name for path in (output("evaluate") / "model").iterdir()}
    assert {"model.json", "ar.safetensors", "nar.safetensors", "bpe.json", "codec"} <= names


def everything() -> dict[str, bytes]:
    root = output("evaluate")
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_a_killed_evaluation_goes_on_and_gives_the_same_bytes(evaluated, monkeypatch, tmp_path):
    config, _ = evaluated
    monkeypatch.setenv("VALLE2_HOME", str(tmp_path))
    before, calls = everything(), Deaf.calls
    limit = calls + 5

    def stop_there(self, waveform):
        Deaf.calls += 1
        if Deaf.calls == limit:
            raise KeyboardInterrupt
        return []

    monkeypatch.setattr(Deaf, "find_speech", stop_there)
    with pytest.raises(KeyboardInterrupt):
        stage.evaluate(config)
    spoken = list((output("evaluate").parent / ".partial" / "evaluate" / "speech").rglob("*.wav"))
    times = {path: path.stat().st_mtime_ns for path in spoken if path.parent.name == "model"}
    monkeypatch.setattr(stage, "finish", lambda work, name: None)
    stage.evaluate(config)
    assert {path: path.stat().st_mtime_ns for path in times} == times and len(times) == 4
    monkeypatch.undo()
    stage.evaluate(config)
    assert everything() == before


def test_a_second_evaluation_computes_nothing(evaluated, monkeypatch):
    config, _ = evaluated
    for name in ("load_asr", "load_speaker_encoder", "Dnsmos"):
        monkeypatch.setattr(scorer, name, lambda *args, **options: pytest.fail("a model was loaded"))
    before = everything()
    stage.evaluate(config)
    assert everything() == before


def test_the_report_needs_no_server_and_is_byte_stable(evaluated, tmp_path):
    page = (output("evaluate") / "report" / "index.html").read_text()
    assert not re.search(r"https?://|//cdn|@import", page)
    assert all(address.startswith(("data:", "#")) for address in re.findall(r'(?:src|href)="([^"]*)"', page))
    assert page.count("<audio") == 4 * 4 and "polyline" in page and "taken in" in page
    metrics = json.loads((output("evaluate") / "metrics.json").read_text())
    cases = json.loads((output("evaluate") / "cases.json").read_text())
    again = write_report(tmp_path, metrics, cases, output("evaluate") / "samples", stage._context())
    assert again.read_text() == page


def test_text_in_the_report_is_escaped(evaluated, tmp_path):
    metrics = json.loads((output("evaluate") / "metrics.json").read_text())
    cases = json.loads((output("evaluate") / "cases.json").read_text())
    cases[0]["text"] = "<script>alert(1)</script>"
    page = write_report(tmp_path, metrics, cases, output("evaluate") / "samples", {}).read_text()
    assert "<script>alert" not in page


def test_cases_are_spread_over_speakers_and_prompts_are_other_utterances(evaluated):
    config, _ = evaluated
    cases = choose_cases(output("tokenize"), with_settings(config, num_cases=3, prompt_seconds=1.0))
    assert [case.speaker for case in cases] == ["dee", "eve", "dee"]
    for case in cases:
        assert case.id not in case.prompt.cut_ids
        assert all(name.startswith(case.speaker) for name in case.prompt.cut_ids)
    assert all(len(case.prompt.wave) <= 24_000 for case in cases)


def test_a_speaker_of_training_is_no_test_speaker(evaluated, tmp_path):
    shards = tmp_path / "tokenize"
    shutil.copytree(output("tokenize"), shards)
    path = shards / "shards" / "train" / "cuts.000000.jsonl"
    path.write_text(path.read_text().replace('"speaker": "ann"', '"speaker": "dee"'))
    manifest = read_manifest(shards)
    manifest["splits"]["train"]["shards"][0]["cuts"]["sha256"] = file_sha256(path)
    write_json(shards / "manifest.json", manifest)
    with pytest.raises(EvaluationError, match="speaker dee is in the test and the train split"):
        choose_cases(shards, evaluated[0])


def test_no_fitting_sentence_is_an_error_that_names_the_fields(evaluated):
    with pytest.raises(EvaluationError, match=r"evaluate.min_target_seconds"):
        choose_cases(output("tokenize"), with_settings(evaluated[0], min_target_seconds=9.0))


def test_one_speaker_has_no_others_and_the_gate_says_so(evaluated):
    cases = json.loads((output("evaluate") / "cases.json").read_text())[:1]
    for row in cases[0]["rows"].values():
        row["sim_others"], row["sim_wins"] = [], 0
    metrics = summarise(cases, {}, EvaluateConfig(), 0)
    assert "sim_wins" not in metrics
    assert any("no figure `sim_wins`" in reason for reason in judge(EvalReport(metrics), GateConfig()).reasons)


@pytest.fixture(scope="module")
def by_protocols(evaluated, tmp_path_factory):
    """The same model by three protocols, each text read twice."""
    config, _ = evaluated
    protocols = [
        {"name": "librispeech-prefix", "prompt_seconds": 0.7, "min_target_seconds": 1.0, "num_cases": 2},
        {"name": "hard", "num_cases": 6, "prompt_seconds": 1.0},
        {"name": "vctk-3s", "num_cases": 2},
    ]
    config = with_settings(config, protocols=protocols, num_readings=2)
    work = tmp_path_factory.mktemp("protocols")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scorer, "load_asr", lambda *args, **options: Deaf())
        cases = choose_cases(output("tokenize"), config)
        yield config, cases, *stage.evaluate_model(output("evaluate") / "model", cases, config, work), work


def test_a_prefix_is_scored_whole_and_without_its_prompt(by_protocols):
    _, cases, scored, _, work = by_protocols
    rows = scored[0]["rows"]
    names = {"model", "continuation", "ground_truth", "reconstruction"}
    names |= {"ground_truth_continuation", "reconstruction_continuation", "sorted", "oracle"}
    assert set(rows) == names
    prompt = len(cases[0].prompt.wave) / 24_000
    for whole, end in (("model", "continuation"), ("ground_truth", "ground_truth_continuation")):
        # The codec gives whole frames of 320 samples back.
        assert rows[whole]["seconds"] - rows[end]["seconds"] == pytest.approx(prompt, abs=320 / 24_000)
        assert rows[whole]["errors"]["words"] - rows[end]["errors"]["words"] == len(cases[0].prompt.text.split())
    wave = soundfile.read(work / "speech" / "ground_truth_continuation" / f"{cases[0].id}.wav")[0]
    assert np.allclose(wave, cases[0].reference[len(cases[0].prompt.wave) :], atol=1e-4)


def test_hard_texts_have_but_the_models_row_and_their_category(by_protocols):
    _, _, scored, _, _ = by_protocols
    hard = [case for case in scored if case["protocol"] == "hard"]
    assert [case["id"].split(".")[1] for case in hard[:2]] == ["repeated-words-01", "tongue-twisters-01"]
    assert all(set(case["rows"]) == {"model", "sorted", "oracle"} for case in hard)
    assert len({case["category"] for case in hard}) == 6
    long = next(case for case in hard if case["category"] == "very-long")
    assert long["rows"]["model"]["ending"]["pieces"] > 1


def test_the_best_of_two_is_no_worse_in_what_it_is_chosen_by(by_protocols):
    config, _, scored, names, _ = by_protocols
    for case in scored:
        rows = case["rows"]
        assert rows["oracle"]["sim_own"] >= max(rows["model"]["sim_own"], rows["sorted"]["sim_own"])
        assert rows["oracle"]["dnsmos"] >= rows["model"]["dnsmos"]
        assert "ending" in rows["sorted"] and "ending" not in rows["oracle"]
    figures = summarise(scored, names, config.evaluate, 0)
    assert figures["protocols"] == "librispeech-prefix,hard,vctk-3s"
    assert {"wer", "continuation_wer", "hard_wer", "hard_inf", "vctk_3s_ground_truth_sim_own"} <= set(figures)
    assert "hard_ground_truth_wer" not in figures and "oracle_inf" not in figures
    assert figures["oracle_sim_own"] >= figures["sorted_sim_own"]


def test_another_models_speech_is_not_taken_for_this_ones(by_protocols, tmp_path):
    config, cases, _, _, _ = by_protocols
    other = tmp_path / "model"
    shutil.copytree(output("evaluate") / "model", other)
    facts = json.loads((other / "model.json").read_text())
    facts["sampling"]["top_p"] = 0.5
    write_json(other / "model.json", facts)
    work = tmp_path / "work"
    some = [case for case in cases if case.protocol == "vctk-3s"]
    few = with_settings(config, num_readings=1)
    first, _ = stage.evaluate_model(output("evaluate") / "model", some, few, work)
    key = (work / "speech" / "key").read_text()
    second, _ = stage.evaluate_model(other, some, few, work)
    assert (work / "speech" / "key").read_text() != key
    # The settings that are evaluated are the parameters', not the folder's: the speech is the same.
    assert [case["rows"]["model"] for case in first] == [case["rows"]["model"] for case in second]
