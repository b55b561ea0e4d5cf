"""A stage trained several times with other parameters: a grid, one MLflow run over all its trainings.

Each point is the stage's own command in a folder of its own below `sweeps` in `valle2.tracking.home()`, which sees the
outputs of the other stages and everything else here as it is; `artifacts/` and `params.yaml` stay untouched. A point
that is trained is not trained again, and one that was killed goes on, because its command does.
"""

import csv
import fcntl
import io
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from valle2.config.params import Config, load_config, parse_config
from valle2.errors import ConfigError, TrackingError, TrainingError
from valle2.outbox import Outbox
from valle2.runs import store
from valle2.stage import ARTIFACTS, digest, file_sha256, log_file, output, write_json, write_text
from valle2.tracking import home, tracking_uri, unsent
from valle2.training_run import PARENT, RUN_FILE, start_run

STDERR = 2
"""Where trainings talk to; the table alone is on standard output."""
SweptStage = Literal["train-ar", "train-nar"]
State = Literal["trained", "was there", "failed"]
OWN = {ARTIFACTS.name, "params.yaml", "build"}
"""What a point has of its own; all else in the working folder it sees by links."""


@dataclass
class Point:
    """One combination of values, and what came of it.

    Attributes:
        values: In the order of the sweep's names.
        state: Whether it was trained now, before, or in vain.
        metrics: Last values of the curves; the best validation loss is `best_valid_loss`.
        run_id: MLflow's.
    """

    values: tuple[Any, ...]
    state: State = "failed"
    metrics: dict[str, float] = field(default_factory=dict)
    run_id: str = ""


@dataclass
class Sweep:
    """A finished sweep, the best point first."""

    name: str
    folder: str
    run_id: str
    names: tuple[str, ...]
    points: list[Point]


def sweep(stage: SweptStage, settings: Sequence[str], params: Path) -> Sweep:
    """Train every point of a grid that is not trained yet.

    Args:
        stage: Which.
        settings: Each a dotted parameter and its values, such as `model.group_size=1,2`.
        params: Parameter file that they are set in.

    Raises:
        ConfigError: A parameter is unknown, or its value wrong, or the stage does not read it.
        ShardError: There are no shards here.
        TrainingError: The store does not answer, another process runs this sweep, or a training was ended.
    """
    base, grid = load_config(params), parse_grid(stage, settings)
    configs = {
        values: _with(base, dict(zip(grid, values, strict=True))) for values in itertools.product(*grid.values())
    }
    folder = home() / "sweeps" / f"{stage}-{_identity(stage, base, tuple(grid))[:8]}"
    done = Sweep(f"sweep-{stage}", str(folder), "", tuple(grid), [])
    with _alone(folder):
        done.run_id = _parent(folder, stage, grid)
        for number, (values, config) in enumerate(configs.items(), 1):
            named = ", ".join(f"{name}={value}" for name, value in zip(grid, values, strict=True))
            print(f"sweep: {number} of {len(configs)}, {named}", file=sys.stderr, flush=True)
            place = folder / digest(_read_by(stage, config))[:12]
            done.points.append(_train(stage, config, values, place, done.run_id))
        done.points.sort(key=lambda point: point.metrics.get("best_valid_loss", float("inf")))
        _tell_parent(done)
    return done


def check(done: Sweep) -> None:
    """Make sure that no point has failed.

    Raises:
        TrainingError: One has.
    """
    failed = [point for point in done.points if point.state == "failed"]
    if failed:
        which = "; ".join(", ".join(map(str, point.values)) for point in failed)
        raise TrainingError(
            f"{len(failed)} of {len(done.points)} points failed ({which}), each for the reason that it told above; run "
            "the same again to try them again"
        )


def parse_grid(stage: SweptStage, settings: Sequence[str]) -> dict[str, list[Any]]:
    """Values by dotted parameter.

    Raises:
        ConfigError: Not `parameter=values`, or the stage does not read that parameter.
    """
    read = ("runtime", "model", stage.replace("-", "_"))
    grid: dict[str, list[Any]] = {}
    for text in settings:
        name, equals, listed = text.partition("=")
        try:
            values = yaml.safe_load(f"[{listed}]") or [""]
        except yaml.YAMLError as error:
            raise ConfigError(f"--set {text}: {listed!r} are no values; give such as 1e-4,3e-4") from error
        if not equals or "." not in name:
            raise ConfigError(f"--set {text}: expected a parameter and values, such as {read[2]}.learning_rate=1e-4")
        section = name.partition(".")[0]
        if section in Config.model_fields and section not in read:
            raise ConfigError(f"--set {text}: {stage} does not read `{section}`; it reads {', '.join(read)}")
        grid[name] = values
    return grid


def _with(base: Config, values: dict[str, Any]) -> Config:
    """The parameters with some set anew; a value that is a mapping changes what it names of a section."""
    raw = base.model_dump(mode="json")
    for name, value in values.items():
        *path, last = name.split(".")
        place = raw
        for part in path:
            inner = place.setdefault(part, {})
            if not isinstance(inner, dict):
                raise ConfigError(f"--set: `{name}` goes too deep; `{part}` is no section")
            place = inner
        place[last] = place[last] | value if isinstance(value, dict) and isinstance(place.get(last), dict) else value
    return parse_config(raw, "--set")


