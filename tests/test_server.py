"""A real Prefect server, as `make up` starts it: new data starts a retraining, and a person's answer decides.

The stages put down a tiny model that was made beforehand; all else is real: server, worker, automation, suspension, new
processes, DVC, MLflow's registry and the signed promotion. The real stages are in test_repro.py.
"""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest
import yaml

from infra.services import Service, is_alive
from tests import fabricated
from tests.tiny import ROOT, commit_all, copy_project
from tests.toy import git
from valle2.errors import ModelError
from valle2.registry import resolve, versions
from valle2.stage import write_json

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

PROJECT = (
    "valle2", "flows", "infra", "prefect.yaml", ".dvcignore", ".gitignore", ".dvc/config", ".dvc/.gitignore",
)  # fmt: skip
NEEDS = {
    "ingest": ["data"],
    "transcribe": ["artifacts/ingest"],
    "curate": ["artifacts/transcribe"],
    "tokenize": ["artifacts/curate"],
    "data-report": ["artifacts/tokenize"],
    "train-ar": ["artifacts/tokenize"],
    "train-nar": ["artifacts/tokenize"],
    "evaluate": ["artifacts/train-ar", "artifacts/train-nar"],
}
STAGE = '''\
"""A stage that puts down what was made beforehand."""
import json, shutil, sys
from pathlib import Path

name = sys.argv[1]
shutil.copytree(Path("made") / name, Path("artifacts") / name)
log = Path("artifacts/.log") / f"{name}.json"
log.parent.mkdir(exist_ok=True)
log.write_text(json.dumps({"figure": f"{name} put down", "facts": {}}))
'''
METRICS = {"wer": 0.1, "inf": 0.0, "cut": 0.0, "sim_wins": 0.95, "dnsmos": 3.2, "num_cases": 24}
PATIENCE = 400.0
"""Seconds for a run to get where it should; a loaded machine needs long, a quiet one takes a few."""


