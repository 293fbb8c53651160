"""Steps a second on routing trees beside the environment whose answers are all in the cache, with the same decisions.

The trees of the first tasks of a panel are built first, or read from ``--trees``. Then both environments take the same
random decisions on the same tasks, every answer in the cache in memory and every row embedded; by processor time, so
that steps a second are those of one core. "Views" are trees with ``copy=False``, whose observations are not copied.
"Rollout" is `dmr_gym.rollout.rollout` with random routing, which keeps trajectories.

    python bench/bench_tree.py --env DMR-WebShop-v0 --tasks 6
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from dmr_gym.command_line import env_config
from dmr_gym.parts import build_parts
from dmr_gym.policies import RandomPolicy
from dmr_gym.rollout import rollout
from dmr_gym.tree.build import grow_trees
from dmr_gym.tree.graph import load_trees
from dmr_gym.tree.replay import TreeVectorEnv
from dmr_gym.vector import PrecisionRoutingVectorEnv

BATCHES = (16, 64)
PANEL_SIZE = {"alfworld": "n_games", "toy": "num_tasks", "webshop": "n_goals"}
"""Keyword of each world that keeps only the first tasks of a panel."""

REPEATS = 3


def play(envs: PrecisionRoutingVectorEnv, rounds: int) -> float:
    """Take random steps of all sub-environments, the same ones each time; returns steps a processor second."""
    rng = np.random.default_rng(0)
    actions = rng.integers(len(envs.precisions), size=(rounds, envs.num_envs))
    envs.reset(seed=0)
    start = time.process_time()
    for row in actions:
        envs.step(row)
    return rounds * envs.num_envs / (time.process_time() - start)


def roll(envs: PrecisionRoutingVectorEnv, repeats: int) -> float:
    """Play all tasks by random routing; returns steps a processor second."""
    n = len(envs.precisions)
    start = time.process_time()
    played = rollout(envs, RandomPolicy([1 / n] * n, n), envs.task_ids, repeats=repeats)
    return sum(len(trajectory.actions) for trajectory in played) / (time.process_time() - start)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Build, measure and print a table."""
    parser = argparse.ArgumentParser(description="steps a second on routing trees")
    parser.add_argument("--env", default="DMR-WebShop-v0", metavar="ID", help="(default: %(default)s)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a keyword, as in TOML")
    parser.add_argument("--tasks", type=int, default=6, help="first tasks of the test panel (default: %(default)s)")
    parser.add_argument("--trees", type=Path, metavar="DIR", help="folder of build_trees.py in place of building")
    parser.add_argument("--cache-dir", metavar="DIR", help="of the completion cache (default: none, all in memory)")
    parser.add_argument("--steps", type=int, default=4000, help="steps of a measurement (default: %(default)s)")
    args = parser.parse_args(argv)
    config = env_config(args.env, args.set, args.cache_dir)
    config = replace(config, task_kwargs={**config.task_kwargs, "panel": "test", PANEL_SIZE[config.task]: args.tasks})
    parts = build_parts(config.kwargs())
    tasks = list(parts.task_ids)
    began = time.perf_counter()
    trees = load_trees(args.trees / "test", tasks) if args.trees else grow_trees(parts, tasks, progress="trees")
    built_s = time.perf_counter() - began
    if not all(tree.is_complete for tree in trees):
        raise SystemExit("these trees are cut off, so the two environments would not play the same: take fewer --tasks")
    # The same parts, so that what growing the trees has computed is found.
    settings = config.kwargs() | {"encoder": parts.encoder, "backend": parts.backend}
    figures: dict[str, dict[str, float]] = {}
    for batch in BATCHES:
        rounds = max(1, args.steps // batch)
        kinds = {
            "cached": PrecisionRoutingVectorEnv(batch, **settings),
            "trees": TreeVectorEnv(trees, config, batch, encoder=parts.encoder),
            "trees, views": TreeVectorEnv(trees, config, batch, encoder=parts.encoder, copy=False),
        }
        for name, envs in kinds.items():
            play(envs, rounds)  # embeds rows, and fills the cache
            figures.setdefault(name, {})[f"batch of {batch}"] = max(play(envs, rounds) for _ in range(REPEATS))
    batch = BATCHES[0]
    for name, envs in {
        "cached": PrecisionRoutingVectorEnv(batch, autoreset_mode="Disabled", **settings),
        "trees": TreeVectorEnv(trees, config, batch, autoreset_mode="Disabled", encoder=parts.encoder),
    }.items():
        roll(envs, 4)
        figures[name][f"rollout, batch of {batch}"] = max(roll(envs, 4) for _ in range(REPEATS))
    parts.close()
    states = sum(tree.expanded for tree in trees)
    print(f"{len(trees)} trees of {args.env}, {states:,} states, built or read in {built_s:.1f} s")
    columns = list(figures["cached"])
    print(f"{'steps/s':<16}" + "".join(f"{column:>26}" for column in columns))
    for name, row in figures.items():
        print(f"{name:<16}" + "".join(f"{row[column]:>26,.0f}" if column in row else f"{'':>26}" for column in columns))
    return {"env": args.env, "trees": len(trees), "states": states, "built_s": built_s, "steps_per_second": figures}


if __name__ == "__main__":
    main()
