"""A training's run in MLflow: parameters, live curves, samples, load of the machine, the data's digest, the commit.

One training is one run. A training that was killed goes on in the same run, because the run's id rests in the stage's
partial folder. All that a training tells goes through `valle2.outbox`, which a background thread empties: neither
SQLite nor a slow server holds a step back, and one that is away for a while, or for good, loses nothing.
"""

import hashlib
import io
import json
import os
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
from jaxtyping import Float
from pydantic import BaseModel

from valle2.dataset import describe_data
from valle2.errors import TrainingError
from valle2.outbox import REFUSALS, Outbox, impatient, tell_refused
from valle2.stage import ARTIFACTS, write_text
from valle2.system_metrics import PREFIX, SystemMetrics
from valle2.tracking import (
    connect,
    environment,
    experiment_id,
    flatten,
    git_commit,
    quieten,
    tracked_digest,
    tracking_uri,
    unsent,
)
from valle2.types import Seconds

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient

SEND_EVERY: Seconds = 1.0
PATIENCE: Seconds = 60.0
"""How long a store that is away is waited for before the first step, and after the last one; VALLE2_TRACKING_PATIENCE
is another. Between them it is not waited for at all."""
MAX_DIGEST = 36
"""Longest dataset digest that MLflow takes; DVC's `<md5>.dir` fits."""
RUN_FILE = "mlflow_run"
PARENT = "VALLE2_PARENT_RUN"
"""Variable with the run whose child a training is; a sweep sets it."""
PREEMPTED = 75
"""Exit code of a training that was asked to end and can go on."""

Status = Literal["FINISHED", "FAILED", "KILLED"]
Answer = TypeVar("Answer")


class TrainingRun:
    """One MLflow run that is being written; make it with `training_run`.

    Nothing here raises or waits, `finish` excepted, which waits for a bounded time.
    """

    def __init__(self, client: "MlflowClient", run: "Run", outbox: Outbox) -> None:
        self.run_id: str = run.info.run_id
        self._client, self._outbox = client, outbox
        self._started: int = run.info.start_time
        self._last = {point.key: point.step for point in run.data._metric_objs}  # the latest point of each curve
        for name, step in outbox.last_steps.items():
            self._last[name] = max(step, self._last.get(name, step))
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._problem = ""
        self._thread = threading.Thread(target=self._send_often, name="mlflow", daemon=True)
        self._thread.start()
        system = [step for name, step in self._last.items() if name.startswith(PREFIX)]
        self._system = SystemMetrics(self.log, max(system, default=-1) + 1)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Add points to the curves.

        A resumed training repeats the steps after its last checkpoint; points that the run already has are left out.
        """
        now = int(time.time() * 1000)
        with self._lock:
            new = {name: float(value) for name, value in metrics.items() if step > self._last.get(name, -1)}
            self._last |= dict.fromkeys(new, step)
            if new:
                self._outbox.put({"points": [[name, value, now, step] for name, value in new.items()]})

    def log_audio(self, step: int, name: str, waveform: Float[np.ndarray, " n"], sample_rate: int) -> None:
        """Keep a sound as `samples/step-00001000/<name>.wav`.

        Args:
            step: Of the training.
            name: Of the sample, the same at every step.
            waveform: Mono, in [-1, 1].
            sample_rate: Hz.
        """
        import soundfile

        wav = io.BytesIO()
        soundfile.write(wav, np.clip(waveform, -1, 1), sample_rate, format="WAV", subtype="PCM_16")
        self._keep(f"samples/step-{step:08d}/{name}.wav", wav.getvalue())

    def log_image(self, step: int, name: str, png: bytes) -> None:
        """Keep a picture as `samples/step-00001000/<name>.png`, and for the slider over steps on MLflow's pages."""
        from mlflow.tracking.multimedia import compress_image_size
        from PIL import Image

        self._keep(f"samples/step-{step:08d}/{name}.png", png)
        # The names that MLflow's own `log_image` gives, but the same ones when a step is repeated.
        unique = uuid.uuid5(uuid.NAMESPACE_OID, f"{self.run_id} {name} {step}")
        path = f"images/{name.replace('/', '~')}+step+{step}+timestamp+{self._started + step}+{unique}"
        small = io.BytesIO()
        compress_image_size(Image.open(io.BytesIO(png))).save(small, "webp")
        self._keep(f"{path}.png", png)
        self._keep(f"{path}+compressed.webp", small.getvalue())
        self.tag("mlflow.loggedImages", "True")

    def tag(self, name: str, value: str) -> None:
        """Set a tag of the run."""
        self._outbox.put({"tag": [name, value]})

    def finish(self, status: Status) -> None:
        """Close the run and send what is left, waiting for a store that is away; then leave it to the next command."""
        self._system.stop()
        self._outbox.put({"end": [status, int(time.time() * 1000)]})
        self._stop.set()
        self._thread.join()
        # A job that was asked to end has little time left.
        until = time.monotonic() + (patience() if status == "FINISHED" else min(patience(), 5.0))
        while not self._send() and time.monotonic() < until:
            time.sleep(SEND_EVERY)
        tell_refused(self._outbox)
        if left := len(self._outbox):
            print(
                f"tracking: {left} points and files of run {self.run_id} wait in {self._outbox.path}, because "
                f"{tracking_uri()} does not answer ({self._problem}); the next `valle2` command that reaches it sends "
                "them",
                file=sys.stderr,
            )
        self._outbox.close()

    def _keep(self, path: str, content: bytes) -> None:
        try:
            self._outbox.put_file(path, content)
        except OSError as error:
            print(f"tracking: {path} is not kept: {error.strerror}", file=sys.stderr)

    def _send_often(self) -> None:
        while not self._stop.wait(SEND_EVERY):
            away = bool(self._problem)
            if self._send() and away:
                print(f"tracking: {tracking_uri()} answers again; nothing is lost", file=sys.stderr)
            elif self._problem and not away:
                print(
                    f"tracking: {tracking_uri()} does not answer ({self._problem}); the training goes on, and what it "
                    f"tells waits in {self._outbox.path}",
                    file=sys.stderr,
                )

    def _send(self) -> bool:
        """Send what there is; whether all has arrived."""
        try:
            self._outbox.send(self._client)
        except Exception as error:  # noqa: BLE001 - stores and transports have many; none may stop a training
            self._problem = " ".join(str(error).split())[:200]
            return False
        self._problem = ""
        return True


