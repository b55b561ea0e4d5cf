"""A bar on a terminal, plain lines elsewhere, and a Prefect artifact of these lines, with a server or without."""

import os
import pty
import subprocess
import sys

import pytest
from prefect import flow, get_client, task
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey
from prefect.testing.utilities import prefect_test_harness

from flows.progress import StageProgress
from valle2 import progress as module
from valle2.progress import Progressed, progress, read_line

WORK = """
from valle2.progress import progress
with progress("train-ar", 9, "steps", 2) as advance:
    for step in range(7):
        advance(1, f"loss {9 - step}.000, 41.2 h/h")
"""


def on_a_terminal(code: str) -> str:
    """What a Python program writes to a terminal."""
    leader, follower = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120"}
    process = subprocess.Popen([sys.executable, "-c", code], stdout=follower, stderr=follower, env=environment)
    os.close(follower)
    said = b""
    while True:
        try:
            part = os.read(leader, 4096)
        except OSError:
            break
        if not part:
            break
        said += part
    assert process.wait() == 0
    os.close(leader)
    return said.decode()


def test_a_terminal_gets_a_bar_with_step_loss_speed_and_time_left() -> None:
    said = on_a_terminal(WORK.replace("advance(1,", "import time; time.sleep(0.2); advance(1,"))
    assert "9/9 steps" in said and "loss 3.000, 41.2 h/h" in said and "━" in said
    assert "0:00:0" in said
    assert "\n" not in said.strip().replace("\r\n", "")


def test_a_log_gets_plain_lines_that_can_be_read_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "LINE_EVERY", 0.0)
    with progress("train-ar", 9, "steps", 2) as advance:
        for step in range(7):
            advance(1, f"loss {9 - step}.000, 41.2 h/h")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 7
    found = [read_line(line) for line in lines]
    assert [one.done for one in found if one] == list(range(3, 10))
    assert str(found[-1]) == lines[-1] == "train-ar: 9/9 steps, 0 s left, loss 3.000, 41.2 h/h"


@pytest.mark.parametrize("line", ["train-ar: 9 steps, loss 1", "tracking: waiting 60 s for x", "", "a/b"])
def test_other_lines_say_nothing_of_progress(line: str) -> None:
    assert read_line(line) is None


def test_any_stage_s_unit_can_be_read() -> None:
    line = Progressed("transcribe", 12, 2580, "s of audio", 70)
    assert read_line(str(line)) == line


@pytest.fixture(scope="module")
def temporary_server():
    with prefect_test_harness(server_startup_timeout=120):
        yield


def artifacts() -> list[tuple[float, str]]:
    with get_client(sync_client=True) as client:
        wanted = ArtifactFilter(key=ArtifactFilterKey(any_=["train-ar"]))
        return [(item.data, item.description) for item in client.read_artifacts(artifact_filter=wanted)]


@pytest.mark.slow
def test_a_stage_s_lines_become_a_progress_artifact_of_its_task(temporary_server, monkeypatch) -> None:
    monkeypatch.setattr("flows.progress.UPDATE_EVERY", 0.0)
    seen: list[list[tuple[float, str]]] = []

    @task
    def stage() -> None:
        with StageProgress("train-ar") as shown:
            shown.tell("tracking: waiting 60 s for x")
            shown.tell("train-ar: 3/12 steps, 30 s left, loss 2.311, 41.2 h/h")
            seen.append(artifacts())
            shown.tell("train-ar: 9/12 steps, 9 s left, loss 2.1, 41.2 h/h")
            seen.append(artifacts())

    @flow
    def whole() -> None:
        stage()

    whole()
    assert seen[0] == [(25.0, "3/12 steps, 30 s left, loss 2.311, 41.2 h/h")]
    assert seen[1] == [(75.0, "9/12 steps, 9 s left, loss 2.1, 41.2 h/h")]
    assert artifacts() == [(100.0, "done")]


def test_without_a_run_of_prefect_nothing_is_asked_of_a_server(monkeypatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    with StageProgress("train-ar") as shown:
        shown.tell("train-ar: 3/12 steps, 30 s left")


@pytest.mark.slow
def test_a_server_that_fails_stops_no_stage(temporary_server, monkeypatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("away")

    monkeypatch.setattr("flows.progress.create_progress_artifact", broken)

    @flow
    def whole() -> str:
        with StageProgress("train-ar") as shown:
            shown.tell("train-ar: 3/12 steps, 30 s left")
        return "went on"

    assert whole() == "went on"
