"""dmr_gym.tree.build: trees have every state that can be reached, and nothing twice."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tree_worlds import (
    HASHED,
    TOY,
    WalkTask,
    grow,
    parts_of,
    play,
    play_all,
    prices_of,
    random_actions,
    walk_settings,
)

from dmr_gym.env import PrecisionRoutingEnv
from dmr_gym.episode import Accounts, EpisodeState
from dmr_gym.errors import ConfigError
from dmr_gym.tasks.webshop.task import WebshopTask
from dmr_gym.tree import build
from dmr_gym.tree.build import grow_trees
from dmr_gym.tree.graph import EDGE_ARRAYS, STATE_ARRAYS, RoutingTree, load_trees, read_settings
from dmr_gym.tree.growth import state_key
from dmr_gym.tree.values import least_seconds
from dmr_gym.types import TaskStart

WORLDS = pytest.mark.parametrize("settings", [TOY, HASHED, walk_settings()], ids=["toy", "three", "walk"])


def same_tree(one: RoutingTree, other: RoutingTree) -> bool:
    """Equal in every array and text."""
    arrays = all(np.array_equal(getattr(one, name), getattr(other, name)) for name in (*STATE_ARRAYS, *EDGE_ARRAYS))
    return arrays and (one.task_id, one.texts, one.settings) == (other.task_id, other.texts, other.settings)


@WORLDS
def test_a_complete_tree_has_the_episodes_of_the_environment_and_no_others(settings: dict[str, Any]) -> None:
    """All paths from the start to an end are all different episodes, with the same lengths and ends."""
    for tree in grow(settings, tasks=2, budget=5000):
        assert tree.is_complete

        def ends(state: int, actions: tuple[int, ...], tree: RoutingTree = tree) -> dict[tuple[int, ...], bool]:
            found = {}
            for p in range(len(tree.precisions)):
                if tree.over[state, p]:
                    found[*actions, p] = bool(tree.success[state, p])
                else:
                    found |= ends(int(tree.child[state, p]), (*actions, p))
            return found

        assert ends(0, ()) == {episode.actions: episode.success for episode in play_all(settings, tree.task_id)}


@WORLDS
def test_answers_are_those_of_the_environment(settings: dict[str, Any]) -> None:
    """Along random episodes, tokens, scores, types, reasons and rows are what the environment tells."""
    [tree] = grow(settings, tasks=1, budget=5000)
    env = PrecisionRoutingEnv(**(settings | {"info_text": True}))
    rng = np.random.default_rng(0)
    for _ in range(5):
        actions = random_actions(tree, rng)
        states = tree.path(actions)
        _, info = env.reset(options={"task_id": tree.task_id})
        assert info["next_step_type"] == tree.start_step_type
        for step, (state, p) in enumerate(zip(states, actions, strict=False)):
            _, _, over, _, info = env.step(p)
            assert tree.depth[state] == step
            assert (over, info["success"], info["invalid_action"]) == (
                tree.over[state, p],
                tree.success[state, p],
                tree.invalid[state, p],
            )
            assert info["cap_reached"] == (over and not tree.done[state, p])
            assert info["score"] == tree.score[state, p]
            assert info["prompt_tokens"] == tree.prompt_tokens[state, p]
            assert info["completion_tokens"] == tree.completion_tokens[state, p]
            texts = [tree.texts[getattr(tree, name)[state, p]] for name in ("row", "step_type", "invalid_reason")]
            assert texts == [f"{info['action']}\n{info['observation']}", info["step_type"], info["invalid_reason"]]
        assert over


def test_histories_that_come_together_are_one_state() -> None:
    """The walk has 2^n histories, but no more states of n steps than positions, and every state has its own meaning."""
    [tree] = grow(walk_settings(), tasks=1, budget=5000)
    assert tree.is_complete
    assert np.bincount(tree.depth).max() <= 5
    assert len(play_all(walk_settings(), "walk")) > len(tree)


def test_states_of_different_histories_stay_apart_where_prompts_tell_them() -> None:
    """A corridor's prompt is its whole transcript: equal positions after equal numbers of steps are not merged."""
    [tree] = grow(HASHED, tasks=1, budget=5000)
    before, _ = np.nonzero(~tree.over)
    pairs = set(zip(tree.child[~tree.over].tolist(), before.tolist(), strict=True))
    assert len(pairs) == len(tree) - 1


def test_a_precision_that_says_the_same_costs_no_state() -> None:
    """Where all precisions answer alike, the tree is one path, and their answers differ in nothing but their price."""
    answers = {"low": "go left", "high": "go left"}
    [tree] = grow(TOY | {"backend": {"kind": "scripted", "answers": answers}}, tasks=1)
    assert len(tree) == tree.expanded == TOY["max_steps"]
    assert tree.same_step().all()


