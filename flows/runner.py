"""The stage runner: one stage from "is it stale?" to a verified, recorded, committed result.

DVC says whether a stage is stale and which bytes are which; its command is the one in dvc.yaml. Commands of stages that
don't need each other may run side by side (`side_by_side`); commits are serial, in the order of `dvc repro`, so that
dvc.lock comes out the same either way.
"""

import json
import time
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.futures import PrefectFuture

from flows.command import command_environment, end_all, run_command
from flows.ending import Ending
from flows.pipeline import commit, dvc_repository, find, needed, read_lock, restore, upstream
from flows.progress import StageProgress
from flows.store import push
from flows.workspace import Workspace
from valle2.errors import FlowError
from valle2.stage import ARTIFACTS, file_sha256, write_json
from valle2.throughput import RATE
from valle2.tracking import environment
from valle2.trust.lineage import Code, LineageStore, StageRecord, stage_key
from valle2.types import Seconds

State = Literal["ran", "cached", "failed"]


@dataclass(frozen=True)
class StageRun:
    """What became of a stage in this run."""

    stage: str
    state: State
    seconds: Seconds = 0.0
    figure: str = ""
    made_by: str = ""
    """The run that made the outputs."""
    record: str = ""
    """Digest of its lineage record."""
    audio_rate: float | None = None
    """Hours of audio per hour, of a data stage that ran."""


@dataclass
class Runs:
    """All stages so far; what the summary at the end shows, however the run ends."""

    stages: list[StageRun] = field(default_factory=list)
    decision: list[str] = field(default_factory=list)
    """Lines on the model and what was decided."""
    why: str = ""
    """Why the run runs, in words."""
    ending: Ending | None = None
    """What became of it."""

    def digests(self) -> dict[str, str]:
        """Stage -> digest of its lineage record."""
        return {run.stage: run.record for run in self.stages}


class StageError(FlowError):
    """A stage's command failed; the message is its own last sentence."""


def lineage_store(home: Path) -> LineageStore:
    """The records of all runs."""
    return LineageStore(home / "lineage")


def run_stages(space: Workspace, target: str, runs: Runs, side_by_side: int = 1, only_cached: bool = False) -> None:
    """Bring a stage and all that it needs up to date.

    Args:
        space: Where.
        target: The last stage.
        runs: Gets every stage's outcome as it comes.
        side_by_side: How many commands may run at a time.
        only_cached: Refuse to run anything.

    Raises:
        FlowError: A stage is stale and `only_cached`.
        StageError: A command failed; the stages before it are committed.
        StorageError: What was pushed is not at the remote, or the disk is full.
    """
    done = {run.stage for run in runs.stages}
    for names in _batches(space.root, target, side_by_side, done):
        stale = [name for name in names if not restore(space.root, name)]
        if stale and only_cached:
            raise FlowError(f"{stale[0]} has not run at {space.revision[:12]}; run `python -m flows retrain` first")
        outcomes = _execute(space, stale, runs)
        for name in names:
            runs.stages.append(conclude(space, name, outcomes.get(name)))


def _execute(space: Workspace, names: list[str], runs: Runs) -> dict[str, tuple[float, float]]:
    """Run commands, side by side if there are several; returns when each began and ended."""
    if len(names) == 1:
        return {names[0]: _tell_failure(names[0], runs, lambda: execute(space, names[0]))}
    futures: dict[str, PrefectFuture[Any] | Future[Any]] = {name: execute.submit(space, name) for name in names}
    outcomes, failure = {}, None
    for name, future in futures.items():
        try:
            outcomes[name] = _tell_failure(name, runs, future.result)
        except StageError as error:
            failure = error
        except BaseException:  # cancelled: the commands' own threads do not hear of it
            end_all()
            raise
    if failure:
        raise failure
    return outcomes


def _tell_failure(name: str, runs: Runs, outcome: Any) -> tuple[float, float]:
    start = time.time()
    try:
        return outcome()
    except FlowError as error:
        runs.stages.append(StageRun(name, "failed", time.time() - start, str(error)))
        raise StageError(f"{name}: {error}") from error


