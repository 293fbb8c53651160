"""Latency models inside the environment: what a switch costs there, and that nothing of it is hidden state."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from dmr_gym import ENV_IDS
from dmr_gym.episode import priced_call
from dmr_gym.latency import cached_prompt_tokens
from dmr_gym.vector import PrecisionRoutingVectorEnv
from tests.test_latency_models import ENERGY, MONEY, PREFILL_DECODE
from tests.test_vector import assert_same, sync_env, vector_env
from tests.toy_env import play, toy_env


def renamed(settings: dict[str, Any]) -> dict[str, Any]:
    """The same prices for the precisions of the toy world."""
    return json.loads(json.dumps(settings).replace('"w3"', '"low"').replace('"bf16"', '"high"'))


KINDS: dict[str, dict[str, Any]] = {
    "prefill-decode": renamed(PREFILL_DECODE),
    "money": renamed(MONEY | {"router_dollars": 1e-6}),
    "energy": renamed(ENERGY),
    "wall-clock": {"kind": "wall-clock", "router_ms": 5.0},
}
LEADING_SPACE = {
    "kind": "scripted",
    "answers": {"*": {"points left": " go left", "points right": " go right", "shows": " go left"}},
}
"""Answers as a byte-pair model gives them, so that a prompt continues the last prompt and its answer."""
BY_HAND = {
    "kind": "prefill-decode",
    "ms_per_prefill_token": {"low": 1.0, "high": 1.0},
    "ms_per_decode_token": {"low": 0.0, "high": 0.0},
    "router_ms": 0.0,
    "block_tokens": 1,
}


def prompt_lengths(env: Any) -> list[int]:
    """Tokens of each prompt: its bytes, in the scripted backend."""
    return [len(turn.request.prompt.encode()) for turn in env.turns]


def test_each_precision_pays_for_what_its_own_server_has_not_seen() -> None:
    """High, high, low, high on prompts of p1 < p2 < p3 < p4 bytes.

    The second call finds the first prompt and its answer of " go left" (8 bytes) or " go right", low finds nothing, and
    the last call has to compute what came after the second answer.
    """
    env = toy_env(backend=LEADING_SPACE, latency=BY_HAND, lambda_=1.0)
    env.reset(seed=1)
    steps = play(env, [1, 1, 0, 1])
    p1, p2, p3, p4 = prompt_lengths(env)
    a1, a2 = (len(turn.completion.text) for turn in env.turns[:2])
    computed = [p1, p2 - (p1 + a1), p3, p4 - (p2 + a2)]
    assert [step[4]["latency_llm_s"] for step in steps] == pytest.approx([n / 1000 for n in computed])
    assert [step[1] for step in steps] == pytest.approx([-n / 1000 for n in computed])


def test_staying_is_cheaper_than_switching_to_and_fro() -> None:
    """At equal prices of both precisions, only the cold prefixes tell the two routings apart."""
    costs = []
    for actions in ([1, 1, 1, 1], [1, 0, 1, 0]):
        env = toy_env(backend=LEADING_SPACE, latency=BY_HAND)
        env.reset(seed=1)
        costs.append(play(env, actions)[-1][4]["episode_latency_s"])
    assert costs[0] < costs[1]


def test_wall_clock_is_what_the_completions_carry(tmp_path: Path) -> None:
    """Three ms a byte as the backend reports; a cache answers with the seconds of the call that made the answer."""
    backend = {**ENV_IDS["DMR-Toy-v0"]["backend"], "ms_per_token": 3.0}
    seen = []
    for _ in range(2):
        env = toy_env(backend=backend, latency={"kind": "wall-clock"}, cache_dir=str(tmp_path), info_text=True)
        env.reset(seed=0)
        infos = [step[4] for step in play(env, [1, 0, 1])]
        seen.append([info["latency_s"] for info in infos])
        assert [info["latency_s"] for info in infos] == pytest.approx([0.003 * i["completion_tokens"] for i in infos])
        env.close()
    assert infos[0]["cache_hit"]
    assert seen[0] == seen[1]


@pytest.mark.parametrize("kind", KINDS)
def test_snapshots_continue_as_the_original(kind: str) -> None:
    """A branch taken from a snapshot, here or elsewhere, costs what it would have cost without the detour."""
    env, other = toy_env(latency=KINDS[kind]), toy_env(latency=KINDS[kind])
    env.reset(seed=4)
    play(env, [1, 0, 1])
    state = env.snapshot()
    rest = [env.step(action)[1:] for action in (0, 1, 0)]
    other.reset(seed=9)
    for each in (env, other):
        each.restore(state)
        play(each, [1, 1])
        each.restore(state)
        assert [each.step(action)[1:] for action in (0, 1, 0)] == rest


@pytest.mark.parametrize("kind", KINDS)
def test_the_vector_environment_charges_what_single_ones_do(kind: str) -> None:
    """Forty steps over many ends: the same bytes as Gymnasium's loop over single environments."""
    ours, theirs = vector_env(3, latency=KINDS[kind]), sync_env(3, latency=KINDS[kind])
    assert_same(ours.reset(seed=7), theirs.reset(seed=7))
    rng = np.random.default_rng(0)
    for _ in range(40):
        actions = rng.integers(2, size=3)
        assert_same(ours.step(actions), theirs.step(actions))


