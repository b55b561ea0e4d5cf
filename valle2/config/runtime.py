"""Where and how commands run."""

from pydantic import Field

from valle2.config.section import PositiveCount, Section


class Runtime(Section):
    """Where and how commands run."""

    device: str = Field("cpu", description="torch device: cpu, cuda or cuda:N")
    num_threads: PositiveCount = Field(
        2, description="CPU threads of torch; processes of the data stages, one thread each"
    )
    seed: int = Field(2406, description="seed of everything random")
