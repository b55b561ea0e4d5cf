"""Workspaces: each flow run works in its own clone, so runs never collide and nobody's checkout is touched.

    .valle2/workspaces/<run>/       a clone at the run's revision, with the origin's DVC cache and remote
    .valle2/workspaces/<run>.json   what the run is about, who holds it, whether it has finished
    .valle2/latest                  link to the workspace that finished last

The result is pushed to the branch `run/<run>` of the origin. A run that was killed leaves its workspace unfinished; the
next run of the same revision, parameters and data takes it up and goes on inside half-done stages.
"""

import fcntl
import json
import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import psutil

from flows.disk import is_full, no_space
from flows.git import git
from flows.pipeline import complete_params, dvc_repository
from valle2.config.params import Config, load_config
from valle2.errors import FlowError, StorageError
from valle2.stage import digest, file_sha256, write_json

FINISHED_KEPT = 2
UNFINISHED_KEPT = 2
LINKS = "reflink,hardlink,copy"
"""How a workspace gets files out of the cache: without a second copy where the disk can."""


@dataclass(frozen=True)
class Request:
    """What a run starts from."""

    revision: str
    """Full commit name."""
    params: Path | None = None
    """Other parameter file than the revision's params.yaml."""
    data: Path | None = None
    """Other data folder than the one that the revision's data.dvc names."""

    @property
    def key(self) -> str:
        """Equal for runs that may take up each other's work."""
        params = file_sha256(self.params) if self.params else ""
        files = sorted(path for path in self.data.rglob("*") if path.is_file()) if self.data else []
        data = [[str(path), path.stat().st_size, path.stat().st_mtime_ns] for path in files]
        return digest([self.revision, params, str(self.data or ""), data])


@dataclass(frozen=True)
class Workspace:
    """One run's clone and its state."""

    run: str
    root: Path
    origin: Path
    home: Path
    key: str
    revision: str
    """Full commit name that the run started from."""
    resumed: bool = False
    finished: bool = False
    child: dict[str, float] = field(default_factory=dict)
    """Process id and start time of the command that runs, to end it when its run was killed."""

    @property
    def branch(self) -> str:
        """Where the result goes in the origin."""
        return f"run/{self.run}"

    @property
    def is_latest(self) -> bool:
        """Whether `.valle2/latest` leads here."""
        return (self.home / "latest").resolve() == self.root.resolve()

    @property
    def config(self) -> Config:
        """The parameters that this run uses."""
        return load_config(self.root / "params.yaml")

    def save(self) -> None:
        """Write the state beside the clone."""
        write_json(_state_file(self.root), {**asdict(self), "root": self.root.name, "origin": "", "home": ""})

    def note_child(self, pid: int) -> None:
        """Remember the command that runs."""
        started = psutil.Process(pid).create_time() if psutil.pid_exists(pid) else 0.0
        replace(self, child={"pid": pid, "started": started}).save()

    def commit(self, message: str) -> None:
        """Commit what a stage changed, and push it to the run's branch. Nothing changed: nothing happens."""
        git(self.root, "add", "--all")
        # Asked of what was added: a job that a killed run left may be writing here meanwhile.
        if git(self.root, "diff", "--cached", "--name-only"):
            git(self.root, "commit", "--quiet", "--message", message)
        git(self.root, "push", "--quiet", "origin", f"HEAD:refs/heads/{self.branch}")

    def finish(self) -> None:
        """Mark the run as done, make it findable as `.valle2/latest`, and remove old workspaces."""
        replace(self, finished=True, child={}).save()
        link = self.home / "latest"
        building = self.home / ".latest.tmp"
        building.unlink(missing_ok=True)
        building.symlink_to(os.path.relpath(self.root, self.home))
        building.replace(link)
        _prune(self.root.parent)


@contextmanager
def workspace(origin: Path, home: Path, request: Request, run: str) -> Iterator[Workspace]:
    """Open a workspace for a run: an unfinished one of the same request, or a new one.

    Args:
        origin: The repository that is cloned.
        home: Its `.valle2`.
        request: Revision, parameters and data.
        run: Name for a new workspace and its branch.

    Raises:
        ConfigError: The parameters are wrong.
        FlowError: Git or DVC refuses, or the data is not what data.dvc names.
    """
    load_config(request.params or origin / "params.yaml")
    folder = home / "workspaces"
    folder.mkdir(parents=True, exist_ok=True)
    key = request.key
    found = _take_up(folder, key, origin, home)
    if found is None:
        found = Workspace(run, folder / run, origin, home, key, request.revision), _lock(folder / run)
        assert found[1] is not None, "a new workspace is nobody else's"
    space, lock = found
    try:
        if not space.resumed:
            _make(space, request)
        place_data(space, request.data)
        yield space
    finally:
        os.close(lock)  # type: ignore[arg-type]


def _take_up(folder: Path, key: str, origin: Path, home: Path) -> tuple[Workspace, int | None] | None:
    for path in sorted(folder.glob("*.json"), reverse=True):
        state = json.loads(path.read_text())
        root = folder / state["root"]
        if state["key"] != key or state["finished"] or not root.is_dir():
            continue
        lock = _lock(root)
        if lock is None:
            continue
        _end_orphan(state["child"])
        (root / ".dvc" / "tmp" / "rwlock").unlink(missing_ok=True)
        return Workspace(state["run"], root, origin, home, key, state["revision"], resumed=True), lock
    return None