@pytest.mark.parametrize("kind", KINDS)
def test_vector_snapshots_carry_over_to_other_places(kind: str) -> None:
    """Three episodes restored in reverse order go on at the prices of their own histories."""
    envs = vector_env(3, "Disabled", latency=KINDS[kind])
    envs.reset(seed=3)
    envs.step([0, 1, 1])
    states = envs.snapshot()
    rewards = envs.step([1, 0, 1])[1]
    envs.restore(states[::-1])
    assert envs.step([1, 0, 1])[1].tolist() == rewards[::-1].tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_gymnasiums_checker_is_content(kind: str, tmp_path: Path) -> None:
    """Made by id, from a cold and from a warm cache, and as a spec that goes to JSON."""
    for _ in range(2):
        env = gym.make("DMR-Toy-v0", latency=KINDS[kind], cache_dir=str(tmp_path))
        check_env(env.unwrapped, skip_render_check=True)
        assert json.loads(env.spec.to_json())["kwargs"]["latency"] == KINDS[kind]
        env.close()


@pytest.mark.parametrize("kind", KINDS)
def test_any_routing_adds_up(kind: str) -> None:
    """The return is success less λ times the sum over the calls that the turns describe."""
    envs = PrecisionRoutingVectorEnv(2, autoreset_mode="Disabled", **(ENV_IDS["DMR-Toy-v0"] | {"latency": KINDS[kind]}))
    envs.reset(seed=0)
    rng, total = np.random.default_rng(1), np.zeros(2)
    for _ in range(6):
        total += envs.step(rng.integers(2, size=2))[1]
    model = envs._parts.rules.latency
    for turns, reward in zip(envs.turns, total, strict=True):
        calls = [priced_call(turn.request, turn.completion, turns[:i]) for i, turn in enumerate(turns)]
        cost = sum(model.llm_seconds(call) + model.router_seconds(call) for call in calls)
        assert cost > 0
        assert reward == pytest.approx(-0.2 * cost)


def test_transcripts_show_other_units(capsys: pytest.CaptureFixture[str]) -> None:
    """Dollars are no seconds."""
    env = toy_env(latency=KINDS["money"], render_mode="ansi", max_steps=2)
    env.reset(seed=0)
    play(env, [0, 1])
    lines = env.render().splitlines()
    costs = [turn.latency_llm_s + turn.latency_router_s for turn in env.turns]
    shown = [line for line in lines if " > " in line]
    assert [f" {cost:.3g} $ > " in line for cost, line in zip(costs, shown, strict=True)] == [True, True]
    assert f"{sum(costs):.3g} $, 50% at high" in lines[-1]


def test_only_the_last_call_of_the_same_precision_counts() -> None:
    """What another precision was sent, and what this one was sent before its last call, changes nothing."""
    env = toy_env(backend=LEADING_SPACE)
    env.reset(seed=1)
    play(env, [1, 0, 1, 0])
    last, turns = env.turns[3], env.turns[:3]
    before: Sequence[Any] = [turn for turn in turns if turn.request.precision == "low"]
    expected = cached_prompt_tokens(
        last.request.prompt, last.completion.prompt_tokens, before[-1].request, before[-1].completion
    )
    assert priced_call(last.request, last.completion, turns).cached_tokens == expected > 0
