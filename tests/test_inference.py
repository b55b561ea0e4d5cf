"""Packed weights: the same model to rounding, with fewer bytes."""

import copy

import pytest
import torch
from torch import nn

from tests.test_model_ar import example, tiny
from valle2.errors import ModelError
from valle2.model.inference import Int8Linear, PackedLinear, Weights, has_bfloat16, prepare


@pytest.mark.parametrize(("weights", "error"), [("float32", 1e-5), ("bfloat16", 2e-2), ("int8", 4e-2)])
def test_scores_are_those_of_the_plain_model_to_rounding(weights: Weights, error: float) -> None:
    if weights == "bfloat16" and not has_bfloat16():
        pytest.skip("this processor has no bfloat16")
    plain = tiny()
    torch.nn.init.normal_(plain.code_embedding.weight, std=0.6)
    packed = prepare(copy.deepcopy(plain), weights)
    text, text_lengths, codes, lengths = example()
    with torch.inference_mode():
        wanted, cache = plain.prefill(text, text_lengths, codes, lengths, 2)
        found, packed_cache = packed.prefill(text, text_lengths, codes, lengths, 2)
        assert (found - wanted).abs().max() < error * wanted.std() * 4
        group = torch.randint(0, 50, (3, 2), generator=torch.Generator().manual_seed(2))
        wanted = plain.decode_one_group(group, lengths // 2, cache)
        found = packed.decode_one_group(group, lengths // 2, packed_cache)
        assert (found - wanted).abs().max() < error * wanted.std() * 4


def test_bfloat16_where_there_is_none_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("valle2.model.inference.has_bfloat16", lambda: False)
    with pytest.raises(ModelError, match="bfloat16 weights need a processor with AVX-512; here use int8 or float32"):
        prepare(tiny(), "bfloat16")


@pytest.mark.parametrize("bias", [True, False])
def test_int8_keeps_every_output_within_its_own_scale(bias: bool) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(64, 32, bias=bias)
    linear.weight.data[3] *= 100  # one loud row must not coarsen the others
    x = torch.randn(5, 7, 64)
    error = (Int8Linear(linear)(x) - linear(x)).abs().amax((0, 1))
    assert (error < 0.1 * linear(x).std((0, 1))).all()


def test_every_linear_layer_is_packed() -> None:
    packed = prepare(tiny(), "float32")
    assert not any(isinstance(layer, nn.Linear) for layer in packed.modules())
    assert sum(isinstance(layer, PackedLinear) for layer in packed.modules()) == 2 * 4 + 2
