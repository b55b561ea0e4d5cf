"""A rank for tests of the launchers: a few steps with an all_reduce each, a checkpoint, and faults on demand.

python tests/rank.py FOLDER STEPS [fault]     fault: `die` (rank 1, once), `always` (rank 1), `mistake`, `none`

Rank 0 keeps the step in FOLDER/step, so that a restart goes on. SIGTERM ends all ranks with 75 after the step.
"""

import os
import signal
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist

SECONDS_PER_STEP = 0.2


def say(line: str) -> None:
    """In one write, so that lines of two ranks do not mix."""
    os.write(1, f"{line}\n".encode())


def main(folder: Path, num_steps: int, fault: str) -> int:
    stopping = False

    def stop(number: int, frame: object) -> None:
        nonlocal stopping
        stopping = True

    signal.signal(signal.SIGTERM, stop)
    rank, attempt = int(os.environ["RANK"]), os.environ["TORCHELASTIC_RESTART_COUNT"]
    if fault == "mistake":
        print("valle2: the parameter is wrong; mend it", file=sys.stderr)
        return 2
    dist.init_process_group("gloo")
    mark = folder / "step"
    first = int(mark.read_text()) if mark.is_file() else 0
    dist.barrier()
    say(f"rank {rank} of {dist.get_world_size()}, attempt {attempt}, from step {first}")
    (folder / f"pid-{rank}").write_text(str(os.getpid()))
    total = torch.tensor([rank + 1])
    dist.all_reduce(total)
    for step in range(first, num_steps):
        time.sleep(SECONDS_PER_STEP)
        told = torch.tensor([int(stopping)])
        dist.all_reduce(told)
        if rank == 0:
            mark.write_text(str(step + 1))
        if told.item():
            say(f"rank {rank}: stopped at step {step + 1}")
            return 75
        if step >= 1 and rank == 1 and (fault == "always" or (fault == "die" and attempt == "0")):
            os.kill(os.getpid(), signal.SIGKILL)
    if rank == 0:
        say(f"sum {total.item()}")
        (folder / "result").write_text(str(total.item()))
        output = Path("artifacts/train-ar")
        output.mkdir(parents=True, exist_ok=True)
        (output / "result").write_text(str(total.item()))
    dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] if len(sys.argv) > 3 else "none"))
