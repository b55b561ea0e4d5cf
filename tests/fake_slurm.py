"""A Slurm of one machine for tests: sbatch, srun, squeue, scancel and scontrol that run the real script text with bash.

It does what the launcher needs of the real one: options from #SBATCH lines, tasks with SLURM_* variables and a file of
output each, SIGTERM to the tasks alone and SIGKILL later, requeueing under the same number. All nodes are this machine.
"""

import json
import os
import random
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

PROGRAMS = ("sbatch", "srun", "squeue", "scancel", "scontrol")
KILL_WAIT = 30.0
FIRST_PORT = 20_000


def install(folder: Path) -> Path:
    """Make the programs; the folder goes on PATH, and its `state` to FAKE_SLURM."""
    programs = folder / "bin"
    programs.mkdir(parents=True)
    (folder / "state").mkdir()
    for name in PROGRAMS:
        words = shlex.join([sys.executable, __file__, name])
        (programs / name).write_text(f'#!/bin/sh\nexec {words} "$@"\n')
        (programs / name).chmod(0o755)
    return programs


def state_file(number: str) -> Path:
    return Path(os.environ["FAKE_SLURM"]) / f"{number}.json"


def read(number: str) -> dict[str, Any]:
    return json.loads(state_file(number).read_text())


def change(number: str, **values: Any) -> None:
    path = state_file(number)
    old = read(number) if path.exists() else {}
    building = path.with_suffix(f".{os.getpid()}.tmp")
    building.write_text(json.dumps(old | values))
    building.replace(path)


def sbatch(script: str) -> None:
    text = Path(script).read_text()
    options = dict(re.findall(r"^#SBATCH --([\w-]+)=(.*)$", text, re.M))
    options = {name: shlex.split(value)[0] for name, value in options.items()}
    if options.get("partition") == "wrong":
        sys.exit("sbatch: error: invalid partition specified: wrong")
    number = str(3 * FIRST_PORT + free_rendezvous_port() - FIRST_PORT)  # from which its port follows
    change(number, name=options["job-name"], state="PENDING", options=options, text=text, restarts=0, tasks=[])
    subprocess.Popen([sys.executable, __file__, "control", number], start_new_session=True, close_fds=True,
                     stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
    print(f"Submitted batch job {number}")


def free_rendezvous_port() -> int:
    while True:
        port = random.randrange(FIRST_PORT, 2 * FIRST_PORT)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def control(number: str) -> None:
    """The controller: run the script, again after a requeue."""
    while True:
        job = read(number)
        options = job["options"]
        nodes = options["nodes"]
        variables = {
            "SLURM_JOB_ID": number, "SLURM_JOB_NUM_NODES": nodes, "SLURM_NTASKS": nodes,
            "SLURM_JOB_NODELIST": "127.0.0.1", "SLURM_RESTART_COUNT": str(job["restarts"]),
        }  # fmt: skip
        change(number, state="RUNNING", requeue=False)
        with Path(options["output"].replace("%j", number)).open("ab") as log:
            subprocess.run(["bash", "-c", job["text"]], env={**os.environ, **variables}, stdout=log, stderr=log)
        if not read(number).get("requeue"):
            break
        change(number, state="PENDING", restarts=job["restarts"] + 1)
        time.sleep(1)
    change(number, state="ENDED")


def srun(*words: str) -> None:
    arguments = list(words)
    assert arguments.pop(0) == "--unbuffered" and arguments.pop(0) == "--output"
    pattern, number = arguments.pop(0), os.environ["SLURM_JOB_ID"]
    tasks = []
    for index in range(int(os.environ["SLURM_NTASKS"])):
        variables = {"SLURM_PROCID": str(index), "SLURM_NODEID": str(index), "SLURM_LOCALID": "0"}
        with Path(pattern.replace("%j", number).replace("%t", str(index))).open("ab") as log:
            tasks.append(subprocess.Popen(arguments, env={**os.environ, **variables}, stdout=log, stderr=log))
    change(number, tasks=[task.pid for task in tasks])
    sys.exit(max(task.wait() for task in tasks))


def squeue(*words: str) -> None:
    name = words[words.index("--name") + 1] if "--name" in words else None
    assert words[-2:] == ("--format", "%A") and "--me" in words
    for path in sorted(Path(os.environ["FAKE_SLURM"]).glob("*.json")):
        job = json.loads(path.read_text())
        if job["state"] != "ENDED" and name in (None, job["name"]):
            print(path.stem)


def scancel(number: str, *words: str) -> None:
    """Signals go to the tasks, as with proctrack/cgroup; their children only get SIGKILL."""
    tasks = [psutil.Process(pid) for pid in read(number)["tasks"] if psutil.pid_exists(pid)]
    if words:
        assert words[0] == "--signal"
        for task in tasks:
            task.send_signal(getattr(signal, f"SIG{words[1].removeprefix('SIG')}"))
        return
    whole = [process for task in tasks for process in (task, *task.children(recursive=True))]
    for task in tasks:
        task.terminate()
    if os.fork() == 0:
        os.setsid()
        time.sleep(KILL_WAIT)
        for process in whole:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        os._exit(0)


def scontrol(verb: str, number: str) -> None:
    assert verb == "requeue"
    change(number, requeue=True)


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
