"""The services of one machine: Prefect's server, MLflow's pages and a worker, on loopback.

What was started is noted in `.valle2/services.json`, and only that is ever stopped.
"""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from valle2.errors import FlowError
from valle2.stage import write_json
from valle2.tracking import home, tracking_uri
from valle2.types import Seconds

HOST = "127.0.0.1"
POOL = "valle2"
NAMES = ("prefect", "mlflow", "worker")
PATIENCE: Seconds = 300.0
"""How long a service may take to answer; a first start sets up its database."""


@dataclass(frozen=True)
class Service:
    """A process that we started."""

    name: str
    pid: int
    created: float
    """Start time of the process, so that a reused process id is never taken for ours."""
    address: str = ""


def state_file() -> Path:
    """Where the services that run are noted."""
    return home() / "services.json"


def running() -> list[Service]:
    """The services that we started and that are still alive."""
    path = state_file()
    noted = [Service(**item) for item in json.loads(path.read_text())] if path.is_file() else []
    return [service for service in noted if is_alive(service)]


def is_alive(service: Service) -> bool:
    """Whether it is still the process that we started."""
    try:
        process = psutil.Process(service.pid)
        return abs(process.create_time() - service.created) < 1 and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def running_server() -> str | None:
    """The API address of the Prefect server that `make up` started, if it runs."""
    return next((f"{service.address}/api" for service in running() if service.name == "prefect"), None)


def port(variable: str, default: int) -> int:
    """A port from the environment.

    Raises:
        FlowError: It is no port, or it is taken.
    """
    text = os.environ.get(variable, str(default))
    if not text.isdigit() or not 0 < int(text) < 65536:
        raise FlowError(f"{variable} is {text!r}, expected a port number from 1 to 65535")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, int(text)))
        except OSError as error:
            raise FlowError(
                f"port {text} on {HOST} is busy; stop what uses it, or choose another: {variable}={int(text) + 1}"
            ) from error
    return int(text)


def start(name: str, command: list[str], environment: dict[str, str], address: str = "") -> Service:
    """Start a service in the background; what it says goes to `.valle2/logs/<name>.log`."""
    log = log_file(name)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as file:
        process = subprocess.Popen(
            command, env={**os.environ, **environment}, stdin=subprocess.DEVNULL, stdout=file, stderr=file,
            start_new_session=True,
        )  # fmt: skip
    service = Service(name, process.pid, psutil.Process(process.pid).create_time(), address)
    write_json(state_file(), [asdict(item) for item in [*running(), service]])
    return service


def log_file(name: str) -> Path:
    """What a service says."""
    return home() / "logs" / f"{name}.log"


def stop_all() -> list[Service]:
    """Stop what we started, workers first, with their children."""
    stopped = list(reversed(running()))
    for service in stopped:
        process = psutil.Process(service.pid)
        family = [process, *process.children(recursive=True)]
        for member in family:
            _signal(member.terminate)
        for member in psutil.wait_procs(family, timeout=10)[1]:
            _signal(member.kill)
    state_file().unlink(missing_ok=True)
    return stopped


def _signal(send: Callable[[], None]) -> None:
    try:
        send()
    except psutil.NoSuchProcess:
        return


def wait_for(service: Service, url: str) -> None:
    """Wait until a service answers.

    Raises:
        FlowError: It ended, or does not answer in time.
    """
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        if not is_alive(service):
            raise FlowError(f"{service.name} ended at once; its last words are in {log_file(service.name)}")
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    raise FlowError(f"{service.name} does not answer at {url} after {PATIENCE:.0f} s; see {log_file(service.name)}")


def prefect_command(prefect_port: int) -> list[str]:
    """Start command of Prefect's server."""
    return [sys.executable, "-m", "prefect", "server", "start", "--host", HOST, "--port", str(prefect_port)]


def mlflow_command(mlflow_port: int) -> list[str]:
    """Start command of MLflow's pages on the local tracking store."""
    return [
        sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(mlflow_port), "--workers", "1",
        "--backend-store-uri", tracking_uri(), "--default-artifact-root", (home() / "mlartifacts").as_uri(),
        "--serve-artifacts", "--artifacts-destination", (home() / "mlartifacts").as_uri(),
    ]  # fmt: skip


def worker_command() -> list[str]:
    """Start command of a worker that runs deployments as processes on this machine, one at a time."""
    return [sys.executable, "-m", "prefect", "worker", "start", "--pool", POOL, "--type", "process", "--limit", "1"]
