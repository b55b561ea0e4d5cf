"""Parameters are strict, and their errors teach."""

from pathlib import Path

import pytest
from pydantic import BaseModel, ValidationError

from valle2.config.params import Config, load_config, parse_config
from valle2.config.section import Section
from valle2.errors import ConfigError


@pytest.mark.parametrize("file", ["params.yaml", "params/full.yaml"])
def test_shipped_parameters_load(repository: Path, file: str) -> None:
    load_config(repository / file)


@pytest.mark.parametrize(
    ("raw", "wrong", "right"),
    [
        ({"trian_ar": {}}, "trian_ar", "train_ar"),
        ({"model": {"ar": {"num_layer": 3}}}, "model.ar.num_layer", "num_layers"),
        ({"evaluate": {"sampling": {"topp": 0.5}}}, "evaluate.sampling.topp", "top_p"),
        (
            {"evaluate": {"protocols": ["unseen", {"name": "hard", "num_case": 3}]}},
            "evaluate.protocols.1.num_case",
            "num_cases",
        ),
    ],
)
def test_a_typo_names_the_nearest_key(raw: dict[str, object], wrong: str, right: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(raw)
    assert f"unknown key `{wrong}`" in str(caught.value)
    assert f"did you mean `{right}`?" in str(caught.value)


@pytest.mark.parametrize(
    "raw",
    [
        {"train_ar": {"num_steps": 0}},
        {"model": {"ar": {"dim": 10, "num_heads": 3}}},
        {"evaluate": {"sampling": {"top_p": 2}}},
    ],
)
def test_values_out_of_bounds_name_their_field(raw: dict[str, dict[str, object]]) -> None:
    section = next(iter(raw))
    with pytest.raises(ConfigError, match=section):
        parse_config(raw)


def test_no_file_and_no_yaml_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no parameter file"):
        load_config(tmp_path / "params.yaml")
    broken = tmp_path / "broken.yaml"
    broken.write_text("a: [1")
    with pytest.raises(ConfigError, match="is not YAML"):
        load_config(broken)


def test_a_size_is_another_way_to_write_its_fields() -> None:
    written = {"num_layers": 12, "dim": 1024, "num_heads": 16, "ffn_dim": 4096}
    by_name, by_field = (
        parse_config({"model": {"ar": fields}}).model.ar.model_dump() for fields in ({"size": "base"}, written)
    )
    assert by_name == by_field and "size" not in by_name
    small = parse_config({"model": {"nar": {"size": "small", "num_layers": 4}}}).model.nar
    assert (small.num_layers, small.dim, small.num_heads, small.ffn_dim) == (4, 256, 4, 1024)
    with pytest.raises(ConfigError, match=r"`model.ar.size` is 'bsae': input should be 'small' or 'base'"):
        parse_config({"model": {"ar": {"size": "bsae"}}})


def test_the_tree_is_frozen() -> None:
    config = Config()
    with pytest.raises(ValidationError):
        config.runtime.seed = 1  # type: ignore[misc]


def test_every_field_is_described() -> None:
    def leaves(section: type[BaseModel]) -> None:
        for name, field in section.model_fields.items():
            if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
                leaves(field.annotation)
            else:
                assert field.description, f"{section.__name__}.{name} has no unit or meaning"

    leaves(Config)
