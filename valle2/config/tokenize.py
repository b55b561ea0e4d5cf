"""Parameters of `tokenize`."""

from pydantic import Field

from valle2.config.runtime import Runtime
from valle2.config.section import PositiveCount, Section


class TokenizeConfig(Section):
    """EnCodec codes in Shar."""

    codec: str = Field("bundled", description="`bundled`, `encodec_24khz`, or a path to weights (4.1.1)")
    cuts_per_shard: PositiveCount = Field(200, description="cuts per tar")


class TokenizeParams(Section):
    """What the stage reads of the parameters."""

    runtime: Runtime = Runtime()
    tokenize: TokenizeConfig = TokenizeConfig()