@dataclass(frozen=True)
class Server:
    """A repository and the server that runs its deployments."""

    root: Path
    environment: dict[str, str]
    api: str

    def call(self, path: str, body: object = None) -> Any:
        """Ask the server, as its pages do, and again while its database is busy, as Prefect's own client does."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.api + path, data, {"Content-Type": "application/json"})
        end = time.monotonic() + 10
        while True:
            try:
                with urllib.request.urlopen(request, timeout=120) as answer:
                    return json.load(answer)
            except urllib.error.HTTPError as error:
                if error.code != HTTPStatus.SERVICE_UNAVAILABLE or time.monotonic() > end:
                    raise
                time.sleep(2)

    def start(self, deployment: str, **parameters: str | int) -> dict[str, Any]:
        """Start a deployment."""
        found = self.call(f"/deployments/name/{deployment}")["id"]
        return self.call(f"/deployments/{found}/create_flow_run", {"parameters": parameters})

    def runs(self, deployment: str) -> list[dict[str, Any]]:
        """The flow runs of a deployment that somebody or something started, its schedule left out."""
        found = self.call("/flow_runs/filter", {"deployments": {"name": {"any_": [deployment]}}})
        return [run for run in found if not run["auto_scheduled"]]

    def reach(self, run: dict[str, Any], state: str) -> dict[str, Any]:
        """Wait until a run is in a state."""

        def now() -> dict[str, Any] | None:
            found = self.call(f"/flow_runs/{run['id']}")
            bad = {"FAILED", "CRASHED", "CANCELLED", "COMPLETED"} - {state}
            assert found["state_type"] not in bad, f"{found['state']['message']}\n{self.said()}"
            return found if found["state_type"] == state else None

        return self.until(now)

    def until(self, found: Callable[[], Any]) -> Any:
        """Wait for something."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            if it := found():
                return it
            time.sleep(0.3)
        raise AssertionError(f"waited {PATIENCE:.0f} s in vain\n{self.said()}")

    def said(self) -> str:
        """What runs print."""
        return (self.root / ".valle2" / "logs" / "worker.log").read_text()[-5000:]

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command of the project in its root."""
        return subprocess.run(
            [sys.executable, "-m", *command], cwd=self.root, env=self.environment, capture_output=True, text=True,
            check=False,
        )  # fmt: skip


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    root = folder / "repository"
    ports = free_port(), free_port()
    foreign = ("PREFECT", "VALLE2", "MLFLOW")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(foreign)} | {
        "HOME": str(folder), "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(root), "PREFECT_PORT": str(ports[0]), "MLFLOW_PORT": str(ports[1]),
        "PREFECT_WORKER_QUERY_SECONDS": "1", "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", environment["PATH"])
        patch.setenv("VALLE2_HOME", str(root / ".valle2"))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        make_repository(root, patch)
        server = Server(root, environment, f"http://127.0.0.1:{ports[0]}/api")
        done = server.run("infra", "up")
        assert done.returncode == 0, done.stderr
        noted = [Service(**item) for item in json.loads((root / ".valle2" / "services.json").read_text())]
        try:
            yield server
        finally:
            server.run("infra", "down")
        assert [service.name for service in noted] == ["prefect", "mlflow", "worker"]
        assert not any(is_alive(service) for service in noted)


def free_port() -> int:
    """A port that nobody uses."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def make_repository(root: Path, patch: pytest.MonkeyPatch) -> None:
    """This project with stages that take no time, and parameters that ask a person."""
    root.mkdir()
    patch.chdir(root)
    copy_project(root, PROJECT)
    fabricated.workspace(root)
    (root / "artifacts").rename(root / "made")
    write_json(root / "made" / "evaluate" / "metrics.json", METRICS)
    write_json(root / "made" / "data-report" / "report.json", {})
    (root / "data" / "sources.yaml").write_text("sources: []\n")
    (root / "stage.py").write_text(STAGE)
    stages = {
        name: {"cmd": f"python stage.py {name}", "deps": ["stage.py", *needs], "outs": [f"artifacts/{name}"]}
        for name, needs in NEEDS.items()
    }
    (root / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}))
    params: dict[str, Any] = {"tokenize": {"codec": "codec"}, "promote": {"approval": "required"}}
    (root / "params.yaml").write_text(yaml.safe_dump(params))
    params["promote"]["model_name"] = "other"
    (root / "other.yaml").write_text(yaml.safe_dump(params))
    commit_all(root)


def commit_change(root: Path) -> None:
    """Somebody goes on working: every stage is stale now."""
    (root / "stage.py").write_text(STAGE + "print('changed')\n")
    git(root, "-c", "user.name=t", "-c", "user.email=t@localhost", "commit", "--quiet", "--all", "--message", "change")


def test_new_data_starts_a_retraining_and_a_person_rejects_its_model(server: Server) -> None:
    ingested = server.reach(server.start("ingest/ingest"), "COMPLETED")
    retrained = server.until(lambda: server.runs("retrain"))[0]
    branch = retrained["parameters"]["revision"]
    assert branch.startswith("run/") and branch.endswith(ingested["name"])
    assert "artifacts/tokenize" in git(server.root, "show", f"{branch}:dvc.lock")

    server.reach(retrained, "PAUSED")
    [candidate] = versions()
    assert candidate.tags["valle2.status"] == "candidate"
    resume = f"/flow_runs/{retrained['id']}/resume"
    given = {"approver": "Ada", "decision": "reject", "reason": ""}
    refused = server.until(lambda: not_early(server.call(resume, {"run_input": given})))
    assert refused["status"] == "REJECT" and "reason" in refused["details"]["reason"]
    assert server.call(resume, {"run_input": given | {"reason": "lisps"}})["status"] == "ACCEPT"

    server.reach(retrained, "COMPLETED")
    assert len(server.runs("retrain")) == 1
    [rejected] = versions()
    assert rejected.tags["valle2.status"] == "rejected"
    assert rejected.tags["valle2.reasons"] == "rejected by Ada: lisps"
    with pytest.raises(ModelError, match="no version with the alias 'champion'"):
        resolve("valle2@champion")


