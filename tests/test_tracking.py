"""Curves go to MLflow: also when trainings begin at once, when the server goes away, and when a training is killed."""

import http.server
import io
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from PIL import Image

from valle2 import tracking, training_run
from valle2.config.train import TrainParams
from valle2.errors import TrainingError
from valle2.outbox import Outbox, impatient
from valle2.tracking import connect, experiment_id, unsent

CONFIG = TrainParams()


def test_two_processes_set_up_one_store(tmp_path: Path) -> None:
    code = "from valle2.tracking import connect, experiment_id; print(experiment_id(connect()))"
    environment = {**os.environ, "VALLE2_HOME": str(tmp_path / "home")}
    environment.pop("MLFLOW_TRACKING_URI", None)
    both = [
        subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(2)
    ]
    said = [process.communicate(timeout=240) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert said[0][0] == said[1][0]


class Server:
    """A real MLflow server on SQLite that can be stopped, killed and started again."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.uri, self._folder = f"http://127.0.0.1:{self.port}", folder
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [
            sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port), "--workers", "1",
            "--backend-store-uri", f"sqlite:///{self._folder}/mlflow.db", "--serve-artifacts",
            "--artifacts-destination", f"{self._folder}/files",
        ]  # fmt: skip
        environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        with (self._folder / "log").open("ab") as log:
            self.process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        until = time.monotonic() + 200
        while True:
            try:
                with urllib.request.urlopen(f"{self.uri}/health", timeout=2):
                    return
            except (urllib.error.URLError, OSError):
                assert time.monotonic() < until and self.process.poll() is None, (self._folder / "log").read_text()
                time.sleep(0.3)

    def signal(self, number: int) -> None:
        assert self.process is not None
        os.killpg(self.process.pid, number)
        if number == signal.SIGKILL:
            self.process.wait()
            self.process = None


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("mlflow"))
    server.start()
    yield server
    if server.process:
        server.signal(signal.SIGKILL)


@pytest.fixture
def server(running: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """The server, up again after each test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", running.uri)
    monkeypatch.setenv("VALLE2_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
    if running.process is None:
        running.start()
    yield running
    if running.process:
        running.signal(signal.SIGCONT)


def curve(run_id: str, name: str = "loss") -> list[tuple[int, float]]:
    """All points of a curve as the server has them."""
    return [(point.step, point.value) for point in connect().get_metric_history(run_id, name)]


def wait_for(condition: Any, seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.parametrize("outage", ["hangs", "is killed"])
def test_a_server_that_is_away_neither_stops_nor_slows_a_training_and_misses_nothing(
    server: Server, tmp_path: Path, outage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    slowest = 0.0
    with training_run.training_run("ar", CONFIG, "d" * 64, tmp_path / "work") as run:
        for step in range(1, 61):
            if step == 20:
                wait_for(lambda: len(run._outbox) == 0)
                server.signal(signal.SIGSTOP if outage == "hangs" else signal.SIGKILL)
            if step == 50:
                wait_for(lambda: run._problem)
                server.start() if outage == "is killed" else server.signal(signal.SIGCONT)
            start = time.monotonic()
            run.log(step, {"loss": 1 / step, "odd": float("nan")})
            run.log_audio(step, "a", np.zeros(100, np.float32), 24000)
            slowest = max(slowest, time.monotonic() - start)
            time.sleep(0.05)
    assert slowest < 0.5
    assert curve(run.run_id) == [(step, 1 / step) for step in range(1, 61)]
    assert [step for step, _ in curve(run.run_id, "odd")] == list(range(1, 61))
    assert connect().get_run(run.run_id).info.status == "FINISHED"
    assert len(connect().list_artifacts(run.run_id, "samples")) == 60
    assert list(unsent().iterdir()) == []
    said = capsys.readouterr().err
    assert said.count("does not answer") == 1 and said.count("answers again; nothing is lost") <= 1


@pytest.mark.slow
def test_what_a_store_that_stays_away_missed_is_sent_by_the_next_command(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("VALLE2_TRACKING_PATIENCE", "1")
    with training_run.training_run("nar", CONFIG, "d" * 64, tmp_path / "work") as run:
        run.log(1, {"loss": 3.0})
        wait_for(lambda: len(run._outbox) == 0)
        server.signal(signal.SIGKILL)
        run.log(2, {"loss": 2.0})
        run.log_audio(2, "a", np.zeros(100, np.float32), 24000)
        start = time.monotonic()
    assert time.monotonic() - start < 20
    said = capsys.readouterr().err
    assert "wait in" in said and said.strip().splitlines()[-1].endswith("sends them")
    assert (unsent() / f"{run.run_id}.jsonl").is_file()

    with (
        pytest.raises(TrainingError, match=r"the tracking store http.* fails: .*start it"),
        training_run.training_run("nar", CONFIG, "d" * 64, tmp_path / "other"),
    ):
        pass
    server.start()
    assert curve(run.run_id) == [(1, 3.0), (2, 2.0)]
    assert connect().get_run(run.run_id).info.status == "FINISHED"
    assert [file.path for file in connect().list_artifacts(run.run_id, "samples/step-00000002")] == [
        "samples/step-00000002/a.wav"
    ]
    assert list(unsent().iterdir()) == []
    assert "sent 3 kept points" in capsys.readouterr().err


@pytest.mark.slow
def test_a_training_that_is_killed_while_the_server_is_away_goes_on_in_one_curve(
    server: Server, tmp_path: Path
) -> None:
    child = os.fork()
    if child == 0:
        with training_run.training_run("ar", CONFIG, "d" * 64, tmp_path / "work") as run:
            for step in range(1, 31):
                if step == 10:
                    wait_for(lambda: len(run._outbox) == 0)
                    server.signal(signal.SIGSTOP)
                run.log(step, {"loss": 1 / step})
                run._system._log(run._system._step, {"system/cpu": 1.0})
                run._system._step += 1
            os.kill(os.getpid(), signal.SIGKILL)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    server.signal(signal.SIGCONT)
    run_id = (tmp_path / "work" / "mlflow_run").read_text().strip()
    with training_run.training_run("ar", CONFIG, "d" * 64, tmp_path / "work") as run:
        assert run.run_id == run_id
        for step in range(21, 41):  # it was at 30, its last checkpoint at 20
            run.log(step, {"loss": 1 / step})
        run._system._log(run._system._step, {"system/cpu": 1.0})
    assert curve(run_id) == [(step, 1 / step) for step in range(1, 41)]
    assert [step for step, _ in curve(run_id, "system/cpu")] == list(range(31))
    kept = connect().get_run(run_id)
    assert (kept.info.status, kept.data.tags["valle2.attempts"]) == ("FINISHED", "2")


def test_samples_are_artifacts_and_pictures_of_the_slider_that_repeating_does_not_double(
    server: Server, tmp_path: Path
) -> None:
    png = io.BytesIO()
    Image.new("RGB", (20, 10), "red").save(png, "png")
    wave = np.sin(np.arange(2400) / 10).astype(np.float32)
    for _ in range(2):
        with training_run.training_run("ar", CONFIG, "d" * 64, tmp_path / "work") as run:
            run.log_audio(1000, "ann-1", wave, 24000)
            run.log_image(1000, "ann-1", png.getvalue())
    client = connect()
    assert [file.path for file in client.list_artifacts(run.run_id, "samples/step-00001000")] == [
        "samples/step-00001000/ann-1.png", "samples/step-00001000/ann-1.wav"
    ]  # fmt: skip
    names = [Path(file.path).name for file in client.list_artifacts(run.run_id, "images")]
    assert len(names) == 2 and all(name.startswith("ann-1+step+1000+timestamp+") for name in names)
    assert {Path(name).suffix for name in names} == {".png", ".webp"}
    assert client.get_run(run.run_id).data.tags["mlflow.loggedImages"] == "True"
    heard, rate = soundfile.read(
        client.download_artifacts(run.run_id, "samples/step-00001000/ann-1.wav", str(tmp_path))
    )
    assert rate == 24000 and np.abs(heard - wave).max() < 1e-4


def test_the_load_of_the_machine_is_logged_for_this_run_alone_and_goes_on_after_a_resume(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.2")
    for _ in range(2):
        with training_run.training_run("ar", CONFIG, "d" * 64, tmp_path / "work") as run:
            before = run._system._step
            wait_for(lambda before=before, run=run: run._system._step >= before + 3)
    steps = [step for step, _ in curve(run.run_id, "system/cpu_utilization_percentage")]
    assert steps == list(range(len(steps))) and len(steps) >= 6
    names = connect().get_run(run.run_id).data.metrics
    assert {"system/system_memory_usage_megabytes", "system/process_memory_usage_megabytes"} <= set(names)
    other = connect().create_run(experiment_id(connect()))
    assert not connect().get_run(other.info.run_id).data.metrics


def test_a_file_of_events_that_a_kill_cut_short_keeps_the_whole_ones(tmp_path: Path) -> None:
    box = Outbox(tmp_path, "r", "http://x")
    box.put({"points": [["loss", 1.0, 0, 1]]})
    box.put({"points": [["loss", 1.0, 0, 2]]})
    with pytest.raises(BlockingIOError):
        Outbox(tmp_path, "r", "http://x")
    text = box.path.read_text()
    box.close()
    box.path.write_text(text[:-5])
    again = Outbox(tmp_path, "r", "http://x")
    assert len(again) == 1 and again.last_steps == {"loss": 1}


class Broken(http.server.BaseHTTPRequestHandler):
    """Answers everything with an internal error."""

    def do_POST(self) -> None:
        self.send_error(500)

    def log_message(self, *_: object) -> None:
        pass


def test_an_error_of_the_server_is_noticed_at_once_and_keeps_the_points(tmp_path: Path) -> None:
    with http.server.HTTPServer(("127.0.0.1", 0), Broken) as broken:
        threading.Thread(target=broken.serve_forever, daemon=True).start()
        uri = f"http://127.0.0.1:{broken.server_port}"
        box = Outbox(tmp_path, "r", uri)
        box.put({"points": [["loss", 1.0, 0, 1]]})
        start = time.monotonic()
        with impatient(), pytest.raises(MlflowException, match="500"):
            box.send(MlflowClient(uri))
        broken.shutdown()
    assert time.monotonic() - start < 5
    assert len(box) == 1 and not box.refused


def test_a_full_disk_stops_no_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    box = Outbox(tmp_path, "r", "http://x")
    box._file.close()
    box._file = Path("/dev/full").open("w")  # noqa: SIM115
    box.put({"points": [["loss", 1.0, 0, 1]]})
    assert len(box) == 1 and "No space left" in capsys.readouterr().err


def test_refused_points_are_told_and_hold_nothing_up(server: Server, tmp_path: Path, capsys: Any) -> None:
    with training_run.training_run("ar", CONFIG, "d" * 64, tmp_path / "work") as run:
        connect().delete_run(run.run_id)
        run.log(1, {"loss": 1.0})
    assert "refused something of run" in capsys.readouterr().err
    assert not list(tracking.unsent().iterdir())
