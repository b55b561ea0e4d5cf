"""All parameters, one strict and frozen tree loaded from `params.yaml`.

An unknown key is an error that names the nearest right one.
"""

import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from valle2.config.curate import CurateConfig, CurateParams
from valle2.config.evaluate import EvaluateConfig, EvaluateParams
from valle2.config.ingest import IngestConfig
from valle2.config.launch import LaunchConfig
from valle2.config.model import ModelConfig
from valle2.config.promote import GateConfig, PromoteConfig
from valle2.config.runtime import Runtime
from valle2.config.tokenize import TokenizeConfig, TokenizeParams
from valle2.config.train import TrainConfig, TrainParams
from valle2.config.transcribe import TranscribeConfig, TranscribeParams
from valle2.config.workers import RayConfig
from valle2.errors import ConfigError

PARAMS = Path("params.yaml")


class Config(TranscribeParams, CurateParams, TokenizeParams, TrainParams, EvaluateParams):
    """The whole of params.yaml."""

    runtime: Runtime = Runtime()
    ray: RayConfig = RayConfig()
    launch: LaunchConfig = LaunchConfig()
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
    path = item["loc"]
    key = ".".join(map(str, path))
    if item["type"] != "extra_forbidden":
        return f"`{key}` is {item['input']!r}: {item['msg'][0].lower()}{item['msg'][1:]}"
    names = _keys_at(path[:-1])
    near = difflib.get_close_matches(str(path[-1]), names, 1, 0.4)
    hint = f"did you mean `{near[0]}`?" if near else f"expected one of {', '.join(sorted(names))}"
    return f"unknown key `{key}`; {hint}"


def _keys_at(path: Iterable[str | int]) -> list[str]:
    section: type[BaseModel] = Config
    for name in path:
        if isinstance(name, str) and name in section.model_fields:
            section = _section(section.model_fields[name].annotation) or section
    return list(section.model_fields)


def _section(annotation: Any) -> type[BaseModel] | None:
    """Find the section in `T`, `T | None`, or a list of `T`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(_section, get_args(annotation))), None)
