"""Slurm through submitit: one task a node, which runs torchrun's agent there.

submitit writes the sbatch script and requeues the job when its time is up or it is preempted (Slurm's signal comes
`launch.grace_seconds` before): the ranks write their checkpoint, and the job goes on under the same number. A job is
found again by its name.
"""

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tenacity

from valle2.config.launch import LaunchConfig, LauncherName
from valle2.errors import WorkerError
from valle2.launch.job import ARRIVAL, KEY_VARIABLE, PREEMPTED, Job, Outcome, exit_file, follow, job_name, read_outcome
from valle2.launch.node import node_command
from valle2.types import Seconds

if TYPE_CHECKING:
    from submitit.helpers import DelayedSubmission

LOOK_EVERY: Seconds = 3.0
PATIENCE: Seconds = 600.0
"""How long Slurm's controller may be away while a job runs."""
COMMANDS = ("sbatch", "srun", "squeue", "scancel")
ENDING: Seconds = 15.0
"""Added to the ranks' grace before Slurm kills the job: the agent has to stop them and end itself."""


@dataclass
class NodeTask:
    """What submitit runs on each node; picklable.

    Attributes:
        words: The words after `python`.
        python: Interpreter, None for the task's own.
        environment: Variables that the node needs.
    """

    words: list[str]
    python: str | None
    environment: dict[str, str]

    def __call__(self) -> int:
        """Run the node's agent; its exit code is the task's result."""
        self._agent = subprocess.Popen(
            [self.python or sys.executable, *self.words], env={**os.environ, **self.environment}
        )
        # Over submitit's own, which ignores it: scancel sends it to this process alone, and SIGKILL a little later.
        signal.signal(signal.SIGTERM, lambda number, frame: self._agent.send_signal(signal.SIGTERM))
        return self._agent.wait()

    def checkpoint(self) -> "DelayedSubmission | None":
        """submitit's hook at preemption and at the end of the time: stop the ranks, and say what to requeue."""
        from submitit.helpers import DelayedSubmission

        self._agent.send_signal(signal.SIGTERM)
        if _code_of(self._agent) != PREEMPTED:
            return None  # it has finished, or failed, meanwhile: there is nothing to go on with
        return DelayedSubmission(NodeTask(self.words, self.python, self.environment))


class SlurmLauncher:
    """Jobs of the Slurm cluster that this machine submits to."""

    name: LauncherName = "slurm"

    def __init__(self, config: LaunchConfig, folder: Path) -> None:
        self._config = config
        self._folder = folder
        self._looked = -LOOK_EVERY

    def find(self, key: str) -> Job | None:
        """The job of that name which waits or runs."""
        check_commands()
        queue = ["squeue", "--me", "--noheader", "--name", job_name(self._folder, key), "--format", "%A"]
        found = _ask(queue).split()
        return Job(key, found[0]) if found else None

    def submit(self, command: Sequence[str], key: str) -> Job:
        """Submit it with sbatch."""
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        check_commands()
        exit_file(self._folder).unlink(missing_ok=True)
        try:
            job = make_executor(self._config, self._folder, key).submit(self.task(command, key))
        except (FailedJobError, FailedSubmissionError) as error:
            reason = " ".join(str(error).split())[-300:]
            raise WorkerError(f"Slurm does not take the job: {reason}; see `launch.slurm` in params.yaml") from error
        return Job(key, job.job_id)

    def task(self, command: Sequence[str], key: str) -> NodeTask:
        """What each node runs."""
        words = node_command(self._config, self.name, self._folder, command)
        environment = {KEY_VARIABLE: key, "PYTHONUNBUFFERED": "1"}
        return NodeTask(words, self._config.slurm.python or None, environment)

    def logs(self, job: Job) -> Iterator[str]:
        """The lines of the files of all nodes."""
        pattern = f"{job.id}_*_log.out"
        return follow(lambda: sorted(self._jobs.glob(pattern)), lambda: self._is_queued(job))

    def wait(self, job: Job) -> Outcome:
        """Until it has left the queue for good."""
        while self._is_queued(job):
            pass
        return read_outcome(self._folder, ARRIVAL)

    def cancel(self, job: Job) -> None:
        """scancel: SIGTERM to all processes, and SIGKILL after the cluster's KillWait."""
        _ask(["scancel", job.id])

    def show(self, command: Sequence[str], key: str) -> str:
        """The sbatch script, and what each node runs."""
        executor: Any = make_executor(self._config, self._folder, key, check=False)
        script = executor._make_submission_file_text(executor._submitit_command_str, "")
        task = self.task(command, key)
        return f"{script}\n# on each node:\n# {shlex.join([task.python or sys.executable, *task.words])}"

    @property
    def _jobs(self) -> Path:
        return self._folder / "slurm"

    def _is_queued(self, job: Job) -> bool:
        """Waits, runs, or is about to be requeued. Asked again while Slurm's controller is away: the job goes on."""
        patient = tenacity.retry(
            retry=tenacity.retry_if_exception_type(WorkerError), stop=tenacity.stop_after_delay(PATIENCE),
            wait=tenacity.wait_fixed(LOOK_EVERY), reraise=True,
        )  # fmt: skip
        if (wait := self._looked + LOOK_EVERY - time.monotonic()) > 0:
            time.sleep(wait)
        self._looked = time.monotonic()
        return job.id in patient(_ask)(["squeue", "--me", "--noheader", "--format", "%A"]).split()


