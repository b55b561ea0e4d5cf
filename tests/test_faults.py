"""Stages that are killed, or whose disk is full: the same bytes in the end, and a sentence that tells what to do."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.corpora import record_voices
from tests.small_disk import small_disk
from valle2.stage import tree_sha256

STAGES = ("ingest", "transcribe", "curate", "tokenize")
NAMES = ["ann", "bob", "cal", "dan"]
KILLS = 10
PARAMETERS = {
    "runtime": {"num_threads": 2},
    "transcribe": {"shard_seconds": 8},
    "curate": {"min_dnsmos": 1.0, "test_speakers": ["ann"], "dev_speakers": ["bob"], "vocab_size": 60},
    "tokenize": {"part_seconds": 4, "shard_mb": 0.2},
}

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def start(stage: str, folder: Path, **more: str) -> subprocess.Popen[str]:
    """The command as a user runs it."""
    environment = {
        **os.environ, "VALLE2_HOME": str(folder / "home"), "PYTHONPATH": str(Path.cwd()), "OMP_NUM_THREADS": "1",
        **more,
    }  # fmt: skip
    command = [sys.executable, "-m", "valle2.cli", stage]
    return subprocess.Popen(
        command, cwd=folder, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )


def run(stage: str, folder: Path) -> tuple[int, str]:
    with start(stage, folder) as process:
        _, errors = process.communicate()
    return process.returncode, errors


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, float]]:
    """A workspace in which every stage has run undisturbed, and the seconds that each took."""
    folder = tmp_path_factory.mktemp("whole")
    record_voices(folder, NAMES, pairs=2)
    (folder / "params.yaml").write_text(yaml.safe_dump(PARAMETERS))
    seconds = {}
    for stage in STAGES:
        began = time.monotonic()
        code, errors = run(stage, folder)
        assert code == 0, errors
        seconds[stage] = time.monotonic() - began
    return folder, seconds


def before(stage: str, whole: Path, folder: Path) -> Path:
    """A workspace in which this stage is next."""
    shutil.copytree(whole / "data", folder / "data")
    shutil.copy(whole / "params.yaml", folder)
    for earlier in STAGES[: STAGES.index(stage)]:
        shutil.copytree(whole / "artifacts" / earlier, folder / "artifacts" / earlier)
    return folder


@pytest.mark.parametrize("stage", STAGES)
def test_killed_ten_times_the_bytes_are_the_same(
    stage: str, whole: tuple[Path, dict[str, float]], tmp_path: Path
) -> None:
    undisturbed, seconds = whole
    folder = before(stage, undisturbed, tmp_path)
    draw = random.Random(stage)
    for _ in range(KILLS):
        with start(stage, folder) as process:
            time.sleep(draw.uniform(0.2, 1.0) * seconds[stage])
            process.send_signal(signal.SIGKILL)
    code, errors = run(stage, folder)
    assert code == 0, errors
    output = Path("artifacts") / stage
    assert relative_digest(folder, output) == relative_digest(undisturbed, output)
    assert not (folder / "artifacts/.partial" / stage).exists()


def relative_digest(folder: Path, path: Path) -> str:
    here = Path.cwd()
    os.chdir(folder)
    try:
        return tree_sha256(path)
    finally:
        os.chdir(here)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """128 kB."""
    with small_disk(tmp_path / "small", "128k") as folder:
        yield folder


@pytest.mark.parametrize("stage", STAGES)
def test_a_full_disk_is_one_sentence_and_nothing_is_lost(
    stage: str, whole: tuple[Path, dict[str, float]], tmp_path: Path, disk: Path
) -> None:
    undisturbed, _ = whole
    folder = before(stage, undisturbed, tmp_path)
    (folder / "artifacts/.partial").mkdir(parents=True)
    (disk / "filler").write_bytes(bytes(124 << 10))
    (folder / "artifacts/.partial" / stage).symlink_to(disk / stage)
    (disk / stage).mkdir()
    code, errors = run(stage, folder)
    assert code == 2, errors
    assert "Traceback" not in errors
    assert "no space left" in errors
    assert not (folder / "artifacts" / stage).exists()
    (folder / "artifacts/.partial" / stage).unlink()
    assert run(stage, folder)[0] == 0
    output = Path("artifacts") / stage
    assert relative_digest(folder, output) == relative_digest(undisturbed, output)


def test_a_cluster_that_loses_a_node_gives_the_same_bytes(
    whole: tuple[Path, dict[str, float]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray.cluster_utils import Cluster

    undisturbed, _ = whole
    folder = before("transcribe", undisturbed, tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path.cwd()))
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
        parts = folder / "artifacts/.partial/transcribe/parts"
        with start("transcribe", folder, RAY_ADDRESS=str(cluster.address)) as process:
            while process.poll() is None and not list(parts.glob("*.jsonl")):
                time.sleep(0.1)
            cluster.remove_node(nodes[0], allow_graceful=False)
            _, errors = process.communicate()
        assert process.returncode == 0, errors
        for stage in ("curate", "tokenize"):
            with start(stage, folder, RAY_ADDRESS=str(cluster.address)) as process:
                _, errors = process.communicate()
            assert process.returncode == 0, errors
    finally:
        cluster.shutdown()
    for stage in ("transcribe", "curate", "tokenize"):
        output = Path("artifacts") / stage
        assert relative_digest(folder, output) == relative_digest(undisturbed, output), stage
