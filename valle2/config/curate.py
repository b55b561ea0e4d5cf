"""Parameters of `curate`."""

from pydantic import Field, field_validator

from valle2.config.runtime import Runtime
from valle2.config.section import Count, Fraction, Positive, PositiveCount, Section
from valle2.config.transcribe import TranscribeConfig
from valle2.config.workers import RayConfig


class Thresholds(Section):
    """When a segment is dropped; each rule is in `valle2.corpus.rules`."""

    max_clipped: Fraction = Field(0.005, description="share of samples at full scale")
    max_silence: Fraction = Field(0.6, description="share of 20 ms frames 40 dB below the loudest")
    min_snr: float = Field(5.0, description="dB; loud frames against the quietest")
    min_bandwidth: float = Field(0.0, description="Hz; highest frequency at which anything is heard; 0 keeps all")
    min_dnsmos: float = Field(2.5, description="P.808 MOS, 1-5; segments below are dropped")
    max_compression: Positive = Field(2.4, description="bytes of the text per byte compressed; Whisper's own limit")
    max_characters_per_second: Positive = Field(
        40.0, description="characters of the text per second of sound; nobody speaks faster than 30"
    )
    min_logprob: float = Field(
        -1.0,
        description="mean log-probability of recognised words, below which a segment is dropped; Whisper's own limit",
    )
    max_aligner_cer: float = Field(
        1.0,
        description="character errors of what the aligner's model hears; 1 or more keeps all (0.3 with a full model)",
    )
    min_other_language: Fraction = Field(
        0.8, description="probability of another language than declared, from which a segment is dropped"
    )
    words_per_second_iqr: Positive = Field(
        1.5, description="segments outside their source's quartiles -/+ this times the IQR are dropped"
    )
    max_given_text_wer: float = Field(
        1.0, description="WER between given and recognised text above which a segment is dropped; 1 or more keeps all"
    )


class CurateConfig(Thresholds):
    """Which segments are kept, and for which split."""

    sources: dict[str, dict[str, float]] = Field({}, description="thresholds of single sources, by their names")
    max_bit_error: Fraction = Field(
        0.25,
        description="share of bits that differ in two fingerprints of the same sound and words; half of it with other words; 0 keeps duplicates (paper: 0.35)",
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

    @field_validator("sources")
    @classmethod
    def _thresholds(cls, sources: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
        for name, changed in sources.items():
            if unknown := set(changed) - set(Thresholds.model_fields):
                known = ", ".join(Thresholds.model_fields)
                raise ValueError(f"source {name} sets {', '.join(sorted(unknown))}; expected one of {known}")
            Thresholds.model_validate(changed)
        return sources

    def of_source(self, name: str) -> Thresholds:
        """The thresholds of a source."""
        general = self.model_dump(include=set(Thresholds.model_fields))
        return Thresholds.model_validate({**general, **self.sources.get(name, {})})


class CurateParams(Section):
    """What the stage reads of the parameters."""

    runtime: Runtime = Runtime()
    transcribe: TranscribeConfig = TranscribeConfig()
    curate: CurateConfig = CurateConfig()
    ray: RayConfig = RayConfig()
