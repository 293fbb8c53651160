"""dmr_gym.env: what observations and actions are, how an episode begins, and that a seed repeats it."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np
import pytest
from gymnasium.error import InvalidAction, ResetNeeded

from dmr_gym.encoders import HashEncoder
from dmr_gym.errors import ConfigError, TaskError
from dmr_gym.history import valid_mask
from dmr_gym.tasks.toy import make_signs
from tests.toy_env import play, toy_env


def test_observation_rows_embed_what_happened() -> None:
    """Row 0 is the instruction and first observation; each step adds the action and its answer; the rest is zero."""
    env = toy_env()
    observation, info = env.reset(seed=3)
    signs = make_signs(info["task_id"], 8)
    texts = [f"Follow the signs to the exit.\n{signs[0].text}"]
    for step in range(2):
        assert np.array_equal(observation[: step + 1], HashEncoder(64).encode(texts))
        assert valid_mask(observation).tolist() == [True] * (step + 1) + [False] * (63 - step)
        assert observation in env.observation_space
        observation = env.step(1)[0]
        texts.append(f"go {signs[step].way}\n{signs[step + 1].text}")


def test_newest_rows_stay_when_the_history_is_full() -> None:
    """With L = 3, the rows after five steps are those of the last three steps."""
    env, wide = toy_env(history_length=3), toy_env()
    for each in (env, wide):
        each.reset(options={"task_id": "toy-train-000"})
    narrow, full = play(env, [1] * 5)[-1][0], play(wide, [1] * 5)[-1][0]
    assert np.array_equal(narrow, full[3:6])


def test_seed_draws_the_task_and_nothing_else_does() -> None:
    """The same seed draws the same tasks; going on without a seed draws others; options pin one."""
    env = toy_env()
    drawn = [[env.reset(seed=5)[1]["task_id"]] + [env.reset()[1]["task_id"] for _ in range(20)] for _ in range(2)]
    assert drawn[0] == drawn[1]
    assert len(set(drawn[0])) > 10
    np.random.seed(0)
    assert env.reset(seed=5)[1]["task_id"] == drawn[0][0]
    assert env.reset(seed=5, options={"task_id": "toy-train-009"})[1]["task_id"] == "toy-train-009"


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"task_id": "toy-train-99"}, TaskError, r"unknown task id 'toy-train-99'; did you mean 'toy-train-0"),
        (
            {"taskid": "x"},
            ConfigError,
            r"unknown reset option 'taskid'; did you mean 'task_id'\? known: task_id, sample",
        ),
        ({"sample_index": -1}, ConfigError, "sample_index must be a whole number of at least 0, got -1"),
    ],
)
def test_wrong_reset_options_are_named(options: dict[str, Any], error: type[Exception], message: str) -> None:
    """Unknown options and ids raise with the nearest known name, and the present episode goes on."""
    env = toy_env()
    env.reset(seed=0)
    with pytest.raises(error, match=message):
        env.reset(options=options)
    env.step(0)


def test_actions_are_any_integers_of_the_space() -> None:
    """Python, NumPy and zero-dimensional array integers mean the same."""
    env = toy_env()
    for action in (1, np.int64(1), np.uint8(1), np.array(1)):
        env.reset(seed=0)
        info = env.step(action)[4]
        assert (info["precision"], type(info["precision"])) == (1, int)


@pytest.mark.parametrize("action", [2, -1, 0.0, 1.5, "bf16", None, np.array([0, 1])])
def test_other_actions_are_refused(action: object) -> None:
    """The message names the actions, and the episode goes on."""
    env = toy_env()
    env.reset(seed=0)
    with pytest.raises(InvalidAction, match="expected an action among 0 = low, 1 = high, got"):
        env.step(action)
    assert env.step(0)[4]["step_index"] == 1


def test_order_is_enforced() -> None:
    """Stepping, rendering or taking a snapshot without a running episode raises ResetNeeded."""
    env = toy_env(max_steps=1, render_mode="ansi")
    for use in (lambda: env.step(0), env.render, env.snapshot):
        with pytest.raises(ResetNeeded, match="reset"):
            use()
    env.reset(seed=0)
    env.step(0)
    with pytest.raises(ResetNeeded, match=r"this episode is over: call env.reset\(\) to start another"):
        env.step(0)
    env.reset()
    env.step(0)


def test_same_seed_same_bytes() -> None:
    """The bytes of three episodes of DMR-Toy-v0 are the same in every process and on every machine."""
    env = toy_env()
    digest = hashlib.sha256()
    for seed in range(3):
        observation, info = env.reset(seed=seed)
        for step in range(12):
            digest.update(observation.tobytes())
            digest.update(json.dumps(info, sort_keys=True).encode())
            observation, reward, terminated, _, info = env.step((seed + step * step) % 2)
            digest.update(repr(reward).encode())
            if terminated:
                break
    assert digest.hexdigest() == "cbbb4c16bf63236382a5ba4012eb2a286051259f6b9e73c77593f4ffbc2872df"
