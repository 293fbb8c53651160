"""Worlds: each is a `dmr_gym.types.Task` and knows nothing of models, precisions or rewards."""

from __future__ import annotations

import importlib
import inspect
from typing import Any

from dmr_gym.config import unknown_name
from dmr_gym.errors import ConfigError
from dmr_gym.types import Task

# Names, not classes: a world's own dependencies load when it is made.
TASKS = {
    "alfworld": "dmr_gym.tasks.alfworld.task:AlfworldTask",
    "toy": "dmr_gym.tasks.toy:ToyTask",
    "webshop": "dmr_gym.tasks.webshop.task:WebshopTask",
}

__all__ = ["TASKS", "make_task"]


def make_task(kind: str, **kwargs: Any) -> Task:
    """Build a world from plain data.

    Args:
        kind: a key of `TASKS`.
        **kwargs: the settings of that world.

    Raises:
        ConfigError: for an unknown kind or setting.
    """
    if not isinstance(kind, str) or kind not in TASKS:
        raise ConfigError(unknown_name("task", kind, TASKS))
    module, _, name = TASKS[kind].partition(":")
    create = getattr(importlib.import_module(module), name)
    known = [key for key in inspect.signature(create).parameters if key != "self"]
    for key in kwargs:
        if key not in known:
            raise ConfigError(unknown_name(f"{kind} task setting", key, known))
    task: Task = create(**kwargs)
    return task
