"""One command evaluates a model by RAS, top_p, group size and readings, and goes on where it stopped."""

import json
from pathlib import Path

import pytest
import torch

from tests import fabricated
from tests.test_evaluation import Deaf
from valle2.ablate_command import ablate as command
from valle2.config.params import Config
from valle2.errors import ConfigError, EvaluationError
from valle2.evaluation import scorer
from valle2.evaluation.ablation import RAS, grid
from valle2.evaluation.evaluate import evaluate
from valle2.shards import read_manifest
from valle2.stage import output, write_json
from valle2.training.objective import AR, CodecFacts, describe
from valle2.training.outputs import write_outputs


@pytest.fixture(scope="module")
def ablated(tmp_path_factory: pytest.TempPathFactory):
    """A model of G = 2 and an AR of G = 1, ablated by the command itself."""
    folder = tmp_path_factory.mktemp("ablated")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(scorer, "load_asr", lambda *args, **options: Deaf())
        config = fabricated.workspace(folder)
        write_json(Path("params.yaml"), config.model_dump(mode="json"))
        evaluate(config)
        single = config.model_copy(update={"model": config.model.model_copy(update={"group_size": 1})})
        codec = CodecFacts.of(read_manifest(output("tokenize")))
        objective = AR(single, codec)
        torch.manual_seed(1)
        write_outputs(Path("ar-1"), objective.build(64).state_dict(), describe(objective, codec, 64), [])
        command(Path("build"), ar=[Path("ar-1")], top_p=[0.0, 0.8], readings=2, cases=2)
        yield config


def test_every_point_has_its_figures(ablated: Config) -> None:
    found = json.loads(Path("build/ablation.json").read_text())
    assert [(one["model"], one["ras"], one["num_readings"]) for one in found] == [
        ("G = 2", "as evaluated", 1), ("G = 1", "as evaluated", 1),
        *(("G = 2", name, 1) for name in RAS for _ in (0.0, 0.8)), ("G = 2", "as evaluated", 2),
    ]  # fmt: skip
    assert all(one["figures"]["num_cases"] == 2 and "inf" in one["figures"] for one in found)
    assert [one["sampling"]["ras_window"] for one in found[2:8]] == [10, 10, 10, 10, 0, 0]
    assert "sorted_wer" in found[-1]["figures"] and found[0]["against_first"]["wer"]["difference"] == 0
    greedy = {one["ras"]: one for one in found if one["sampling"]["top_p"] == 0}
    assert greedy["RAS"]["figures"]["repetition"] <= greedy["no RAS"]["figures"]["repetition"]


def test_tables_and_plots_are_written(ablated: Config) -> None:
    text = Path("build/ablation.md").read_text()
    assert text.count("\n| G =") == 9 + 2 and "no RAS, top_p 0.8" in text and "sorted" in text and "oracle" in text
    assert Path("build/ablation.png").read_bytes().startswith(b"\x89PNG")


def test_a_second_run_speaks_nothing_anew(ablated: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    before = Path("build/ablation.json").read_bytes()
    monkeypatch.setattr("valle2.evaluation.speech._speak", lambda *args: pytest.fail("spoken again"))
    command(Path("build"), ar=[Path("ar-1")], top_p=[0.0, 0.8], readings=2, cases=2)
    assert Path("build/ablation.json").read_bytes() == before


def test_what_is_not_there_is_told(ablated: Config) -> None:
    with pytest.raises(EvaluationError, match="no voice model at nowhere; run `valle2 evaluate`"):
        command(Path("other"), model=Path("nowhere"))
    with pytest.raises(EvaluationError, match="no train-ar output at nothing"):
        command(Path("other"), ar=[Path("nothing")])
    with pytest.raises(ConfigError, match="have the same group size"):
        grid([output("evaluate") / "model"] * 2, ablated.evaluate, [], 1)