def _end_orphan(child: dict[str, float]) -> None:
    """End the command of a run that was killed: it would write where the next one does.

    Not by SIGTERM, which a training's command passes on to its job: that goes on, and the next command finds it.
    """
    pid = int(child.get("pid", 0))
    if pid and psutil.pid_exists(pid) and abs(psutil.Process(pid).create_time() - child["started"]) < 1:
        with suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)


def _lock(root: Path) -> int | None:
    """Hold a workspace until this process ends, however it ends; None when another process holds it."""
    descriptor = os.open(root.with_name(root.name + ".lock"), os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def _make(space: Workspace, request: Request) -> None:
    building = space.root.with_name(f"{space.root.name}.tmp")
    git(space.origin, "clone", "--quiet", "--no-checkout", str(space.origin), str(building))
    for name, value in {
        "user.name": "Valle2 flow", "user.email": "flow@valle2.invalid", "commit.gpgsign": "false",
        "core.hooksPath": os.devnull, "advice.detachedHead": "false",
    }.items():  # fmt: skip
        git(building, "config", name, value)
    git(building, "checkout", "--quiet", "--detach", request.revision)
    _share_storage(space.origin, building)
    if request.params:
        shutil.copyfile(request.params, building / "params.yaml")
    load_config(building / "params.yaml")
    complete_params(building)
    building.rename(space.root)
    space.save()


def _share_storage(origin: Path, root: Path) -> None:
    """Point a clone at the origin's cache, and at its remotes where their address is relative to it."""
    local = origin / ".dvc" / "config.local"
    if local.is_file():
        shutil.copyfile(local, root / ".dvc" / "config.local")
    with dvc_repository(origin) as repo:
        cache = repo.cache.local_cache_dir
        folders = {name: entry["url"] for name, entry in repo.config["remote"].items() if "://" not in entry["url"]}
    with dvc_repository(root) as repo, repo.config.edit("local") as config:
        config.setdefault("cache", {}).update(dir=cache, type=LINKS)
        for name, url in folders.items():
            config.setdefault("remote", {}).setdefault(name, {})["url"] = url


def place_data(space: Workspace, folder: Path | None) -> None:
    """Put `data/` into the workspace: another folder, which is then what this run's data.dvc names, or the revision's.

    Raises:
        FlowError: No such folder; or the data that data.dvc names is in neither cache, checkout nor remote.
    """
    data = space.root / "data"
    if folder is not None:
        if not (folder / "sources.yaml").is_file():
            raise FlowError(f"no {folder / 'sources.yaml'}; `valle2 declare` writes one for a folder of audio")
        if not data.exists():
            _copy(folder, data)
        with dvc_repository(space.root) as repo:
            repo.add(str(data))
        return
    if not (space.root / "data.dvc").is_file():
        raise FlowError("this revision has no data.dvc; run `dvc add data` and commit data.dvc, or pass DATA=<folder>")
    with dvc_repository(space.root) as repo:
        out = repo.stage.collect("data.dvc")[0].outs[0]
        if not out.changed_cache() or not (space.origin / "data").is_dir():
            _fetch(space, out)
            return
        if not data.exists():
            _copy(space.origin / "data", data)
        if out.workspace_status():
            shutil.rmtree(data)
            raise FlowError(
                f"{space.origin / 'data'} is not the data that data.dvc names (md5 {out.hash_info.value}); run "
                "`dvc add data` and commit data.dvc to make it so, or pass DATA=<folder> to use another for one run"
            )
        repo.commit(target="data.dvc", force=True)


def _fetch(space: Workspace, out: object) -> None:
    with dvc_repository(space.root) as repo:
        if out.changed_cache():  # type: ignore[attr-defined]
            try:
                repo.fetch(targets=["data.dvc"])
            except FileNotFoundError as error:
                raise StorageError(_no_data(space)) from error
        stats = repo.checkout(targets=["data.dvc"], force=True, allow_missing=True)
        if not (space.root / "data").is_dir() or stats.get("failed"):
            raise StorageError(_no_data(space))


def _no_data(space: Workspace) -> str:
    return (
        f"the data that data.dvc names is neither in {space.origin / 'data'} nor in the cache nor at the remote; "
        "`make data` renders the demo's, DATA=<folder> uses another"
    )


def _copy(source: Path, target: Path) -> None:
    building = target.with_name(target.name + ".tmp")
    shutil.rmtree(building, ignore_errors=True)
    try:
        shutil.copytree(source, building)
    except OSError as error:
        shutil.rmtree(building, ignore_errors=True)
        if is_full(error):
            raise no_space(target.parent) from error
        raise
    building.rename(target)


def _prune(folder: Path) -> None:
    """Remove workspaces that are done with; what they made is in the cache and at the remote."""
    kept = {True: FINISHED_KEPT, False: UNFINISHED_KEPT}
    for path in sorted(folder.glob("*.json"), key=lambda path: path.stat().st_mtime, reverse=True):
        finished = bool(json.loads(path.read_text())["finished"])
        kept[finished] -= 1
        if kept[finished] >= 0:
            continue
        root = path.with_suffix("")
        lock = _lock(root)
        if lock is None and not finished:
            continue
        shutil.rmtree(root, ignore_errors=True)
        path.unlink()
        if lock is not None:
            root.with_name(root.name + ".lock").unlink(missing_ok=True)
            os.close(lock)


def _state_file(root: Path) -> Path:
    return root.with_name(root.name + ".json")
