"""Kubernetes through the Kubeflow SDK: a TrainJob whose pods run torchrun's agent.

The workspace is on a volume that the pods mount at the same path, so that what ranks write is where the stage command
looks for it. The TrainJob's name follows from the key: Kubernetes itself refuses a second one.
"""

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tenacity
import yaml

from valle2.config.launch import LaunchConfig, LauncherName
from valle2.errors import WorkerError
from valle2.launch.job import ARRIVAL, KEY_VARIABLE, Job, Outcome, exit_file, job_name, read_outcome
from valle2.launch.node import node_command
from valle2.types import Seconds

if TYPE_CHECKING:
    from kubeflow.trainer import TrainerClient

LOOK_EVERY: Seconds = 2.0
GONE: Seconds = 120.0
"""A deleted TrainJob's pods are given time to end; then its name is free again."""
PATIENCE: Seconds = 600.0
"""How long the cluster's API may be away while a job runs."""
KEY_LABEL = "valle2/job"
STAGE_LABEL = "valle2/stage"
VOLUME = "workspace"
PASSED_ON = ("VALLE2_", "MLFLOW_TRACKING_URI")
"""Beginnings of names of variables that the pods get from the stage command's environment."""
NOT_FOUND = 404
ENDED = ("Complete", "Failed")


