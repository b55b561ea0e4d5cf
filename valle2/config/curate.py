"""Parameters of `curate`."""

from pydantic import Field

from valle2.config.runtime import Runtime
from valle2.config.section import Count, Positive, PositiveCount, Section
from valle2.config.transcribe import TranscribeConfig


class CurateConfig(Section):
    """Which segments are kept, and for which split."""

    min_dnsmos: float = Field(2.5, description="P.808 MOS, 1-5; segments below are dropped")
    words_per_second_iqr: Positive = Field(
        1.5, description="segments outside quartiles -/+ this times the IQR are dropped"
    )
    max_given_text_wer: float = Field(
        1.0, description="WER between given and recognised text above which a segment is dropped; 1 or more keeps all"
    )
    test_speakers: tuple[str, ...] | Count = Field(
        6, description="unseen speakers by name, or how many to draw by seeded hash"
    )
    dev_speakers: tuple[str, ...] | Count = Field(3, description="the same for the dev split")
    vocab_size: PositiveCount = Field(384, description="BPE entries; VALL-E's lab uses 4,000")
    bpe: str = Field(
        "",
        description="bpe.json to keep, such as that of the model in warm_start; empty: learn one from the training text",
    )


class CurateParams(Section):
    """What the stage reads of the parameters."""

    runtime: Runtime = Runtime()
    transcribe: TranscribeConfig = TranscribeConfig()
    curate: CurateConfig = CurateConfig()
