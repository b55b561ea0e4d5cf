"""A Kubernetes API of one machine for tests, on loopback: TrainJobs whose pods are processes that really run.

It answers what the Kubeflow SDK asks: the trainer's version, runtimes, TrainJobs, pods and their logs. What is created
is checked against the API's own models, as an API server checks its schema.
"""

import json
import os
import re
import signal
import subprocess
import threading
import time
from contextlib import suppress
from datetime import UTC, datetime
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import yaml
from kubeflow_trainer_api import models

from tests.ports import free_port

TRAINER = "/apis/trainer.kubeflow.org/v1alpha1"
RUNTIME = {
    "apiVersion": "trainer.kubeflow.org/v1alpha1",
    "kind": "ClusterTrainingRuntime",
    "metadata": {"name": "torch-distributed", "labels": {"trainer.kubeflow.org/framework": "torch"}},
    "spec": {
        "mlPolicy": {"numNodes": 1, "torch": {}},
        "template": {
            "spec": {
                "replicatedJobs": [
                    {
                        "name": "node",
                        "template": {
                            "metadata": {"labels": {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}},
                            "spec": {"template": {"spec": {"containers": [{"name": "node", "image": "torch"}]}}},
                        },
                    }
                ]
            }
        },
    },
}


class Cluster:
    """TrainJobs by name, each with a process a node."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.jobs: dict[str, dict[str, Any]] = {}
        self.pods: dict[str, list[subprocess.Popen[bytes]]] = {}
        self.created: list[dict[str, Any]] = []
        cluster = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *arguments: Any) -> None: ...

            def do_GET(self) -> None:
                cluster.get(self)

            def do_POST(self) -> None:
                length = int(self.headers["Content-Length"])
                cluster.create(self, json.loads(self.rfile.read(length)))

            def do_DELETE(self) -> None:
                cluster.delete(self)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def kubeconfig(self) -> Path:
        """The file that KUBECONFIG names."""
        address = f"http://127.0.0.1:{self._server.server_address[1]}"
        config = {
            "apiVersion": "v1", "kind": "Config", "current-context": "test", "users": [{"name": "test", "user": {}}],
            "clusters": [{"name": "test", "cluster": {"server": address}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
        }  # fmt: skip
        path = self.folder / "kubeconfig"
        path.write_text(yaml.safe_dump(config))
        return path

    def close(self) -> None:
        """End all."""
        for pods in self.pods.values():
            for pod in pods:
                pod.kill()
                pod.wait()
        self._server.shutdown()
        self._server.server_close()

    def get(self, request: BaseHTTPRequestHandler) -> None:
        address = urlsplit(request.path)
        path = address.path
        if path.endswith("/configmaps/kubeflow-trainer-public"):
            answer(request, {"kind": "ConfigMap", "data": {"kubeflow_trainer_version": "2.1.0"}})
        elif path == f"{TRAINER}/clustertrainingruntimes/torch-distributed":
            answer(request, RUNTIME)
        elif found := re.fullmatch(f"{TRAINER}/namespaces/speech/trainjobs/([\\w-]+)", path):
            name = found[1]
            if name in self.jobs:
                answer(request, self.jobs[name] | {"status": self.status(name)})
            else:
                refuse(request, HTTPStatus.NOT_FOUND)
        elif path == "/api/v1/namespaces/speech/pods":
            selector = parse_qs(address.query)["labelSelector"][0]
            name = re.search(r"jobset-name=([\w-]+)", selector)
            answer(request, {"kind": "PodList", "apiVersion": "v1", "items": self.pod_list(name[1] if name else "")})
        elif found := re.fullmatch(r"/api/v1/namespaces/speech/pods/([\w-]+)-node-(\d+)/log", path):
            self.stream(request, found[1], int(found[2]))
        else:
            refuse(request, HTTPStatus.NOT_FOUND)

    def create(self, request: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        name = body["metadata"]["name"]
        if name in self.jobs:
            refuse(request, HTTPStatus.CONFLICT)
            return
        models.TrainerV1alpha1TrainJob.from_dict(body)
        self.created.append(body)
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        metadata = body["metadata"] | {"namespace": "speech", "creationTimestamp": now, "uid": name}
        trainer = body["spec"]["trainer"]
        port = free_port()
        pods = []
        for index in range(trainer["numNodes"]):
            place = {
                "PET_NNODES": str(trainer["numNodes"]), "PET_NODE_RANK": str(index), "PET_NPROC_PER_NODE": "auto",
                "PET_MASTER_ADDR": "127.0.0.1", "PET_MASTER_PORT": str(port),
            }  # fmt: skip
            variables = {item["name"]: item["value"] for item in trainer["env"]}
            with (self.folder / f"{name}-node-{index}").open("wb") as log:
                pods.append(subprocess.Popen(trainer["command"], env={**os.environ, **variables, **place}, cwd="/",
                                             stdout=log, stderr=log))  # fmt: skip
        self.pods[name] = pods
        self.jobs[name] = body | {"metadata": metadata}
        answer(request, self.jobs[name])

    def delete(self, request: BaseHTTPRequestHandler) -> None:
        name = request.path.rsplit("/", 1)[-1].split("?")[0]
        if name not in self.jobs:
            refuse(request, HTTPStatus.NOT_FOUND)
            return
        for pod in self.pods[name]:
            with suppress(ProcessLookupError):
                pod.send_signal(signal.SIGTERM)
        answer(request, {"kind": "Status", "status": "Success"})

        def collect() -> None:
            for pod in self.pods[name]:
                pod.wait()
            del self.jobs[name]

        threading.Thread(target=collect, daemon=True).start()

    def status(self, name: str) -> dict[str, Any]:
        codes = [pod.poll() for pod in self.pods[name]]
        if None in codes:
            return {}
        kind = "Failed" if any(codes) else "Complete"
        condition = {
            "type": kind, "status": "True", "reason": kind, "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z",
        }  # fmt: skip
        return {"conditions": [condition]}

    def pod_list(self, name: str) -> list[dict[str, Any]]:
        phases = {None: "Running", 0: "Succeeded"}
        return [
            {
                "metadata": {
                    "name": f"{name}-node-{index}", "namespace": "speech", "creationTimestamp": "2026-01-01T00:00:00Z",
                    "labels": {
                        "jobset.sigs.k8s.io/replicatedjob-name": "node",
                        "batch.kubernetes.io/job-completion-index": str(index),
                    },
                },
                "spec": {"containers": [{"name": "node", "image": "torch"}]},
                "status": {"phase": phases.get(pod.poll(), "Failed")},
            }
            for index, pod in enumerate(self.pods.get(name, []))
        ]  # fmt: skip

    def stream(self, request: BaseHTTPRequestHandler, name: str, index: int) -> None:
        pod = self.pods[name][index]
        request.send_response(HTTPStatus.OK)
        request.send_header("Content-Type", "text/plain")
        request.send_header("Connection", "close")
        request.end_headers()
        follow = "follow=true" in request.path.lower()
        with (self.folder / f"{name}-node-{index}").open("rb") as log:
            while True:
                ended = pod.poll() is not None or not follow
                request.wfile.write(log.read())
                request.wfile.flush()
                if ended:
                    break
                time.sleep(0.1)
        request.close_connection = True


def answer(request: BaseHTTPRequestHandler, body: dict[str, Any], status: HTTPStatus = HTTPStatus.OK) -> None:
    content = json.dumps(body).encode()
    request.send_response(status)
    request.send_header("Content-Type", "application/json")
    request.send_header("Content-Length", str(len(content)))
    request.end_headers()
    request.wfile.write(content)


def refuse(request: BaseHTTPRequestHandler, status: HTTPStatus) -> None:
    answer(request, {"kind": "Status", "status": "Failure", "code": status.value, "reason": status.phrase}, status)
