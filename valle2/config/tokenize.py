"""Parameters of `tokenize`."""

from pydantic import Field

from valle2.config.runtime import Runtime
from valle2.config.section import Positive, Section
from valle2.config.workers import RayConfig


class TokenizeConfig(Section):
    """EnCodec codes in Shar."""

    codec: str = Field("bundled", description="`bundled`, `encodec_24khz`, or a path to weights (4.1.1)")
    shard_mb: Positive = Field(400, description="10^6 bytes from which a shard is complete; about 4 h of speech")
    part_seconds: Positive = Field(
        300, description="s of audio that one worker does at a time: what is in memory, and what a crash repeats"
    )
    to: str = Field(
        "", description="URL that shards are written to, such as s3://bucket/shards; empty: into artifacts/tokenize"
    )
    store_audio: bool = Field(
        True, description="keep train's audio beside its codes; that of dev and test is always kept"
    )


class TokenizeParams(Section):
    """What the stage reads of the parameters."""

    runtime: Runtime = Runtime()
    tokenize: TokenizeConfig = TokenizeConfig()
    ray: RayConfig = RayConfig()
