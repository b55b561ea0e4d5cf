"""Protocols are data: what each draws, on made-up speech and on real; what is refused, in one sentence."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from lhotse import CutSet, Recording, SupervisionSegment
from lhotse.recipes import prepare_librispeech

from tests import fabricated
from valle2.config.evaluate import EvaluateConfig, ProtocolChoice
from valle2.config.params import Config, parse_config
from valle2.errors import ConfigError, EvaluationError
from valle2.evaluation.cases import Source, cases_digest, choose_cases, draw
from valle2.evaluation.protocol import FOLDER, load_protocol, load_protocols
from valle2.shards import read_shards
from valle2.stage import output
from valle2.synthesis import Synthesizer


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory):
    """A workspace with shards of two unseen speakers, four utterances each."""
    folder = tmp_path_factory.mktemp("protocols")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield fabricated.workspace(folder)


def using(config: Config, *protocols: str | dict) -> Config:
    return parse_config({**config.model_dump(), "evaluate": config.evaluate.model_dump() | {"protocols": protocols}})


def shards_source() -> Source:
    return Source(output("tokenize"), 24_000, seed=7)


def test_every_bundled_protocol_is_valid() -> None:
    names = sorted(path.stem for path in FOLDER.glob("*.yaml"))
    assert {"unseen", "hard", "librispeech-prefix", "librispeech-reference", "vctk-3s", "vctk-5s", "vctk-10s"} == set(
        names
    )
    found = load_protocols(EvaluateConfig(protocols=names))
    assert [protocol.name for protocol in found] == names


def test_the_hard_set_has_a_hundred_texts_in_six_categories() -> None:
    hard = load_protocol(ProtocolChoice(name="hard"), EvaluateConfig())
    texts = [text for own in hard.texts.values() for text in own]
    assert len(texts) >= 100 and len(set(texts)) == len(texts)
    assert len(hard.texts) == 6 and min(map(len, hard.texts.values())) >= 16


def test_another_utterance_prompts_each_target(settings: Config) -> None:
    cases = choose_cases(output("tokenize"), using(settings, "unseen"))
    assert [case.speaker for case in cases] == ["dee", "eve", "dee", "eve"]
    assert all(case.id not in case.prompt.cut_ids and case.said_before is None for case in cases)
    assert [case.seed for case in cases] == [2406, 2407, 2408, 2409]


def test_a_prefix_is_the_beginning_of_its_own_utterance(settings: Config) -> None:
    chosen = {"name": "librispeech-prefix", "prompt_seconds": 0.7, "min_target_seconds": 1.0}
    cases = choose_cases(output("tokenize"), using(settings, chosen))
    assert len(cases) == 8
    for case in cases:
        assert case.reference is not None and case.prompt.cut_ids == (case.id,)
        assert np.array_equal(case.prompt.wave, case.reference[: round(0.7 * 24_000)])
        assert case.said_before and case.text
        assert case.whole_text in fabricated.TEXTS


def test_the_utterance_before_prompts_each_and_the_last_the_first(settings: Config) -> None:
    chosen = {"name": "librispeech-reference", "min_target_seconds": 1.0}
    cases = choose_cases(output("tokenize"), using(settings, chosen))
    prompts = {case.id: case.prompt.cut_ids for case in cases}
    assert prompts["dee-000"] == ("dee-003",) and prompts["dee-002"] == ("dee-001",)
    lengths = {cut.id: cut.num_samples for cut in read_shards(output("tokenize"), "test")}
    assert all(len(case.prompt.wave) == lengths[case.prompt.cut_ids[0]] for case in cases)


def test_vctk_prompts_are_next_below_the_length_asked_for(settings: Config) -> None:
    chosen = {"name": "vctk-3s", "prompt_seconds": 1.65}
    cases = choose_cases(output("tokenize"), using(settings, chosen))
    assert {case.prompt.cut_ids for case in cases} == {("dee-001",), ("eve-001",)}
    assert len(cases) == 6 and all(case.id not in case.prompt.cut_ids for case in cases)


def test_hard_texts_have_prompts_by_seed_and_no_reading_of_their_own(settings: Config) -> None:
    chosen = {"name": "hard", "num_cases": 12, "prompt_seconds": 1.0}
    first, again = (choose_cases(output("tokenize"), using(settings, chosen)) for _ in range(2))
    assert cases_digest(first) == cases_digest(again)
    assert [case.category for case in first[:6]] == list(yaml.safe_load((FOLDER / "hard.yaml").read_text())["texts"])
    assert all(case.reference is None and case.prompt.text for case in first)
    assert len({case.prompt.cut_ids for case in first}) > 1
    other = settings.model_copy(update={"runtime": settings.runtime.model_copy(update={"seed": 1})})
    assert cases_digest(choose_cases(output("tokenize"), using(other, chosen))) != cases_digest(first)


def test_two_protocols_have_cases_of_different_names(settings: Config) -> None:
    cases = choose_cases(output("tokenize"), using(settings, "unseen", {"name": "vctk-3s", "prompt_seconds": 1.65}))
    assert len({case.id for case in cases}) == len(cases)
    assert {case.protocol for case in cases} == {"unseen", "vctk-3s"}
    assert all(case.id.startswith("vctk-3s.") for case in cases if case.protocol == "vctk-3s")


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ("hrad", "no protocol 'hrad'; expected one of hard, librispeech-prefix"),
        ({"name": "librispeech-prefix", "min_target_seconds": 2}, "a prefix of 3.0 s leaves nothing to say"),
        ({"name": "unseen", "max_target_seconds": 0.5}, "min_target_seconds 1.0 is above max_target_seconds 0.5"),
    ],
)
def test_a_wrong_protocol_is_told(settings: Config, choice: str | dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_protocols(using(settings, choice).evaluate)


def test_an_unknown_field_of_a_protocol_is_told(settings: Config, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("about: mine\nprompt: utterance\nprompt_second: 3\n")
    with pytest.raises(ConfigError, match=r"mine.yaml: `prompt_second`: Extra inputs"):
        load_protocols(using(settings, str(path)).evaluate)
    with pytest.raises(ConfigError, match="names 'unseen' twice"):
        load_protocols(using(settings, "unseen", "unseen").evaluate)


def speech_set(folder: Path, speaker: str = "zoe", rate: int = 16_000, **changes) -> Path:
    """Three utterances in a CutSet without word times, at another rate than the shards."""
    import soundfile

    cuts = []
    for index in range(3):
        name = f"{speaker}/{index}"
        path = folder / f"{speaker}-{index}.wav"
        soundfile.write(path, fabricated.voice(speaker, 2 + index)[: (2 + index) * rate], rate)
        recording = Recording.from_file(path, recording_id=name)
        said = SupervisionSegment(
            name, name, 0, recording.duration, text=fabricated.TEXTS[index], speaker=speaker, **changes
        )
        cuts.append(recording.to_cut())
        cuts[-1].supervisions = [said]
    path = folder / f"{speaker}.jsonl.gz"
    CutSet.from_cuts(cuts).to_file(path)
    return path


def test_any_cutset_is_a_protocol_at_any_rate(settings: Config, tmp_path: Path) -> None:
    chosen = {"name": "vctk-3s", "cuts": str(speech_set(tmp_path))}
    cases = choose_cases(output("tokenize"), using(settings, chosen))
    assert [case.id for case in cases] == ["zoe_0", "zoe_2"]
    assert {case.prompt.cut_ids for case in cases} == {("zoe/1",)}
    assert [len(case.reference) for case in cases if case.reference is not None] == [48_000, 96_000]
    assert len(cases[0].prompt.wave) == 72_000 and cases[0].codes is None


def test_cutsets_that_are_none_are_told(settings: Config, tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "odd.jsonl").write_text("{}\n")
    for cuts, message in (
        (tmp_path / "no.jsonl", "no CutSet at"),
        (tmp_path / "empty.jsonl", "is empty|cannot be read"),
        (tmp_path / "odd.jsonl", "cannot be read as a Lhotse CutSet"),
        (_without_text(tmp_path), "expected one a cut, with speaker and text"),
    ):
        with pytest.raises(EvaluationError, match=message):
            choose_cases(output("tokenize"), using(settings, {"name": "vctk-3s", "cuts": str(cuts)}))


def _without_text(folder: Path) -> Path:
    path = speech_set(folder, "mute")
    cuts = list(CutSet.from_file(path))
    for cut in cuts:
        cut.supervisions[0].text = None
    CutSet.from_cuts(cuts).to_file(folder / "without.jsonl.gz")
    return folder / "without.jsonl.gz"


def test_a_cutset_with_a_training_speaker_is_refused(settings: Config, tmp_path: Path) -> None:
    chosen = {"name": "vctk-3s", "cuts": str(speech_set(tmp_path, "ann"))}
    with pytest.raises(EvaluationError, match="speaker ann is in the test and the train split"):
        choose_cases(output("tokenize"), using(settings, chosen))


def test_real_librispeech_by_both_of_its_protocols(settings: Config, real_speech: Path, tmp_path: Path) -> None:
    manifests = prepare_librispeech(real_speech / "LibriSpeech", dataset_parts="test-other")["test-other"]
    cuts = CutSet.from_manifests(manifests["recordings"], manifests["supervisions"])
    cuts.to_file(tmp_path / "libri.jsonl.gz")
    fitting = [cut for cut in cuts if 4 <= cut.duration <= 10]
    source = shards_source()
    chosen = {"cuts": str(tmp_path / "libri.jsonl.gz")}
    before = draw(load_protocol(ProtocolChoice(name="librispeech-reference", **chosen), EvaluateConfig()), source)
    assert {case.id for case in before} == {cut.id for cut in fitting}
    order = sorted(cut.id for cut in fitting if cut.supervisions[0].speaker == before[0].speaker)
    assert {case.id: case.prompt.cut_ids[0] for case in before if case.id in order} == dict(
        zip(order, [order[-1], *order[:-1]], strict=True)
    )
    prefixed = draw(load_protocol(ProtocolChoice(name="librispeech-prefix", **chosen), EvaluateConfig()), source)
    assert len(prefixed) >= 0.9 * len(fitting)
    texts = {cut.id: cut.supervisions[0].text.lower() for cut in cuts}
    for case in prefixed:
        assert len(case.prompt.wave) == 72_000
        # English speech has two to four words a second: three seconds of it are neither one word nor twenty.
        assert 2 <= len(case.prompt.text.split()) <= 15
        assert case.whole_text.split() == texts[case.id].replace("'", "'").split()


def test_a_text_that_is_read_at_once_is_one_piece_and_a_longer_one_is_not(settings: Config) -> None:
    import torch

    from valle2.model_folder import write_bundle
    from valle2.synthesis import Request

    write_bundle(
        Path("bundle"), ar_dir=output("train-ar"), nar_dir=output("train-nar"), bpe=output("curate") / "bpe.json",
        codec_name="codec", decoder="codec", sampling=settings.evaluate.sampling,
    )  # fmt: skip
    synthesizer = Synthesizer.from_path(Path("bundle"))
    prompt = torch.from_numpy(fabricated.voice("dee", 1.0))
    assert len(synthesizer.pieces(Request("the red boat. a horse.", prompt, "the river"))) == 1
    long = synthesizer.pieces(Request("the red boat sees a horse. " * 12, prompt, "the river"))
    assert (
        len(long) > 1 and " ".join(piece.text for piece in long).split() == ("the red boat sees a horse. " * 12).split()
    )
    assert json.loads((Path("bundle") / "model.json").read_text())["group_size"] == 2
