"""PyTorch devices by name, checked before anything is loaded on them."""

from __future__ import annotations

import torch

from dmr_gym.errors import ConfigError


def torch_device(name: str) -> torch.device:
    """Return a device that this machine has.

    Args:
        name: for example "cpu", "cuda" or "cuda:1".

    Raises:
        ConfigError: PyTorch does not know the name, or the device is not there.
    """
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    # Builds without CUDA refuse it by an assertion, plug-ins that are missing by an ImportError, and other values than
    # text by a TypeError; everything else, NotImplementedError too, is a RuntimeError.
    except (RuntimeError, AssertionError, ImportError, TypeError) as error:
        reason = str(error).partition("\n")[0]
        raise ConfigError(
            f'device {name!r} cannot be used: pass "cpu", or "cuda" on a machine with it ({reason})'
        ) from error
    return device
