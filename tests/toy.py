"""A repository of five toy stages for tests of the runner: real git, real DVC, no server.

python tests/toy.py REPOSITORY TARGET     run its stages up to TARGET
"""

import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import yaml
from prefect.logging import disable_run_logger

from flows import runner
from flows.git import resolve
from flows.runner import Runs, run_stages
from flows.store import push
from flows.workspace import Request, Workspace, workspace
from tests.tiny import ROOT, commit_all

STAGE = '''\
"""Five slow steps, each kept in the partial folder, then two files; fails where a file `broken` names it."""
import json, sys, time
from pathlib import Path

name, seconds = sys.argv[1], float(sys.argv[2])
work = Path("artifacts/.partial") / name
work.mkdir(parents=True, exist_ok=True)
for step in map(str, range(5)):
    found = (work / step).exists()
    print(f"{name}: step {step} {'was there' if found else 'done'}", flush=True)
    if not found:
        time.sleep(seconds / 5)
        (work / step).touch()
if Path("broken").exists() and Path("broken").read_text() == name:
    sys.exit("valle2: the toy is broken; mend it")
out = Path("artifacts") / name
out.mkdir(parents=True, exist_ok=True)
(out / "a.txt").write_text(name)
(out / "b.txt").write_text(name * 2)
log = Path("artifacts/.log") / f"{name}.json"
log.parent.mkdir(exist_ok=True)
log.write_text(json.dumps({"figure": f"{name} of 5 steps", "facts": {"steps": 5, "audio_hours_per_hour": 12.5}}))
'''
NEEDS = {
    "ingest": ["data"],
    "tokenize": ["artifacts/ingest"],
    "train-ar": ["artifacts/tokenize/a.txt"],
    "train-nar": ["artifacts/tokenize/a.txt"],
    "evaluate": ["artifacts/train-ar", "artifacts/train-nar"],
}


def make_toy(folder: Path, seconds: float = 0.0) -> Path:
    """Write and commit the toy repository; its stages take `seconds` each."""
    stages: dict[str, dict[str, Any]] = {
        name: {"cmd": f"python stage.py {name} {seconds}", "deps": ["stage.py", *needs], "outs": [f"artifacts/{name}"]}
        for name, needs in NEEDS.items()
    }
    stages["tokenize"]["params"] = ["runtime.seed", "tokenize"]
    (folder / ".dvc").mkdir(parents=True)
    for name in (".dvc/config", ".dvc/.gitignore", ".dvcignore", ".gitignore", "params.yaml"):
        (folder / name).write_text((ROOT / name).read_text())
    (folder / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}, sort_keys=False))
    (folder / "stage.py").write_text(STAGE)
    (folder / "data").mkdir()
    (folder / "data" / "sources.yaml").write_text("sources: []\n")
    (folder / "data" / "sound.txt").write_text("la la la\n")
    commit_all(folder)
    return folder


def run_toy(
    origin: Path, run: str, target: str = "evaluate", data: Path | None = None, side_by_side: int = 1
) -> tuple[Workspace, Runs]:
    """Run stages as the flows do, without Prefect's server."""
    runs = Runs()
    request = Request(resolve(origin, "HEAD"), None, data)
    with (
        disable_run_logger(),
        patch.object(runner, "execute", runner.execute.fn),
        workspace(origin, origin / ".valle2", request, run) as space,
    ):
        push(space.root, "data.dvc")
        run_stages(space, target, runs, side_by_side)
        space.finish()
    return space, runs


def git(folder: Path, *arguments: str) -> str:
    """What git prints."""
    return subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True, text=True).stdout


if __name__ == "__main__":
    run_toy(Path(sys.argv[1]), "killed", sys.argv[2])
