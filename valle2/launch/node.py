"""What a job runs on each of its machines: torchrun's agent, which starts the ranks, restarts them and stops them.

    python -m valle2.launch.node --place local --processes 2 --exit-file F -- -m valle2.cli train-ar

Differs from plain `torchrun` in what becomes of exit codes. Ranks that end with a user's mistake (2) or stopped on
request (75) are not restarted, and their code is the job's. A request to stop (SIGTERM) gives the ranks
`--grace` seconds, and ends with 75. The first node writes the code into a file, for whoever waits for the job.
"""

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from valle2.config.launch import LaunchConfig, LauncherName
from valle2.launch.job import PREEMPTED, exit_file
from valle2.stage import write_text

USER_ERROR = 2
FINAL = (USER_ERROR, PREEMPTED)
"""Exit codes of ranks that a restart would not change."""
FIRST_PORT, NUM_PORTS = 20_000, 20_000
"""Of the rendezvous on Slurm; which one follows from the job's number, so that all nodes know it."""


def node_command(config: LaunchConfig, place: LauncherName, folder: Path, command: Sequence[str]) -> list[str]:
    """The words after `python` that start one node of a job, from any working folder."""
    return [
        "-m", "valle2.launch.node", "--place", place, "--folder", str(Path.cwd()), "--nodes", str(config.num_nodes),
        "--processes", str(config.processes_per_node), "--restarts", str(config.max_restarts),
        "--grace", f"{config.grace_seconds:g}", "--exit-file", str(exit_file(folder)), "--", *command,
    ]  # fmt: skip


@dataclass(frozen=True)
class Meeting:
    """Where the nodes of a job meet."""

    index: int
    """This node's number."""
    endpoint: str
    id: str

    @classmethod
    def of(cls, place: LauncherName) -> "Meeting | None":
        """What the cluster's variables say; None on a single machine, where torchrun finds a free port itself."""
        variables = os.environ
        match place:
            case "local":
                return None
            case "slurm":
                from submitit.slurm.slurm import SlurmJobEnvironment

                number = int(variables["SLURM_JOB_ID"])
                endpoint = f"{SlurmJobEnvironment().hostnames[0]}:{FIRST_PORT + number % NUM_PORTS}"
                attempt = variables.get("SLURM_RESTART_COUNT", "0")
                return cls(int(variables.get("SLURM_NODEID", "0")), endpoint, f"{number}.{attempt}")
            case "kubernetes":  # set by Kubeflow's torch plugin
                endpoint = f"{variables['PET_MASTER_ADDR']}:{variables['PET_MASTER_PORT']}"
                return cls(int(variables.get("PET_NODE_RANK", "0")), endpoint, endpoint)


def main(arguments: Sequence[str]) -> int:
    """Run one node to its end; the exit code is the job's."""
    options = _parse(arguments)
    os.chdir(options.folder)
    signal.signal(signal.SIGTERM, _stop)
    signal.signal(signal.SIGINT, _stop)
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # Slurm may send submitit's signal to all; ranks inherit this
    meeting = Meeting.of(options.place)
    first = meeting is None or meeting.index == 0
    if first:
        options.exit_file.unlink(missing_ok=True)
    code = _run(options, meeting)
    if first:
        write_text(options.exit_file, str(code))
    return code


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m valle2.launch.node")
    parser.add_argument("--place", choices=("local", "slurm", "kubernetes"), default="local")
    parser.add_argument("--folder", type=Path, default=Path.cwd())
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--restarts", type=int, default=4)
    parser.add_argument("--grace", type=float, default=60.0)
    parser.add_argument("--exit-file", type=Path, required=True)
    parser.add_argument("command", nargs="+")
    return parser.parse_args(arguments)


def _stop(number: int, frame: object) -> None:
    """Until torchrun has its own handlers in place."""
    raise _Stopped


class _Stopped(BaseException):
    """A request to stop, before there was anything to stop."""


def _run(options: argparse.Namespace, meeting: Meeting | None) -> int:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # the loop sets its own; torchrun would warn of it
    # A store of its own for each attempt: in a shared one, gloo finds the addresses of ranks that have died.
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    for name in [name for name in os.environ if name.startswith("PET_")]:
        del os.environ[name]  # torchrun would take them for its own options; `Meeting` has read what matters
    try:
        import torch.distributed.run as torchrun
        from torch.distributed.elastic.agent.server.api import SignalException
        from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
        from torch.distributed.launcher import api

        setattr(api, "LocalElasticAgent", _agent(api.LocalElasticAgent, options.grace))  # noqa: B010 - no other way in
        try:
            torchrun.run(torchrun.parse_args(_torchrun_options(options, meeting)))
        except SignalException:
            return PREEMPTED
        except ChildFailedError as error:
            return _explain(error, options.restarts)
    except _Stopped:
        return PREEMPTED
    return 0


def _torchrun_options(options: argparse.Namespace, meeting: Meeting | None) -> list[str]:
    counts = [f"--nproc-per-node={options.processes}", f"--max-restarts={options.restarts}"]
    if meeting is None:
        place = ["--standalone", "--nnodes=1", "--local-addr=127.0.0.1"]
    else:
        place = [
            f"--nnodes={options.nodes}", "--rdzv-backend=c10d", f"--rdzv-endpoint={meeting.endpoint}",
            f"--rdzv-id={meeting.id}", f"--rdzv-conf=is_host={int(meeting.index == 0)}",
        ]  # fmt: skip
    return [*place, *counts, *options.command]


def _agent(base: Any, grace: float) -> Any:
    """torchrun's agent with our rules of when to give up and how long to wait; it has no options for them."""

    class Agent(base):
        def _monitor_workers(self, worker_group: Any) -> Any:
            result = super()._monitor_workers(worker_group)
            if any(failure.exitcode in FINAL for failure in result.failures.values()):
                self._remaining_restarts = 0
            return result

        def _shutdown(self, death_sig: signal.Signals = signal.SIGTERM) -> None:
            if self._pcontext:
                self._pcontext.close(signal.SIGTERM, timeout=int(grace))
            super()._shutdown(death_sig)

    return Agent


def _explain(error: Any, restarts: int) -> int:
    """One sentence for what no rank can have said itself."""
    final = [failure.exitcode for failure in error.failures.values() if failure.exitcode in FINAL]
    if final:
        return final[0]
    rank, failure = error.get_first_failure()
    how = f"failed with exit code {failure.exitcode}"
    if failure.exitcode < 0:
        name = signal.Signals(-failure.exitcode).name
        cause = ", which the system does when memory runs out" if name == "SIGKILL" else ""
        how = f"was ended by {name}{cause}"
    print(
        f"valle2: rank {rank} {how}, after {restarts} restarts; run the same command again, it goes on from its last "
        "checkpoint",
        file=sys.stderr,
    )
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
