"""Linear layers for inference on a CPU, their weights laid out once for the library that multiplies them.

A small model that answers one request at a time streams its weights through the processor: half the bytes take half the
time. Three layouts, each the fastest for something:

* float16 (FBGEMM): inputs and sums stay float32, only weights are rounded, to 11 bits. For few rows at a time; needs
  no more than AVX2.
* bfloat16 (oneDNN): inputs and weights are rounded to 8 bits, sums are float32. For many rows at a time, on processors
  that multiply bfloat16 natively; others widen each operand first, which takes two to three times as long as float32.
* float32 (oneDNN): nothing is rounded, and nothing is laid out anew at each call.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

DTYPES = ("float32", "bfloat16", "float16")


def has_bfloat16_units() -> bool:
    """Whether this CPU multiplies bfloat16 natively: AVX-512 BF16 or AMX."""
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16"))


def is_fast(dtype: str) -> bool:
    """Whether products in a reduced dtype are faster than float32 on this CPU."""
    if dtype == "float16":
        return torch.backends.quantized.engine in ("fbgemm", "x86")
    return dtype == "float32" or (_has_onednn() and has_bfloat16_units())


class PackedLinear(nn.Module):
    """``activation(x W^T + b)`` with packed weights; the result has the dtype of x.

    The parameters are those of the layer it stands for, shared with it: when that layer is trained on, the weights are
    packed anew at the next call. Gradients do not pass through. On another device than the CPU, and where the library
    is missing, the product is PyTorch's own, with weights and inputs rounded alike.

    Args:
        linear: the layer it stands for.
        dtype: one of `DTYPES`.
        activation: "none" or "gelu".
    """

    def __init__(self, linear: nn.Linear, dtype: str, activation: str = "none") -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias
        self._dtype = dtype
        self._activation = activation
        self._product: Callable[[Tensor], Tensor] | None = None
        self._packed_from = (-1, -1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., inputs) to (..., outputs)."""
        weight, bias = self._parameters["weight"], self._parameters["bias"]  # half the time of self.weight
        assert weight is not None
        assert bias is not None
        versions = weight._version, bias._version
        if self._product is None or versions != self._packed_from:
            self._product, self._packed_from = self._pack(weight.detach(), bias.detach()), versions
        return self._product(x)

    def _pack(self, weight: Tensor, bias: Tensor) -> Callable[[Tensor], Tensor]:
        on_cpu = weight.device.type == "cpu"
        if self._dtype == "float16" and on_cpu and is_fast("float16"):
            return _fbgemm(weight, bias, self._activation)
        if self._dtype == "float32" and on_cpu and _has_onednn():
            return _onednn(weight, bias, torch.float32, self._activation)
        if self._dtype == "bfloat16" and on_cpu and _has_onednn() and torch.ops.mkldnn._is_mkldnn_bf16_supported():
            return _onednn(weight, bias, torch.bfloat16, self._activation)
        return _plain(weight, bias, self._dtype, self._activation)


def pack_linear_layers(module: nn.Module, dtype: str) -> None:
    """Put a `PackedLinear` in the place of every linear layer inside a module."""
    for name, child in module.named_children():
        if isinstance(child, nn.Linear):
            setattr(module, name, PackedLinear(child, dtype))
        else:
            pack_linear_layers(child, dtype)


def _fbgemm(weight: Tensor, bias: Tensor, activation: str) -> Callable[[Tensor], Tensor]:
    packed = torch.ops.quantized.linear_prepack_fp16(weight, bias)
    multiply = torch.ops.quantized.linear_dynamic_fp16.default

    def product(x: Tensor) -> Tensor:
        return _activate(multiply(x, packed), activation)

    return product


def _onednn(weight: Tensor, bias: Tensor, dtype: torch.dtype, activation: str) -> Callable[[Tensor], Tensor]:
    packed, bias = torch.ops.mkldnn._reorder_linear_weight(weight.to(dtype).contiguous()), bias.to(dtype)
    multiply = torch.ops.mkldnn._linear_pointwise.default

    def product(x: Tensor) -> Tensor:
        y: Tensor = multiply(x.to(dtype), packed, bias, activation, [], "none")
        return y.to(x.dtype)

    return product


def _plain(weight: Tensor, bias: Tensor, dtype: str, activation: str) -> Callable[[Tensor], Tensor]:
    rounded = weight.to(getattr(torch, dtype))
    if dtype == "float16":  # as FBGEMM does: the weights alone are rounded
        rounded = rounded.to(bias.dtype)

    def product(x: Tensor) -> Tensor:
        y = functional.linear(x.to(rounded.dtype), rounded, bias.to(rounded.dtype))
        return _activate(y, activation).to(x.dtype)

    return product


def _activate(y: Tensor, activation: str) -> Tensor:
    return functional.gelu(y) if activation == "gelu" else y


def _has_onednn() -> bool:
    available: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return available
