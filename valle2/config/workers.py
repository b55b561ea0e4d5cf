"""Where units of work are done: local processes, or a Ray cluster."""

from pydantic import Field

from valle2.config.section import Count, Positive, Section


class RayConfig(Section):
    """A Ray cluster for transcribe, curate and tokenize; all its nodes share the workspace's folder."""

    address: str = Field(
        "", description="such as 10.0.0.1:6379, or `auto` on one of its nodes; empty: RAY_ADDRESS, else local processes"
    )
    num_workers: Count = Field(0, description="workers; 0: as many as the cluster has room for")
    cpus_per_worker: Positive = Field(1.0, description="CPUs that each worker reserves")
    gpus_per_worker: float = Field(
        0.0, ge=0, description="GPUs that each worker reserves; 0.25 puts four on one, with runtime.device cuda"
    )
