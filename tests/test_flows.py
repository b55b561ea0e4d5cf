"""The runner, the workspaces and the store, on real git and DVC with toy stages."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from flows.pipeline import complete_params, dvc_repository, needed, read_lock, stage_order
from flows.runner import StageError, _batches
from flows.store import push
from flows.summary import show
from flows.workspace import Request, workspace
from infra.services import port
from tests.tiny import ROOT
from tests.toy import NEEDS, git, make_toy, run_toy
from valle2.errors import FlowError, StorageError
from valle2.trust.lineage import LineageStore, stage_key
from valle2.types import STAGES


@pytest.fixture(autouse=True)
def programs_on_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stages are started by name."""
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    return make_toy(tmp_path / "toy")


def flows(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The flows' command line, in a folder."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "flows", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_a_run_is_committed_recorded_and_verified_and_leaves_the_checkout_alone(toy: Path) -> None:
    (toy / "note.txt").write_text("not committed")
    before = git(toy, "status", "--porcelain", "--ignored", "--branch").replace("!! .valle2/\n", "")
    space, runs = run_toy(toy, "first")
    after = git(toy, "status", "--porcelain", "--ignored", "--branch").replace("!! .valle2/\n", "")

    assert before == after
    assert not (toy / "dvc.lock").exists() and not (toy / "artifacts").exists()
    assert [run.stage for run in runs.stages] == list(NEEDS)
    assert {run.state for run in runs.stages} == {"ran"}
    assert set(yaml.safe_load(git(toy, "show", "run/first:dvc.lock"))["stages"]) == set(NEEDS)
    assert "Lineage: " in git(toy, "log", "-1", "--format=%B", "run/first")
    assert (toy / ".valle2" / "latest" / "artifacts" / "evaluate" / "a.txt").read_text() == "evaluate"

    store, lock = LineageStore(toy / ".valle2" / "lineage"), read_lock(space.root, "evaluate")
    record = store.find_stage("evaluate", stage_key(lock.command, lock.deps, lock.params))
    assert record is not None and record.run == "first" and record.outs == lock.outs
    assert {store.stage(parent).stage for parent in record.parents} == {"train-ar", "train-nar"}


def test_a_second_run_is_cached_and_names_the_run_that_made_it(toy: Path) -> None:
    run_toy(toy, "first")
    _, runs = run_toy(toy, "second")
    assert {(run.state, run.made_by) for run in runs.stages} == {("cached", "first")}
    assert git(toy, "show", "run/first:dvc.lock") == git(toy, "show", "run/second:dvc.lock")


def test_how_fast_a_stage_was_is_in_the_summary_and_kept_for_later_runs(
    toy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    space, runs = run_toy(toy, "first", "ingest")
    show(space, runs)
    said = capsys.readouterr().out
    assert "audio h/h" in said and "12.5" in said
    again, cached = run_toy(toy, "second", "ingest")
    log = json.loads((again.root / "artifacts" / ".log" / "ingest.json").read_text())
    assert log["facts"]["audio_hours_per_hour"] == 12.5 and log["figure"] == "ingest of 5 steps"
    assert cached.stages[0].audio_rate is None


def test_a_stage_that_a_revision_does_not_have_is_named(toy: Path) -> None:
    with pytest.raises(FlowError, match=r"dvc\.yaml has no stage data-report at this revision; it has ingest, "):
        run_toy(toy, "first", "data-report")


def test_a_model_is_made_of_the_stages_that_its_evaluation_needs() -> None:
    assert tuple(needed(ROOT, "evaluate")) == tuple(stage for stage in STAGES if stage != "data-report")
    assert tuple(needed(ROOT, "data-report")) == STAGES[: STAGES.index("data-report") + 1]


def test_repro_by_hand_finds_nothing_to_do_after_a_run(toy: Path) -> None:
    space, _ = run_toy(toy, "first")
    done = subprocess.run(["dvc", "status"], cwd=space.root, check=True, capture_output=True, text=True)
    assert "up to date" in done.stdout


def test_only_stages_that_do_not_need_each_other_run_side_by_side(toy: Path) -> None:
    batches = list(_batches(toy, "evaluate", 2, set()))
    assert batches == [["ingest"], ["tokenize"], ["train-ar", "train-nar"], ["evaluate"]]


def test_a_failed_stage_tells_its_own_last_sentence_and_keeps_the_stages_before_it(toy: Path) -> None:
    (toy / "broken").write_text("train-ar")
    git(toy, "add", "broken")
    git(toy, "-c", "user.name=t", "-c", "user.email=t@localhost", "commit", "--quiet", "--message", "break")
    with pytest.raises(StageError, match="train-ar: the toy is broken; mend it"):
        run_toy(toy, "broken")
    assert set(yaml.safe_load(git(toy, "show", "run/broken:dvc.lock"))["stages"]) == {"ingest", "tokenize"}


def test_a_killed_run_is_taken_up_inside_its_half_done_stage(tmp_path: Path) -> None:
    toy = make_toy(tmp_path / "toy", seconds=4.0)
    command = [sys.executable, str(ROOT / "tests" / "toy.py"), str(toy), "ingest"]
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)})
    marks = toy / ".valle2" / "workspaces" / "killed" / "artifacts" / ".partial" / "ingest"
    until = time.monotonic() + 120
    while not (marks / "1").exists():
        assert time.monotonic() < until and process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()

    space, runs = run_toy(toy, "next", "ingest")
    assert space.run == "killed" and space.resumed
    assert runs.stages[0].state == "ran" and runs.stages[0].seconds < 4.0