def test_fixed_precisions_come_first() -> None:
    """A budget of two whole episodes is spent on always-high and always-low."""
    for tree in grow(TOY, tasks=3, budget=2 * TOY["max_steps"]):
        for p in range(2):
            actions = tree.fixed_path(p)
            assert tree.over[tree.path(actions)[len(actions) - 1], p]


def test_then_the_cheapest_states() -> None:
    """What a budget leaves open takes at least as long as what it bought beyond the fixed precisions."""
    latency = {"ms_per_token": {"low": 1.0, "high": 50.0}, "router_ms": 0.0}
    settings = HASHED | {"precisions": ["low", "high"], "latency": latency, "max_steps": 9}
    [tree] = grow(settings, tasks=1, budget=40, states_at_once=1)
    seconds = {0: 0.0}
    for state in np.argsort(tree.depth, kind="stable").tolist():
        for p, price in enumerate((0.001, 0.05)):
            if not tree.is_open[state] and not tree.over[state, p]:
                child = int(tree.child[state, p])
                cost = seconds[state] + price * tree.completion_tokens[state, p]
                seconds[child] = min(cost, seconds.get(child, np.inf))
    lines = {s for p in range(2) for s in tree.path(tree.fixed_path(p)).tolist()}
    bought = [seconds[s] for s in range(len(tree)) if not tree.is_open[s] and s not in lines]
    assert len(bought) > 5
    assert max(bought) <= min(seconds[s] for s in np.flatnonzero(tree.is_open)) + 1e-12


@pytest.mark.parametrize("budget", [1, 7, 30])
def test_budgets_are_kept_and_trees_do_not_depend_on_their_neighbours(budget: int) -> None:
    """No tree has more states than its budget, and one alone is the same as one among others."""
    trees = grow(HASHED, tasks=4, budget=budget, tasks_at_once=3)
    assert all(tree.expanded <= budget for tree in trees)
    parts = parts_of(HASHED)
    for tree in trees:
        assert same_tree(tree, *grow_trees(parts, [tree.task_id], budget))


def test_decided_trees_stop_early() -> None:
    """They have fewer states than complete ones, and none is open that is cheaper than the best success."""
    longer = TOY | {"max_steps": 12}
    complete, decided = (grow(longer, tasks=3, budget=5000, until=until) for until in ("complete", "decided"))
    assert all(len(one) <= len(other) for one, other in zip(decided, complete, strict=True))
    assert sum(map(len, decided)) < sum(map(len, complete))
    for tree in decided:
        known, bound = least_seconds(tree, prices_of(TOY), success=True)
        assert known[0] == bound[0] < np.inf


def test_a_tree_comes_back_from_its_file(tmp_path: Path) -> None:
    """Every array, text and setting; two files of one tree are equal byte for byte."""
    [tree] = grow(HASHED, tasks=1, budget=40, settings={"panel": "test", "budget": 40})
    tree.save(tmp_path / "tree.safetensors")
    tree.save(tmp_path / "again.safetensors")
    assert same_tree(tree, RoutingTree.load(tmp_path / "tree.safetensors"))
    assert read_settings(tmp_path / "tree.safetensors") == {"panel": "test", "budget": 40}
    assert (tmp_path / "tree.safetensors").read_bytes() == (tmp_path / "again.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "no routing tree at .*build_trees.py"), (b"x" * 64, "is not a routing tree or is damaged")],
)
def test_what_is_no_tree_is_refused(tmp_path: Path, content: bytes | None, message: str) -> None:
    """Absent and foreign files, with the way to a tree."""
    path = tmp_path / "tree.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        RoutingTree.load(path)


