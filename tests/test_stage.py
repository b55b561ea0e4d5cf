"""How outputs appear: a crash anywhere in the last steps of a stage costs nothing and leaves nothing out."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from valle2.stage import finish, output, partial

STEPS = ("replace", "unlink", "rmdir")
"""What of `os` changes folders."""


class Crash(BaseException):
    """The process ends here."""


def run() -> int:
    """A stage that moves its work to the output while it goes on; returns how many parts it had to do."""
    done = 0
    with partial("tokenize", "the same inputs") as work:
        for name in "abc":
            mark = work / "done" / name
            if not mark.exists():
                (work / "out").mkdir(exist_ok=True)
                (work / "out" / name).write_text(name)
                mark.parent.mkdir(exist_ok=True)
                mark.touch()
                done += 1
        (work / "out" / "manifest").write_text("abc")
        finish(work, "tokenize")
    return done


@contextmanager
def crash_after(monkeypatch: pytest.MonkeyPatch, steps: int) -> Iterator[None]:
    left = steps
    with monkeypatch.context() as patch:
        for name in STEPS:

            def step(*args: Any, own: Any = getattr(os, name), **kwargs: Any) -> Any:
                nonlocal left
                if not left:
                    raise Crash
                left -= 1
                return own(*args, **kwargs)

            patch.setattr(os, name, step)
        yield


@pytest.mark.parametrize("earlier_version", [False, True])
def test_a_crash_at_any_step_of_the_end_leaves_the_whole_output(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, earlier_version: bool
) -> None:
    whole = {"a": "a", "b": "b", "c": "c", "manifest": "abc"}
    for steps in range(1, 50):  # the first names the inputs
        folder = tmp_path / f"{steps}-{earlier_version}"
        folder.mkdir()
        monkeypatch.chdir(folder)
        if earlier_version:
            output("tokenize").mkdir(parents=True)
            (output("tokenize") / "old").touch()
        try:
            with crash_after(monkeypatch, steps):
                run()
        except Crash:
            is_there = (output("tokenize") / "manifest").exists()
            assert run() == (3 if is_there else 0), steps
        else:
            assert steps > 5
            break
        assert {path.name: path.read_text() for path in output("tokenize").iterdir()} == whole, steps
        assert [path.name for path in Path("artifacts").iterdir() if path.name != ".partial"] == ["tokenize"]
        assert not any(Path("artifacts/.partial").iterdir())
    else:
        pytest.fail("the stage never came to its end")
