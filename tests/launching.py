"""A stage command for tests of the launchers: `train-ar` in the working folder, with `tests/rank.py` as the training.

python tests/launching.py STEPS [fault]
"""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # in a flow, PYTHONPATH is the workspace, which in these tests has no valle2 of its own
os.environ["PYTHONPATH"] = str(ROOT)

from valle2.config.params import load_config  # noqa: E402
from valle2.errors import Valle2Error  # noqa: E402
from valle2.launch.stage import launch  # noqa: E402

RANK = Path(__file__).with_name("rank.py")


def main() -> None:
    folder = Path.cwd() / "work"
    folder.mkdir(exist_ok=True)
    try:
        launch("train-ar", load_config(), [str(RANK), str(folder), *sys.argv[1:]])
    except Valle2Error as error:
        print(f"valle2: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
