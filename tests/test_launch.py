"""Jobs: real torchrun with real ranks, found again, cancelled, restarted; Slurm and Kubernetes as far as runs here.

Slurm's script is submitit's own text, run by bash through a fake sbatch and srun, and the same callable by submitit's
local executor. The TrainJob is what the Kubeflow SDK posts to a fake API server, which runs its command as processes.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from pydantic import ValidationError

from tests import fake_slurm
from tests.fake_kubernetes import Cluster
from tests.tiny import ROOT
from tests.toy import git, make_toy, run_toy
from valle2.config.launch import LaunchConfig
from valle2.config.params import Config, load_config, parse_config
from valle2.errors import ConfigError, WorkerError
from valle2.launch import kubernetes, local, slurm
from valle2.launch.job import JOBS, Note, exit_file, job_folder
from valle2.launch.local import LocalLauncher
from valle2.launch.stage import job_key, launch, show

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

GOLDEN = ROOT / "tests" / "golden"
PATIENCE = 90.0
KUBERNETES: dict[str, Any] = {
    "namespace": "speech", "image": "registry.example/valle2:1", "volume_claim": "speech", "python": sys.executable,
}  # fmt: skip


@pytest.fixture(autouse=True)
def no_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a quiet machine: no job's variables are set."""
    for name in list(os.environ):
        if name.startswith(("RANK", "WORLD_SIZE", "SLURM_", "SUBMITIT_", "VALLE2_", "MLFLOW_", "PET_", "KUBE")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A workspace whose jobs are two local ranks; nothing of them is left in the end."""
    monkeypatch.chdir(tmp_path)
    write_params({"processes_per_node": 2})
    yield tmp_path
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if "VALLE2_JOB" in process.environ() and str(tmp_path) in " ".join(process.cmdline()):
                process.kill()


def write_params(section: dict[str, Any]) -> Config:
    Path("params.yaml").write_text(yaml.safe_dump({"launch": {"grace_seconds": 20, **section}}))
    return load_config()


def start(*arguments: str) -> "subprocess.Popen[str]":
    """The stage command, in a session of its own as `flows.command` starts it."""
    return subprocess.Popen(
        [sys.executable, str(ROOT / "tests" / "launching.py"), *arguments], start_new_session=True, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def run(*arguments: str) -> tuple[int, list[str]]:
    with start(*arguments) as process:
        said, _ = process.communicate(timeout=200)
    return process.returncode, said.splitlines()


def until(found: Callable[[], Any]) -> Any:
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if it := found():
            return it
        time.sleep(0.1)
    raise AssertionError("waited in vain")


def step() -> int:
    path = Path("work/step")
    return int(path.read_text() or 0) if path.is_file() else 0


def ranks() -> list[int]:
    return [int(until(Path(f"work/pid-{rank}").read_text)) for rank in (0, 1)]


def running(pids: list[int]) -> list[int]:
    return [pid for pid in pids if psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE]


# ---- on this machine


def test_two_ranks_do_the_stage_and_their_lines_are_shown(folder: Path) -> None:
    code, said = run("3")
    assert code == 0 and Path("work/result").read_text() == "3"
    assert [line for line in said if line.startswith("rank 1 of 2, attempt 0")] and "sum 3" in said
    assert said[0].startswith("train-ar: submitted job ") and Note.read(job_folder("train-ar")) is None


def test_a_job_that_was_just_started_is_no_dead_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Right behind a start the system may show a process without its environment."""
    launcher = LocalLauncher(load_config().launch, folder / "job")
    monkeypatch.setattr(local, "_has_key", lambda process, key: False)
    (folder / "work").mkdir()
    job = launcher.submit([str(ROOT / "tests/rank.py"), str(folder / "work"), "2"], "a" * 64)
    assert any("sum 3" in line for line in launcher.logs(job))
    assert launcher.wait(job).code == 0


def test_a_rank_that_is_killed_is_restarted_and_goes_on_from_its_checkpoint(folder: Path) -> None:
    code, said = run("4", "die")
    assert code == 0 and Path("work/result").read_text() == "3"
    assert "rank 0 of 2, attempt 1, from step 2" in said, "the first restart is enough: no address of dead ranks"


def test_a_rank_that_dies_again_and_again_is_one_sentence(folder: Path) -> None:
    write_params({"processes_per_node": 2, "max_restarts": 1})
    code, said = run("9", "always")
    assert code == 2 and said[-1].startswith("valle2: rank 1 was ended by SIGKILL, which the system does when memory")
    assert len([line for line in said if line.startswith("valle2: ")]) == 1


def test_a_users_mistake_is_not_tried_again(folder: Path) -> None:
    code, said = run("3", "mistake")
    assert code == 2 and said[-1] == "valle2: the parameter is wrong; mend it"
    assert len([line for line in said if "the parameter is wrong" in line]) == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stopping_the_command_stops_the_ranks_at_a_checkpoint(folder: Path, number: signal.Signals) -> None:
    process = start("500")
    until(lambda: step() >= 2)
    pids = ranks()
    process.send_signal(number)
    said = process.communicate(timeout=60)[0].splitlines()
    assert process.returncode == 75 and not running(pids)
    assert f"rank 0: stopped at step {step()}" in said
    assert said[-1] == "valle2: train-ar was stopped; run the same command again, it goes on from its last checkpoint"

    before = step()
    code, said = run(str(before + 2))
    assert code == 0 and f"rank 0 of 2, attempt 0, from step {before}" in said, said


def test_after_the_command_is_killed_the_next_one_finds_the_job(folder: Path) -> None:
    process = start("40")
    until(lambda: step() >= 2)
    pids = ranks()
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert running(pids) == pids

    code, said = run("40")
    assert code == 0 and said[0].startswith("train-ar: going on with job ")
    assert ranks() == pids and "sum 3" in said and len([line for line in said if "attempt" in line]) == 2


def test_a_job_that_finished_unwatched_is_not_run_again(folder: Path) -> None:
    process = start("8")
    until(lambda: step() >= 1)
    process.kill()
    process.communicate()
    [agent] = {psutil.Process(pid).ppid() for pid in ranks()}
    until(lambda: exit_file(job_folder("train-ar")).is_file() and not running([agent]))
    code, said = run("8")
    assert code == 0 and said == ["train-ar: its job finished while nobody waited for it"]


def test_ranks_whose_agent_was_killed_are_ended_before_new_ones_start(folder: Path) -> None:
    process = start("500")
    until(lambda: step() >= 2)
    pids = ranks()
    [agent] = {psutil.Process(pid).ppid() for pid in pids}
    os.kill(agent, signal.SIGKILL)
    said = process.communicate(timeout=60)[0].splitlines()
    assert process.returncode == 2 and "was killed, or its machine was lost" in said[-1] and not running(pids)


def test_a_job_of_other_parameters_is_ended_first(folder: Path) -> None:
    process = start("500")
    until(lambda: step() >= 2)
    pids = ranks()
    process.kill()
    process.communicate()
    Path("params.yaml").write_text(yaml.safe_dump({"launch": {"processes_per_node": 2}, "train_ar": {"num_steps": 7}}))
    code, said = run(str(step() + 3))
    assert code == 0 and "still ran here; ending it" in said[0] and not running(pids), said


def test_a_second_command_is_refused(folder: Path) -> None:
    process = start("500")
    until(lambda: step() >= 1)
    code, said = run("500")
    assert code == 2 and "another train-ar waits for its job" in said[-1]
    process.terminate()
    process.communicate(timeout=60)


def test_one_local_process_and_a_rank_need_no_job(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not launch("train-ar", write_params({}), ["nothing"])
    monkeypatch.setenv("RANK", "1")
    assert not launch("train-ar", write_params({"processes_per_node": 2}), ["nothing"])


def test_where_it_runs_is_no_part_of_what_it_is(folder: Path) -> None:
    key = job_key("train-ar", write_params({}))
    assert key == job_key("train-ar", write_params({"processes_per_node": 2, "max_restarts": 9}))
    assert key != job_key("train-nar", load_config())
    assert key != job_key("train-ar", parse_config({"train_ar": {"num_steps": 7}}))


def test_settings_that_do_not_fit_are_one_sentence(folder: Path) -> None:
    with pytest.raises(ConfigError, match="needs launcher slurm or kubernetes"):
        write_params({"num_nodes": 2})
    with pytest.raises(ConfigError, match=r"needs kubernetes\.image, kubernetes\.volume_claim, kubernetes\.mount_path"):
        write_params({"launcher": "kubernetes"})
    with pytest.raises(ConfigError, match="did you mean `partition`"):
        write_params({"slurm": {"partitoin": "gpu"}})


# ---- in a flow


@pytest.fixture
def toy(tmp_path: Path, no_rank: None, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository whose train-ar is a job of two ranks, 40 steps long."""
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    repository = make_toy(tmp_path / "toy")
    graph = yaml.safe_load((repository / "dvc.yaml").read_text())
    graph["stages"]["train-ar"]["cmd"] = f"python {ROOT / 'tests' / 'launching.py'} 40"
    (repository / "dvc.yaml").write_text(yaml.safe_dump(graph))
    (repository / "params.yaml").write_text(yaml.safe_dump({"launch": {"processes_per_node": 2}}))
    git(repository, "-c", "user.name=t", "-c", "user.email=t@localhost", "commit", "--quiet", "--all", "-m", "a job")
    return repository


def start_flow(toy: Path, monkeypatch: pytest.MonkeyPatch) -> "subprocess.Popen[bytes]":
    """Run it up to train-ar in another process, and go to its workspace once the job runs."""
    # A shell's background jobs, and what they start, ignore Ctrl-C; this one shall not.
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "tests" / "toy.py"), str(toy), "train-ar"],
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    space = toy / ".valle2" / "workspaces" / "killed"
    until(lambda: (space / "work" / "step").is_file() or process.poll() is not None)
    monkeypatch.chdir(space)
    until(lambda: step() >= 2)
    return process


@pytest.mark.parametrize("at", ["while the job runs", "after it has finished"])
def test_a_killed_flow_run_finds_its_job(
    toy: Path, at: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    process = start_flow(toy, monkeypatch)
    pids = ranks()
    process.kill()
    process.wait()
    if at == "after it has finished":
        until(lambda: not running(pids) and (JOBS / "train-ar" / "exit").is_file())
    monkeypatch.chdir(toy)
    capfd.readouterr()
    space, runs = run_toy(toy, "next", "train-ar")
    assert space.resumed and runs.stages[-1].state == "ran"
    said = capfd.readouterr().out
    monkeypatch.chdir(space.root)
    assert ranks() == pids, "the ranks of the first run did it all"
    wanted = "going on with job" if at == "while the job runs" else "finished while nobody waited for it"
    assert wanted in said


def test_a_flow_run_that_is_stopped_stops_its_job_at_a_checkpoint(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    process = start_flow(toy, monkeypatch)
    process.send_signal(signal.SIGINT)
    process.wait(timeout=60)
    until(lambda: not running(ranks()))
    assert f"rank 0: stopped at step {step()}" in (JOBS / "train-ar" / "log").read_text()
    assert exit_file(JOBS / "train-ar").read_text() == "75"


# ---- Slurm


@pytest.fixture
def cluster(folder: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A fake Slurm on PATH, two nodes."""
    place = tmp_path_factory.mktemp("slurm")
    programs = fake_slurm.install(place)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_SLURM", str(place / "state"))
    write_params({"launcher": "slurm", "num_nodes": 2})
    yield place / "state"
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get("FAKE_SLURM") == str(place / "state") and process.pid != os.getpid():
                process.kill()


def submitted(state: Path) -> list[str]:
    return [path.stem for path in state.glob("*.json")]


def test_the_sbatch_script_is_the_golden_one(folder: Path) -> None:
    section = {
        "launcher": "slurm", "num_nodes": 2, "processes_per_node": 8, "grace_seconds": 60,
        "slurm": {
            "partition": "gpu", "account": "speech", "gpus_per_node": 8, "cpus_per_task": 64, "mem_gb": 512,
            "setup": ["module load cuda"], "extra": {"constraint": "h100", "qos": "high"}, "python": "/opt/venv/python",
        },
    }  # fmt: skip
    compare("train-ar.sbatch", show("train-ar", write_params(section), ["-m", "valle2.cli", "train-ar"]))


def compare(name: str, text: str) -> None:
    """With a golden file, in which folder and key have stand-ins; a missing one is written, and fails once."""
    key = job_key("train-ar", load_config())
    for found, stand_in in (
        (str(Path.cwd()), "/workspace"), (key, "<key>"), (key[:63], "<key63>"), (key[:12], "<key12>"),
        (sys.executable, "python"),
    ):  # fmt: skip
        text = text.replace(found, stand_in)
    text = text.rstrip("\n") + "\n"
    golden = GOLDEN / name
    wanted = golden.read_text() if golden.is_file() else ""
    if not wanted:
        golden.write_text(text)
    assert text == wanted, f"remove {golden} and run this again to write it anew"


def test_slurm_runs_the_script_on_two_nodes(cluster: Path) -> None:
    code, said = run("3")
    assert code == 0 and Path("work/result").read_text() == "3", said
    assert any(line.startswith("rank 1 of 2, attempt 0") for line in said) and "sum 3" in said
    [number] = submitted(cluster)
    assert said[0] == f"train-ar: submitted job {number} (slurm)"


def test_a_killed_command_finds_its_slurm_job_and_stopping_cancels_it(cluster: Path) -> None:
    process = start("500")
    until(lambda: step() >= 2)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()

    process = start("500")
    assert process.stdout is not None and "going on with job" in process.stdout.readline()
    process.terminate()
    said = process.communicate(timeout=90)[0].splitlines()
    assert process.returncode == 75 and len(submitted(cluster)) == 1
    assert f"rank 0: stopped at step {step()}" in said and not running(ranks())


def test_a_preempted_slurm_job_is_requeued_and_goes_on(cluster: Path) -> None:
    process = start("40")
    until(lambda: step() >= 2)
    [number] = submitted(cluster)
    subprocess.run(["scancel", number, "--signal", "USR2"], check=True)
    said = process.communicate(timeout=150)[0].splitlines()
    assert process.returncode == 0 and submitted(cluster) == [number], said
    [stopped] = [line for line in said if line.startswith("rank 0: stopped at step")]
    assert f"rank 0 of 2, attempt 0, from step {stopped.split()[-1]}" in said and "sum 3" in said


def test_what_slurm_refuses_is_one_sentence(cluster: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_params({"launcher": "slurm", "slurm": {"partition": "wrong"}})
    code, said = run("3")
    assert (
        code == 2 and said[-1].startswith("valle2: Slurm does not take the job: ") and "invalid partition" in said[-1]
    )
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(WorkerError, match="no sbatch, srun, squeue, scancel on this machine"):
        slurm.check_commands()


def test_submitits_local_executor_runs_the_same_callable(folder: Path) -> None:
    import submitit

    config = write_params({"processes_per_node": 2}).launch
    job_folder("train-ar").mkdir(parents=True)
    Path("work").mkdir()
    task = slurm.SlurmLauncher(config, job_folder("train-ar")).task([str(ROOT / "tests/rank.py"), "work", "3"], "key")
    task.words[task.words.index("slurm")] = "local"  # there are no SLURM_* variables to meet by
    executor = submitit.LocalExecutor(folder / "submitit")
    executor.update_parameters(timeout_min=5)
    assert executor.submit(task).result() == 0
    assert Path("work/result").read_text() == "3"


# ---- Kubernetes


@pytest.fixture
def api(folder: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A fake API server."""
    cluster = Cluster(tmp_path_factory.mktemp("kubernetes"))
    monkeypatch.setenv("KUBECONFIG", str(cluster.kubeconfig()))
    section = {"launcher": "kubernetes", "num_nodes": 2, "kubernetes": {**KUBERNETES, "mount_path": str(folder)}}
    write_params(section)
    yield cluster
    cluster.close()


def test_the_trainjob_is_the_golden_one_and_fits_the_apis_schema(folder: Path) -> None:
    from kubeflow_trainer_api import models

    section = {
        "launcher": "kubernetes", "num_nodes": 2, "processes_per_node": 8, "grace_seconds": 60,
        "kubernetes": {
            **KUBERNETES, "mount_path": str(folder), "gpus_per_node": 8, "cpus_per_node": 32, "python": "python",
            "memory_per_node": "256Gi", "environment": {"AWS_REGION": "eu-1"}, "service_account": "trainer",
        },
    }  # fmt: skip
    text = show("train-ar", write_params(section), ["-m", "valle2.cli", "train-ar"])
    compare("train-ar.trainjob.yaml", text)
    manifest = yaml.safe_load(text)
    made = models.TrainerV1alpha1TrainJob.from_dict(manifest)
    assert made is not None and made.to_dict() == manifest, "the schema knows every field"
    broken = {**manifest, "spec": {**manifest["spec"], "trainer": {"numNodes": "two"}}}
    with pytest.raises(ValidationError):
        models.TrainerV1alpha1TrainJob.from_dict(broken)


def test_kubernetes_runs_the_trainjob_on_two_nodes(api: Cluster) -> None:
    code, said = run("3")
    assert code == 0 and Path("work/result").read_text() == "3", said
    assert any(line.startswith("rank 1 of 2, attempt 0") or line == "sum 3" for line in said)
    [body] = api.created
    launcher = kubernetes.KubernetesLauncher(load_config().launch, job_folder("train-ar"))
    command = [str(ROOT / "tests" / "rank.py"), str(Path.cwd() / "work"), "3"]
    assert body == launcher.manifest(command, job_key("train-ar", load_config())), "what is shown is what is posted"


def test_a_killed_command_finds_its_trainjob_and_stopping_deletes_it(api: Cluster) -> None:
    process = start("500")
    until(lambda: step() >= 2)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()

    process = start("500")
    assert process.stdout is not None and "going on with job" in process.stdout.readline()
    process.terminate()
    said = process.communicate(timeout=90)[0].splitlines()
    assert process.returncode == 75 and len(api.created) == 1 and not api.jobs
    assert f"rank 0: stopped at step {step()}" in said

    code, said = run(str(step() + 1))
    assert code == 0 and len(api.created) == 2


def test_an_ended_trainjob_makes_room_for_the_next(api: Cluster) -> None:
    code, said = run("3", "mistake")
    assert code == 2 and said[-1] == "valle2: the parameter is wrong; mend it"
    code, _ = run("3")
    assert code == 0 and len(api.created) == 2


def test_a_workspace_that_the_pods_cannot_see_is_refused(api: Cluster) -> None:
    write_params({"launcher": "kubernetes", "kubernetes": {**KUBERNETES, "mount_path": "/elsewhere"}})
    code, said = run("3")
    assert code == 2 and "is not below /elsewhere" in said[-1]
    write_params({"launcher": "kubernetes", "kubernetes": {**KUBERNETES, "mount_path": "/", "runtime": "none"}})
    code, said = run("3")
    assert code == 2 and "cannot create the TrainJob speech/valle2-train-ar-" in said[-1] and "Traceback" not in said


def test_the_three_are_launchers() -> None:
    config = LaunchConfig()
    made = [kind(config, JOBS) for kind in (local.LocalLauncher, slurm.SlurmLauncher, kubernetes.KubernetesLauncher)]
    assert [one.name for one in made] == ["local", "slurm", "kubernetes"]
