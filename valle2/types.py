"""Units and small values shared by all stages.

Axes in shapes: B batch, K codebook, T frame, S text token, D model width, H head, G group, N waveform sample.
"""

from dataclasses import dataclass, field
from typing import Any, Literal, get_args

Seconds = float
"""A duration or a time, in seconds."""

Split = Literal["train", "dev", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)

Stage = Literal["ingest", "transcribe", "curate", "tokenize", "data-report", "train-ar", "train-nar", "evaluate"]
STAGES: tuple[Stage, ...] = get_args(Stage)


@dataclass(frozen=True)
class StageResult:
    """What a stage tells its caller; never part of its outputs, so that these stay byte-stable.

    Attributes:
        figure: The stage's key figure as one short phrase, such as `52 recordings, 0.72 h`.
        facts: Numbers and names for logs and records, JSON-able.
    """

    figure: str
    facts: dict[str, Any] = field(default_factory=dict)


LARGEST_SEED = 2**62
"""Of a reading; sentences of a text count up from it, within the 64 bits that a generator takes."""