def test_a_file_written_while_a_run_commits_is_left_for_the_next_commit(
    toy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    space, _ = run_toy(toy, "run")
    before = git(space.root, "rev-parse", "HEAD")

    def slow(folder: Path, *arguments: str) -> str:
        said = git(folder, *arguments)
        if arguments[0] == "add":
            (folder / "late.txt").write_text("from a job that goes on\n")
        return said

    monkeypatch.setattr("flows.workspace.git", slow)
    space.commit("nothing that was added")
    assert git(space.root, "rev-parse", "HEAD") == before
    space.commit("late.txt")
    assert "late.txt" in git(space.root, "show", "--stat", "HEAD")


def test_a_finished_run_is_not_taken_up_and_old_workspaces_go(toy: Path) -> None:
    for name in ("a", "b", "c"):
        space, _ = run_toy(toy, name, "ingest")
        assert not space.resumed
    left = sorted(path.name for path in (toy / ".valle2" / "workspaces").iterdir() if path.is_dir())
    assert left == ["b", "c"]


def test_a_workspace_that_is_in_use_is_left_to_its_run(toy: Path) -> None:
    request = Request(git(toy, "rev-parse", "HEAD").strip())
    with (
        workspace(toy, toy / ".valle2", request, "one") as one,
        workspace(toy, toy / ".valle2", request, "two") as two,
    ):
        assert (one.run, two.run) == ("one", "two")


def test_push_mends_what_is_missing_at_the_remote_and_names_what_it_cannot_mend(toy: Path) -> None:
    space, _ = run_toy(toy, "first", "ingest")
    remote, cache = toy / ".valle2" / "remote" / "files" / "md5", toy / ".dvc" / "cache" / "files" / "md5"
    victim = next(path for path in sorted(remote.rglob("*")) if path.is_file() and path.read_bytes() == b"ingest")
    victim.chmod(0o644)
    victim.write_bytes(b"rotten")
    assert push(space.root, "ingest").num_objects == 3
    assert victim.read_bytes() == b"ingest"

    victim.unlink()
    cached = cache / victim.relative_to(remote)
    cached.unlink()
    with pytest.raises(StorageError, match=victim.parent.name + victim.name):
        push(space.root, "ingest")


def test_other_data_is_used_for_one_run_and_committed_on_its_branch(toy: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "sources.yaml").write_text("sources: []\n")
    (other / "more.txt").write_text("lu lu\n")
    space, _ = run_toy(toy, "other", "ingest", data=other)
    assert (space.root / "data" / "more.txt").is_file()
    assert git(toy, "show", "run/other:data.dvc") != git(toy, "show", "HEAD:data.dvc")
    assert (toy / "data" / "sound.txt").is_file()


def test_data_that_is_nowhere_and_data_that_has_changed_are_told(toy: Path, tmp_path: Path) -> None:
    cache = toy / ".dvc" / "cache"
    cache.rename(tmp_path / "gone")
    (toy / "data" / "sound.txt").chmod(0o644)
    (toy / "data" / "sound.txt").unlink()
    with pytest.raises(FlowError, match=r"is not the data that data.dvc names"):
        run_toy(toy, "changed")
    (toy / "data").rename(tmp_path / "data")
    with pytest.raises(StorageError, match=r"neither in .* nor at the remote"):
        run_toy(toy, "nowhere")


def test_parameters_that_dvc_tracks_are_completed_with_their_defaults(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("runtime: {device: cpu}\n")
    (tmp_path / "dvc.yaml").write_text("stages: {a: {cmd: x, params: [runtime.seed, gate]}}\n")
    assert complete_params(tmp_path) == ["gate", "runtime.seed"]
    assert yaml.safe_load((tmp_path / "params.yaml").read_text())["runtime"] == {"device": "cpu", "seed": 2406}


def test_a_typo_in_the_parameters_is_one_sentence(toy: Path) -> None:
    (toy / "params.yaml").write_text((toy / "params.yaml").read_text().replace("num_cases:", "num_case:"))
    done = flows(toy, "factory")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and "did you mean `num_cases`?" in done.stderr


def test_without_git_the_user_is_told_what_to_do(toy: Path) -> None:
    (toy / ".git").rename(toy / "no-git")
    done = flows(toy, "factory")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and "git clone" in done.stderr


def test_a_busy_port_is_named_with_the_variable_that_changes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        number = taken.getsockname()[1]
        monkeypatch.setenv("MLFLOW_PORT", str(number))
        with pytest.raises(FlowError, match=f"port {number} on 127.0.0.1 is busy.*MLFLOW_PORT={number + 1}"):
            port("MLFLOW_PORT", 5000)


def test_dvc_yaml_holds_the_stages_of_the_library_in_order() -> None:
    with dvc_repository(ROOT) as repo:
        assert tuple(stage.name for stage in stage_order(repo)) == STAGES
