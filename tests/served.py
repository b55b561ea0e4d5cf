"""A repository with quick stages, and the real Prefect server, worker and webhook that serve it in tests."""

import json
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests import fabricated
from tests.tiny import commit_all, copy_project
from tests.toy import git
from valle2.stage import file_sha256, output, write_json

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
REPORT = "<h1>A report to read</h1>"
METRICS = {
    "wer": 0.1, "inf": 0.0, "cut": 0.0, "sim_wins": 0.95, "dnsmos": 3.2, "num_cases": 24, "num_speakers": 2,
    "protocols": "unseen",
}  # fmt: skip
DATA = {
    "metrics": {"hours": {"in": 0.1, "train": 0.06, "dev": 0.02}, "share_kept": 0.9}, "recordings": 5,
    "num_speakers": {"train": 2, "dev": 1, "test": 2}, "consent": {"consent": {"kept": 0.08}},
    "licences": {"CC0-1.0": {"kept": 0.08}}, "languages": {"en": {"kept": 0.08}},
}  # fmt: skip
"""What the data report says, as far as a model card repeats it."""
PATIENCE = 400.0
"""Seconds for a run to get where it should; a loaded machine needs long, a quiet one takes a few."""


@dataclass(frozen=True)
class Server:
    """A repository and the server that runs its deployments."""

    root: Path
    environment: dict[str, str]
    api: str
    told: "list[dict[str, Any]]" = field(default_factory=list)
    """What the webhook was told."""

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

    def notice(self, *parts: str) -> dict[str, Any]:
        """Wait until the webhook was told of something in whose sentence all parts are."""
        return self.until(lambda: next((it for it in self.told if all(part in it["text"] for part in parts)), None))

    def runs(self, deployment: str) -> list[dict[str, Any]]:
        """The flow runs of a deployment that somebody or something started, its schedule left out."""
        found = self.call("/flow_runs/filter", {"deployments": {"name": {"any_": [deployment]}}})
        return [run for run in found if not run["auto_scheduled"]]

    def reach(self, run: dict[str, Any], state: str) -> dict[str, Any]:
        """Wait until a run is in a state."""

        def now() -> dict[str, Any] | None:
            found = self.now(run)
            bad = {"FAILED", "CRASHED", "CANCELLED", "COMPLETED"} - {state}
            assert found["state_type"] not in bad, f"{found['state']['message']}\n{self.said()}"
            return found if found["state_type"] == state else None

        return self.until(now)

    def now(self, run: dict[str, Any]) -> dict[str, Any]:
        """A run as it is now."""
        return self.call(f"/flow_runs/{run['id']}")

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


def make_repository(root: Path, patch: pytest.MonkeyPatch) -> None:
    """This project with stages that take no time, and parameters that ask a person."""
    root.mkdir()
    patch.chdir(root)
    copy_project(root, PROJECT)
    fabricated.workspace(root)
    fabricated.voice_model(root / output("evaluate") / "model")
    (root / "artifacts").rename(root / "made")
    write_json(root / "made" / "evaluate" / "metrics.json", METRICS)
    write_json(root / "made" / "evaluate" / "cases.json", [])
    made_of = {"shards": file_sha256(root / "made" / "tokenize" / "manifest.json")}
    write_json(root / "made" / "data-report" / "report.json", DATA | {"made_of": made_of})
    (root / "made" / "evaluate" / "report").mkdir()
    (root / "made" / "evaluate" / "report" / "index.html").write_text(REPORT)
    (root / "data" / "sources.yaml").write_text("sources: []\n")
    (root / "stage.py").write_text(STAGE)
    stages = {
        name: {"cmd": f"python stage.py {name}", "deps": ["stage.py", *needs], "outs": [f"artifacts/{name}"]}
        for name, needs in NEEDS.items()
    }
    (root / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}))
    params: dict[str, Any] = {"tokenize": {"codec": "codec"}, "promote": {"approval": "required"}}
    (root / "params.yaml").write_text(yaml.safe_dump(params))
    for name, timeout in (("other", 3600), ("late", 3)):
        params["promote"] |= {"model_name": name, "approval_timeout": timeout}
        (root / f"{name}.yaml").write_text(yaml.safe_dump(params))
    params["promote"]["model_name"] = "other"
    (root / "strict.yaml").write_text(yaml.safe_dump(params | {"gate": {"max_wer": 0.01}}))
    commit_all(root)


@contextmanager
def webhook(told: list[dict[str, Any]]) -> Iterator[str]:
    """The address of a receiver on loopback that keeps what it is told."""

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            told.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(HTTPStatus.NO_CONTENT)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    receiver = HTTPServer(("127.0.0.1", 0), Receiver)
    thread = threading.Thread(target=receiver.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{receiver.server_port}/hook"
    finally:
        receiver.shutdown()
        thread.join()


def commit_change(root: Path) -> None:
    """Somebody goes on working: every stage is stale now."""
    (root / "stage.py").write_text(STAGE + "print('changed')\n")
    git(root, "-c", "user.name=t", "-c", "user.email=t@localhost", "commit", "--quiet", "--all", "--message", "change")
