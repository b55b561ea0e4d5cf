"""A training stage as a job: find or submit it, show its log, wait, and pass on a request to stop.

The stage command may be killed at any moment: the job goes on, and the next command finds it. Only SIGTERM and Ctrl-C
end the job, and what it made until then is kept.
"""

import fcntl
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from valle2.config.launch import LaunchConfig
from valle2.config.train import TrainConfig, TrainParams
from valle2.errors import TrainingError, WorkerError
from valle2.launch.job import PREEMPTED, Job, Launcher, Note, job_folder, make_launcher, read_outcome
from valle2.stage import digest, file_sha256, output
from valle2.types import Stage

MARK = "valle2: "
"""Before the sentence that a failed command ends with."""


def launch(stage: Stage, config: TrainParams, command: Sequence[str]) -> bool:
    """Have a job do the stage, if it is to be one.

    Args:
        stage: `train-ar` or `train-nar`.
        config: All parameters.
        command: What each rank runs, after `python`.

    Returns:
        Whether the stage is done; False when this process is to do it: it is a rank, or the parameters want no job.

    Raises:
        TrainingError: The job failed; the message is its own last sentence.
        WorkerError: The cluster cannot be used, or the workspace's job is being waited for already.
        SystemExit: With 75: the job was stopped on request.
    """
    if "RANK" in os.environ:
        return False
    folder, key = job_folder(stage), job_key(stage, config)
    with _alone(folder, stage):
        note = _settle(folder, config.launch, key)
        if note is None and config.launch.in_this_process:
            return False
        launcher = make_launcher(note.launcher if note else config.launch.launcher, config.launch, folder)
        if note and launcher.find(key) is None:
            Note.remove(folder)
            if read_outcome(folder).code == 0 and output(stage).is_dir():
                print(f"{stage}: its job finished while nobody waited for it", flush=True)
                return True
            if config.launch.in_this_process:
                return False
            launcher = make_launcher(config.launch.launcher, config.launch, folder)
        _attend(stage, launcher, folder, key, command)
    return True


def show(stage: Stage, config: TrainParams, command: Sequence[str]) -> str:
    """What `launch` would submit, as text."""
    if config.launch.in_this_process:
        return f"{stage} runs in the command's own process: launch.launcher is local with one process"
    folder = job_folder(stage)
    return make_launcher(config.launch.launcher, config.launch, folder).show(command, job_key(stage, config))


def job_key(stage: Stage, config: TrainParams) -> str:
    """Equal for the same training in the same workspace, wherever it runs."""
    settings: TrainConfig = config.train_ar if stage == "train-ar" else config.train_nar
    files = [output("tokenize") / "manifest.json", output("curate") / "bpe.json"]
    files += [Path(settings.warm_start, "model.json")] if settings.warm_start else []
    inputs: list[Any] = [config.runtime.model_dump(), config.model.model_dump(), settings.model_dump()]
    return digest([stage, str(Path.cwd()), inputs, [file_sha256(file) if file.is_file() else None for file in files]])


def _settle(folder: Path, config: LaunchConfig, key: str) -> Note | None:
    """The note of this training's job; a job of other parameters, which would write to the same place, is ended."""
    note = Note.read(folder)
    if note is None or note.key == key:
        return note
    old = make_launcher(note.launcher, config, folder)
    job = old.find(note.key)
    if job is not None:
        print(f"{folder.name}: a job of other parameters or data ({note.launcher} {job.id}) still ran here; ending it")
        old.cancel(job)
        old.wait(job)
    Note.remove(folder)
    return None


def _attend(stage: Stage, launcher: Launcher, folder: Path, key: str, command: Sequence[str]) -> None:
    """See a job through, from wherever it is."""
    with _Stop(launcher) as stop:
        job = launcher.find(key)
        Note(key, launcher.name).write(folder)
        state = "going on with" if job else "submitted"
        job = job or launcher.submit(command, key)
        stop.cancels(job)
        print(f"{stage}: {state} job {job.id} ({launcher.name})", flush=True)
        sentence = _tell(launcher.logs(job))
        code = launcher.wait(job).code
        Note.remove(folder)
    if code == 0:
        return
    if code == PREEMPTED or stop.asked:
        print(f"{MARK}{stage} was stopped; run the same command again, it goes on from its last checkpoint",
              file=sys.stderr, flush=True)  # fmt: skip
        raise SystemExit(PREEMPTED)
    if code is None:
        raise WorkerError(
            f"job {job.id} ({launcher.name}) of {stage} was killed, or its machine was lost; run the same command "
            "again, it goes on from its last checkpoint"
        )
    raise TrainingError(sentence or f"job {job.id} ({launcher.name}) of {stage} ended with exit code {code}; see above")


def _tell(lines: Iterator[str]) -> str:
    """Print lines as they come, but for the last sentence, which is returned."""
    sentence = ""
    for line in lines:
        if not line.startswith(MARK):
            print(line, flush=True)
        elif line.removeprefix(MARK) != sentence:
            if sentence:
                print(MARK + sentence, flush=True)
            sentence = line.removeprefix(MARK)
    return sentence


class _Stop:
    """While it is open, SIGTERM and Ctrl-C cancel the job; its last lines are still shown."""

    def __init__(self, launcher: Launcher) -> None:
        self.asked = False
        self._launcher = launcher
        self._job: Job | None = None
        self._before: dict[signal.Signals, Any] = {}

    def cancels(self, job: Job) -> None:
        """From now on there is something to cancel."""
        self._job = job
        if self.asked:
            self._launcher.cancel(job)

    def __enter__(self) -> "_Stop":
        for number in (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: object) -> None:
        if not self.asked and self._job is not None:
            self._launcher.cancel(self._job)
        self.asked = True


@contextmanager
def _alone(folder: Path, stage: Stage) -> Iterator[None]:
    """Two commands that wait for one job would tell its end twice, and one of them start it again."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise WorkerError(
                f"another {stage} waits for its job in {Path.cwd()}; stop it, or wait until it has finished"
            ) from error
        yield
