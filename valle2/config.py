"""All parameters, one strict and frozen tree loaded from `params.yaml`.

Each field's description gives its unit and, where it comes from the paper (VALL-E 2, arXiv:2406.05370), its section.
An unknown key is an error that names the nearest right one.
"""

import difflib
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from valle2.errors import ConfigError
from valle2.types import Seconds

PARAMS = Path("params.yaml")

Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]
PositiveCount = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """Base of all sections: no unknown keys, no change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class Runtime(Section):
    """Where and how commands run."""

    device: str = Field("cpu", description="torch device: cpu, cuda or cuda:N")
    num_threads: PositiveCount = Field(2, description="CPU threads of torch and CTranslate2")
    seed: int = Field(2406, description="seed of everything random")


class IngestConfig(Section):
    """Sources to validated recordings."""

    sources: str = Field("data/sources.yaml", description="source declarations, relative to the repository root")
    sample_rate: PositiveCount = Field(24000, description="Hz; EnCodec's rate (4.1.1)")
    min_duration: Seconds = Field(0.5, description="s; shorter recordings are quarantined")
    silence_dbfs: float = Field(-60.0, description="dBFS; a recording whose loudest 50 ms is below is silent")


class TranscribeConfig(Section):
    """WhisperX segmentation, transcription and alignment."""

    model: str = Field(
        "bundled", description="`bundled`, a WhisperX model name such as large-v3, or a CTranslate2 folder"
    )
    aligner: str = Field(
        "bundled", description="`bundled`, a wav2vec2 CTC model name, or a folder; empty: WhisperX's own choice"
    )
    language: str = Field("en", description="ISO 639-1 code of the speech")
    compute_type: str = Field("int8", description="CTranslate2 weight type: int8, float16, float32")
    batch_size: PositiveCount = Field(4, description="windows per batch")
    chunk_size: Positive = Field(8, description="s; speech is merged to windows of at most this")
    padding: Seconds = Field(0.1, description="s of audio kept around a segment's first and last word")
    min_duration: Seconds = Field(1.0, description="s; shorter segments are dropped (architecture: 1-20 s cuts)")
    max_duration: Seconds = Field(20.0, description="s; longer segments are dropped")


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


class TokenizeConfig(Section):
    """EnCodec codes in Shar."""

    codec: str = Field("bundled", description="`bundled`, `encodec_24khz`, or a path to weights (4.1.1)")
    cuts_per_shard: PositiveCount = Field(200, description="cuts per tar")


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


class TrainConfig(Section):
    """One training, AR or NAR."""

    num_steps: PositiveCount = Field(800_000, description="updates; VALL-E: 800k")
    batch_frames: PositiveCount = Field(
        6_000, description="codec frames per batch, padding not counted; VALL-E: 6k a GPU"
    )
    join_seconds: float = Field(
        0.0,
        ge=0,
        description="s; utterances of one speaker are joined to rows of at most this; 0: none, as in the paper",
    )
    word_spans: Fraction = Field(
        0.0,
        description="share of utterances cut at word times into spans of 1-4 words, anew in every epoch; 0: none, as in the paper",
    )
    guide: float = Field(
        0.0,
        ge=0,
        description="weight of guided attention, AR only: one head learns from word times which word comes next; 0: none, as in the paper",
    )
    learning_rate: Positive = Field(5e-4, description="peak rate of AdamW; VALL-E: 5e-4")
    warmup_steps: Count = Field(32_000, description="updates of linear warm-up, then linear decay (4.1.1)")
    final_rate_share: Fraction = Field(0.0, description="share of the peak rate reached at num_steps")
    weight_decay: float = Field(0.01, description="AdamW; not in the paper")
    clip_norm: Positive = Field(1.0, description="gradient norm bound; not in the paper")
    accumulate: PositiveCount = Field(1, description="batches per update")
    bf16: bool = Field(True, description="bfloat16 autocast")
    ema_decay: Fraction = Field(0.0, description="decay of the averaged weights; 0: none; not in the paper")
    warm_start: str = Field(
        "", description="folder of a voice model whose weights training starts from; empty: from scratch"
    )
    checkpoint_every: PositiveCount = Field(1_000, description="updates between checkpoints")
    keep_checkpoints: PositiveCount = Field(2, description="checkpoints kept")
    validate_every: PositiveCount = Field(1_000, description="updates between validations")
    log_every: PositiveCount = Field(50, description="updates between points of the curves")
    max_bad_steps: PositiveCount = Field(10, description="non-finite updates in a row after which training stops")


class SamplingConfig(Section):
    """Nucleus and repetition aware sampling (Algorithm 1)."""

    top_p: Fraction = Field(0.8, description="nucleus share; 0 is greedy; the paper tries 0.0-0.8")
    temperature: Positive = Field(1.0, description="divides the logits; the paper uses none (1.0)")
    ras_window: Count = Field(10, description="codes looked back on, K; 0 switches RAS off")
    ras_threshold: Fraction = Field(0.1, description="repetition ratio t_r above which the code is drawn again")
    count_self: bool = Field(True, description="the ratio counts the new code itself, as printed in Algorithm 1")
    max_seconds: Seconds = Field(20.0, description="s of new speech after which decoding stops with finish_reason cap")


class EvaluateConfig(Section):
    """What is synthesised and scored."""

    num_cases: PositiveCount = Field(24, description="unseen speakers' sentences, spread evenly over speakers")
    prompt_seconds: Seconds = Field(3.0, description="s of enrolled speech (4.1.2)")
    min_target_seconds: Seconds = Field(1.0, description="s; shorter references are no targets")
    max_target_seconds: Seconds = Field(10.0, description="s; longer references are no targets (4.1.2: 4-10 s)")
    asr: str = Field("bundled", description="`bundled`, a WhisperX model name, or a CTranslate2 folder")
    speaker_encoder: Literal["resemblyzer", "wavlm-sv"] = Field(
        "resemblyzer", description="SIM's model; WavLM-SV needs the hub"
    )
    cut_words_share: Fraction = Field(0.5, description="CUT%: audio shorter than this share of the reference's pace")
    trailing_silence: Seconds = Field(2.0, description="s; INF%: a longer trailing silence, or no EOS by the cap")
    sampling: SamplingConfig = SamplingConfig()


class GateConfig(Section):
    """Thresholds a model must meet to be champion."""

    max_wer: float = Field(0.35, description="share, word error rate on unseen voices and sentences")
    max_inf: Fraction = Field(0.0, description="share of cases that never end")
    max_cut: Fraction = Field(0.25, description="share of cases that end too early")
    min_sim_wins: Fraction = Field(
        0.8, description="share of pairs in which SIM to the own prompt beats another speaker's prompt"
    )
    min_dnsmos: float = Field(2.0, description="mean P.808 MOS, 1-5")
    min_cases: PositiveCount = Field(12, description="fewer cases prove nothing")


class PromoteConfig(Section):
    """Who decides, after the gate."""

    model_name: str = Field("valle2", description="registered model in MLflow")
    approval: Literal["automatic", "required"] = Field(
        "automatic", description="`required` suspends the flow until a person decides"
    )
    approval_timeout: Seconds = Field(
        7 * 86400.0, description="s until the server gives up asking; the model stays a candidate"
    )


class Config(Section):
    """The whole of params.yaml."""

    runtime: Runtime = Runtime()
    ingest: IngestConfig = IngestConfig()
    transcribe: TranscribeConfig = TranscribeConfig()
    curate: CurateConfig = CurateConfig()
    tokenize: TokenizeConfig = TokenizeConfig()
    model: ModelConfig = ModelConfig()
    train_ar: TrainConfig = TrainConfig()
    train_nar: TrainConfig = TrainConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    gate: GateConfig = GateConfig()
    promote: PromoteConfig = PromoteConfig()


def load_config(path: Path = PARAMS) -> Config:
    """Load and check a parameter file.

    Raises:
        ConfigError: No such file, not YAML, an unknown key (with the nearest right one), or a value out of bounds.
    """
    if not path.is_file():
        raise ConfigError(f"no parameter file {path}; run in the repository root, or copy one of params/ there")
    try:
        raw = yaml.safe_load(path.read_text()) or {}
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{path} holds a {type(raw).__name__}, expected sections such as `ingest:`")
    return parse_config(raw, str(path))


def parse_config(raw: dict[str, Any], origin: str = "params.yaml") -> Config:
    """Check parameters that are already in memory; `origin` names them in errors."""
    try:
        return Config.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(f"{origin}: " + "; ".join(_explain(item) for item in error.errors())) from error


def _explain(item: Any) -> str:
    path = [str(part) for part in item["loc"]]
    key = ".".join(path)
    if item["type"] != "extra_forbidden":
        return f"`{key}` is {item['input']!r}: {item['msg'][0].lower()}{item['msg'][1:]}"
    names = _keys_at(path[:-1])
    near = difflib.get_close_matches(path[-1], names, 1, 0.4)
    hint = f"did you mean `{near[0]}`?" if near else f"expected one of {', '.join(sorted(names))}"
    return f"unknown key `{key}`; {hint}"


def _keys_at(path: list[str]) -> list[str]:
    section: type[BaseModel] = Config
    for name in path:
        annotation = section.model_fields[name].annotation
        candidates = [annotation, *get_args(annotation)]
        section = next(kind for kind in candidates if isinstance(kind, type) and issubclass(kind, BaseModel))
    return list(section.model_fields)
