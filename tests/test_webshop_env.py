"""WebShop in the routing environment, and the task against episodes recorded from the original."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dmr_gym.backends import ScriptedBackend
from dmr_gym.env import PrecisionRoutingEnv
from dmr_gym.errors import ConfigError
from dmr_gym.tasks.toy import ToyTask
from dmr_gym.tasks.webshop.task import WebshopTask
from dmr_gym.types import Request
from dmr_gym.vector import PrecisionRoutingVectorEnv

PLAIN = re.compile(r"(search|click)\[[^\[\]]+\]")
MAX_EPISODES = 60


def answer(request: Request) -> str:
    """High precision searches for a word of the task, opens the first product and buys it; low precision dances."""
    prompt = str(request.prompt)
    if request.precision == "low":
        return " dance\n"
    if "\nsearch[...]\n" in prompt:
        return f" search[{prompt.split()[4]} mix]\n"
    if "[ buy now]" in prompt:
        return " click[buy now]\n"
    product = re.search(r"^\[ (\d+)\] \$", prompt, re.MULTILINE)
    return f" click[{product[1]}]\n" if product else " click[back to search]\n"


SETTINGS: dict[str, Any] = {
    "task": "webshop",
    "task_kwargs": {"panel": "validation", "n_goals": 8},
    "precisions": ("low", "high"),
    "backend": ScriptedBackend(answer, ("low", "high")),
    "encoder": {"kind": "hash", "dim": 16},
    "latency": {"ms_per_token": {"low": 10.0, "high": 20.0}, "router_ms": 1.0},
    "max_steps": 30,
}
ACTIONS = [1, 0, 1, 1]


def test_an_episode_ends_with_the_purchase() -> None:
    """Info has the kind of each step, what was invalid, and the score at the end."""
    env = PrecisionRoutingEnv(**SETTINGS, lambda_=0.0, invalid_action_penalty=0.25)
    _, info = env.reset(seed=1)
    assert info["task_id"].startswith("shop-validation-")
    steps = [env.step(action) for action in ACTIONS]
    assert [step[4]["step_type"] for step in steps] == ["search", "click", "click", "click"]
    assert [step[4]["invalid_action"] for step in steps] == [False, True, False, False]
    assert [step[2] for step in steps] == [False, False, False, True]
    last = steps[-1][4]
    assert 0.0 <= last["score"] <= 1.0
    assert last["success"] == (last["score"] == 1.0)
    assert [step[1] for step in steps] == [0.0, -0.25, 0.0, float(last["success"])]


def test_the_page_tells_the_type_of_the_coming_step() -> None:
    """Search on the start page, also after going back to it, and click elsewhere; reset, step and restore tell it."""
    script = ["search[tea]", "click[back to search]", "search[tea]"]
    env = PrecisionRoutingEnv(**SETTINGS | {"backend": ScriptedBackend(lambda r: script[int(_step(r)) - 1])})
    _, info = env.reset(seed=1)
    told, states = [info["next_step_type"]], [env.snapshot()]
    for _ in script:
        told.append(env.step(1)[4]["next_step_type"])
        states.append(env.snapshot())
    assert told == ["search", "click", "search", "click"]
    assert [env.restore(state)[1]["next_step_type"] for state in states] == told


def _step(request: Request) -> str:
    """Number of the step that a short prompt is for."""
    return re.search(r"^Step (\d+)$", str(request.prompt), re.MULTILINE)[1]


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("toy", r"no embedded weights for world 'toy'; this installation carries \['alfworld', 'webshop'\]"),
        (ToyTask(), r"needs the option world, which a live task cannot fill in; .* \['alfworld', 'webshop'\]"),
    ],
)
def test_tasks_without_embedded_agents_say_so(task: object, message: str) -> None:
    """Another world's agents never answer in their place."""
    settings = {**SETTINGS, "task": task, "task_kwargs": None, "backend": None}
    with pytest.raises(ConfigError, match=message):
        PrecisionRoutingEnv(**settings)


def test_vector_environments_play_as_single_ones() -> None:
    """Same seeds and actions, same rows, rewards and scores."""
    envs = PrecisionRoutingVectorEnv(3, **SETTINGS)
    rows, _ = envs.reset(seed=5)
    singles = [PrecisionRoutingEnv(**SETTINGS) for _ in range(3)]
    for i, env in enumerate(singles):
        assert np.array_equal(env.reset(seed=5 + i)[0], rows[i])
    for action in ACTIONS:
        rows, rewards, _, _, infos = envs.step(np.full(3, action))
        for i, env in enumerate(singles):
            row, reward, _, _, info = env.step(action)
            assert np.array_equal(row, rows[i])
            assert reward == rewards[i]
            assert info["score"] == infos["score"][i]


def test_environment_snapshots_continue_alike() -> None:
    """A routing environment goes back into the middle of a shopping trip, in another environment."""
    env, other = PrecisionRoutingEnv(**SETTINGS), PrecisionRoutingEnv(**SETTINGS)
    env.reset(seed=2)
    env.step(1)
    env.step(0)
    state = env.snapshot()
    expected = [env.step(1)[1:], env.step(1)[1:]]
    other.restore(state)
    assert [other.step(1)[1:], other.step(1)[1:]] == expected


def recorded(folder: Path, name: str) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    """Recorded episodes on a goal by number: its number, and the steps from the reset on."""
    with gzip.open(folder / name, "rt", encoding="utf-8") as lines:
        for line in lines:
            episode = json.loads(line)
            if isinstance(episode["session"], int):
                yield episode["session"], episode["steps"]


@pytest.mark.parametrize(
    ("goals", "name"), [("synthetic", "webshop_episodes.jsonl.gz"), ("human", "webshop_human.jsonl.gz")]
)
def test_recorded_episodes_replay_through_prompts(
    goals: str, name: str, shared_data: Path, shared_conformance: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Every page, what can be clicked, and each reward are the original's, read back from chat prompts and steps."""
    index_dir = tmp_path_factory.getbasetemp() / "webshop-index"
    task = WebshopTask(shared_data / "webshop", "all", goals, "chat", index_dir=index_dir)
    n_steps = 0
    for _, (number, steps) in zip(range(MAX_EPISODES), recorded(shared_conformance, name), strict=False):
        start = task.reset(f"webshop-{number}")
        assert steps[0]["observation"] == f"WebShop [SEP] Instruction: [SEP] {start.instruction} [SEP] Search"
        for step in steps[1:]:
            if not PLAIN.fullmatch(step["action"]) or step["action"] != step["action"].lower():
                break  # a prompt's answers are read more kindly than the original reads actions
            ours = task.step(f"<think></think><action>{step['action']}</action>")
            n_steps += 1
            assert (ours.score, ours.done) == (step["reward"], step["done"])
            if ours.done:
                break
            head = f"Instruction: [SEP] {start.instruction} [SEP] "
            pieces = step["observation"].split(head)[-1].split(" [SEP] ")
            [message] = task.prompt()
            assert " [SEP] ".join(f"'{piece}'" for piece in pieces) in message.content
            assert set(step["available"]["clickables"]) >= set(re.findall(r"^click\[(.+)\]$", message.content, re.M))
    assert n_steps > 50
