"""The tracking store: where it is, how it is reached, and what every run says of itself.

A training's run is in `valle2.training_run`, comparing runs in `valle2.runs`, registering models in `valle2.registry`.
"""

import fcntl
import importlib.metadata
import logging
import os
import platform
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from valle2.outbox import send_left
from valle2.stage import file_sha256

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

EXPERIMENT = "valle2"
LOCK = Path("requirements.lock")


def home() -> Path:
    """Where runs, workspaces and records rest: `VALLE2_HOME`, or `.valle2` in the working folder."""
    return Path(os.environ.get("VALLE2_HOME") or ".valle2").absolute()


def unsent() -> Path:
    """Where runs keep what they could not send yet; see `valle2.outbox`."""
    return home() / "unsent"


def tracking_uri() -> str:
    """`MLFLOW_TRACKING_URI`, or a SQLite file under `home()`."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{home() / 'mlflow.db'}"


def connect() -> "MlflowClient":
    """A client of the tracking store and the registry, to which it sends what earlier runs could not.

    Also sets the process's tracking and registry URI, which `mlflow.pyfunc` reads. A fresh SQLite store takes about ten
    seconds to set up.
    """
    quieten()
    import mlflow
    from mlflow.tracking import MlflowClient

    uri = tracking_uri()
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    with _alone(uri):
        client = MlflowClient(uri, uri)
    send_left(client, unsent(), uri)
    return client


@contextmanager
def _alone(uri: str) -> Iterator[None]:
    """Hold a SQLite store's lock: two processes that set a fresh one up at a time break each other's tables."""
    if not uri.startswith("sqlite:///"):
        yield
        return
    database = Path(uri.removeprefix("sqlite:///"))
    database.parent.mkdir(parents=True, exist_ok=True)
    with database.with_name(database.name + ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def quieten() -> None:
    """Silence migration chatter, bars and MLflow's telemetry; call it before MLflow is imported."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    for name in ("alembic", "mlflow.store.db.utils", "mlflow.tracking.fluent", "mlflow.store.model_registry"):
        logging.getLogger(name).setLevel(logging.WARNING)


def experiment_id(client: "MlflowClient") -> str:
    """The id of the `valle2` experiment, made on first use; a local store keeps artifacts beside its database."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(EXPERIMENT)
    if found is not None:
        return found.experiment_id
    local = tracking_uri().startswith("sqlite")
    try:
        return client.create_experiment(EXPERIMENT, (home() / "mlartifacts").as_uri() if local else None)
    except MlflowException:
        found = client.get_experiment_by_name(EXPERIMENT)
        if found is None:
            raise
        return found.experiment_id


def git_commit() -> str:
    """The commit of the working folder, or `none`."""
    command = ["git", "rev-parse", "--verify", "--quiet", "HEAD"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "none"


def environment() -> dict[str, str]:
    """What the code runs on: Python, platform, torch, and the SHA-256 of the dependency lock."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "torch": importlib.metadata.version("torch"),
        "lock_sha256": file_sha256(LOCK) if LOCK.is_file() else "none",
    }


def flatten(value: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested parameters as dotted names, such as `train_ar.learning_rate`."""
    flat: dict[str, str] = {}
    for name, item in value.items():
        if isinstance(item, Mapping):
            flat |= flatten(item, f"{prefix}{name}.")
        else:
            flat[prefix + name] = str(item)
    return flat


def tracked_digest(path: str) -> str | None:
    """DVC's digest of an output as `dvc.lock` names it, None when no stage's lock names it."""
    lock = Path("dvc.lock")
    if not lock.is_file():
        return None
    stages = (yaml.safe_load(lock.read_text()) or {}).get("stages", {})
    outs = [out for stage in stages.values() for out in stage.get("outs", [])]
    return next((out["md5"] for out in outs if out["path"] == path and "md5" in out), None)