def test_trees_of_another_format_and_folders_without_trees_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each with what to do."""
    [tree] = grow(TOY, tasks=1, budget=1)
    monkeypatch.setattr("dmr_gym.tree.graph.FORMAT", 99)
    tree.save(tmp_path / "new.safetensors")
    monkeypatch.undo()
    with pytest.raises(ConfigError, match="of another format than 1: build it again"):
        RoutingTree.load(tmp_path / "new.safetensors")
    with pytest.raises(ConfigError, match=r"no routing trees in .*agents/build_trees.py --out"):
        load_trees(tmp_path)


def test_sampled_decoding_and_bad_numbers_are_refused() -> None:
    """A tree needs greedy decoding; budgets and sizes are at least 1."""
    hot = parts_of(TOY | {"sampling": {"temperature": 0.5}})
    with pytest.raises(ConfigError, match=r"needs greedy decoding.*sampling.temperature to 0, it is 0.5"):
        grow_trees(hot, hot.task_ids[:1])
    parts = parts_of(TOY)
    for name in ("budget", "tasks_at_once", "states_at_once"):
        with pytest.raises(ConfigError, match=name):
            grow_trees(parts, parts.task_ids[:1], **{name: 0})
    with pytest.raises(ConfigError, match="did you mean 'decided'"):
        grow_trees(parts, parts.task_ids[:1], until="decide")


def test_paths_end_where_the_tree_does() -> None:
    """Steps after the end and from open states are refused."""
    [tree] = grow(HASHED, tasks=1, budget=12)
    rng = np.random.default_rng(0)
    ends = {bool(tree.over[tree.path(a)[len(a) - 1], a[-1]]): a for a in (random_actions(tree, rng) for _ in range(60))}
    with pytest.raises(ConfigError, match="the episode is over after"):
        tree.path([*ends[True], 0])
    with pytest.raises(ConfigError, match="budget left open"):
        tree.path([*ends[False], 0])


@dataclass
class Unhashable:
    """A snapshot with dictionaries, lists and sets inside, as a world may have."""

    position: int
    seen: dict[str, list[int]] = field(default_factory=dict)
    tags: set[str] = field(default_factory=set)


def episode_state(task: Any) -> EpisodeState:
    """An episode before its first step."""
    return EpisodeState(task, TaskStart("task", "", ""), 0, (), (), Accounts(), over=False)


def test_states_are_equal_by_value_alone() -> None:
    """Equal snapshots have equal keys, whatever they are made of; different ones do not."""

    def key(*values: Any) -> Any:
        return state_key(episode_state(Unhashable(*values)))

    assert key(1, {"a": [1]}, {"x", "y"}) == key(1, {"a": [1]}, {"y", "x"})
    different = [key(1, {"a": [1]}, set()), key(1, {"a": [2]}, set()), key(2, {"a": [1]}, set()), key(1, {}, {"x"})]
    assert len(set(different)) == 4


def test_snapshots_that_cannot_be_compared_are_told_apart_by_their_history() -> None:
    """Nothing merges then but equal completions, and the tree means the same."""
    merged = grow(walk_settings(), tasks=1, budget=5000)[0]

    class Opaque(WalkTask):
        def snapshot(self) -> Any:
            return np.array(self.state)

        def restore(self, state: Any) -> None:
            self.state = type(self.state)(*state.tolist())

    [opaque] = grow(walk_settings() | {"task": Opaque()}, tasks=1, budget=5000)
    assert opaque.is_complete
    assert len(opaque) > 1.5 * len(merged)
    rng = np.random.default_rng(3)
    env = PrecisionRoutingEnv(**walk_settings())
    for _ in range(10):
        actions = random_actions(opaque, rng)
        assert play(env, "walk", actions).actions == tuple(actions)
        assert len(merged.path(actions)) == len(opaque.path(actions))


def test_a_run_that_was_broken_off_grows_the_same_trees_from_the_cache(tmp_path: Path) -> None:
    """Killed after some batches and started again, no answer is computed twice, and the trees are the same."""
    settings = HASHED | {"cache_dir": str(tmp_path)}
    expected = grow(HASHED, tasks=3, budget=60)

    class Broken(Exception):
        pass

    rounds: list[int] = []

    def break_off() -> None:
        rounds.append(1)
        if len(rounds) == 5:
            raise Broken

    with pytest.raises(Broken):
        grow(settings, tasks=3, budget=60, on_round=break_off)
    parts = parts_of(settings)
    found: Mapping[str, RoutingTree] = {}
    trees = grow_trees(parts, parts.task_ids[:3], 60, on_tree=lambda tree: found.update({tree.task_id: tree}))
    assert parts.backend.hits > 20
    assert all(same_tree(*pair) for pair in zip(trees, expected, strict=True))
    assert set(found) == {tree.task_id for tree in trees}


def test_each_state_asks_each_precision_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of completions is the number of states with answers times the number of precisions."""
    parts = parts_of(HASHED)
    asked: list[int] = []
    generate = parts.backend.generate
    monkeypatch.setattr(parts.backend, "generate", lambda requests: asked.append(len(requests)) or generate(requests))
    trees = build.grow_trees(parts, parts.task_ids[:4], budget=50)
    assert sum(asked) == 3 * sum(tree.expanded for tree in trees)
    assert max(asked) == 3 * 4 * build.STATES_AT_ONCE


def test_shopping_trips_that_look_alike_to_every_later_prompt_are_one_state() -> None:
    """Two searches differ, but both trips are on the same page, with the same last pages, after as many steps."""
    task = WebshopTask(panel="test", n_goals=1)

    def trip(*actions: str) -> tuple[Any, Any]:
        task.reset(task.task_ids[0])
        assert [task.step(action).invalid_reason for action in actions] == [None] * len(actions)
        return state_key(episode_state(task.snapshot())), task.prompt()

    ways = [[f"search[{words}]", "click[back to search]", "search[green tea]"] for words in ("snack bar", "red shoes")]
    (key, prompt), (other_key, other_prompt) = (trip(*way) for way in ways)
    assert prompt != other_prompt
    assert key != other_key
    (key, prompt), (other_key, other_prompt) = (trip(*way, "click[1]") for way in ways)
    assert (key, prompt) == (other_key, other_prompt)
    assert key != trip("search[green tea]", "click[1]")[0], "the number of the step stands in the prompt"
