"""Parameters of `train-ar` and `train-nar`."""

from typing import Literal

from pydantic import Field

from valle2.config.launch import LaunchConfig
from valle2.config.model import ModelConfig
from valle2.config.runtime import Runtime
from valle2.config.section import Count, Fraction, Positive, PositiveCount, Section

HOW = {
    "activation_checkpointing", "cache_gb", "checkpoint_every", "compile", "keep_checkpoints", "num_workers", "strategy",
}  # fmt: skip
"""Fields of `TrainConfig` that change how a model is trained, not which it becomes."""


class TrainConfig(Section):
    """One training, AR or NAR."""

    num_steps: PositiveCount = Field(800_000, description="updates; VALL-E: 800k")
    batch_frames: PositiveCount = Field(
        6_000,
        description="codec frames per batch, with padding, or of joined rows without; VALL-E: 6k a GPU",
    )
    stream_shards: Count = Field(
        0,
        description="shards that batches are drawn from at a time, while the next ones are fetched; 0: all are fetched and packed first",
    )
    cache_gb: Positive = Field(
        100.0, description="10^9 bytes of fetched shards that are kept on disk; only with stream_shards"
    )
    num_workers: Count = Field(2, description="processes that make batches ahead of the steps; 0: the training itself")
    join_seconds: float = Field(
        0.0,
        ge=0,
        description="s; utterances of one speaker are joined to rows of at most this; 0: none, as in the paper",
    )
    word_spans: Fraction = Field(
        0.0,
        description="share of utterances cut at word times into spans of 1-4 words, anew in every epoch; 0: none, as in the paper",
    )
    early_codebooks: float = Field(
        0.0,
        ge=0,
        description="NAR only: a step's codebook j (of 1-7) is drawn with weight j^-this; 0: evenly, as in the paper (3.3.2)",
    )
    guide: float = Field(
        0.0,
        ge=0,
        description="weight of guidance from word times, AR only: one head learns which word comes next, and the layers below it which word was heard; 0: none, as in the paper",
    )
    learning_rate: Positive = Field(5e-4, description="peak rate of AdamW; VALL-E: 5e-4")
    warmup_steps: Count = Field(32_000, description="updates of linear warm-up, then linear decay (4.1.1)")
    final_rate_share: Fraction = Field(0.0, description="share of the peak rate reached at num_steps")
    weight_decay: float = Field(0.01, description="AdamW; not in the paper")
    clip_norm: Positive = Field(1.0, description="gradient norm bound; not in the paper")
    accumulate: PositiveCount = Field(1, description="batches per update")
    bf16: bool = Field(True, description="bfloat16 autocast, where the device has it natively")
    activation_checkpointing: bool = Field(
        False,
        description="keep only what each block reads and compute the rest again going back: less memory, a third more time, the same gradients",
    )
    compile: bool = Field(
        False, description="torch.compile of the blocks: faster steps after a minute of compiling; wants a C++ compiler"
    )
    ema_decay: Fraction = Field(0.0, description="decay of the averaged weights; 0: none; not in the paper")
    warm_start: str = Field(
        "", description="folder of a voice model whose weights training starts from; empty: from scratch"
    )
    checkpoint_every: PositiveCount = Field(1_000, description="updates between checkpoints")
    keep_checkpoints: PositiveCount = Field(2, description="checkpoints kept, beside the best")
    strategy: Literal["ddp", "fsdp"] = Field(
        "ddp", description="several processes: each with the whole model (ddp), or with a shard of it (fsdp)"
    )
    validate_every: PositiveCount = Field(1_000, description="updates between validations")
    log_every: PositiveCount = Field(50, description="updates between points of the curves")
    sample_every: Count = Field(0, description="updates between samples to hear, of fixed dev sentences; 0: none")
    max_bad_steps: PositiveCount = Field(10, description="non-finite updates in a row after which training stops")


class TrainParams(Section):
    """What the two training stages read of the parameters."""

    runtime: Runtime = Runtime()
    model: ModelConfig = ModelConfig()
    train_ar: TrainConfig = TrainConfig()
    train_nar: TrainConfig = TrainConfig()
    launch: LaunchConfig = LaunchConfig()
