"""Packed linear layers: the product they stand for, in every dtype and with or without the libraries."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from dmr_gym import linear
from dmr_gym.linear import DTYPES, PackedLinear, pack_linear_layers

ERROR = {"float32": 1e-6, "float16": 5e-4, "bfloat16": 1e-2}
"""Largest error of an output, in units of the largest output."""


def _layer() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(96, 64)


@pytest.fixture(params=["with libraries", "without"])
def libraries(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways of computing a product."""
    if request.param == "without":
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
        monkeypatch.setattr(linear, "is_fast", lambda dtype: dtype == "float32")


@pytest.mark.usefixtures("libraries")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ["none", "gelu"])
@pytest.mark.parametrize("shape", [(1, 96), (17, 96), (2, 3, 96)])
def test_packed_layers_compute_the_product(dtype: str, activation: str, shape: tuple[int, ...]) -> None:
    """Any leading shape, with bias and activation, to the rounding of the dtype."""
    layer, x = _layer(), torch.randn(shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = layer(x) if activation == "none" else functional.gelu(layer(x))
    found = PackedLinear(layer, dtype, activation)(x)
    assert found.dtype == torch.float32
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= ERROR[dtype] * expected.abs().max()


@pytest.mark.usefixtures("libraries")
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_weights_are_rounded(dtype: str) -> None:
    """A weight between two numbers of the dtype counts as the nearer one: 1 + 2^-12 as 1."""
    layer = nn.Linear(1, 1)
    with torch.no_grad():
        layer.weight.fill_(1 + 2**-12)
        layer.bias.zero_()
    assert PackedLinear(layer, dtype)(torch.ones(1, 1)).item() == 1.0
    assert PackedLinear(layer, "float32")(torch.ones(1, 1)).item() == 1 + 2**-12


@pytest.mark.parametrize("dtype", DTYPES)
def test_changed_weights_are_packed_anew(dtype: str) -> None:
    """The parameters are shared with the layer: doubling them in place doubles the product."""
    layer, x = _layer(), torch.ones(1, 96)
    packed = PackedLinear(layer, dtype)
    before = packed(x)
    with torch.no_grad():
        layer.weight *= 2
        layer.bias *= 2
    torch.testing.assert_close(packed(x), 2 * before, rtol=1e-5, atol=1e-5)


def test_every_linear_layer_is_replaced() -> None:
    """Also in modules inside; other layers stay, and so do the names of the parameters."""
    model = nn.Sequential(nn.LayerNorm(96), _layer(), nn.ModuleDict({"inner": nn.Linear(64, 8)}))
    names = list(model.state_dict())
    pack_linear_layers(model, "float16")
    assert sum(isinstance(module, PackedLinear) for module in model.modules()) == 2
    assert not any(isinstance(module, nn.Linear) for module in model.modules())
    assert list(model.state_dict()) == names


def test_units_are_those_of_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    """AVX-512 BF16 or AMX, each alone, make bfloat16 fast; neither does not."""
    for found, expected in (({"avx512_bf16": True}, True), ({"amx_bf16": True}, True), ({"avx512_f": True}, False)):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda found=found: found)
        assert linear.has_bfloat16_units() is expected
        assert linear.is_fast("bfloat16") is (expected and torch.backends.mkldnn.is_available())
    assert linear.is_fast("float32")
