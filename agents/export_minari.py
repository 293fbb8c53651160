"""Write episodes as a Minari data set: what a policy saw, did and was paid, for offline reinforcement learning.

The policy plays the tasks of a panel with the completion cache of other recipes, so episodes that were played before
cost no LLM call. See `dmr_gym.minari_export` for what the data set holds.

    python agents/export_minari.py --env DMR-Toy-v0 --policy high --dataset-id dmr/toy/always-high-v0
    python agents/export_minari.py --policy router --router runs/kl-st/router --repeats 4 --cache-dir runs/kl/cache \
        --dataset-id dmr/alfworld/kl-st-v0

Needs ``pip install "dmr-gym[minari]"``. Nothing is uploaded.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from dmr_gym.command_line import add_env_options, chosen_env, first_tasks, make_envs, recipe_parser, run
from dmr_gym.errors import ConfigError
from dmr_gym.minari_export import export_minari
from dmr_gym.policies import FixedPrecision, Policy, RandomPolicy, RouterPolicy
from dmr_gym.rollout import rollout
from dmr_gym.router import PrecisionRouter


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = recipe_parser(__doc__)
    add = parser.add_argument
    add("--dataset-id", required=True, metavar="ID", help="Minari's id, such as dmr/toy/always-high-v0")
    add("--datasets", type=Path, metavar="DIR", help="folder of data sets (default: MINARI_DATASETS_PATH, or Minari's)")
    add("--policy", choices=("high", "low", "random", "router"), default="random", help="(default: %(default)s)")
    add("--share", type=float, default=0.5, metavar="X", help="of the highest, for random (default: %(default)s)")
    add("--router", type=Path, metavar="DIR", help="folder of a router, which draws from its distribution")
    add("--panel", default="train", help="panel of tasks (default: %(default)s)")
    add("--tasks", type=int, metavar="N", help="first N tasks of the panel (default: all)")
    add("--repeats", type=int, default=1, metavar="N", help="episodes a task (default: %(default)s)")
    add("--texts", action="store_true", help="keep actions, observations and completions as texts")
    add("--seed", type=int, default=0, help="of what the policy draws (default: %(default)s)")
    add_env_options(parser)
    args = parser.parse_args(argv)
    if (args.router is not None) != (args.policy == "router"):
        raise ConfigError("--policy router and --router DIR belong together: give both or neither")
    return args


def main(argv: Sequence[str] | None = None) -> None:
    """Play and write."""
    args = parse_args(argv)
    if args.datasets is not None:
        os.environ["MINARI_DATASETS_PATH"] = str(args.datasets.resolve())
    env_id, config = chosen_env(args)
    config = replace(config, task_kwargs={**config.task_kwargs, "panel": args.panel})
    envs = make_envs(config, args.panel, args.num_envs)
    policy, name = chosen_policy(args, len(config.precisions))
    tasks = first_tasks(envs, args.tasks)
    played = rollout(envs, policy, tasks, repeats=args.repeats, keep_turns=args.texts, progress=name)
    envs.close()
    dataset = export_minari(
        played,
        args.dataset_id,
        env_id,
        config,
        algorithm_name=name,
        description=f"{env_id}, panel {args.panel}, {len(tasks)} tasks, {args.repeats} episodes each, {name}",
    )
    print(f"wrote {args.dataset_id}: {dataset.total_episodes} episodes, {dataset.total_steps} steps")


def chosen_policy(args: argparse.Namespace, n_precisions: int) -> tuple[Policy, str]:
    """The policy that the options name, and its name in the data set."""
    if args.policy == "router":
        router = PrecisionRouter.load(args.router)
        return RouterPolicy(router, mode="sample", seed=args.seed), f"router {router.digest()[:12]}"
    if args.policy == "random":
        return RandomPolicy(args.share, n_precisions, args.seed), f"random, share {args.share}"
    return FixedPrecision(n_precisions - 1 if args.policy == "high" else 0), f"always {args.policy}"


if __name__ == "__main__":
    run(main)
