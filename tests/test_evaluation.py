"""dmr_gym.evaluation: which seeds a policy has, and which saved episodes are taken again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dmr_gym import ENV_IDS
from dmr_gym.config import EnvConfig, from_mapping
from dmr_gym.evaluation import Arena, Contender, RoutedPoint, random_like, routed, single_precision
from dmr_gym.records import read_policies
from dmr_gym.router import PrecisionRouter, RouterConfig
from dmr_gym.training import Stop
from dmr_gym.vector import PrecisionRoutingVectorEnv

NAMES = ("low", "high")


@pytest.fixture(scope="module")
def router() -> PrecisionRouter:
    """A small one with random weights."""
    return PrecisionRouter(RouterConfig(embedding_dim=64, n_layers=1, d_model=8, n_heads=2, d_ff=8)).eval()


def arena(folder: Path, changes: dict[str, Any] | None = None, tasks: int = 3, **settings: Any) -> Arena:
    """Corridors of three signs, batches of two episodes."""
    config = from_mapping(EnvConfig, ENV_IDS["DMR-Toy-v0"] | {"max_steps": 6} | (changes or {}))
    config.task_kwargs["num_signs"] = 3
    envs = PrecisionRoutingVectorEnv(2, autoreset_mode="Disabled", **config.kwargs())
    digests = {"panel": "train", "models": {"low": "a"}} | settings.pop("digests", {})
    return Arena(envs, list(envs.task_ids)[:tasks], folder, config, digests, batch=2, **settings)


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


def test_a_signal_ends_the_run_after_its_batch(tmp_path: Path) -> None:
    """What was finished is there when the process leaves."""
    import signal

    stop = Stop(signal.SIGTERM, "the same command")
    with pytest.raises(SystemExit, match="143"):
        arena(tmp_path, stop=stop).play(single_precision(1, NAMES))
    assert len(list(tmp_path.iterdir())) == 1
    assert played(arena(tmp_path), single_precision(1, NAMES)) == 1
