"""Parameters of `evaluate`."""

from typing import Literal

from pydantic import Field

from valle2.config.runtime import Runtime
from valle2.config.sampling import SamplingConfig
from valle2.config.section import Fraction, PositiveCount, Section
from valle2.config.tokenize import TokenizeConfig
from valle2.config.transcribe import TranscribeConfig
from valle2.types import Seconds


class EvaluateConfig(Section):
    """What is synthesised and scored."""

    num_cases: PositiveCount = Field(24, description="unseen speakers' sentences, spread evenly over speakers")
    prompt_seconds: Seconds = Field(
        3.0, description="s of enrolled speech, from several utterances if none is as long (4.1.2: 3, 5 and 10 s)"
    )
    min_target_seconds: Seconds = Field(1.0, description="s; shorter references are no targets")
    max_target_seconds: Seconds = Field(10.0, description="s; longer references are no targets (4.1.2: 4-10 s)")
    asr: str = Field("bundled", description="`bundled`, a WhisperX model name, or a CTranslate2 folder")
    speaker_encoder: Literal["resemblyzer", "wavlm-sv"] = Field(
        "resemblyzer", description="SIM's model; WavLM-SV needs the hub"
    )
    cut_words_share: Fraction = Field(0.5, description="CUT%: audio shorter than this share of the reference's pace")
    trailing_silence: Seconds = Field(2.0, description="s; INF%: a longer trailing silence, or no EOS by the cap")
    decoder: str = Field(
        "codec",
        description="codes to sound: `codec` is its own decoder; or a Vocos (4.1.1): `bundled`, `vocos-encodec-24khz`, "
        "or a folder",
    )
    sampling: SamplingConfig = SamplingConfig()


class EvaluateParams(Section):
    """What the stage reads of the parameters."""

    runtime: Runtime = Runtime()
    transcribe: TranscribeConfig = TranscribeConfig()
    tokenize: TokenizeConfig = TokenizeConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
