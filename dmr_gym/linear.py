"""Linear layers whose weights lie in memory as oneDNN multiplies them, in float32 or bfloat16, for inference on a CPU.

A small model answers one request by streaming its weights through the processor, so half the bytes are half the time;
and PyTorch's own linear layer lays the weights out anew at every call. Where oneDNN is absent, or the weights are on
another device, the same products are computed by PyTorch's own layer.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

_packed_product = torch.ops.mkldnn._linear_pointwise.default


def has_bfloat16_units() -> bool:
    """Whether this CPU multiplies bfloat16 natively: AVX-512 BF16 or AMX.

    Without them oneDNN widens each operand first, which takes two to three times as long as float32.
    """
    capabilities = torch.cpu.get_capabilities()
    units = any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16"))
    return units and torch.backends.mkldnn.is_available()


class PackedLinear(nn.Module):
    """``activation(x W^T + b)`` with packed weights, accumulated in float32; the result has the dtype of x.

    The parameters are those of the layer it stands for, shared with it: when that layer is trained on, the weights are
    packed anew at the next call. Gradients do not pass through.

    Args:
        linear: the layer it stands for.
        dtype: in which weights and inputs are multiplied: float32 or bfloat16.
        activation: "none" or "gelu".
    """

    def __init__(self, linear: nn.Linear, dtype: torch.dtype, activation: str = "none") -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias
        self._dtype = dtype
        self._activation = activation
        self._packed: tuple[Tensor, Tensor] | None = None
        self._packed_from = (-1, -1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., inputs) to (..., outputs)."""
        weight, bias = self._newest()
        if weight.is_mkldnn:
            y: Tensor = _packed_product(x.to(self._dtype), weight, bias, self._activation, [], "none")
        else:
            y = functional.linear(x.to(self._dtype), weight, bias)
            y = functional.gelu(y) if self._activation == "gelu" else y
        return y.to(x.dtype)

    def _newest(self) -> tuple[Tensor, Tensor]:
        """Weights and bias as multiplied, made anew when the layer's own have changed."""
        weight, bias = self._parameters["weight"], self._parameters["bias"]  # half the time of self.weight
        assert weight is not None
        assert bias is not None
        versions = weight._version, bias._version
        if self._packed is None or versions != self._packed_from:
            self._packed, self._packed_from = self._pack(), versions
        return self._packed

    def _pack(self) -> tuple[Tensor, Tensor]:
        weight, bias = self.weight.detach().to(self._dtype), self.bias.detach().to(self._dtype)
        if weight.device.type == "cpu" and torch.backends.mkldnn.is_available():
            weight = torch.ops.mkldnn._reorder_linear_weight.default(weight.contiguous())
        return weight, bias


def pack_linear_layers(module: nn.Module, dtype: torch.dtype) -> None:
    """Put a `PackedLinear` in the place of every linear layer inside a module."""
    for name, child in module.named_children():
        if isinstance(child, nn.Linear):
            setattr(module, name, PackedLinear(child, dtype))
        else:
            pack_linear_layers(child, dtype)
