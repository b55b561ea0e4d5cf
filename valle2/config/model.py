"""Shape of the two models."""

from pydantic import Field, model_validator

from valle2.config.section import Fraction, PositiveCount, Section


class TransformerConfig(Section):
    """The Transformer that AR and NAR share. The paper does not state it: 12 x 1024 is VALL-E's and MELLE's."""

    num_layers: PositiveCount = Field(12, description="Transformer blocks")
    dim: PositiveCount = Field(1024, description="model width")
    num_heads: PositiveCount = Field(16, description="attention heads; divides dim")
    ffn_dim: PositiveCount = Field(4096, description="feed-forward width")
    dropout: Fraction = Field(0.1, description="share dropped")
    max_text_tokens: PositiveCount = Field(512, description="rows of the text position table")
    max_frames: PositiveCount = Field(
        2250, description="frames (75 a second) that the position tables reach, prompt included"
    )

    @model_validator(mode="after")
    def _heads_divide(self) -> "TransformerConfig":
        if self.dim % self.num_heads:
            raise ValueError(f"num_heads {self.num_heads} does not divide dim {self.dim}")
        return self


class ModelConfig(Section):
    """VALL-E 2 (3.2)."""

    group_size: PositiveCount = Field(2, description="frames per AR step, G (3.2); the paper trains 1, 2, 4, 8")
    ar: TransformerConfig = TransformerConfig()
    nar: TransformerConfig = TransformerConfig()