def patience() -> Seconds:
    """How long a store that is away is waited for."""
    return float(os.environ.get("VALLE2_TRACKING_PATIENCE") or PATIENCE)


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
    folder = folder or ARTIFACTS / ".partial" / f"train-{kind}"
    with impatient():
        run = _patiently(lambda: _open(kind, config, data_digest, folder))
        status: Status = "FAILED"
        try:
            yield run
            status = "FINISHED"
        except KeyboardInterrupt:
            status = "KILLED"
            raise
        except SystemExit as end:
            status = "KILLED" if end.code == PREEMPTED else "FAILED"
            raise
        finally:
            run.finish(status)


def _open(kind: str, config: BaseModel, data_digest: str, folder: Path) -> TrainingRun:
    client = connect()
    run_id = _resume(client, folder)
    if run_id is None:
        run_id = start_run(client, f"train-{kind}", config, training_tags(kind, data_digest))
        write_text(folder / RUN_FILE, run_id + "\n")
        describe_dataset(client, run_id, data_digest)
    run = client.get_run(run_id)
    outbox = Outbox(unsent(), run_id, tracking_uri())
    outbox.forget_end()
    return TrainingRun(client, run, outbox)


def _patiently(action: Callable[[], Answer]) -> Answer:
    """The action's result, tried again for a while where a server does not answer.

    Raises:
        TrainingError: It does not answer in time, or refuses.
    """
    from mlflow.exceptions import MlflowException

    uri, told = tracking_uri(), False
    until = time.monotonic() + patience()
    while True:
        late = time.monotonic() >= until
        try:
            return action()
        except BlockingIOError as error:
            if late:
                raise TrainingError(
                    "another process writes the run of this training; wait until it ends, or end it"
                ) from error
        except MlflowException as error:
            if late or error.error_code in REFUSALS or not uri.startswith("http"):
                raise TrainingError(
                    f"the tracking store {uri} fails: {' '.join(str(error).split())[:300]}; start it, set "
                    "MLFLOW_TRACKING_URI to another, or unset it to use the local file"
                ) from error
        if not told:
            print(f"tracking: waiting {patience():.0f} s for {uri}", file=sys.stderr)
        told = True
        time.sleep(SEND_EVERY)


def _resume(client: "MlflowClient", folder: Path) -> str | None:
    """The run that an earlier attempt left in the partial folder, set running again."""
    from mlflow.exceptions import MlflowException

    note = folder / RUN_FILE
    if not note.is_file():
        return None
    run_id = note.read_text().strip()
    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code in REFUSALS:  # another store than the first attempt's: a new run is right
            return None
        raise
    if run.info.lifecycle_stage != "active":  # somebody has deleted it
        return None
    attempts = int(run.data.tags.get("valle2.attempts", "1"))
    client.update_run(run_id, status="RUNNING")
    client.set_tag(run_id, "valle2.attempts", str(attempts + 1))
    return run_id


def training_tags(kind: str, data_digest: str) -> dict[str, str]:
    """What a training's run is found by."""
    tags = {"valle2.stage": f"train-{kind}", "valle2.attempts": "1", "valle2.data_digest": data_digest}
    if flow_run := os.environ.get("VALLE2_RUN"):
        tags["valle2.run"] = flow_run
    if why := os.environ.get("VALLE2_WHY"):
        tags["valle2.why"] = why
    if parent := os.environ.get(PARENT):
        tags["mlflow.parentRunId"] = parent
    return tags


def start_run(client: "MlflowClient", name: str, config: BaseModel | Mapping[str, Any], tags: Mapping[str, str]) -> str:
    """Make a run with the environment, the commit and all parameters.

    Args:
        client: Of the store.
        name: What it begins with on MLflow's pages.
        config: Parameters.
        tags: Its own.

    Returns:
        Its id.
    """
    from mlflow.entities import Param

    general = {
        "mlflow.runName": f"{name}-{hashlib.sha256(os.urandom(8)).hexdigest()[:6]}",
        "mlflow.source.git.commit": git_commit(),
        **{f"valle2.env.{key}": value for key, value in environment().items()},
    }
    values = config.model_dump(mode="json") if isinstance(config, BaseModel) else config
    run_id: str = client.create_run(experiment_id(client), tags=general | dict(tags)).info.run_id
    params = [Param(key, value[:6000]) for key, value in sorted(flatten(values).items())]
    for first in range(0, len(params), 100):
        client.log_batch(run_id, params=params[first : first + 100])
    return run_id


def describe_dataset(client: "MlflowClient", run_id: str, data_digest: str) -> None:
    """Name the shards as a run's dataset."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    shards = (ARTIFACTS / "tokenize").as_posix()
    digest = (tracked_digest(shards) or data_digest)[:MAX_DIGEST]
    source = json.dumps({"path": shards, "digest": digest})
    schema, profile = (json.dumps(part, sort_keys=True) for part in describe_data(data_digest))
    data = Dataset("tokenize", digest, "dvc", source, schema, profile)
    client.log_inputs(run_id, [DatasetInput(data, [InputTag("mlflow.data.context", "training")])])
