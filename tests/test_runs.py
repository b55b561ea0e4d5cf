"""Runs are listed and compared, and parameters are swept, on a real store with real trainings."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner

from tests import fabricated
from valle2 import runs, sweep
from valle2.cli import app
from valle2.config.params import parse_config
from valle2.errors import ConfigError, TrackingError, TrainingError
from valle2.tracking import connect, home
from valle2.training_run import training_run

CLI = CliRunner()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A workspace with a store of three runs and a registered model of two of them."""
    root = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setenv("VALLE2_HOME", str(root / "home"))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        settings = fabricated.workspace(root)
        (root / "params.yaml").write_text(yaml.safe_dump(settings.model_dump(mode="json")))
        yield root


@pytest.fixture(scope="module")
def three(folder: Path) -> list[str]:
    """Ids: two AR trainings that differ in the learning rate, and a NAR one."""
    made = []
    for kind, rate in (("ar", 0.001), ("ar", 0.01), ("nar", 0.01)):
        raw = fabricated.config().model_dump(mode="json")
        raw["train_ar"]["learning_rate"] = rate
        with training_run(kind, parse_config(raw), "d" * 64, folder / f"work-{len(made)}") as run:  # type: ignore[arg-type]
            for step in range(1, 6):
                run.log(step, {"loss": rate * abs(step - 3) + 1, "top10": step / 10, "system/x": 1.0})
                if step % 2 == 0:
                    run.log(step, {"valid_loss": 2.0 - rate * step})
        made.append(run.run_id)
    client = connect()
    client.create_registered_model("voice")
    tags = {"valle2.run.ar": made[0], "valle2.run.nar": made[2]}
    client.create_model_version("voice", "file:///nowhere", tags=tags)
    client.create_model_version("voice", "file:///nowhere")
    return made


def test_runs_are_listed_newest_first(three: list[str]) -> None:
    assert [run.id for run in runs.list_runs(10)][:3] == list(reversed(three))
    done = CLI.invoke(app, ["runs", "list", "--limit", "2"], env={"COLUMNS": "200"})
    assert done.exit_code == 0 and three[2][:8] in done.output and three[0][:8] not in done.output
    assert "FINISHED" in done.output


def test_two_runs_are_compared_by_parameters_metrics_and_a_picture(three: list[str], tmp_path: Path) -> None:
    picture = tmp_path / "curves.png"
    done = CLI.invoke(app, ["runs", "compare", three[0], three[1][:12], "--plot", str(picture)], env={"COLUMNS": "200"})
    assert done.exit_code == 0, done.output
    rows = [line for line in done.output.splitlines() if "learning_rate" in line]
    assert len(rows) == 1 and "0.001" in rows[0] and "0.01" in rows[0]
    assert "train_ar.num_steps" not in done.output and "system/" not in done.output
    [loss] = [line for line in done.output.splitlines() if "│ loss " in line]
    assert [cell.strip() for cell in loss.strip("│").split("│")] == ["loss", "1.002", "1", "1.02", "1"]
    assert Image.open(picture).size[0] > 900

    found = runs.compare(*(runs.find_runs(name)[0] for name in three[:2]))
    assert found.params == {"train_ar.learning_rate": ("0.001", "0.01")}
    assert set(found.curves) == {"loss", "top10", "valid_loss"}
    assert found.best["valid_loss"] == (2.0 - 0.004, 2.0 - 0.04)
    assert found.best["top10"] == (0.5, 0.5)


def test_a_model_is_compared_as_its_two_trainings(three: list[str]) -> None:
    assert [run.id for run in runs.find_runs("voice/1")] == [three[0], three[2]]
    pairs = runs.pair(runs.find_runs("voice/1"), runs.find_runs(three[1]))
    assert [(one.id, other.id) for one, other in pairs] == [(three[0], three[1])]
    assert len(runs.pair(runs.find_runs("voice/1"), runs.find_runs("voice/1"))) == 2


def test_what_cannot_be_found_is_one_sentence(three: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TrackingError, match=r"no run 'nothing' in sqlite.*the newest are train-nar-.*runs list"):
        runs.find_runs("nothing")
    with pytest.raises(TrackingError, match=r"no registered model voice/9"):
        runs.find_runs("voice/9")
    with pytest.raises(TrackingError, match="voice/2 names no training runs"):
        runs.find_runs("voice/2")
    monkeypatch.setattr(runs, "SHORTEST_PREFIX", 0)
    with pytest.raises(TrackingError, match=r"'' may be \d+ runs: .*give more of the id"):
        runs.find_runs("")
    with pytest.raises(TrackingError, match=r"cannot draw .*give --plot a .png"):
        runs.draw([], Path("x.nonsense"))


