"""dmr_gym.device: names become devices, or an error that says what would do."""

from __future__ import annotations

import pytest
import torch

from dmr_gym.device import torch_device
from dmr_gym.errors import ConfigError


def test_the_cpu_is_always_there() -> None:
    """Its name becomes PyTorch's object."""
    assert torch_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["foo", "cuda:99", "fpga", "hpu", "", None, ["cpu"]])
def test_what_is_no_device_here_is_a_config_error(name: object) -> None:
    """Unknown names, devices of another machine or build, and values that are no text: one line, with the cause."""
    with pytest.raises(ConfigError, match='cannot be used: pass "cpu", or "cuda" on a machine with it') as caught:
        torch_device(name)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value.__cause__, RuntimeError | AssertionError | ImportError | TypeError)
