"""Why a run runs, whose turn it is, and what is said where something is away: no server is needed for these."""

import fcntl
import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import pytest
from prefect.client.schemas.objects import CreatedBy, FlowRun

from flows.approval import Asked, form
from flows.cause import cause_of
from flows.promote import champion, decide
from flows.runner import Runs
from flows.turn import check_turn, turn
from flows.workspace import Workspace
from tests.ports import free_port
from tests.tiny import ROOT
from tests.toy import make_toy
from valle2.errors import FlowError


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_toy(tmp_path_factory.mktemp("retraining") / "toy")


def flows(folder: Path, *arguments: str, **variables: str) -> str:
    """What the flows' command line says when it refuses: one sentence, and exit code 2."""
    foreign = ("PREFECT", "VALLE2", "MLFLOW")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    environment = {**kept, "PYTHONPATH": str(ROOT), **variables}
    command = [sys.executable, "-m", "flows", *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr


def space(folder: Path) -> Workspace:
    return Workspace("asks", folder, folder, folder, "key", "revision")


def run(**facts: object) -> FlowRun:
    return FlowRun(flow_id=uuid4(), **facts)


def test_a_run_says_why_it_runs() -> None:
    at = datetime(2026, 3, 2, 3, tzinfo=UTC)
    automation = CreatedBy(id=uuid4(), type="AUTOMATION", display_value="retrain on new data")
    deployed = {"deployment_id": uuid4()}
    assert cause_of(run(auto_scheduled=True, expected_start_time=at)).sentence == "scheduled at 2026-03-02 03:00 UTC"
    assert cause_of(run(created_by=automation, **deployed), "new data version ab by ingest run c").tag == "why:new-data"
    assert cause_of(run(**deployed)).sentence == "by hand, on Prefect's pages"
    assert cause_of(run(**deployed), "by hand by ada").sentence == "by hand by ada"
    assert cause_of(run(**deployed), "more consents").sentence == "by hand: more consents"
    assert cause_of(run()).sentence.startswith("by hand")


def test_only_one_retraining_has_the_turn_and_the_other_is_told_whose_it_is(toy: Path) -> None:
    home = toy / ".valle2"
    with turn(home, "busy-bee", wait=False):
        with pytest.raises(FlowError, match="run busy-bee"), turn(home, "other", wait=False):
            pass
        for command in ("retrain", "factory"):
            assert f"run busy-bee (process {os.getpid()}) is retraining since" in flows(toy, command)
    check_turn(home)
    with turn(home, "other", wait=False):
        assert json.loads((home / "retraining.lock").read_text())["run"] == "other"


def test_on_a_server_a_retraining_waits_for_its_turn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with turn(tmp_path, "first", wait=False):
        pass
    held = (tmp_path / "retraining.lock").open()
    fcntl.flock(held, fcntl.LOCK_EX)
    monkeypatch.setattr("flows.turn.time.sleep", lambda seconds: held.close())
    with turn(tmp_path, "second", wait=True):
        assert "run first" in (said := capsys.readouterr().out) and "this run waits for it" in said


def test_a_form_takes_an_answer_for_its_own_version_and_report_alone(tmp_path: Path) -> None:
    asked = Asked("run/asks", "valle2/3", "ab" * 32)
    made = form(space(tmp_path), asked, "word error rate 0.1 is at most 0.35")
    given = {"approver": "Ada", "decision": "approve", "reason": "fine", "model": "valle2/3", "seen_report": "ab" * 32}
    assert made(**given).approver == "Ada"
    for wrong in ({"model": "valle2/4"}, {"seen_report": "cd" * 32}, {"approver": " "}, {"reason": ""}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            made(**given | wrong)


def test_what_is_away_is_one_sentence(toy: Path) -> None:
    away = f"http://127.0.0.1:{free_port()}"
    answer = ("answer", "calm-owl", "approve", "--approver", "Ada", "--reason", "fine")
    for command in (("retrain",), answer):
        said = flows(toy, *command, PREFECT_API_URL=f"{away}/api")
        assert f"the Prefect server {away}/api does not answer" in said and "make up" in said
    assert "no Prefect server runs here" in flows(toy, *answer)


def test_without_mlflow_the_evaluated_model_is_kept_and_the_command_that_decides_later_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "params.yaml").write_text("")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
    later = "does not answer.*is kept, and `python -m flows promote --revision run/asks` decides about it then"
    with pytest.raises(FlowError, match=later):
        decide(space(tmp_path), Runs())
    assert champion("valle2") == "what it is"


def test_an_approver_without_a_name_is_refused(toy: Path) -> None:
    said = flows(toy, "answer", "calm-owl", "approve", "--approver", " ", "--reason", "fine")
    assert "a decision needs --approver" in said
