"""Several processes that train together: killed, moved and counted otherwise, they end as they would have."""

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.test_training import make_corpus
from valle2.training.distributed import FRESH_STORE

SETTINGS = {"num_steps": 12, "accumulate": 2, "batch_frames": 200, "log_every": 1, "checkpoint_every": 2, "bf16": False}
PATIENCE = 120

pytestmark = [pytest.mark.slow, pytest.mark.timeout(280)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy")
    make_corpus(folder)
    return folder


def start(
    folder: Path, work: str, processes: int = 2, kind: str = "ar", more: tuple[str, ...] = (),
    nodes: tuple[str, ...] = (), restarts: int = 4, **settings: Any,
) -> subprocess.Popen[str]:  # fmt: skip
    """torchrun, as a launcher starts it; without processes, the program alone."""
    launch = nodes or ("--standalone",)
    torchrun = ["-m", "torch.distributed.run", *launch, f"--nproc-per-node={processes}", f"--max-restarts={restarts}"]
    program = [str(Path(__file__).with_name("toy_training.py")), work, kind, json.dumps(SETTINGS | settings), *more]
    environment = {**os.environ, "PYTHONPATH": str(Path.cwd()), "OMP_NUM_THREADS": "1", FRESH_STORE: "1"}
    return subprocess.Popen(
        [sys.executable, *(torchrun if processes else []), *program], cwd=folder, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def run(*arguments: Any, **settings: Any) -> str:
    with start(*arguments, **settings) as process:
        told, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, told
    return told


def weights(folder: Path, work: str) -> str:
    return hashlib.sha256((folder / work / "out/model.safetensors").read_bytes()).hexdigest()


def curves(folder: Path, work: str) -> list[list[float]]:
    """Loss and norm of the gradient, to which Adam is nearly blind."""
    lines = (folder / work / "out/history.jsonl").read_text().splitlines()
    return [[point["loss"], point["grad_norm"]] for point in map(json.loads, lines)]


@pytest.fixture(scope="module")
def one(folder: Path) -> list[list[float]]:
    """The curve of one process."""
    run(folder, "one", 0)
    return curves(folder, "one")


@pytest.mark.parametrize(("strategy", "kind"), [("ddp", "ar"), ("fsdp", "ar"), ("ddp", "nar"), ("fsdp", "nar")])
def test_a_killed_rank_changes_nothing(folder: Path, strategy: str, kind: str) -> None:
    more = {"strategy": strategy, "ema_decay": 0.9, "guide": 0.5 if kind == "ar" else 0.0}
    run(folder, f"whole-{strategy}-{kind}", 2, kind, **more)
    run(folder, f"killed-{strategy}-{kind}", 2, kind, ("--kill", "1", "7"), **more)
    assert (folder / f"killed-{strategy}-{kind}/killed").exists()
    assert json.loads((folder / f"killed-{strategy}-{kind}/facts.json").read_text())["resumed_at"] in (4, 6)
    assert weights(folder, f"killed-{strategy}-{kind}") == weights(folder, f"whole-{strategy}-{kind}")


def test_sharing_out_in_another_way_gives_the_same_curve(folder: Path, one: list[list[float]]) -> None:
    """Sums are rounded in another order: the curves agree within 1e-4."""
    for strategy in ("ddp", "fsdp"):
        run(folder, f"two-{strategy}", strategy=strategy)
        np.testing.assert_allclose(curves(folder, f"two-{strategy}"), one, atol=1e-4, rtol=0)


def test_one_process_then_two_of_other_kinds_give_the_same_curve(folder: Path, one: list[list[float]]) -> None:
    with start(folder, "grown", 0, more=("--kill", "0", "5")) as process:
        process.communicate(timeout=PATIENCE)
    assert process.returncode == -signal.SIGKILL
    with start(folder, "grown", 2, more=("--kill", "9", "9"), strategy="fsdp") as process:
        told, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, told
    assert json.loads((folder / "grown/facts.json").read_text())["resumed_at"] in (2, 4)
    np.testing.assert_allclose(curves(folder, "grown"), one, atol=1e-4, rtol=0)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def test_two_nodes_of_which_one_loses_its_process_end_with_the_same_weights(folder: Path) -> None:
    run(folder, "whole-nodes")
    endpoint = f"--rdzv-endpoint=127.0.0.1:{free_port()}"
    nodes = ("--nnodes=2", "--rdzv-backend=c10d", endpoint, f"--rdzv-id={free_port()}")
    both = [start(folder, "nodes", 1, "ar", ("--kill", "1", "7"), nodes) for _ in range(2)]
    told = [process.communicate(timeout=PATIENCE)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], told
    assert (folder / "nodes/killed").exists()
    assert weights(folder, "nodes") == weights(folder, "whole-nodes")


def test_asked_to_end_all_write_a_checkpoint_and_go_on_from_it(folder: Path) -> None:
    run(folder, "whole-asked")
    with start(folder, "asked", more=("--slow", "0.5")) as process:
        while not (folder / "asked/points.jsonl").exists() and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        told, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode != 0
    assert "was asked to end and did, with a checkpoint at step" in told
    run(folder, "asked")
    assert json.loads((folder / "asked/facts.json").read_text())["resumed_at"] > 0
    assert weights(folder, "asked") == weights(folder, "whole-asked")


def test_alone_the_exit_code_says_try_again(folder: Path) -> None:
    with start(folder, "alone", 0, more=("--slow", "0.5")) as process:
        while not (folder / "alone/points.jsonl").exists() and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        told, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 75, told
    assert list((folder / "alone/checkpoints").glob("step-????????/state.json"))


def test_an_update_that_cannot_be_shared_out_names_the_parameter(folder: Path) -> None:
    with start(folder, "odd", accumulate=3, restarts=0) as process:
        told, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode != 0
    assert "train_ar.accumulate is 3, which 2 ranks cannot share evenly; set it to a multiple of 2" in told
    assert not (folder / "odd/out").exists()