@task(task_run_name="{name}", persist_result=False, cache_policy=NO_CACHE)
def execute(space: Workspace, name: str) -> tuple[float, float]:
    """Run a stage's command; its lines go to the terminal and to Prefect, as its log and as its progress.

    Args:
        space: Where.
        name: The stage.

    Returns:
        When it began and ended, in seconds since the epoch.
    """
    logger = get_run_logger()
    with dvc_repository(space.root) as repo:
        command = str(find(repo, name).cmd)

    print(f"{name}: running `{command}`", flush=True)
    start = time.time()
    variables = command_environment(space.root, space.home, space.run)
    with StageProgress(name) as shown:

        def tell(line: str) -> None:
            print(f"  {line}" if line.startswith(name) else f"  {name}: {line}", flush=True)
            logger.info("%s", line)
            shown.tell(line)

        run_command(command, space.root, variables, tell, space.note_child)
    return start, time.time()


def conclude(space: Workspace, name: str, ran: tuple[float, float] | None) -> StageRun:
    """Commit, push, verify and record a stage that ran; or say whose result a cached one is.

    Args:
        space: Where.
        name: The stage.
        ran: When its command began and ended; None when its outputs were there already.
    """
    if ran is not None:
        commit(space.root, name)
    pushed = push(space.root, name)
    store = lineage_store(space.home)
    lock = read_lock(space.root, name)
    record = store.find_stage(name, stage_key(lock.command, lock.deps, lock.params))
    if record is None or (ran is not None and record.outs != lock.outs):
        record = _record(space, name, ran or (time.time(), time.time()), store)
        store.put(record)
    state: State = "cached" if ran is None else "ran"
    seconds = ran[1] - ran[0] if ran else 0.0
    space.commit(f"{name}: {state}, {record.figure}\n\nRun: {space.run}\nLineage: {record.digest}")
    if ran is None:
        _recall(space, name, record)
        print(f"{name}: cached, made by run {record.run}", flush=True)
    else:
        size = f"{pushed.num_objects} objects, {pushed.num_bytes / 1e6:.1f} MB"
        print(f"{name}: {size} pushed and verified at the remote", flush=True)
    per_hour = record.facts.get(RATE) if ran else None
    return StageRun(name, state, seconds, record.figure, record.run, record.digest, per_hour)


def _recall(space: Workspace, name: str, record: StageRecord) -> None:
    """Leave the log of the run that made a cached stage's outputs beside them, for what is told of them."""
    path = space.root / ARTIFACTS / ".log" / f"{name}.json"
    if not path.is_file():
        seconds = (datetime.fromisoformat(record.finished) - datetime.fromisoformat(record.started)).total_seconds()
        write_json(path, {"figure": record.figure, "seconds": seconds, "facts": record.facts})


def _record(space: Workspace, name: str, ran: tuple[float, float], store: LineageStore) -> StageRecord:
    lock = read_lock(space.root, name)
    log = _log(space.root, name)
    facts = dict(log.get("facts", {}))
    return StageRecord(
        stage=name, command=lock.command, params=lock.params, deps=lock.deps, outs=lock.outs,
        code=Code(commit=space.revision), environment=_environment(space.root), parents=_parents(space, name, store),
        run=space.run, started=_iso(ran[0]), finished=_iso(ran[1]), figure=str(log.get("figure", "")), facts=facts,
        mlflow_run_id=facts.get("mlflow_run_id"),
    )  # fmt: skip


def _parents(space: Workspace, name: str, store: LineageStore) -> tuple[str, ...]:
    """Digests of the records of the stages that this one reads."""
    with dvc_repository(space.root) as repo:
        names = upstream(repo, find(repo, name))
    parents = []
    for parent in names:
        lock = read_lock(space.root, parent)
        record = store.find_stage(parent, stage_key(lock.command, lock.deps, lock.params))
        if record is not None:
            parents.append(record.digest)
    return tuple(parents)


def _environment(root: Path) -> dict[str, str]:
    lock = root / "requirements.lock"
    return {**environment(), "lock_sha256": file_sha256(lock) if lock.is_file() else "none"}


def _log(root: Path, name: str) -> dict[str, Any]:
    path = root / ARTIFACTS / ".log" / f"{name}.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def _batches(root: Path, target: str, side_by_side: int, done: set[str]) -> Iterator[list[str]]:
    """The stages up to `target` in DVC's order, without those done, grouped where they don't need each other."""
    needs = needed(root, target)
    batch: list[str] = []
    for name in (name for name in needs if name not in done):
        if batch and (len(batch) >= side_by_side or any(need in batch for need in needs[name])):
            yield batch
            batch = []
        batch.append(name)
    if batch:
        yield batch
