"""Versions of the data by name: a git revision whose dvc.lock names the outputs, or a model whose lineage does."""

import subprocess
from pathlib import Path

import yaml

from valle2.errors import LineageError, ModelError
from valle2.trust.contents import DATA_STAGES, DataVersion, Made
from valle2.trust.lineage import ModelRecord, StageRecord


def find_version(name: str) -> DataVersion:
    """Find a version of the data.

    Args:
        name: A git revision, such as the branch of a run; or a model: `valle2@champion`, `valle2/3`, a folder.

    Raises:
        LineageError: There is neither, or it names no outputs of the data stages.
    """
    commit = _git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}")
    if commit:
        return _of_revision(name, commit)
    if Path(name).is_dir() or "@" in name or name.rpartition("/")[2].isdigit():
        return _of_model(name)
    raise LineageError(
        f"no revision and no model {name!r}; `git branch --list 'run/*'` lists the runs, `valle2 models` the models"
    )


def _of_revision(name: str, commit: str) -> DataVersion:
    lock = _git("show", f"{commit}:dvc.lock")
    if not lock:
        raise LineageError(
            f"{name} has no dvc.lock, so it names no data; give the branch of a run (`git branch --list 'run/*'`), or "
            "commit the dvc.lock of a `dvc repro`"
        )
    stages = (yaml.safe_load(lock) or {}).get("stages", {})
    _check(name, set(stages))
    made = {}
    for stage in DATA_STAGES:
        entry = stages[stage]
        params = {key: value for file in entry.get("params", {}).values() for key, value in file.items()}
        deps, outs = ({item["path"]: item["md5"] for item in entry.get(kind, [])} for kind in ("deps", "outs"))
        made[stage] = Made(params, deps, outs)
    return DataVersion(name, made)


def _of_model(name: str) -> DataVersion:
    from valle2.model_lineage import model_lineage

    try:
        found = model_lineage(name)
    except ModelError as error:
        raise LineageError(f"{name} is no git revision, and as a model: {error}") from error
    record = found.read(found.digest)
    stages = record.stages if isinstance(record, ModelRecord) else {}
    _check(found.name, set(stages))
    made = {}
    for stage in DATA_STAGES:
        told = found.read(stages[stage])
        if not isinstance(told, StageRecord):
            raise LineageError(f"record {stages[stage][:12]}… should be of stage {stage} and is not")
        made[stage] = Made(told.params, told.deps, told.outs)
    return DataVersion(found.name, made)


def _check(name: str, stages: set[str]) -> None:
    if lacking := [stage for stage in DATA_STAGES if stage not in stages]:
        raise LineageError(f"{name} names no outputs of {', '.join(lacking)}; run `python -m flows ingest` at it first")


def _git(*arguments: str) -> str:
    """What git prints; empty where it refuses, or there is no git."""
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
