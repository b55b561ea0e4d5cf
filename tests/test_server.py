"""A real Prefect server, as `make up` starts it: new data starts a retraining, and a person's answer decides.

The stages put down a tiny model that was made beforehand; all else is real: server, worker, automations, suspension,
new processes, DVC, MLflow's registry, the signed promotion, and a webhook that is told. The real stages are in
test_repro.py.
"""

import hashlib
import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from prefect.client.schemas.objects import FlowRun

from flows.cause import cause_of
from flows.promote import WAITING
from infra.services import Service, is_alive
from tests.ports import free_port
from tests.served import REPORT, Server, commit_change, make_repository, webhook
from tests.tiny import ROOT
from tests.toy import git
from valle2.errors import ModelError
from valle2.registry import resolve, versions
from valle2.stage import file_sha256

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

PAGE = hashlib.sha256(REPORT.encode()).hexdigest()


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
    told: list[dict[str, Any]] = []
    with webhook(told) as hook, pytest.MonkeyPatch.context() as patch:
        environment["VALLE2_WEBHOOK_URL"] = hook
        patch.setenv("PATH", environment["PATH"])
        patch.setenv("VALLE2_HOME", str(root / ".valle2"))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        make_repository(root, patch)
        server = Server(root, environment, f"http://127.0.0.1:{ports[0]}/api", told)
        done = server.run("infra", "up")
        assert done.returncode == 0, done.stderr
        try:
            yield server
            noted = services(root)
        finally:
            server.run("infra", "down")
        assert [service.name for service in noted] == ["prefect", "mlflow", "worker"]
        assert not any(is_alive(service) for service in noted)


def test_new_data_starts_a_retraining_and_a_person_rejects_its_model(server: Server) -> None:
    ingested = server.reach(server.start("ingest/ingest"), "COMPLETED")
    retrained = server.until(lambda: server.runs("retrain"))[0]
    branch = retrained["parameters"]["revision"]
    assert branch.startswith("run/") and branch.endswith(ingested["name"])
    assert "artifacts/tokenize" in git(server.root, "show", f"{branch}:dvc.lock")

    server.reach(retrained, "PAUSED")
    [candidate] = versions()
    assert candidate.tags["valle2.status"] in WAITING
    why = f"new data version {data_version(server.root)} by ingest run"
    assert retrained["parameters"]["why"].startswith(why) and ingested["name"] in retrained["parameters"]["why"]
    assert {"why:new-data", "approval:valle2/1"} <= set(server.now(retrained)["tags"])
    wanted = server.notice("valle2/1: passed the gate", retrained["name"])
    assert (wanted["model"], wanted["version"], wanted["run"]) == ("valle2", "1", retrained["name"])
    assert f"flows answer {retrained['name']} approve" in wanted["todo"]

    resume = f"/flow_runs/{retrained['id']}/resume"
    given = {"approver": "Ada", "decision": "reject", "reason": "lisps", "model": "valle2/1", "seen_report": PAGE}
    server.until(lambda: not_early(server.call(resume, {"run_input": given | {"reason": ""}})))
    for wrong in ({"reason": " "}, {"approver": ""}, {"seen_report": "0" * 64}, {"model": "valle2/2"}):
        refused = server.call(resume, {"run_input": given | wrong})
        assert refused["status"] == "REJECT" and next(iter(wrong)) in refused["details"]["reason"]
    assert server.call(resume, {"run_input": given})["status"] == "ACCEPT"

    done = server.reach(retrained, "COMPLETED")
    assert done["state"]["name"] == "Rejected"
    assert "valle2/1 was rejected by Ada: lisps; the champion stays none" in done["state"]["message"]
    assert why in done["state"]["message"] and why in artifact(server, done)
    server.notice("valle2/1: rejected by Ada: lisps")
    assert len(server.runs("retrain")) == 1
    [rejected] = versions()
    assert rejected.tags["valle2.status"] == "rejected"
    assert rejected.tags["valle2.reasons"] == "rejected by Ada: lisps"
    with pytest.raises(ModelError, match="no version with the alias 'champion'"):
        resolve("valle2@champion")


def data_version(root: Path) -> str:
    return yaml.safe_load((root / "data.dvc").read_text())["outs"][0]["md5"]


def artifact(server: Server, run: dict[str, Any]) -> str:
    """The summary that a run left on the server, its last one."""
    kept = {"flow_run_id": {"any_": [run["id"]]}, "key": {"any_": ["summary"]}}
    found = server.call("/artifacts/filter", {"artifacts": kept})
    return max(found, key=lambda item: item["created"])["data"]


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


def services(root: Path) -> list[Service]:
    return [Service(**item) for item in json.loads((root / ".valle2" / "services.json").read_text())]


