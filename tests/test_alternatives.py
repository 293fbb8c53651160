"""What else could have been done: the answers of every precision in the states of an episode, asked for once."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from dmr_gym.alternatives import LARGEST_KL, Alternatives, read_alternatives
from dmr_gym.kl_dataset import label_trajectory
from dmr_gym.policies import FixedPrecision
from dmr_gym.records import FORMAT, episode_record
from dmr_gym.rollout import Trajectory, rollout
from dmr_gym.tasks import make_task
from dmr_gym.tasks.toy import make_signs
from dmr_gym.types import Completion, Request, SamplingParams
from dmr_gym.vector import PrecisionRoutingVectorEnv
from tests.toy_env import TASK, envs, solved

__all__ = ["envs", "solved"]  # fixtures for tests here


def ask(envs: PrecisionRoutingVectorEnv, temperature: float = 0.0) -> Alternatives:
    """Asks the precisions of the environment."""
    return Alternatives(make_task("toy", panel="train"), envs.backend, SamplingParams(temperature=temperature))


class Counting:
    """A backend that notes what it is asked."""

    def __init__(self, backend: object) -> None:
        self.backend, self.requests = backend, []

    def __getattr__(self, name: str) -> object:
        return getattr(self.backend, name)

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        self.requests += requests
        return self.backend.generate(requests)


def test_alternatives_are_what_each_precision_would_have_done(
    envs: PrecisionRoutingVectorEnv, solved: Trajectory
) -> None:
    """At a fallen sign low precision goes the wrong way, back to the first sign; elsewhere both go on."""
    signs = make_signs(TASK, 8)
    found = ask(envs).of(episode_record(solved))
    assert [len(each) for each in found] == [2] * 8
    for t, (low, high) in enumerate(found):
        turn = solved.turns[t]
        assert (high["action"], high["observation"]) == (turn.step.action, turn.step.observation)
        assert (low["action"] == high["action"]) is not signs[t].fallen
        assert low["observation"] == (signs[0].text if signs[t].fallen else high["observation"])
    assert [high["success"] for _, high in found] == [False] * 7 + [True]


def test_the_kl_of_alternatives_is_that_of_the_labels(envs: PrecisionRoutingVectorEnv, solved: Trajectory) -> None:
    """On high precision's own episode it is what agents/collect_kl.py records; the highest has none."""
    found = ask(envs).of(episode_record(solved))
    expected = label_trajectory(solved, envs.backend).kl_action[:, 0]
    assert [low["kl"] for low, _ in found] == pytest.approx(expected.tolist())
    assert all(high["kl"] is None for _, high in found)


def test_alternatives_follow_the_states_that_were_visited(envs: PrecisionRoutingVectorEnv, solved: Trajectory) -> None:
    """Low precision's own episode: the high one always knows the way, and KL is along what that one says."""
    [lost] = rollout(envs, FixedPrecision(0), [TASK], keep_turns=True)
    found = ask(envs).of(episode_record(lost))
    signs = make_signs(TASK, 8)
    place = 0
    for low, high in found:
        assert high["action"] == f"go {signs[place].way}"
        place = place + 1 if low["action"] == high["action"] else 0
    # Up to the first fallen sign, and there, both precisions have seen the same.
    shared = [sign.fallen for sign in signs].index(True) + 1
    expected = label_trajectory(solved, envs.backend).kl_action[:shared, 0]
    assert [low["kl"] for low, _ in found[:shared]] == pytest.approx(expected.tolist())


def test_an_infinite_kl_is_written_as_a_number(
    envs: PrecisionRoutingVectorEnv, solved: Trajectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """JSON has no infinity."""
    monkeypatch.setattr("dmr_gym.alternatives.turn_kls", lambda turns, _: np.full((2, len(turns), 1), np.inf))
    found = ask(envs).of(episode_record(solved))
    assert {low["kl"] for low, _ in found} == {LARGEST_KL}


def test_a_state_is_asked_about_once(envs: PrecisionRoutingVectorEnv, solved: Trajectory) -> None:
    """Not again for another policy, nor for what an earlier run has found; a drawn answer belongs to its seed."""
    record = episode_record(solved)
    backend = Counting(envs.backend)
    asked = Alternatives(make_task("toy", panel="train"), backend, SamplingParams())
    found = asked.of(record)
    assert len(backend.requests) == 2 * 8
    assert asked.of(record | {"seed": 5}) == found
    assert len(backend.requests) == 2 * 8
    later = Alternatives(make_task("toy", panel="train"), backend, SamplingParams())
    later.remember(record, found)
    assert later.of(record) == found
    assert len(backend.requests) == 2 * 8
    drawn = Alternatives(make_task("toy", panel="train"), backend, SamplingParams(temperature=1.0))
    drawn.of(record)
    drawn.of(record | {"seed": 5})
    assert [request.sample_index for request in backend.requests[16:]] == [2] * 16 + [5] * 16


def test_alternatives_are_read_by_policy_task_and_seed(tmp_path: Path) -> None:
    """A missing file has none."""
    line = {"format": FORMAT, "policy": "a", "task_id": "t", "seed": 1, "steps": [[{"action": "go"}]]}
    path = tmp_path / "alternatives.jsonl"
    assert read_alternatives(path) == {}
    path.write_text(json.dumps(line) + "\n")
    assert read_alternatives(path) == {("a", "t", 1): [[{"action": "go"}]]}
