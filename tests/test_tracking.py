"""Curves go to MLflow, also when several trainings begin at once."""

import os
import subprocess
import sys
from pathlib import Path


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
