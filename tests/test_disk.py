"""A disk that is full, or nearly: one sentence, before or after."""

import shutil
from collections import namedtuple
from pathlib import Path

import pytest
from dvc.exceptions import DvcException
from dvc.repo import Repo

from flows.disk import check_space, is_full
from flows.pipeline import dvc_repository
from valle2.errors import FlowError, StorageError
from valle2.stage import partial

Usage = namedtuple("Usage", "total used free")


def leave(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**9, 10**9 - free, free))


def write_to_a_full_disk() -> None:
    with Path("/dev/full").open("w") as file:
        file.write("codes")


def test_a_run_needs_some_room(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    leave(monkeypatch, 3_000_000)
    with pytest.raises(
        StorageError, match=r"^3 MB are free on the disk of .*, and a run needs 200 MB at least; free some"
    ):
        check_space(tmp_path)
    leave(monkeypatch, 300_000_000)
    check_space(tmp_path)


def test_a_stage_says_that_the_disk_is_full(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    with (
        pytest.raises(StorageError, match=r"no space left on the disk of .* during tokenize; free some"),
        partial("tokenize", []),
    ):
        write_to_a_full_disk()


def test_errors_of_a_full_disk_are_told_from_others() -> None:
    with pytest.raises(OSError) as caught:
        write_to_a_full_disk()
    assert is_full(caught.value)
    assert not is_full(FileNotFoundError(2, "no such file"))


def test_what_dvc_cannot_upload_is_the_disk_where_that_is_full(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    Repo.init(str(tmp_path), no_scm=True).close()
    for free, error, sentence in ((0, StorageError, "no space left"), (10**8, FlowError, "3 files failed to upload")):
        leave(monkeypatch, free)
        with pytest.raises(error, match=sentence), dvc_repository(tmp_path):
            raise DvcException("3 files failed to upload")
