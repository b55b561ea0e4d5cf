"""Parameters of `ingest`."""

from pydantic import Field

from valle2.config.runtime import Runtime
from valle2.config.section import PositiveCount, Section
from valle2.types import Seconds


class IngestConfig(Section):
    """Sources to validated recordings."""

    sources: str = Field("data/sources.yaml", description="source declarations, relative to the repository root")
    sample_rate: PositiveCount = Field(24000, description="Hz; EnCodec's rate (4.1.1)")
    min_duration: Seconds = Field(0.5, description="s; shorter recordings are quarantined")
    silence_dbfs: float = Field(-60.0, description="dBFS; a recording whose loudest 50 ms is below is silent")


class IngestParams(Section):
    """What the stage reads of the parameters."""

    runtime: Runtime = Runtime()
    ingest: IngestConfig = IngestConfig()
