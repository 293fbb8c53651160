"""dmr_gym.env: which settings are taken, which are refused and how, and what close closes."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

from dmr_gym.backends import ScriptedBackend
from dmr_gym.encoders import HashEncoder
from dmr_gym.env import PrecisionRoutingEnv
from dmr_gym.errors import ConfigError
from dmr_gym.latency import TokenLinearLatency
from dmr_gym.tasks.toy import ToyTask
from tests.toy_env import play, toy_env


def test_spaces_follow_the_settings() -> None:
    """Discrete(P) and Box(-1, 1, (L, D), float32)."""
    env = toy_env(
        precisions=["w3", "w4", "bf16"],
        backend={"kind": "scripted", "policy": "echo"},
        latency={"ms_per_token": {"w3": 1, "w4": 2, "bf16": 3}, "router_ms": 0},
        history_length=7,
        encoder={"kind": "hash", "dim": 5},
    )
    assert env.action_space.n == 3
    assert env.precisions == ("w3", "w4", "bf16")
    assert env.observation_space.shape == (7, 5)
    assert env.observation_space.dtype == np.float32
    assert (env.observation_space.low.min(), env.observation_space.high.max()) == (-1.0, 1.0)


def test_live_parts_are_taken_as_they_are() -> None:
    """A task, backend, encoder and latency model of one's own need no registration."""
    env = PrecisionRoutingEnv(
        task=ToyTask(num_tasks=1),
        precisions=("small", "large"),
        backend=ScriptedBackend(lambda request: f"go {request.precision}", ("small", "large")),
        encoder=HashEncoder(3),
        latency=TokenLinearLatency({"small": 1.0, "large": 2.0}, 0.0),
    )
    env.reset()
    assert env.step(1)[4]["latency_s"] == 9 * 2.0 / 1000


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lambda_": -1}, "lambda_ must be a finite number of at least 0"),
        ({"max_steps": 0}, "max_steps must be a whole number of at least 1"),
        ({"precisions": ["high"]}, "precisions must be two or more different names"),
        ({"sampling": {"temprature": 1}}, r"unknown SamplingParams setting 'sampling.temprature'; did you mean"),
        ({"sampling": {"top_p": 0.0}}, r"sampling needs temperature >= 0, top_p in \(0, 1\] and max_tokens >= 1"),
        (
            {"render_mode": "rgb"},
            r"unknown render_mode 'rgb'; did you mean 'rgb_array'\? known: ansi, human, rgb_array",
        ),
        ({"latency": TokenLinearLatency}, "latency must be a row of Table 3 or a mapping, got"),
        ({"latency": "alfworld"}, "unknown latency row of Table 3 'alfworld'"),
        ({"backend": {"kind": "sglang"}}, "unknown backend kind 'sglang'; known: embedded, local, scripted, vllm"),
        ({"task": "chess"}, "unknown task 'chess'"),
        (
            {"task": ToyTask(), "task_kwargs": {"panel": "test"}},
            "a live task serves one episode and takes no task_kwargs",
        ),
        (
            {"backend": ScriptedBackend(lambda request: "", ("a", "b"))},
            r"the backend's precisions are \('a', 'b'\), the",
        ),
        ({"lambda_": math.inf}, "lambda_ must be a finite number"),
        ({"lambda_": True}, "lambda_ must be a finite number"),
        ({"precisions": "bf16"}, "precisions must be two or more different names, lowest first, got 'bf16'"),
        ({"precisions": None}, "precisions must be two or more different names, lowest first, got None"),
        ({"precisions": 3}, "precisions must be two or more different names, lowest first, got 3"),
        ({"backend": "scripted"}, "either answers or a policy"),
        ({"backend": "vllm"}, "backend kind 'vllm' needs the option model, urls"),
        ({"backend": 3}, r"backend must be a kind, .* the protocol dmr_gym.types.Backend, got 3 \(int\)"),
        ({"backend": ScriptedBackend}, "backend must be a kind, plain data with a kind, or an object of the protocol"),
        ({"encoder": object()}, "encoder must be a kind, .* the protocol dmr_gym.types.Encoder, got"),
        ({"encoder": "glove"}, "unknown encoder kind 'glove'; known: hash, minilm"),
        ({"task": None}, r"task must be a kind, .* the protocol dmr_gym.types.Task, got None \(NoneType\)"),
        ({"task_kwargs": "train"}, r"task_kwargs must be a mapping or None, got 'train' \(str\)"),
        ({"sampling": [0.5]}, r"sampling must be a mapping or None, got \[0.5\] \(list\)"),
        ({"cache_dir": 5}, r"cache_dir must be a folder or None, got 5 \(int\)"),
    ],
)
def test_wrong_settings_are_refused_at_construction(settings: dict[str, Any], message: str) -> None:
    """Mistakes raise a ConfigError when the environment is made, not when it is used."""
    with pytest.raises(ConfigError, match=message):
        toy_env(**settings)


def test_a_text_is_a_kind() -> None:
    """The name of a kind stands for the kind with its defaults."""
    assert toy_env(encoder="hash").observation_space == toy_env(encoder={"kind": "hash"}).observation_space


def test_numpy_integers_are_whole_numbers() -> None:
    """Counts that were computed with NumPy work, and infos stay JSON."""
    env = toy_env(max_steps=np.int64(2), history_length=np.int32(3))
    env.reset(seed=0)
    info = play(env, [0, 0])[-1][4]
    assert info["cap_reached"]
    assert json.loads(json.dumps(info)) == info


class Closing:
    """Counts how often it is closed."""

    closed = 0

    def close(self) -> None:
        """Count."""
        self.closed += 1


class ClosingTask(Closing, ToyTask):
    """A world that counts."""


class ClosingBackend(Closing, ScriptedBackend):
    """A backend that counts."""


class ClosingEncoder(Closing, HashEncoder):
    """An encoder that counts."""


def test_close_leaves_live_parts_open() -> None:
    """What the caller passed in, the caller closes: it may serve other environments."""
    parts = ClosingTask(), ClosingBackend(lambda request: "", ("low", "high")), ClosingEncoder(4)
    task, backend, encoder = parts
    env = toy_env(task=task, task_kwargs=None, backend=backend, encoder=encoder)
    env.close()
    assert [part.closed for part in parts] == [0, 0, 0]


def test_close_closes_what_the_environment_built(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    """Task, backend and encoder made from plain data are closed, through their caches."""
    parts = ClosingTask(), ClosingBackend(lambda request: "", ("low", "high")), ClosingEncoder(4)
    for name, part in zip(("make_task", "make_backend", "make_encoder"), parts, strict=True):
        monkeypatch.setattr(f"dmr_gym.parts.{name}", lambda *args, _part=part, **kwargs: _part)
    toy_env(cache_dir=str(tmp_path)).close()
    assert [part.closed for part in parts] == [1, 1, 1]
