"""A process of a small training, as torchrun starts it: `toy_training.py WORK KIND SETTINGS [--kill RANK STEP]`.

Its corpus is that of tests/test_training.py, in the folder in which it runs. With `--kill`, that rank kills itself in
that step, once.
"""

import argparse
import json
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.test_training import MANIFEST, configure, fake_cuts, objective
from valle2.config.train import HOW
from valle2.errors import Valle2Error
from valle2.training import data, loop
from valle2.training.distributed import join_ranks


class Told(loop._Nowhere):
    """A tracker that writes down its points."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        with self._path.open("a") as file:
            file.write(json.dumps({"step": step, **metrics}) + "\n")


def main() -> None:
    """Train."""
    parser = argparse.ArgumentParser()
    parser.add_argument("work", type=Path)
    parser.add_argument("kind")
    parser.add_argument("settings", type=json.loads)
    parser.add_argument("--kill", type=int, nargs=2)
    parser.add_argument("--slow", type=float, default=0.0)
    options = parser.parse_args()
    data.read_shards = lambda root, split: fake_cuts(20 if split == "train" else 4)  # type: ignore[assignment]
    data.load_codes = lambda cut: cut.codes  # type: ignore[assignment]
    config = configure(**options.settings)
    own = loop.train_step

    def step(state, shared, batches, *rest):  # type: ignore[no-untyped-def]
        import time

        time.sleep(options.slow)
        if options.kill and [rest[1].rank, state.step] == options.kill and not (options.work / "killed").exists():
            (options.work / "killed").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return own(state, shared, batches, *rest)

    loop.train_step = step
    assert MANIFEST
    options.work.mkdir(exist_ok=True)
    with join_ranks("cpu") as ranks:
        tracker = Told(options.work / "points.jsonl") if ranks.is_main else loop._Nowhere()
        inputs = {options.kind: config.model_dump(mode="json", exclude={"train_ar": HOW, "train_nar": HOW})}
        facts = loop.train(config, objective(config, options.kind), options.work, tracker, inputs=inputs, ranks=ranks)
        if ranks.is_main:
            (options.work / "facts.json").write_text(json.dumps(facts))


if __name__ == "__main__":
    try:
        main()
    except Valle2Error as error:
        print(f"valle2: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
