"""Git, as a sub-process: the only place that calls it."""

import subprocess
from pathlib import Path

from valle2.errors import FlowError


def git(folder: Path, *arguments: str) -> str:
    """Run git in a folder and return what it prints.

    Raises:
        FlowError: git is not installed, or it refuses; its own last sentence is passed on.
    """
    try:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise FlowError("git is not on the PATH; install it: every run is a commit") from error
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()] or [f"exit code {done.returncode}"]
        raise FlowError(f"`git {' '.join(arguments)}` failed in {folder}: {lines[-1]}")
    return done.stdout.rstrip()


def repository(folder: Path) -> Path:
    """The repository that flows run on.

    Args:
        folder: Its root.

    Raises:
        FlowError: There is no `.git` or no `dvc.yaml`, or nothing is committed yet.
    """
    if not (folder / ".git").exists():
        raise FlowError(
            f"{folder} holds no .git, and a run is made from a commit; `git clone` the repository rather than "
            "downloading it, or make one here: `git init && git add --all && git commit -m start`"
        )
    if not (folder / "dvc.yaml").is_file():
        raise FlowError(f"{folder} holds no dvc.yaml; run this in the repository's root")
    try:
        git(folder, "rev-parse", "--verify", "--quiet", "HEAD^{commit}")
    except FlowError as error:
        raise FlowError(f"{folder} has no commit yet; `git add --all && git commit -m start` makes one") from error
    return folder


def resolve(folder: Path, revision: str) -> str:
    """The full commit name of a revision: a branch, a tag, `HEAD`, or the beginning of a commit name.

    Raises:
        FlowError: There is no such revision.
    """
    try:
        return git(folder, "rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}")
    except FlowError as error:
        raise FlowError(f"no revision {revision!r} in {folder}; `git branch --all` lists what there is") from error


def uncommitted(folder: Path) -> list[str]:
    """Paths with changes that no commit holds; ignored files are left out."""
    return [line[3:] for line in git(folder, "status", "--porcelain").splitlines()]
