"""Checkpoints that are damaged, that find no room, and the best of them; the real stage with two ranks."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests import fabricated
from tests.small_disk import small_disk
from tests.test_training import (  # noqa: F401 - `workspace` is a fixture
    KillAt,
    configure,
    killed_run,
    outputs,
    run,
    workspace,
)
from valle2.errors import TrainingError
from valle2.training.checkpoint import Checkpoints, damage


@pytest.mark.parametrize("how", ["a byte is another", "a file is cut short", "a file is missing", "no checksums"])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(
    workspace: Path,  # noqa: F811
    how: str,
    capfd: pytest.CaptureFixture[str],
) -> None:
    config = configure(log_every=1)
    run(workspace / "whole", config)
    killed_run(workspace / "killed", config, "ar", 7)
    checkpoints = workspace / "killed/checkpoints"
    last = checkpoints / (checkpoints / "latest").read_text().strip()
    [tensors] = last.glob("*.distcp")
    match how:
        case "a byte is another":
            content = bytearray(tensors.read_bytes())
            content[len(content) // 2] ^= 1
            tensors.write_bytes(content)
        case "a file is cut short":
            tensors.write_bytes(tensors.read_bytes()[:-10])
        case "a file is missing":
            tensors.unlink()
        case "no checksums":
            (last / "checksums.json").unlink()
    assert damage(last) is not None
    capfd.readouterr()
    facts = run(workspace / "killed", config)
    assert f"{last.name} is damaged (" in capfd.readouterr().err
    assert facts["resumed_at"] == int(last.name.removeprefix("step-")) - 2
    assert outputs(workspace / "killed") == outputs(workspace / "whole")


def test_when_none_is_whole_nothing_is_thrown_away(workspace: Path) -> None:  # noqa: F811
    config = configure()
    killed_run(workspace / "killed", config, "ar", 7)
    folders = sorted((workspace / "killed/checkpoints").glob("step-*"))
    for folder in folders:
        (folder / "state.json").write_text("{}")
    with pytest.raises(TrainingError, match=r"none of the checkpoints in .* is whole; remove that folder to start"):
        run(workspace / "killed", config)
    assert sorted((workspace / "killed/checkpoints").glob("step-*")) == folders


def test_the_best_one_stays_when_others_go(workspace: Path) -> None:  # noqa: F811
    """Validation gets worse from the first on: the rate is far too high."""
    config = configure(learning_rate=3.0, warmup_steps=4, keep_checkpoints=1, num_steps=16)
    killed_run(workspace / "work", config, "ar", 15)
    folder = workspace / "work/checkpoints"
    best, latest = ((folder / name).read_text().strip() for name in ("best", "latest"))
    curve = json.loads((folder / latest / "state.json").read_text())["history"]
    validated = {point["step"]: point["valid_loss"] for point in curve if "valid_loss" in point}
    assert best == f"step-{min(validated, key=lambda step: validated[step]):08d}" != latest
    assert {path.name for path in folder.glob("step-????????")} == {best, latest}
    assert damage(folder / best) is None


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """Room for a few checkpoints."""
    with small_disk(tmp_path / "small", "2m") as folder:
        yield folder


def test_a_full_disk_costs_a_checkpoint_and_no_training(
    workspace: Path,  # noqa: F811
    disk: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    config = configure(log_every=1)
    run(workspace / "whole", config)
    (workspace / "work").mkdir()
    (workspace / "work/checkpoints").symlink_to(disk)
    own, filler = Checkpoints.save, disk / "filler"

    def save(self: Checkpoints, state) -> None:  # type: ignore[no-untyped-def]
        """Of the checkpoints at steps 2, 4, 6, 8 and 9 those at 4 and 6 find no room."""
        self.wait()
        if state.step == 4:
            filler.write_bytes(bytes(shutil.disk_usage(disk).free - 8192))
        if state.step == 8:
            filler.unlink()
        own(self, state)
        self.wait()
        if state.step in (4, 6):
            assert (disk / "latest").read_text().strip() == f"step-{2:08d}"
            assert damage(disk / f"step-{2:08d}") is None
            assert [path.name for path in disk.glob("step-*")] == [f"step-{2:08d}"]

    monkeypatch.setattr(Checkpoints, "save", save)
    run(workspace / "work", config)
    told = capfd.readouterr().err
    for step in (4, 6):
        assert f"checkpoint step-{step:08d} is not written, the last is step-00000002; training goes on" in told
    assert "step-00000008 is not written" not in told
    assert outputs(workspace / "work") == outputs(workspace / "whole")


@pytest.mark.slow
def test_two_ranks_of_a_launched_stage_make_the_model_of_one_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command as a user gives it; sums are rounded in another order, so losses agree within 1e-4."""
    losses, shown = {}, {}
    for ranks in (1, 2):
        folder = tmp_path / str(ranks)
        folder.mkdir()
        monkeypatch.chdir(folder)
        parameters = fabricated.workspace(folder).model_dump(mode="json")
        shutil.rmtree("artifacts/train-ar")
        parameters["train_ar"] |= {"accumulate": 2, "log_every": 1}
        parameters["launch"] |= {"processes_per_node": ranks}
        Path("params.yaml").write_text(yaml.safe_dump(parameters))
        done = subprocess.run(
            [sys.executable, "-m", "valle2.cli", "train-ar"], capture_output=True, text=True, timeout=240
        )
        assert done.returncode == 0, done.stderr
        shown[ranks] = done.stdout
        lines = Path("artifacts/train-ar/history.jsonl").read_text().splitlines()
        losses[ranks] = [json.loads(line)["loss"] for line in lines]
    assert "submitted job" in shown[2] and "submitted job" not in shown[1]
    assert len(losses[1]) == 10 and losses[2] == pytest.approx(losses[1], abs=1e-4)
