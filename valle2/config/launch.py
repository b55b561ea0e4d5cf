"""Parameters of launching: where the processes of a training run. They change no byte of what it makes."""

from typing import Literal

from pydantic import Field, model_validator

from valle2.config.section import Count, Positive, PositiveCount, Section

LauncherName = Literal["local", "slurm", "kubernetes"]


class SlurmConfig(Section):
    """A job of Slurm, submitted with submitit; all nodes share the workspace's folder."""

    partition: str = Field("", description="partition; empty: the cluster's default")
    account: str = Field("", description="account that is charged; empty: the user's default")
    time_minutes: PositiveCount = Field(1440, description="minutes of a job; a longer training is requeued")
    max_requeues: Count = Field(
        100, description="times that a job which ran out of its minutes is requeued; preemptions don't count"
    )
    gpus_per_node: Count = Field(0, description="GPUs; 0: none is asked for")
    cpus_per_task: PositiveCount = Field(1, description="CPUs of a node's task, which starts all processes of the node")
    mem_gb: float = Field(0.0, ge=0, description="GB of a node; 0: the partition's default")
    setup: tuple[str, ...] = Field((), description="lines of shell before the job, such as `module load cuda`")
    extra: dict[str, str | int | bool] = Field(
        {}, description="other options of sbatch by their long names, such as {constraint: a100, qos: high}"
    )
    python: str = Field("", description="interpreter on the nodes; empty: this one")


class KubernetesConfig(Section):
    """A TrainJob of Kubeflow Trainer v2; its pods mount the volume that the workspace is on."""

    namespace: str = Field("default", description="namespace of the job")
    context: str = Field("", description="context of the kubeconfig; empty: the current one")
    runtime: str = Field("torch-distributed", description="TrainingRuntime or ClusterTrainingRuntime")
    image: str = Field("", description="image with Python and the packages of requirements.lock")
    volume_claim: str = Field("", description="persistent volume claim that the workspace is on (ReadWriteMany)")
    mount_path: str = Field(
        "", description="where the pods mount it; the workspace's path below it is the same as where the command runs"
    )
    gpus_per_node: Count = Field(0, description="nvidia.com/gpu of a pod; 0: none is asked for")
    cpus_per_node: float = Field(0.0, ge=0, description="CPUs of a pod; 0: the runtime's default")
    memory_per_node: str = Field("", description="memory of a pod, such as 64Gi; empty: the runtime's default")
    environment: dict[str, str] = Field(
        {}, description="variables of the pods, beside VALLE2_* and MLFLOW_TRACKING_URI"
    )
    service_account: str = Field("", description="service account of the pods; empty: the namespace's default")
    python: str = Field("python", description="interpreter in the image")


class LaunchConfig(Section):
    """Who starts the processes of `train-ar` and `train-nar`, and how many."""

    launcher: LauncherName = Field("local", description="local (torchrun on this machine), slurm, or kubernetes")
    num_nodes: PositiveCount = Field(1, description="machines; local: 1")
    processes_per_node: PositiveCount = Field(
        1, description="ranks on each machine, one a GPU; 1 and local: the command trains itself, without torchrun"
    )
    max_restarts: Count = Field(4, description="restarts of all ranks after one has died, before the job is given up")
    grace_seconds: Positive = Field(60.0, description="s that ranks have to write a checkpoint when the job is to end")
    slurm: SlurmConfig = SlurmConfig()
    kubernetes: KubernetesConfig = KubernetesConfig()

    @property
    def in_this_process(self) -> bool:
        """Whether no job is needed."""
        return self.launcher == "local" and self.processes_per_node == 1

    @model_validator(mode="after")
    def _is_complete(self) -> "LaunchConfig":
        if self.launcher == "local" and self.num_nodes > 1:
            raise ValueError(f"num_nodes {self.num_nodes} needs launcher slurm or kubernetes; local is one machine")
        if self.launcher == "kubernetes":
            needed = ("image", "volume_claim", "mount_path")
            missing = [name for name in needed if not getattr(self.kubernetes, name)]
            if missing:
                raise ValueError(f"launcher kubernetes needs {', '.join(f'kubernetes.{name}' for name in missing)}")
        return self