class KubernetesLauncher:
    """TrainJobs of one namespace."""

    name: LauncherName = "kubernetes"

    def __init__(self, config: LaunchConfig, folder: Path) -> None:
        self._config = config
        self._folder = folder
        self._made: TrainerClient | None = None

    def find(self, key: str) -> Job | None:
        """The TrainJob of that name, if it has not ended."""
        name = job_name(self._folder, key)
        status = self._status(name)
        return Job(key, name) if status is not None and status not in ENDED else None

    def submit(self, command: Sequence[str], key: str) -> Job:
        """Create the TrainJob, in place of an ended one of that name."""
        name = job_name(self._folder, key)
        self._check_workspace()
        if self._status(name) is not None:
            self._delete(name)
        exit_file(self._folder).unlink(missing_ok=True)
        with _sentences(f"create the TrainJob {self._where(name)}"):
            self._client.train(
                runtime=self._config.kubernetes.runtime, trainer=self._trainer(key), options=self._options(command, key)
            )
        return Job(key, name)

    def logs(self, job: Job) -> Iterator[str]:
        """The lines of the first node's pod; a connection that breaks is taken up at the line that it had reached."""
        told = 0
        while True:
            ended = self._has_ended(job)
            with suppress(RuntimeError):  # the pod is not there yet, or no longer
                for number, line in enumerate(self._client.get_job_logs(job.id, follow=not ended)):
                    if number >= told:
                        told += 1
                        yield line
            if ended:
                return
            time.sleep(LOOK_EVERY)

    def wait(self, job: Job) -> Outcome:
        """Until it is complete, failed or deleted."""
        while not self._has_ended(job):
            time.sleep(LOOK_EVERY)
        return read_outcome(self._folder, ARRIVAL)

    def cancel(self, job: Job) -> None:
        """Delete it: the pods get SIGTERM, and SIGKILL after their termination grace period."""
        with suppress(RuntimeError):
            self._client.delete_job(job.id)

    def show(self, command: Sequence[str], key: str) -> str:
        """The TrainJob as YAML."""
        return yaml.safe_dump(self.manifest(command, key), sort_keys=False)

    def manifest(self, command: Sequence[str], key: str) -> dict[str, Any]:
        """The TrainJob, made by the SDK without a cluster."""
        from kubeflow.trainer.backends.kubernetes.backend import KubernetesBackend
        from kubeflow.trainer.types.types import Runtime, RuntimeKind, RuntimeTrainer, TrainerType

        created: list[dict[str, Any]] = []

        class Recorder:
            def create_namespaced_custom_object(self, *place: str) -> None:
                created.append(place[-1])  # type: ignore[arg-type]

        class Offline(KubernetesBackend):
            def __init__(self, namespace: str) -> None:  # the SDK's own looks for a cluster
                self.namespace = namespace
                self.custom_api = Recorder()

        settings = self._config.kubernetes
        trainer = RuntimeTrainer(TrainerType.CUSTOM_TRAINER, "torch", settings.image)
        runtime = Runtime(settings.runtime, trainer, RuntimeKind.CLUSTER_TRAINING_RUNTIME)
        Offline(settings.namespace).train(runtime, trainer=self._trainer(key), options=self._options(command, key))
        return created[0]

    def _trainer(self, key: str) -> Any:
        from kubeflow.trainer import CustomTrainerContainer

        settings = self._config.kubernetes
        resources = {
            "gpu": settings.gpus_per_node, "cpu": settings.cpus_per_node, "memory": settings.memory_per_node,
        }  # fmt: skip
        code = {"PYTHONPATH": str(Path.cwd())} if Path("valle2").is_dir() else {}
        passed = {name: value for name, value in sorted(os.environ.items()) if name.startswith(PASSED_ON)}
        environment = {**code, **passed, "PYTHONUNBUFFERED": "1", **settings.environment, KEY_VARIABLE: key}
        return CustomTrainerContainer(
            image=settings.image, num_nodes=self._config.num_nodes, env=environment,
            resources_per_node={name: f"{value:g}" if isinstance(value, float) else str(value)
                                for name, value in resources.items() if value},
        )  # fmt: skip

    def _options(self, command: Sequence[str], key: str) -> list[Any]:
        from kubeflow.trainer.options import (
            ContainerPatch,
            JobSetSpecPatch,
            JobSetTemplatePatch,
            JobSpecPatch,
            JobTemplatePatch,
            Labels,
            Name,
            PodSpecPatch,
            PodTemplatePatch,
            ReplicatedJobPatch,
            RuntimePatch,
            TrainerCommand,
            TrainingRuntimeSpecPatch,
        )

        settings = self._config.kubernetes
        pod = PodSpecPatch(
            volumes=[{"name": VOLUME, "persistentVolumeClaim": {"claimName": settings.volume_claim}}],
            containers=[ContainerPatch("node", volume_mounts=[{"name": VOLUME, "mountPath": settings.mount_path}])],
            service_account_name=settings.service_account or None,
        )
        nodes = ReplicatedJobPatch("node", JobTemplatePatch(spec=JobSpecPatch(PodTemplatePatch(spec=pod))))
        jobs = JobSetTemplatePatch(spec=JobSetSpecPatch([nodes]))
        words = node_command(self._config, self.name, self._folder, command)
        return [
            Name(job_name(self._folder, key)), Labels({STAGE_LABEL: self._folder.name, KEY_LABEL: key[:63]}),
            TrainerCommand([settings.python, *words]), RuntimePatch(TrainingRuntimeSpecPatch(jobs)),
        ]  # fmt: skip

    @property
    def _client(self) -> "TrainerClient":
        if self._made is None:
            from kubeflow.common.types import KubernetesBackendConfig
            from kubeflow.trainer import TrainerClient
            from kubernetes.config import ConfigException

            settings = self._config.kubernetes
            try:
                self._made = TrainerClient(
                    KubernetesBackendConfig(namespace=settings.namespace, context=settings.context or None)
                )
            except ConfigException as error:
                raise WorkerError(
                    f"no Kubernetes cluster is configured ({' '.join(str(error).split())}); set KUBECONFIG, or "
                    "`launch.launcher` to local"
                ) from error
        return self._made

    def _status(self, name: str) -> str | None:
        """Created, Running, Complete or Failed; None when there is no such TrainJob."""
        try:
            return self._client.get_job(name).status
        except (RuntimeError, TimeoutError) as error:
            if getattr(error.__cause__, "status", None) == NOT_FOUND:
                return None
            raise WorkerError(_failure(f"look up the TrainJob {self._where(name)}", error)) from error

    def _has_ended(self, job: Job) -> bool:
        """Asked again while the cluster's API is away: the job does not need it."""
        patient = tenacity.retry(
            retry=tenacity.retry_if_exception_type(WorkerError), stop=tenacity.stop_after_delay(PATIENCE),
            wait=tenacity.wait_fixed(LOOK_EVERY), reraise=True,
        )  # fmt: skip
        return patient(self._status)(job.id) in (*ENDED, None)

    def _delete(self, name: str) -> None:
        with _sentences(f"delete the ended TrainJob {self._where(name)}"):
            self._client.delete_job(name)
        until = time.monotonic() + GONE
        while self._status(name) is not None:
            if time.monotonic() > until:
                raise WorkerError(f"the ended TrainJob {self._where(name)} does not go; delete it by hand")
            time.sleep(LOOK_EVERY)

    def _check_workspace(self) -> None:
        mount = self._config.kubernetes.mount_path
        if not Path.cwd().is_relative_to(mount):
            raise WorkerError(
                f"the workspace {Path.cwd()} is not below {mount}, `launch.kubernetes.mount_path`, where the pods "
                "would look for it; work in a clone on the volume, mounted here at the same path"
            )

    def _where(self, name: str) -> str:
        return f"{self._config.kubernetes.namespace}/{name}"


class _sentences:
    """What the SDK raises, as one sentence."""

    def __init__(self, what: str) -> None:
        self._what = what

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, (RuntimeError, TimeoutError, ValueError)):
            raise WorkerError(_failure(self._what, error)) from error


def _failure(what: str, error: BaseException) -> str:
    cause = error.__cause__ or error
    reason = getattr(cause, "reason", None) or str(cause) or type(cause).__name__
    return f"cannot {what}: {' '.join(str(reason).split())[:200]}; see `launch.kubernetes` in params.yaml"
