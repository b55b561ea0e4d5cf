"""Shape of the two models."""

from typing import Any, Literal

from pydantic import Field, model_validator

from valle2.config.section import Fraction, PositiveCount, Section

SIZES: dict[str, dict[str, int]] = {
    "small": {"num_layers": 6, "dim": 256, "num_heads": 4, "ffn_dim": 1024},
    "base": {"num_layers": 12, "dim": 1024, "num_heads": 16, "ffn_dim": 4096},
}
"""Shapes that have a name: the demo's, and VALL-E's."""


class TransformerConfig(Section):
    """The Transformer that AR and NAR share. The paper does not state it: 12 x 1024 is VALL-E's and MELLE's."""

    size: Literal["small", "base"] | None = Field(
        None,
        exclude=True,
        description="a shape by name: small (6 x 256, the demo's AR) or base (12 x 1024, VALL-E's); fields given beside it go before it",
    )
    num_layers: PositiveCount = Field(12, description="Transformer blocks")
    dim: PositiveCount = Field(1024, description="model width")
    num_heads: PositiveCount = Field(16, description="attention heads; divides dim")
    ffn_dim: PositiveCount = Field(4096, description="feed-forward width")
    dropout: Fraction = Field(0.1, description="share dropped")
    max_text_tokens: PositiveCount = Field(512, description="rows of the text position table")
    max_frames: PositiveCount = Field(
        2250, description="frames (75 a second) that the position tables reach, prompt included"
    )

    @model_validator(mode="before")
    @classmethod
    def _fill_in_size(cls, given: Any) -> Any:
        """A size is only another way to write its fields, so that nothing downstream knows of it."""
        known = isinstance(given, dict) and isinstance(given.get("size"), str)
        return {**SIZES.get(given["size"], {}), **given} if known else given

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
