"""Parameters of decoding."""

from pydantic import Field

from valle2.config.section import Count, Fraction, Positive, Section


class SamplingConfig(Section):
    """Nucleus and repetition aware sampling (Algorithm 1)."""

    top_p: Fraction = Field(0.8, description="nucleus share; 0 is greedy; the paper tries 0.0-0.8")
    temperature: Positive = Field(1.0, description="divides the logits; the paper uses none (1.0)")
    ras_window: Count = Field(10, description="codes looked back on, K; 0 switches RAS off")
    ras_threshold: Fraction = Field(0.1, description="repetition ratio t_r above which the code is drawn again")
    count_self: bool = Field(True, description="the ratio counts the new code itself, as printed in Algorithm 1")
    ras_ends: bool = Field(True, description="the second draw may be EOS, as in Algorithm 1; else only the first may")
    max_seconds: Positive = Field(20.0, description="s of new speech after which decoding stops with finish_reason cap")
