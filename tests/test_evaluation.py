"""dmr_gym.evaluation: which seeds a policy has, and which saved episodes are taken again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import dmr_gym.evaluation
from dmr_gym import ENV_IDS
from dmr_gym.config import EnvConfig, from_mapping
from dmr_gym.evaluation import Arena, Contender, RoutedPoint, random_like, routed, single_precision
from dmr_gym.records import read_policies
from dmr_gym.router import PrecisionRouter, RouterConfig
from dmr_gym.training import Stop
from dmr_gym.vector import PrecisionRoutingVectorEnv
from tests.recipes import one_thread

__all__ = ["one_thread"]  # a fixture for all tests here

NAMES = ("low", "high")


@pytest.fixture(scope="module")
def router() -> PrecisionRouter:
    """A small one with random weights; most of its scores lie between 0.6 and 0.9."""
    torch.manual_seed(0)
    return PrecisionRouter(RouterConfig(embedding_dim=64, n_layers=1, d_model=8, n_heads=2, d_ff=8)).eval()


def arena(
    folder: Path,
    changes: dict[str, Any] | None = None,
    tasks: int = 3,
    num_signs: int = 3,
    num_envs: int = 2,
    batch: int = 2,
    **settings: Any,
) -> Arena:
    """Corridors of three signs, batches of two episodes."""
    config = from_mapping(EnvConfig, ENV_IDS["DMR-Toy-v0"] | {"max_steps": 6} | (changes or {}))
    config.task_kwargs["num_signs"] = num_signs
    envs = PrecisionRoutingVectorEnv(num_envs, autoreset_mode="Disabled", **config.kwargs())
    digests = {"panel": "train", "models": {"low": "a"}} | settings.pop("digests", {})
    return Arena(envs, list(envs.task_ids)[:tasks], folder, config, digests, batch=batch, **settings)


def played(found: Arena, contender: Contender) -> int:
    """How many episodes had to be played."""
    found.play(contender)
    return found.new_episodes


def test_what_was_played_is_not_played_again(tmp_path: Path) -> None:
    """Three tasks and two seeds; with a task more only the batch that it joins."""
    policy = single_precision(1, NAMES, seeds=2)
    assert played(arena(tmp_path), policy) == 6
    assert played(arena(tmp_path), policy) == 0
    assert played(arena(tmp_path, tasks=4), policy) == 4
    assert played(arena(tmp_path, tasks=2), policy) == 0


@pytest.mark.parametrize(
    ("changes", "settings", "anew"),
    [
        ({"lambda_": 0.9}, {}, False),
        ({"cache_dir": None, "info_text": True}, {}, False),
        ({"max_steps": 5}, {}, True),
        ({"latency": {"ms_per_token": {"low": 1.0, "high": 2.0}, "router_ms": 3.0}}, {}, True),
        ({"sampling": {"max_tokens": 4}}, {}, True),
        ({}, {"digests": {"models": {"low": "b"}}}, True),
        ({}, {"digests": {"panel": "test"}}, True),
        ({}, {"texts": False}, True),
    ],
)
def test_whatever_changes_an_episode_has_it_played_anew(
    tmp_path: Path, changes: dict[str, Any], settings: dict[str, Any], anew: bool
) -> None:
    """λ and caches change nothing in an episode; caps, prices, decoding, models, panel, and what is recorded do."""
    assert played(arena(tmp_path), single_precision(1, NAMES)) == 3
    assert bool(played(arena(tmp_path, changes, **settings), single_precision(1, NAMES))) is anew


def test_policies_are_told_apart_by_what_decides(tmp_path: Path, router: PrecisionRouter) -> None:
    """Two names for one threshold share their episodes; another threshold, forced steps or shares do not."""
    found = arena(tmp_path)
    point = RoutedPoint(router, 0.5)
    found.play(routed("a", "router", [point], 1, True, budget=0.2))
    assert played(found, routed("b", "router", [point], 1, True, budget=0.3)) == 3
    assert played(found, routed("c", "router", [RoutedPoint(router, 0.4)], 1, True)) == 6
    assert played(found, routed("d", "grpo", [RoutedPoint(router)], 1, True, lambda_=0.1)) == 9
    assert played(found, random_like(single_precision(0, NAMES), [0.5, 0.5], (), 1)) == 12
    assert played(found, random_like(single_precision(0, NAMES), [0.4, 0.6], (), 1)) == 15
    found.write_episodes(tmp_path / "episodes.jsonl")
    names = [(p.name, p.kind, p.budget, p.lambda_) for p in read_policies(tmp_path / "episodes.jsonl", 2)]
    assert names[:4] == [
        ("a", "router", 0.2, None),
        ("b", "router", 0.3, None),
        ("c", "router", None, None),
        ("d", "grpo", None, 0.1),
    ]


def test_seeds_are_played_where_chance_has_a_part(router: PrecisionRouter) -> None:
    """One router under greedy decoding has none; routers of their own, split ties, and sampling have."""

    def seeds(*points: RoutedPoint, greedy: bool = True) -> int:
        return len(routed("r", "router", points, 3, greedy).policies)

    point = RoutedPoint(router, 0.5)
    assert seeds(point) == 1
    assert seeds(point, point, point) == 3
    assert seeds(RoutedPoint(router, 0.5, tie_probability=0.5)) == 3
    assert seeds(point, greedy=False) == 3


def test_random_routing_draws_anew_with_every_seed(tmp_path: Path) -> None:
    """Its records name the seed and the policy whose shares it has."""
    found = arena(tmp_path, tasks=2)
    found.play(random_like(single_precision(0, NAMES), [0.5, 0.5], (), 3))
    found.write_episodes(tmp_path / "e.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "e.jsonl").read_text().splitlines()]
    assert [(line["seed"], line["like"]) for line in lines] == [(s, "always low") for s in (0, 0, 1, 1, 2, 2)]
    assert len({json.dumps([step["precision"] for step in line["steps"]]) for line in lines[::2]}) > 1


def test_shares_are_those_of_the_routers_decisions(tmp_path: Path, router: PrecisionRouter) -> None:
    """Steps that no router decided do not count: random routing is forced at them, too; where all are, it goes up."""
    found = arena(tmp_path)
    contender = routed("r", "router", [RoutedPoint(router, np.inf)], 1, True)
    found.play(contender)
    assert found.shares(contender) == [1.0, 0.0]
    single = single_precision(0, NAMES)
    found.play(single)
    assert found.shares(single) == [0.0, 1.0]


@pytest.mark.parametrize("finished", [0, 1, 5])
@pytest.mark.parametrize("kind", ["random", "router"])
def test_an_episode_that_ended_before_a_kill_is_not_played_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, router: PrecisionRouter, kind: str, finished: int
) -> None:
    """Killed twice in a batch of seven, each time in a line: only the rest is played, and no byte differs in the end.

    A random policy draws; a router's scores are floats, of histories that have other lengths beside them.
    """
    by_chance = random_like(single_precision(0, NAMES), [0.3, 0.7], (), 1)
    contender = by_chance if kind == "random" else routed("r", "router", [RoutedPoint(router, 0.78)], 1, True)

    def folders(name: str) -> Arena:
        return arena(tmp_path / name, {"max_steps": 16}, tasks=7, num_signs=5, num_envs=3, batch=7)

    whole = folders("whole")
    assert played(whole, contender) == 7
    whole.write_episodes(tmp_path / "whole.jsonl")
    records = [json.loads(line) for line in (tmp_path / "whole.jsonl").read_text().splitlines()]
    assert len({len(record["steps"]) for record in records}) > 1

    real_record, real_rollout, asked = dmr_gym.evaluation.episode_record, dmr_gym.evaluation.rollout, list[list[str]]()

    def dying(trajectory: Any, **rest: Any) -> Any:
        [part] = (tmp_path / "killed").glob("*.part.jsonl")
        if len(part.read_text().splitlines()) == limit:  # on disk, not only in this process
            raise KeyboardInterrupt
        return real_record(trajectory, **rest)

    def listening(envs: Any, policy: Any, tasks: list[str], **rest: Any) -> Any:
        asked.append(tasks)
        return real_rollout(envs, policy, tasks, **rest)

    monkeypatch.setattr(dmr_gym.evaluation, "episode_record", dying)
    for limit in (finished, finished + 1):
        with pytest.raises(KeyboardInterrupt):
            folders("killed").play(contender)
        [part] = (tmp_path / "killed").iterdir()
        saved = [json.loads(line)["task_id"] for line in part.read_text().splitlines()]
        assert len(saved) == limit
        with part.open("a") as file:
            file.write(json.dumps(records[0])[:40])

    monkeypatch.setattr(dmr_gym.evaluation, "episode_record", real_record)
    monkeypatch.setattr(dmr_gym.evaluation, "rollout", listening)
    again = folders("killed")
    assert played(again, contender) == 7 - len(saved)
    assert asked == [[task for task in again.task_ids if task not in saved]]
    again.write_episodes(tmp_path / "killed.jsonl")
    assert (tmp_path / "killed.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert len(list((tmp_path / "killed").iterdir())) == 1


def test_a_kill_before_the_part_file_is_removed_loses_nothing(tmp_path: Path) -> None:
    """What lies beside a batch that is whole goes; a part file that lacks nothing becomes the batch."""
    assert played(arena(tmp_path), single_precision(1, NAMES)) == 3
    names = sorted(path.name for path in tmp_path.iterdir())
    for name in names:
        (tmp_path / name).with_suffix(".part.jsonl").write_bytes((tmp_path / name).read_bytes())
    (tmp_path / names[0]).unlink()
    assert played(arena(tmp_path), single_precision(1, NAMES)) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == names


def test_a_signal_ends_the_run_after_its_episode(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What was finished is there when the process leaves, and the message says so."""
    import signal

    stop = Stop(signal.SIGTERM, "the same command")
    with pytest.raises(SystemExit, match="143"):
        arena(tmp_path, stop=stop).play(single_precision(1, NAMES))
    [part] = tmp_path.iterdir()
    [line] = part.read_text().splitlines()
    message = (
        f"stopped by SIGTERM after the episode of {json.loads(line)['task_id']}; the same command goes on from there"
    )
    assert message in capsys.readouterr().err
    assert played(arena(tmp_path), single_precision(1, NAMES)) == 2
