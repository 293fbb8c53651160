"""What a training run needs to survive a kill: its settings on record, and its state in one safetensors file.

``agents/train_embedded_agent.py`` uses it.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from dmr_gym.errors import ConfigError
from dmr_gym.runs import write_atomically, write_json

SETTINGS_FILE = "args.json"


def claim_folder(folder: Path, settings: Mapping[str, Any], resume: bool, free: Collection[str] = ()) -> None:
    """Write a run's settings into its folder, or compare them with those of the run that is there.

    Args:
        folder: of the run; made where missing.
        settings: plain data.
        resume: whether the run in the folder is to go on.
        free: names of settings that may differ on resuming, such as the number of threads.

    Raises:
        ConfigError: the folder holds a run, and it is not to be resumed or has other settings.
    """
    path = folder / SETTINGS_FILE
    if path.is_file():
        if not resume:
            raise ConfigError(f"{folder} holds a run: --resume goes on with it, another --out starts a new one")
        found = json.loads(path.read_text(encoding="utf-8"))
        given = json.loads(json.dumps(dict(settings)))
        names = {*found, *given} - set(free)
        changed = sorted(name for name in names if found.get(name) != given.get(name))
        if changed:
            raise ConfigError(f"{folder} was begun with other {', '.join(changed)}: choose another --out")
    write_json(path, settings)


def save_training_state(
    path: Path,
    model: torch.nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    progress: Mapping[str, int | float],
) -> None:
    """Write weights, optimizer state and progress as one safetensors file, whole or not at all.

    Args:
        path: of the file.
        model: its parameters are saved.
        optimizers: in a fixed order; every value of their state must be a tensor.
        progress: numbers that `load_training_state` gives back.
    """
    tensors = {f"model.{name}": p.detach().clone() for name, p in model.named_parameters()}
    for index, optimizer in enumerate(optimizers):
        for number, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{number}.{key}": value for key, value in state.items()}
    metadata = {name: repr(value) for name, value in progress.items()}
    write_atomically(path, lambda part: save_file(tensors, part, metadata=metadata))


def load_training_state(
    path: Path, model: torch.nn.Module, optimizers: Sequence[torch.optim.Optimizer]
) -> dict[str, float]:
    """Read what `save_training_state` wrote into a model and its optimizers.

    Returns:
        The progress; empty where there is no file.

    Raises:
        ConfigError: the file belongs to a model of other shapes.
    """
    if not path.is_file():
        return {}
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        progress = {name: float(value) for name, value in (file.metadata() or {}).items()}
    with torch.no_grad():
        for name, p in model.named_parameters():
            found = tensors.get(f"model.{name}")
            if found is None or found.shape != p.shape:
                shape = None if found is None else tuple(found.shape)
                raise ConfigError(f"{path} does not fit the model: expected {name} of {tuple(p.shape)}, found {shape}")
            p.copy_(found)
    for index, optimizer in enumerate(optimizers):
        state: dict[int, dict[str, torch.Tensor]] = {}
        for name, value in tensors.items():
            if name.startswith(f"optimizer.{index}."):
                number, key = name.split(".")[2:]
                state.setdefault(int(number), {})[key] = value
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return progress