def test_what_a_person_approves_is_promoted_though_all_was_killed_and_the_branch_has_gone_on(server: Server) -> None:
    run = server.reach(server.start("factory/factory", params="other.yaml"), "PAUSED")
    server.notice("other/1: passed the gate", run["name"])
    for service in services(server.root):
        for process in [*psutil.Process(service.pid).children(recursive=True), psutil.Process(service.pid)]:
            process.send_signal(signal.SIGKILL)
    commit_change(server.root)
    assert server.run("infra", "up").returncode == 0

    words = ["flows", "answer", run["name"], "approve", "--approver", "Ada", "--reason", "listened to all samples"]
    page = next((server.root / ".valle2" / "workspaces").glob(f"*-{run['name']}/artifacts/evaluate/report/index.html"))
    for wrong in ([], ["--report", "0" * 64], ["--report", str(server.root / "params.yaml")]):
        refused = server.run(*words, *wrong)
        assert refused.returncode == 2 and file_sha256(page) in refused.stderr and refused.stderr.count("\n") == 1
    answered = server.run(*words, "--report", str(page))
    assert answered.returncode == 0 and "approve other/1" in answered.stdout, answered.stderr
    again = server.run(*words, "--report", str(page))
    assert again.returncode == 2 and "waits for approval" in again.stderr and again.stderr.count("\n") == 1

    done = server.reach(run, "COMPLETED")
    assert done["state"]["name"] == "Promoted"
    assert "it goes on with what is on run/" in server.said()
    [version] = versions("other")
    champion = resolve("other@champion")
    assert (champion.version, version.tags["valle2.status"]) == (1, "champion")
    promotion = json.loads(version.tags["valle2.promotion"])
    assert (promotion["approver"], promotion["reason"]) == ("Ada", "listened to all samples")
    assert promotion["lineage"] == champion.lineage
    [kept] = (server.root / ".valle2" / "promotions").glob("other-1-*.json")
    assert json.loads(kept.read_text())["promotion"] == promotion
    server.notice("other/1: champion, approved by Ada: listened to all samples", run["name"], "valle2 rollback")


def test_retrainings_queue_say_why_and_leave_the_champion_where_nothing_is_better(server: Server) -> None:
    git(server.root, "checkout", "--quiet", "-b", "broken")
    (server.root / "stage.py").write_text("raise SystemExit('valle2: the toy is broken; mend it')\n")
    author = "-c", "user.name=t", "-c", "user.email=t@localhost"
    git(server.root, *author, "commit", "--quiet", "--all", "--message", "break")
    git(server.root, "checkout", "--quiet", "main")
    [factory] = server.runs("factory")
    branch = max(git(server.root, "branch", "--list", f"run/*-{factory['name']}", "--format=%(refname:short)").split())

    before = {run["id"] for run in server.runs("retrain")}
    by_hand = server.run("flows", "retrain", "--on-server", "--revision", branch, "--params", "other.yaml")
    assert by_hand.returncode == 0, by_hand.stderr
    [unchanged] = [run for run in server.runs("retrain") if run["id"] not in before]
    broken = server.start("retrain/retrain", revision="broken", params="other.yaml", why="Bo asks")
    strict = server.start("retrain/retrain", revision=branch, params="strict.yaml")
    late = server.start("retrain/retrain", revision=branch, params="late.yaml")
    deployment = server.call("/deployments/name/retrain/retrain")
    assert deployment["global_concurrency_limit"]["limit"] == 1
    assert deployment["concurrency_options"]["collision_strategy"] == "ENQUEUE"

    unchanged = server.reach(unchanged, "COMPLETED")
    assert unchanged["state"]["name"] == "UpToDate"
    assert "nothing to decide: other/1 is champion (by hand by " in unchanged["state"]["message"]
    assert unchanged["total_run_time"] < 60
    print(f"up to date in {unchanged['total_run_time']:.1f} s")
    assert len(versions("other")) == 1

    broken = server.reach(broken, "FAILED")
    assert "the toy is broken; mend it; the champion stays other/1" in broken["state"]["message"]
    assert "by hand: Bo asks" in artifact(server, broken) and "why:hand" in broken["tags"]
    assert broken["start_time"] >= unchanged["end_time"]
    server.notice(f"retrain {broken['name']}, Failed", "the champion stays other/1", "run the same again")
    assert resolve("other@champion").version == 1

    strict = server.reach(strict, "COMPLETED")
    assert strict["state"]["name"] == "Rejected" and "the champion stays other/1" in strict["state"]["message"]
    server.notice("other/2: rejected by the gate: word error rate", strict["name"], "the champion stays other/1")
    assert resolve("other@champion").version == 1 and "the champion stays other/1" in artifact(server, strict)

    late = server.until(lambda: it if (it := server.now(late))["state_type"] == "CANCELLED" else None)
    assert late["state"]["name"] == "NotPromoted" and "`valle2 promote VERSION" in late["state"]["message"]
    server.notice(late["name"], "late/1, NotPromoted", "not promoted")
    assert not [it for it in server.told if late["name"] in it["text"] and "Failed" in it["text"]]
    assert versions("late")[0].tags["valle2.status"] in WAITING


def test_one_that_the_schedule_starts_says_when(server: Server) -> None:
    ask = {"deployments": {"name": {"any_": ["retrain"]}}}

    def scheduled() -> dict[str, Any] | None:
        return next((run for run in server.call("/flow_runs/filter", ask) if run["auto_scheduled"]), None)

    cause = cause_of(FlowRun(**server.until(scheduled)))
    assert (cause.kind, cause.sentence[:13]) == ("schedule", "scheduled at ") and " 03:00 UTC" in cause.sentence