def make_executor(config: LaunchConfig, folder: Path, key: str, check: bool = True) -> Any:
    """submitit's executor with the settings of `launch.slurm`.

    Args:
        config: The settings.
        folder: The stage's job folder.
        key: The job's.
        check: Whether Slurm has to be there; without it, the executor can only show its script.
    """
    _quieten()
    from submitit.slurm.slurm import SlurmExecutor

    class Offline(SlurmExecutor):  # submitit refuses to be made where there is no srun
        @classmethod
        def affinity(cls) -> int:
            return 1

    slurm = config.slurm
    kind = SlurmExecutor if check else Offline
    executor = kind(folder / "slurm", max_num_timeout=slurm.max_requeues, python=slurm.python or None)
    given = {
        "partition": slurm.partition or None, "account": slurm.account or None,
        "gpus_per_node": slurm.gpus_per_node or None, "mem": f"{slurm.mem_gb:g}GB" if slurm.mem_gb else None,
        "setup": list(slurm.setup) or None, "additional_parameters": slurm.extra or None,
    }  # fmt: skip
    executor.update_parameters(
        job_name=job_name(folder, key), nodes=config.num_nodes, ntasks_per_node=1, time=slurm.time_minutes,
        cpus_per_task=slurm.cpus_per_task, signal_delay_s=int(config.grace_seconds + ENDING), stderr_to_stdout=True,
        **{name: value for name, value in given.items() if value is not None},
    )  # fmt: skip
    return executor


def check_commands() -> None:
    """Say in one sentence that there is no Slurm.

    Raises:
        WorkerError: A command of Slurm is missing.
    """
    missing = [name for name in COMMANDS if shutil.which(name) is None]
    if missing:
        raise WorkerError(
            f"no {', '.join(missing)} on this machine; run the command on one that submits to Slurm, or set "
            "`launch.launcher` to local"
        )


def _code_of(process: "subprocess.Popen[bytes]") -> int | None:
    """Wait for a process inside a signal handler: `Popen.wait` may hold its lock in the code that was interrupted."""
    try:
        ended = os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    except ChildProcessError:
        return process.returncode
    return ended.si_status if ended is not None and ended.si_code == os.CLD_EXITED else None


def _ask(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1]
        raise WorkerError(f"`{shlex.join(command)}` fails: {reason}; is Slurm's controller up?")
    return done.stdout


def _quieten() -> None:
    """submitit logs to the terminal, and only says what the sbatch file's name is."""
    os.environ.setdefault("SUBMITIT_LOG_LEVEL", "ERROR")