def _read_by(stage: SweptStage, config: Config) -> dict[str, Any]:
    """What can change a training of the stage, as JSON."""
    own = stage.replace("-", "_")
    raw = config.model_dump(mode="json", include={"runtime", "model", own})
    raw["data"] = [file_sha256(output("tokenize") / "manifest.json"), file_sha256(output("curate") / "bpe.json")]
    return raw


def _identity(stage: SweptStage, base: Config, names: tuple[str, ...]) -> str:
    """Of the sweep: more values of the same parameters are more points of it."""
    from valle2.shards import read_manifest

    read_manifest(output("tokenize"))  # whose errors say what to run
    raw = _read_by(stage, _with(base, {}))
    for name in names:
        *path, last = name.split(".")
        place = raw
        for part in path:
            place = place.get(part, {})
        place.pop(last, None)
    return digest([raw, sorted(names)])


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise TrainingError(f"another process runs the sweep in {folder}; wait until it ends") from error
        yield


def _parent(folder: Path, stage: SweptStage, grid: dict[str, list[Any]]) -> str:
    """The MLflow run over all points, made once."""
    from mlflow.exceptions import MlflowException

    note = folder / RUN_FILE
    with store() as client:
        if note.is_file():
            run_id = note.read_text().strip()
            try:
                client.update_run(run_id, status="RUNNING")
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
                note.unlink()  # another store than the last time's
        if not note.is_file():
            tags = {"valle2.stage": f"sweep-{stage}"}
            write_text(note, start_run(client, f"sweep-{stage}", {}, tags) + "\n")
        run_id = note.read_text().strip()
        client.set_tag(run_id, "valle2.grid", json.dumps(grid))
    return run_id


def _train(stage: SweptStage, config: Config, values: tuple[Any, ...], place: Path, parent: str) -> Point:
    """Run the stage's command for one point, unless it is trained."""
    made = place / output(stage)
    point = Point(values, "was there" if (made / "metrics.json").is_file() else "trained")
    if point.state == "trained":
        _furnish(place, stage, config)
        environment = {**os.environ, "VALLE2_HOME": str(home()), PARENT: parent}
        command = [sys.executable, "-m", "valle2.cli", stage]
        code = subprocess.run(command, cwd=place, env=environment, stdout=STDERR, check=False).returncode
        if code < 0 or code > 2:
            raise TrainingError(f"the training in {place} was ended ({code}); run the same again, it goes on there")
        if code:
            point.state = "failed"
            return point
    history = [json.loads(line) for line in (made / "history.jsonl").read_text().splitlines()]
    valid = [row["valid_loss"] for row in history if "valid_loss" in row]
    point.metrics = json.loads((made / "metrics.json").read_text()) | ({"best_valid_loss": min(valid)} if valid else {})
    log = place / log_file(stage)
    if log.is_file():
        point.run_id = json.loads(log.read_text())["facts"].get("mlflow_run_id", "")
    return point


def _furnish(place: Path, stage: SweptStage, config: Config) -> None:
    """Make a point's folder: its parameters, and links to what it reads."""
    (place / ARTIFACTS).mkdir(parents=True, exist_ok=True)
    here = [path for path in Path.cwd().iterdir() if path.name not in OWN and not path.name.startswith(".")]
    made = [path for path in (Path.cwd() / ARTIFACTS).iterdir() if path.name != stage and not path.name.startswith(".")]
    for folder, paths in ((place, here), (place / ARTIFACTS, made)):
        for path in paths:
            link = folder / path.name
            link.unlink(missing_ok=True)
            link.symlink_to(path.resolve())
    write_json(place / "params.yaml", config.model_dump(mode="json"))  # JSON is YAML


def _tell_parent(done: Sweep) -> None:
    """Give the parent run the table and the best point, now or when its store answers again."""
    table = io.StringIO()
    writer = csv.writer(table)
    writer.writerow([*done.names, "state", "valid_loss", "best_valid_loss", "run"])
    for point in done.points:
        figures = [point.metrics.get(name, "") for name in ("valid_loss", "best_valid_loss")]
        writer.writerow([*point.values, point.state, *figures, point.run_id])
    box, now = Outbox(unsent(), done.run_id, tracking_uri()), int(time.time() * 1000)
    box.put_file("sweep.csv", table.getvalue().encode())
    best = done.points[0]
    if "best_valid_loss" in best.metrics:
        box.put({"points": [["best_valid_loss", best.metrics["best_valid_loss"], now, len(done.points)]]})
        box.put({"tag": ["valle2.best", json.dumps(dict(zip(done.names, best.values, strict=True)))]})
    failed = any(point.state == "failed" for point in done.points)
    box.put({"end": ["FAILED" if failed else "FINISHED", now]})
    try:
        with store() as client:
            box.send(client)
    except (TrackingError, OSError) as error:
        print(f"tracking: the sweep's table waits in {box.path} ({error})", file=sys.stderr)
    finally:
        box.close()