def not_early(result: dict[str, Any]) -> dict[str, Any] | None:
    """The run is paused a moment before its form is there."""
    return None if "schema not found" in result["details"]["reason"] else result


@pytest.mark.parametrize("side_by_side", [1, 2])
def test_cancelling_a_run_stops_its_job_at_a_checkpoint(server: Server, side_by_side: int) -> None:
    run = server.start("retrain/retrain", revision=job_branch(server.root, side_by_side), side_by_side=side_by_side)
    folder = server.until(lambda: next(iter(job_folders(server.root, run["name"])), None))
    server.until(lambda: (folder / "work" / "step").is_file() and (folder / "work" / "step").read_text() > "1")
    cancel = {"state": {"type": "CANCELLING", "name": "Cancelling"}, "force": False}
    assert server.call(f"/flow_runs/{run['id']}/set_state", cancel)["status"] == "ACCEPT"
    job = folder / "artifacts" / ".jobs" / "train-ar"
    server.until(lambda: (job / "exit").is_file())
    server.reach(run, "CANCELLED")
    assert (job / "exit").read_text() == "75"
    log = (job / "log").read_text()
    assert f"rank 0: stopped at step {(folder / 'work' / 'step').read_text()}" in log


def job_branch(root: Path, side_by_side: int) -> str:
    """A commit of which train-ar is a job of two ranks that takes long; the main branch is left as it is."""
    branch = f"job-{side_by_side}"
    git(root, "checkout", "--quiet", "-b", branch)
    graph = yaml.safe_load((root / "dvc.yaml").read_text())
    graph["stages"]["train-ar"]["cmd"] = f"python {ROOT / 'tests' / 'launching.py'} {5000 + side_by_side}"
    (root / "dvc.yaml").write_text(yaml.safe_dump(graph))
    params = yaml.safe_load((root / "params.yaml").read_text())
    (root / "params.yaml").write_text(yaml.safe_dump(params | {"launch": {"processes_per_node": 2}}))
    git(root, "-c", "user.name=t", "-c", "user.email=t@localhost", "commit", "--quiet", "--all", "--message", branch)
    git(root, "checkout", "--quiet", "main")
    return branch


def job_folders(root: Path, run: str) -> list[Path]:
    """The workspaces of a run in which train-ar has begun."""
    spaces = (root / ".valle2" / "workspaces").glob(f"*-{run}")
    return [space for space in spaces if (space / "work" / "step").is_file()]


def test_what_a_person_approves_is_promoted_wherever_the_branch_has_gone(server: Server) -> None:
    run = server.reach(server.start("factory/factory", params="other.yaml"), "PAUSED")
    commit_change(server.root)
    words = ["flows", "answer", run["name"], "approve", "--approver", "Ada", "--reason", "listened to all samples"]
    server.until(lambda: server.run(*words).returncode == 0)
    again = server.run(*words)
    assert again.returncode == 2 and "waits for approval" in again.stderr and again.stderr.count("\n") == 1

    server.reach(run, "COMPLETED")
    assert "it goes on with what is on run/" in server.said()
    [version] = versions("other")
    champion = resolve("other@champion")
    assert (champion.version, version.tags["valle2.status"]) == (1, "champion")
    promotion = json.loads(version.tags["valle2.promotion"])
    assert (promotion["approver"], promotion["reason"]) == ("Ada", "listened to all samples")
    assert promotion["lineage"] == champion.lineage
    [kept] = (server.root / ".valle2" / "promotions").glob("other-1-*.json")
    assert json.loads(kept.read_text())["promotion"] == promotion
