"""What the gate is told: who was heard, on what grounds, how fast, and how the champion does on the same texts."""

import json
import shutil
from pathlib import Path

import pytest

from tests import fabricated
from tests.test_evaluation import Deaf, train_ten_steps
from valle2.config.promote import GateConfig
from valle2.config.sampling import SamplingConfig
from valle2.errors import EvaluationError, LineageError
from valle2.evaluation import evaluate as stage
from valle2.evaluation import scorer
from valle2.evaluation.cases import choose_cases
from valle2.evaluation.gate import EvalReport, judge
from valle2.gate_facts import gather, measure_speed
from valle2.promotion import promote
from valle2.registry import register, resolve
from valle2.stage import file_sha256, output, write_json
from valle2.trust.leaks import leaked_speakers, training_speakers, without_consent

LENIENT = {"max_wer": None, "min_sim_wins": None, "min_dnsmos": None, "min_cases": 1, "max_inf": None, "max_cut": None}


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """A model of ten steps, evaluated; its data reported on."""
    folder = tmp_path_factory.mktemp("judged")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("VALLE2_HOME", str(folder / "home"))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.setattr(scorer, "load_asr", lambda *args, **options: Deaf())
        config = fabricated.workspace(folder)
        train_ten_steps(config)
        stage.evaluate(config)
        made_of = {"shards": file_sha256(output("tokenize") / "manifest.json")}
        write_json(output("data-report") / "report.json", {"made_of": made_of})
        yield config.model_copy(update={"gate": GateConfig(**LENIENT)})


def change_cuts(shards: Path, split: str, change) -> None:
    """As if `tokenize` had written them so."""
    manifest = json.loads((shards / "manifest.json").read_text())
    for shard in manifest["splits"][split]["shards"]:
        path = shards / "shards" / split / shard["cuts"]["file"]
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        for row in rows:
            change(row)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        shard["cuts"] |= {"sha256": file_sha256(path), "bytes": path.stat().st_size}
    write_json(shards / "manifest.json", manifest)


@pytest.fixture
def shards(evaluated, tmp_path):
    """A copy to change."""
    return shutil.copytree(output("tokenize"), tmp_path / "tokenize")


def test_who_was_heard_and_on_what_grounds(evaluated, shards):
    assert training_speakers(shards) == {"ann", "bob"}
    assert without_consent(shards) == ()
    assert leaked_speakers(shards, [], {"dee", "eve"}) == ()


def test_voices_without_a_ground_are_named(evaluated, shards):
    def forget(row):
        if row["supervisions"][0]["speaker"] == "ann":
            del row["custom"]["consent"]
        if row["supervisions"][0]["speaker"] == "bob":
            row["custom"]["consent"]["scope"] = ["evaluation"]

    change_cuts(shards, "train", forget)
    assert without_consent(shards) == ("ann", "bob")


def test_an_evaluated_speaker_in_training_is_a_leak(evaluated, shards):
    def rename(row):
        row["supervisions"][0]["speaker"] = "eve"

    change_cuts(shards, "train", rename)
    assert leaked_speakers(shards, [], {"dee", "eve"}) == ("eve",)


def test_whom_the_model_before_heard_is_asked_of_its_lineage(evaluated, shards, repository, tmp_path):
    """The bundled model's corpus kept eight voices out of training; of any other voice nothing is known here."""
    parent = repository / "demo" / "champion"
    assert leaked_speakers(shards, [parent], {"unseen-44", "unseen-51"}) == ()
    with pytest.raises(LineageError, match=r"whom the model .* heard, from which training started, cannot be told"):
        leaked_speakers(shards, [parent], {"eve"})
    assert leaked_speakers(shards, [parent], {"eve", "ann"}) == ("ann",), "what is known is told"
    with pytest.raises(LineageError, match="has no lineage, so whom it heard cannot be told"):
        leaked_speakers(shards, [fabricated.voice_model(tmp_path / "parent")], {"eve"})


def test_a_model_that_was_not_evaluated_cannot_be_judged(evaluated, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(EvaluationError, match="no evaluation at artifacts/evaluate; run `valle2 evaluate`"):
        gather(evaluated)


def test_the_first_model_has_no_champion_and_one_of_ten_steps_is_refused(evaluated):
    report = gather(evaluated)
    assert report.champion is None
    assert report.facts.leaked_speakers == () and report.facts.has_data_report
    assert judge(report, evaluated.gate).passed
    reasons = judge(report, GateConfig()).reasons
    assert any("word error rate (wer) 1 is not at most" in reason for reason in reasons)


def test_a_report_on_other_shards_is_none(evaluated):
    path = output("data-report") / "report.json"
    before = path.read_text()
    try:
        write_json(path, {"made_of": {"shards": "0" * 64}})
        [reason] = judge(gather(evaluated), evaluated.gate).reasons
        assert "is of other shards; run `valle2 data-report`" in reason
    finally:
        path.write_text(before)


def test_the_champion_is_compared_on_the_same_cases_and_side_by_side(evaluated, tmp_path):
    """First with the scores that were kept with it; where it was asked other texts, it says these."""
    passed = judge(gather(evaluated), evaluated.gate)
    bundle = fabricated.voice_model(tmp_path / "champion")
    facts = json.loads((bundle / "model.json").read_text())
    # Another model: it may speak half as long.
    facts["sampling"] = SamplingConfig.model_validate(facts["sampling"] | {"max_seconds": 0.2}).model_dump(mode="json")
    write_json(bundle / "model.json", facts)
    version = register(bundle, "1" * 64, {"wer": 1.0}, passed, report=output("evaluate"), name="valle2")
    promote(version, "Ann", "the first", name="valle2")
    kept = gather(evaluated)
    cases = json.loads((output("evaluate") / "cases.json").read_text())
    assert kept.champion.name == "valle2/1" and kept.champion.cases == cases
    assert 0.2 < kept.facts.slowdown < 5
    fewer = evaluated.model_copy(update={"evaluate": evaluated.evaluate.model_copy(update={"num_cases": 2})})
    metrics = output("evaluate") / "metrics.json"
    before = metrics.read_text()
    try:
        write_json(metrics, json.loads(before) | {"protocol_digest": "of two cases"})
        again = gather(fewer)
    finally:
        metrics.write_text(before)
    assert len(again.champion.cases) == 2
    assert all(case["rows"]["model"]["seconds"] <= 0.25 for case in again.champion.cases)
    assert resolve("valle2@champion").version == 1


def test_a_model_with_more_layers_is_slower(evaluated, tmp_path):
    small = fabricated.voice_model(tmp_path / "small")
    shape = fabricated.TINY | {"num_layers": 24}
    settings = evaluated.model_copy(
        update={"model": evaluated.model.model_copy(update={"ar": evaluated.model.ar.model_validate(shape)})}
    )
    fabricated.models(settings)
    large = fabricated.voice_model(tmp_path / "large")
    cases = choose_cases(output("tokenize"), evaluated)[:2]
    fast, slow = measure_speed([small, large], cases, 1)
    verdict = judge(EvalReport({}, facts=gather(evaluated).facts), GateConfig(max_rtf=(fast + slow) / 2))
    assert slow > 1.5 * fast > 0
    assert not verdict.passed
