"""dmr_gym.episode: what survives failures, snapshots and restores, and what an episode records."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from gymnasium.error import ResetNeeded

from dmr_gym.backends import ScriptedBackend
from dmr_gym.encoders import HashEncoder
from dmr_gym.errors import BackendError
from dmr_gym.tasks.toy import make_signs
from dmr_gym.types import Completion, Request
from tests.toy_env import play, toy_env


class Flaky:
    """A backend that cannot answer at first."""

    def __init__(self) -> None:
        self.fails = True
        self.inner = ScriptedBackend(lambda request: "go left", ("low", "high"))
        self.precisions = self.inner.precisions
        self.digest = self.inner.digest
        self.token_distributions = self.inner.token_distributions

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        """Fail once."""
        if self.fails:
            self.fails = False
            raise BackendError("the server is away")
        return self.inner.generate(requests)


def test_a_failed_call_changes_nothing() -> None:
    """After a BackendError the same step can be tried again."""
    env, calm = toy_env(backend=Flaky()), toy_env(backend=Flaky().inner)
    env.reset(seed=0)
    with pytest.raises(BackendError):
        env.step(1)
    calm.reset(seed=0)
    again, expected = env.step(1), calm.step(1)
    assert np.array_equal(again[0], expected[0])
    assert again[1:] == expected[1:]


class FlakyEncoder(HashEncoder):
    """An encoder that fails on the second call."""

    calls = 0

    def encode(self, texts: Sequence[str]) -> Any:
        """Fail when the first step is embedded."""
        self.calls += 1
        if self.calls == 2:
            raise BackendError("out of memory")
        return super().encode(texts)


def test_a_half_done_step_needs_a_reset() -> None:
    """When the embedding fails the world has moved on, so the episode cannot silently continue with a row missing."""
    env = toy_env(encoder=FlakyEncoder(64))
    env.reset(seed=0)
    with pytest.raises(BackendError):
        env.step(1)
    with pytest.raises(ResetNeeded):
        env.step(1)
    env.reset(seed=0)
    env.step(1)


def test_snapshot_and_restore_continue_as_the_original() -> None:
    """From a snapshot the same actions give the same numbers, here and in another environment."""
    env, other = toy_env(), toy_env()
    env.reset(seed=4)
    play(env, [1, 0, 1])
    state = env.snapshot()
    observation, info = env.restore(state)
    rest = [env.step(1) for _ in range(3)]
    env.reset(seed=5)
    other.reset(seed=6)
    for each in (env, other, env):
        again = each.restore(state)
        assert np.array_equal(again[0], observation)
        assert again[1] == info
        assert info["step_index"] == 3
        for step, expected in zip([each.step(1) for _ in range(3)], rest, strict=True):
            assert np.array_equal(step[0], expected[0])
            assert step[1:] == expected[1:]


def test_snapshot_of_an_ended_episode_is_over() -> None:
    """Restoring the end of an episode does not let it go on."""
    env = toy_env(max_steps=2)
    env.reset(seed=0)
    play(env, [0, 0])
    state = env.snapshot()
    env.reset()
    assert env.restore(state)[1]["cap_reached"]
    with pytest.raises(ResetNeeded, match="this episode is over"):
        env.step(0)


def test_turns_record_prompts_and_completions() -> None:
    """The calls of the present episode can be read, for example to ask for their distributions."""
    env = toy_env(sampling={"max_tokens": 30, "stop": ["\n", "|"]})
    start = env.reset(seed=0)[1]
    play(env, [1, 0])
    first, second = env.turns
    assert first.request.precision == "high"
    assert second.request.prompt.startswith(first.request.prompt + f" {first.completion.text}\n")
    assert first.request.sampling.stop == ("\n", "|")
    assert first.step.action == f"go {make_signs(start['task_id'], 8)[0].way}"
    env.reset()
    assert env.turns == ()


def test_sample_index_is_drawn_only_where_it_matters() -> None:
    """At temperature 0 every request has index 0; above, the seed draws it or the options name it."""
    backend = {"kind": "scripted", "policy": "hash", "choices": ["go left", "go right", "look"]}
    greedy, hot = toy_env(backend=backend), toy_env(backend=backend, sampling={"temperature": 0.4})
    drawn = []
    for env, options in ((greedy, {}), (hot, {}), (hot, {}), (hot, {"sample_index": 7})):
        env.reset(seed=0, options=options)
        env.step(0)
        drawn.append(env.turns[0].request.sample_index)
    assert drawn[0] == 0
    assert drawn[1] == drawn[2] > 0
    assert drawn[3] == 7
    assert greedy.reset(seed=0)[1]["task_id"] == hot.reset(seed=0)[1]["task_id"]
