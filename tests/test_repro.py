"""The real stages at a tiny size: by hand and by flow the same bytes, and a second run that runs nothing."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.tiny import make_repository
from valle2.types import STAGES

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


def run(folder: Path, *command: str) -> str:
    """Run a command as a user does, with the folder's own code."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT", "VALLE2"))}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    environment["PYTHONPATH"] = str(folder)
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stdout[-3000:]}{done.stderr[-3000:]}"
    return done.stdout


def test_the_flow_and_repro_by_hand_give_the_same_lock(tmp_path: Path) -> None:
    origin = make_repository(tmp_path / "origin")
    by_hand = tmp_path / "by-hand"
    run(tmp_path, "git", "clone", "--quiet", str(origin), str(by_hand))
    shutil.copytree(origin / "data", by_hand / "data")
    factory = [sys.executable, "-m", "flows", "factory"]

    said = run(origin, *factory)
    run(by_hand, "dvc", "repro", "--quiet")

    branch = run(origin, "git", "branch", "--list", "run/*", "--format", "%(refname:short)").split()[0]
    lock = run(origin, "git", "show", f"{branch}:dvc.lock")
    assert lock == (by_hand / "dvc.lock").read_text()
    assert tuple(yaml.safe_load(lock)["stages"]) == STAGES
    assert "valle2/1" in said and "rejected by the gate" in said

    again = run(origin, *factory)
    made_by = branch.removeprefix("run/")
    assert not [stage for stage in STAGES if f"{stage}: cached, made by run {made_by}" not in again]
    assert "valle2/1, already registered" in again
