"""DVC, through its API: the graph, what is stale, and the commit of a stage's outputs.

The graph is read from dvc.yaml and never repeated here. The commands themselves are run by `flows.runner`; what is
pushed where, and whether it is really there, is `flows.store`.
"""

import logging
import threading
from collections.abc import Iterator
from contextlib import chdir, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from dvc.exceptions import DvcException
from dvc.repo import Repo, lock_repo
from dvc.repo.reproduce import plan_repro
from dvc.stage import PipelineStage
from dvc.stage.cache import RunCacheNotFoundError

from flows.disk import FULL, free_bytes, is_full, no_space
from valle2.config.params import Config
from valle2.errors import ConfigError, FlowError
from valle2.launch.job import JOBS

_one_at_a_time = threading.RLock()


@dataclass(frozen=True)
class LockEntry:
    """A stage in dvc.lock: exactly what went in and came out."""

    command: str
    deps: dict[str, str]
    """Path -> md5."""
    params: dict[str, Any]
    """Dotted name in params.yaml -> value."""
    outs: dict[str, str]
    """Path -> md5; a folder's ends with `.dir`."""


@contextmanager
def dvc_repository(root: Path) -> Iterator[Repo]:
    """Open a repository; DVC's errors become ours.

    DVC's run-cache looks stages up from the process's working folder: this goes there meanwhile, one thread at a time.

    Raises:
        StorageError: The disk is full.
        FlowError: Anything else that DVC refuses, in its own words.
    """
    logging.getLogger("dvc").setLevel(logging.ERROR)  # the runner says what happens, in its own words
    try:
        with _one_at_a_time, chdir(root), Repo(str(root)) as repo:
            yield repo
    except DvcException as error:
        if is_full(error.__cause__) or free_bytes(root) < FULL:
            raise no_space(root) from error
        raise FlowError(f"DVC in {root}: {' '.join(str(error).split())}") from error
    except OSError as error:
        if is_full(error):
            raise no_space(root) from error
        raise


def stage_order(repo: Repo) -> list[PipelineStage]:
    """The stages of dvc.yaml in the order in which `dvc repro` runs them."""
    return [stage for stage in plan_repro(repo.index.graph) if isinstance(stage, PipelineStage)]


def upstream(repo: Repo, stage: PipelineStage) -> list[str]:
    """Names of the stages whose outputs this one reads."""
    successors = repo.index.graph.successors(stage)
    return sorted(other.name for other in successors if isinstance(other, PipelineStage))


def needed(root: Path, target: str) -> dict[str, list[str]]:
    """A stage and all that it needs, in DVC's order; each with the names of those whose outputs it reads.

    Raises:
        FlowError: dvc.yaml has no such stage.
    """
    with dvc_repository(root) as repo:
        needs = {stage.name: upstream(repo, stage) for stage in stage_order(repo)}
    if target not in needs:
        raise FlowError(f"dvc.yaml has no stage {target} at this revision; it has {', '.join(needs)}")
    wanted = {target}
    for name in reversed(needs):
        if name in wanted:
            wanted.update(needs[name])
    return {name: needs[name] for name in needs if name in wanted}


def find(repo: Repo, name: str) -> PipelineStage:
    """A stage by name."""
    return next(stage for stage in stage_order(repo) if stage.name == name)


def restore(root: Path, name: str) -> bool:
    """Whether a stage's outputs are there already, from dvc.lock or the run-cache; they are checked out if so.

    Args:
        root: The workspace.
        name: The stage.

    Returns:
        False when its command has to run; its old outputs are then gone, as with `dvc repro`.
    """
    with dvc_repository(root) as repo:
        stage = find(repo, name)
        with lock_repo(repo):
            if not stage.changed():
                return True
            if (root / JOBS / name / "job.json").is_file():
                return False  # its job may have finished unwatched: the outputs are then there, and nowhere else
            stage.remove_outs(ignore_remove=False, force=False)
            try:
                repo.stage_cache.restore(stage, pull=True)
            except RunCacheNotFoundError:
                return False
            stage.save()
            stage.commit()
            stage.dump(update_pipeline=False)
        return True


def commit(root: Path, name: str) -> None:
    """Put a stage's outputs into the cache, and what went in and came out into dvc.lock: `dvc commit --force`."""
    with dvc_repository(root) as repo:
        missing = [str(out) for out in find(repo, name).outs if not out.exists]
        if missing:
            raise FlowError(f"{name} ended well but did not write {', '.join(missing)}, which dvc.yaml expects")
        repo.commit(target=name, force=True)


def read_lock(root: Path, name: str) -> LockEntry:
    """A stage's entry in dvc.lock."""
    entry = yaml.safe_load((root / "dvc.lock").read_text())["stages"][name]
    params = {key: value for file in entry.get("params", {}).values() for key, value in file.items()}
    deps = {item["path"]: item["md5"] for item in entry.get("deps", [])}
    outs = {item["path"]: item["md5"] for item in entry.get("outs", [])}
    return LockEntry(entry["cmd"], deps, params, outs)


def complete_params(root: Path) -> list[str]:
    """Write the defaults of the parameters that dvc.yaml names and params.yaml leaves out, for DVC to track them.

    Returns:
        The dotted names that were added.
    """
    path = root / "params.yaml"
    given = yaml.safe_load(path.read_text()) or {}
    stages = yaml.safe_load((root / "dvc.yaml").read_text())["stages"].values()
    named = sorted({name for stage in stages for name in stage.get("params", []) if isinstance(name, str)})
    added = [name for name in named if not _complete(given, name)]
    if added:
        path.write_text(yaml.safe_dump(given, sort_keys=False))
    return added


def _complete(given: dict[str, Any], name: str) -> bool:
    """Whether the dotted name is there; otherwise its default is put there."""
    default: Any = Config().model_dump(mode="json")
    here = given
    *sections, last = name.split(".")
    for section in sections:
        if section not in default:
            raise ConfigError(f"dvc.yaml names the parameter {name}, which valle2/config/ does not have")
        default = default[section]
        here = here.setdefault(section, {})
    if last not in default:
        raise ConfigError(f"dvc.yaml names the parameter {name}, which valle2/config/ does not have")
    if last in here:
        return True
    here[last] = default[last]
    return False


def data_digest(root: Path) -> str:
    """What data.dvc names."""
    return str(yaml.safe_load((root / "data.dvc").read_text())["outs"][0]["md5"])