def test_a_server_that_is_away_is_one_sentence_and_soon(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    start = time.monotonic()
    with pytest.raises(TrackingError, match=r"http://127.0.0.1:9 does not answer .*; start it, or set"):
        runs.list_runs()
    assert time.monotonic() - start < 10


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["train_ar.learnin_rate=1"], r"--set: unknown key `train_ar.learnin_rate`; did you mean `learning_rate`"),
        (["train_arr.learning_rate=1"], r"unknown key `train_arr`; did you mean `train_ar`"),
        (["train_ar.learning_rate=x"], r"`train_ar.learning_rate` is 'x'"),
        (["train_nar.learning_rate=1"], r"train-ar does not read `train_nar`; it reads runtime, model, train_ar"),
        (["model.group_size.x=1"], r"`model.group_size.x` goes too deep"),
        (["learning_rate"], r"expected a parameter and values, such as train_ar"),
        (["train_ar.learning_rate=[1"], r"are no values"),
    ],
)
def test_a_wrong_sweep_is_one_sentence_and_makes_nothing(folder: Path, settings: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        sweep.sweep("train-ar", settings, Path("params.yaml"))
    assert not (home() / "sweeps").exists()


def test_values_are_numbers_texts_lists_or_parts_of_a_section() -> None:
    sizes = "model.ar={dim: 64, num_heads: 2},{dim: 32}"
    grid = sweep.parse_grid("train-ar", ["train_ar.learning_rate=1e-4,3e-4", sizes, "train_ar.warm_start="])
    assert grid["model.ar"] == [{"dim": 64, "num_heads": 2}, {"dim": 32}] and grid["train_ar.warm_start"] == [""]
    config = sweep._with(fabricated.config(), {"train_ar.learning_rate": "1e-4", "model.ar": {"dim": 64}})
    assert config.train_ar.learning_rate == 1e-4
    assert (config.model.ar.dim, config.model.ar.num_layers) == (64, 2)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_killed_sweep_goes_on_and_trains_nothing_twice(folder: Path) -> None:
    before = {path: path.read_bytes() for path in Path("artifacts/train-ar").iterdir()}
    params = Path("params.yaml").read_bytes()
    words = ["sweep", "train-ar", "--set", "train_ar.learning_rate=1e-3,1e-2", "--set", "train_ar.num_steps=4"]
    first = subprocess.Popen([sys.executable, "-m", "valle2.cli", *words], start_new_session=True)
    until = time.monotonic() + 300
    while not list(home().glob("sweeps/train-ar-*/*/artifacts/train-ar/metrics.json")):
        assert time.monotonic() < until and first.poll() is None
        time.sleep(0.2)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()

    done = CLI.invoke(app, [*words, "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert sorted(point["state"] for point in found["points"]) == ["trained", "was there"]
    assert [point["metrics"]["step"] for point in found["points"]] == [4, 4]
    valid = [point["metrics"]["best_valid_loss"] for point in found["points"]]
    assert valid == sorted(valid) and valid[0] != valid[1]
    client = connect()
    parent = client.get_run(found["run_id"])
    assert (parent.info.status, parent.data.metrics["best_valid_loss"]) == ("FINISHED", valid[0])
    assert [file.path for file in client.list_artifacts(found["run_id"])] == ["sweep.csv"]
    children = [client.get_run(point["run_id"]) for point in found["points"]]
    assert {child.data.tags["mlflow.parentRunId"] for child in children} == {found["run_id"]}
    assert {child.data.params["train_ar.learning_rate"] for child in children} == {"0.001", "0.01"}
    assert {path: path.read_bytes() for path in Path("artifacts/train-ar").iterdir()} == before
    assert Path("params.yaml").read_bytes() == params

    again = ["train_ar.num_steps=4", "train_ar.learning_rate=1e-2,1e-3"]
    more = sweep.sweep("train-ar", again, Path("params.yaml"))
    assert more.run_id == found["run_id"] and {point.state for point in more.points} == {"was there"}


@pytest.mark.slow
def test_a_point_that_fails_is_told_and_the_others_are_trained(folder: Path) -> None:
    done = sweep.sweep(
        "train-nar", ["train_nar.batch_frames=9999999,300", "train_nar.num_steps=2"], Path("params.yaml")
    )
    assert [(point.values[0], point.state) for point in done.points] == [(300, "trained"), (9999999, "failed")]
    with pytest.raises(TrainingError, match=r"1 of 2 points failed \(9999999, 2\)"):
        sweep.check(done)
    assert connect().get_run(done.run_id).info.status == "FAILED"
