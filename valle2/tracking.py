"""Training runs in MLflow: parameters, live curves, the data's digest, the environment and the commit.

One training is one run. A training that was killed goes on in the same run, because the run's id rests in the stage's
partial folder. Points are handed to a background thread, so that neither SQLite nor a slow server holds a step back,
and a tracking store that fails for a while loses nothing. Registering models is in `valle2.registry`.
"""

import fcntl
import hashlib
import importlib.metadata
import logging
import os
import platform
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml
from pydantic import BaseModel

from valle2.errors import TrainingError
from valle2.stage import ARTIFACTS, file_sha256, write_text

if TYPE_CHECKING:
    from mlflow.entities import Metric
    from mlflow.tracking import MlflowClient

EXPERIMENT = "valle2"
FLUSH_EVERY = 1.0
"""Seconds between writes of the curves."""
MAX_DIGEST = 36
"""Longest dataset digest that MLflow takes; DVC's `<md5>.dir` fits."""
MAX_BATCH = 900
"""Points in one `log_batch`; MLflow takes 1,000."""
RUN_FILE = "mlflow_run"
LOCK = Path("requirements.lock")


def home() -> Path:
    """Where runs, workspaces and records rest: `VALLE2_HOME`, or `.valle2` in the working folder."""
    return Path(os.environ.get("VALLE2_HOME") or ".valle2").absolute()


def tracking_uri() -> str:
    """`MLFLOW_TRACKING_URI`, or a SQLite file under `home()`."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{home() / 'mlflow.db'}"


def connect() -> "MlflowClient":
    """A client of the tracking store and the registry, with the experiment in place.

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
        return MlflowClient(uri, uri)


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


class TrainingRun:
    """One MLflow run that is being written; make it with `training_run`."""

    def __init__(self, client: "MlflowClient", run_id: str) -> None:
        self.run_id = run_id
        self._client = client
        self._last = _last_steps(client, run_id)
        self._points: list[Metric] = []
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._problem: str | None = None
        self._thread = threading.Thread(target=self._flush_often, name="mlflow", daemon=True)
        self._thread.start()

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Add points to the curves. Returns at once.

        A resumed training repeats the steps after its last checkpoint; points that the run already has are left out.
        """
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        with self._lock:
            for name, value in metrics.items():
                if step > self._last.get(name, -1):
                    self._points.append(Metric(name, float(value), now, step))
                    self._last[name] = step

    def tag(self, name: str, value: str) -> None:
        """Set a tag of the run."""
        self._client.set_tag(self.run_id, name, value)

    def finish(self, status: Literal["FINISHED", "FAILED", "KILLED"]) -> None:
        """Write what is left and close the run."""
        from mlflow.exceptions import MlflowException

        self._stop.set()
        self._thread.join()
        self._flush()
        if not self._problem:
            try:
                self._client.set_terminated(self.run_id, status)
            except MlflowException as error:
                self._problem = str(error)
        if self._problem:
            reason = " ".join(self._problem.split())[:200]
            print(f"tracking: {len(self._points)} points of run {self.run_id} not written: {reason}", file=sys.stderr)

    def _flush_often(self) -> None:
        while not self._stop.wait(FLUSH_EVERY):
            self._flush()

    def _flush(self) -> None:
        from mlflow.exceptions import MlflowException

        while True:
            with self._lock:
                batch = self._points[:MAX_BATCH]
            if not batch:
                return
            try:
                self._client.log_batch(self.run_id, metrics=batch, synchronous=True)
            except MlflowException as error:
                self._problem = str(error)
                return
            with self._lock:
                del self._points[: len(batch)]
            self._problem = None


@contextmanager
def training_run(
    kind: Literal["ar", "nar"], config: BaseModel, data_digest: str, folder: Path | None = None
) -> Iterator[TrainingRun]:
    """Open the MLflow run of one training, or go on with it after a crash.

    Args:
        kind: Which model is trained.
        config: All parameters; they become the run's.
        data_digest: Digest of the shards; DVC's own is used in its place where `dvc.lock` names one.
        folder: The training's partial folder, where the run's id rests; by default the stage's.

    Raises:
        TrainingError: The tracking store cannot be reached.
    """
    quieten()
    from mlflow.exceptions import MlflowException

    folder = folder or ARTIFACTS / ".partial" / f"train-{kind}"
    try:
        client = connect()
        run_id = _resume(client, folder) or _start(client, kind, config, data_digest)
        write_text(folder / RUN_FILE, run_id + "\n")
        run = TrainingRun(client, run_id)
    except MlflowException as error:
        raise TrainingError(
            f"the tracking store {tracking_uri()} fails: {' '.join(str(error).split())[:300]}; start it, set "
            "MLFLOW_TRACKING_URI to another, or unset it to use the local file"
        ) from error
    status: Literal["FINISHED", "FAILED", "KILLED"] = "FAILED"
    try:
        yield run
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        run.finish(status)


def _resume(client: "MlflowClient", folder: Path) -> str | None:
    """The run that an earlier attempt left in the partial folder, set running again."""
    from mlflow.exceptions import MlflowException

    note = folder / RUN_FILE
    if not note.is_file():
        return None
    run_id = note.read_text().strip()
    try:
        attempts = int(client.get_run(run_id).data.tags.get("valle2.attempts", "1"))
    except MlflowException:  # another store than the first attempt's: a new run is right
        return None
    client.update_run(run_id, status="RUNNING")
    client.set_tag(run_id, "valle2.attempts", str(attempts + 1))
    return run_id


def _start(client: "MlflowClient", kind: str, config: BaseModel, data_digest: str) -> str:
    from mlflow.entities import Dataset, DatasetInput, InputTag, Param

    tags = {
        "mlflow.runName": f"train-{kind}-{hashlib.sha256(os.urandom(8)).hexdigest()[:6]}",
        "mlflow.source.git.commit": git_commit(),
        "valle2.stage": f"train-{kind}",
        "valle2.attempts": "1",
        "valle2.data_digest": data_digest,
        **{f"valle2.env.{name}": value for name, value in environment().items()},
    }
    if flow_run := os.environ.get("VALLE2_RUN"):
        tags["valle2.run"] = flow_run
    run_id = client.create_run(experiment_id(client), tags=tags).info.run_id
    params = [Param(name, value[:6000]) for name, value in sorted(flatten(config.model_dump(mode="json")).items())]
    for first in range(0, len(params), 100):
        client.log_batch(run_id, params=params[first : first + 100])
    shards = (ARTIFACTS / "tokenize").as_posix()
    digest = (tracked_digest(shards) or data_digest)[:MAX_DIGEST]
    data = Dataset("tokenize", digest, "dvc", f'{{"path": "{shards}", "digest": "{digest}"}}')
    client.log_inputs(run_id, [DatasetInput(data, [InputTag("mlflow.data.context", "training")])])
    return run_id


def _last_steps(client: "MlflowClient", run_id: str) -> dict[str, int]:
    """The last step of each curve that the run already has."""
    names = client.get_run(run_id).data.metrics
    return {name: max(point.step for point in client.get_metric_history(run_id, name)) for name in names}
