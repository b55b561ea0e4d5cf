"""Parameters of `evaluate`."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from valle2.config.runtime import Runtime
from valle2.config.sampling import SamplingConfig
from valle2.config.section import Fraction, Positive, PositiveCount, Section
from valle2.config.tokenize import TokenizeConfig
from valle2.config.transcribe import TranscribeConfig
from valle2.types import Seconds


class ProtocolChoice(Section):
    """A protocol to evaluate by, and what of it is to be other than its file says."""

    name: str = Field(description="`unseen`, `hard`, `librispeech-prefix`,... or the path of a protocol's YAML file")
    cuts: str | None = Field(None, description="Lhotse CutSet to take utterances from; else the test split")
    num_cases: PositiveCount | None = Field(None, description="at most so many, spread evenly over speakers")
    prompt_seconds: Positive | None = Field(None, description="s of enrolled speech")
    min_target_seconds: Positive | None = Field(None, description="s; shorter references are no targets")
    max_target_seconds: Positive | None = Field(None, description="s; longer references are no targets")


def _choice(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


class EvaluateConfig(Section):
    """What is synthesised and scored."""

    protocols: tuple[Annotated[ProtocolChoice, BeforeValidator(_choice)], ...] = Field(
        (ProtocolChoice(name="unseen"),),
        min_length=1,
        description="names, or mappings with a `name`; figures of the first have its name nowhere",
    )
    num_cases: PositiveCount = Field(
        24, description="cases of a protocol that does not say how many, evenly over speakers"
    )
    prompt_seconds: Seconds = Field(
        3.0,
        description="s of enrolled speech where the protocol does not say, from several utterances if none is as long (4.1.2: 3, 5 and 10 s)",
    )
    min_target_seconds: Seconds = Field(
        1.0, description="s; shorter references are no targets, unless the protocol says"
    )
    max_target_seconds: Seconds = Field(
        10.0, description="s; longer references are no targets, unless the protocol says (4.1.2: 4-10 s)"
    )
    num_readings: PositiveCount = Field(
        1, description="5 is five-time sampling (4.1.3): rows `sorted` and `oracle` beside the first reading"
    )
    asr: str = Field("bundled", description="`bundled`, a WhisperX model name, or a CTranslate2 folder")
    speaker_encoder: Literal["resemblyzer", "wavlm-sv"] = Field(
        "resemblyzer", description="SIM's model; WavLM-SV needs the hub"
    )
    utmos: str = Field("", description="a TorchScript file of UTMOS that takes (wave [B, N], 16000); empty: no UTMOS")
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
