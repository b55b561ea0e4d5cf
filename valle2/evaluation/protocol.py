"""Protocols as data: which utterances are said, with which prompts, and what of the speech is scored.

Those that come with Valle2 are YAML files in `protocols/`; another is a file of the same form, or one of these with
another CutSet. How cases are drawn by them is in `valle2.evaluation.cases`.
"""

from pathlib import Path
from typing import Literal, Self

import yaml
from pydantic import Field, ValidationError, model_validator

from valle2.config.evaluate import EvaluateConfig, ProtocolChoice
from valle2.config.section import Positive, PositiveCount, Section
from valle2.errors import ConfigError

FOLDER = Path(__file__).with_name("protocols")


class Protocol(Section):
    """One protocol, every choice made."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$", description="before its figures, with `_` for `-`")
    about: str = Field(description="one sentence for the report")
    source: str = Field("", description="where it is defined")
    cuts: str | None = Field(None, description="Lhotse CutSet, one utterance a cut; else the test split of the shards")
    prompt: Literal["utterance", "prefix", "previous", "closest", "random"] = Field(
        description="utterance: another of the speaker, cut at a word's end; prefix: the target's own beginning; "
        "previous: the whole utterance before it, before the first the last; closest: the whole utterance next below "
        "`prompt_seconds`, the same for all targets of a speaker; random: any of the speakers', by seed"
    )
    prompt_seconds: Positive = Field(description="s of enrolled speech; `previous` does not read it")
    min_target_seconds: Positive
    max_target_seconds: Positive
    num_cases: PositiveCount | None = Field(None, description="at most so many; none: all that there are")
    texts: dict[str, tuple[str, ...]] = Field({}, description="category -> texts to say instead of the utterances' own")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.texts and self.prompt != "random":
            raise ValueError("texts of its own need `prompt: random`: they belong to no speaker")
        if self.prompt == "random" and not self.texts:
            raise ValueError("`prompt: random` needs `texts`")
        if self.prompt == "prefix" and self.prompt_seconds >= self.min_target_seconds:
            raise ValueError(
                f"a prefix of {self.prompt_seconds} s leaves nothing to say of utterances from "
                f"{self.min_target_seconds} s on; raise `min_target_seconds` above it"
            )
        if self.min_target_seconds > self.max_target_seconds:
            raise ValueError(
                f"min_target_seconds {self.min_target_seconds} is above max_target_seconds {self.max_target_seconds}"
            )
        return self

    @property
    def key(self) -> str:
        """Before its figures in `metrics.json`."""
        return self.name.replace("-", "_")


def load_protocols(settings: EvaluateConfig) -> list[Protocol]:
    """The protocols of the parameters, in their order.

    Raises:
        ConfigError: There is no such protocol, its file is not valid, or one is named twice.
    """
    found = [load_protocol(choice, settings) for choice in settings.protocols]
    names = [protocol.name for protocol in found]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise ConfigError(f"`evaluate.protocols` names {twice!r} twice; give each file a `name` of its own")
    return found


def load_protocol(choice: ProtocolChoice, settings: EvaluateConfig) -> Protocol:
    """One protocol: the choice's own values, else its file's, else those of `evaluate`."""
    bundled = FOLDER / f"{choice.name}.yaml"
    path = bundled if bundled.is_file() else Path(choice.name)
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in FOLDER.glob("*.yaml")))
        raise ConfigError(f"no protocol {choice.name!r}; expected one of {known}, or the path of a YAML file")
    try:
        said = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"protocol {path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(said, dict):
        raise ConfigError(f"protocol {path} holds a {type(said).__name__}, expected fields such as `prompt: utterance`")
    names = ("num_cases", "prompt_seconds", "min_target_seconds", "max_target_seconds")
    usual = {name: getattr(settings, name) for name in names}
    own = {name: value for name, value in choice.model_dump(exclude={"name"}).items() if value is not None}
    try:
        return Protocol.model_validate({"name": path.stem, **usual, **said, **own})
    except ValidationError as error:
        what = "; ".join(
            f"`{'.'.join(map(str, item['loc'])) or 'protocol'}`: {item['msg'].removeprefix('Value error, ')}"
            for item in error.errors()
        )
        raise ConfigError(f"protocol {path}: {what}") from error
