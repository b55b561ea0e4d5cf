"""Linear layers packed for inference on a CPU, where decoding is as fast as weights come from memory.

A training layer keeps its weight as a plain matrix; reading it a vector at a time wastes most of the bandwidth. Here it
is laid out once as the kernels want it, in float32, or in bfloat16 or int8 with a half or a quarter of the bytes.
Activations, norms and attention stay in float32. (Not in the paper.)
"""

from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from valle2.errors import ModelError

Weights = Literal["float32", "bfloat16", "int8"]


class PackedLinear(nn.Module):
    """A linear layer in oneDNN's own layout, float32 or bfloat16."""

    def __init__(self, linear: nn.Linear, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        bias = linear.bias
        self.bias = None if bias is None else bias.detach().to(dtype)
        self.weight: Any = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach().to(dtype).contiguous(), 1)

    def forward(self, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b e"]:
        """As `nn.Linear`; in and out are float32."""
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x.to(self.dtype), self.weight, self.bias, "none", [], "")
        return y.float()


class Int8Linear(nn.Module):
    """A linear layer with int8 weights, a scale for each output, and inputs quantized as they come."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach().float()
        scales = (weight.abs().amax(1) / 127).clamp_min(1e-12).double()
        zeros = torch.zeros(len(weight), dtype=torch.long)
        # Without VNNI, products of inputs of 8 bits overflow the 16 bits that they are added in: 7 must do.
        self.reduce_range = not torch.cpu._is_vnni_supported()
        bias = linear.bias
        self.packed: Any = torch.ops.quantized.linear_prepack(
            torch.quantize_per_channel(weight, scales, zeros, 0, torch.qint8),
            None if bias is None else bias.detach().float(),
        )

    def forward(self, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b e"]:
        """As `nn.Linear`; in and out are float32."""
        y: Tensor = torch.ops.quantized.linear_dynamic(x.contiguous(), self.packed, self.reduce_range)
        return y


def check_device(device: str) -> None:
    """Make sure that a device is there.

    Args:
        device: As torch names it: `cpu`, `cuda`, `cuda:1`.

    Raises:
        ModelError: It is not.
    """
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        why = str(error).strip().split("\n")[0].partition(". ")[0]
        raise ModelError(f"no device {device!r} here ({why}); give cpu, or cuda where there is such a GPU") from error


def has_bfloat16() -> bool:
    """Whether this processor's kernels read bfloat16 weights."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def prepare(model: nn.Module, weights: Weights) -> nn.Module:
    """Make a model ready for inference in place; it cannot be trained or saved afterwards.

    Args:
        model: An AR or NAR model in its evaluation mode, on the device that it runs on.
        weights: On a CPU, how linear layers keep theirs; embeddings, which are also heads, stay float32. On a GPU the
            whole model is float32 or bfloat16.

    Raises:
        ModelError: int8 was asked for on a GPU, or bfloat16 on a processor that cannot read it.
    """
    if next(model.parameters()).device.type != "cpu":
        if weights == "int8":
            raise ModelError("int8 weights are for CPUs; on a GPU use bfloat16")
        return model.to(getattr(torch, weights))
    if weights == "bfloat16" and not has_bfloat16():
        raise ModelError("bfloat16 weights need a processor with AVX-512; here use int8 or float32")
    if weights == "float32" and not torch.backends.mkldnn.is_available():
        return model
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, nn.Linear):
                packed = Int8Linear(layer) if weights == "int8" else PackedLinear(layer, getattr(torch, weights))
                setattr(parent, name, packed)
    return model
