r"""Say what routing can gain on a panel, how far policies are from it, and how well KL labels find critical steps.

The oracle is the best routing of each task, exact where its tree has all that matters and bounded elsewhere. A step of
an episode at the highest precision is critical for a lower one if that one would cost more, in what follows, than the
latency it saves. Policies are played on the trees; with ``--live`` in the environment itself, where none can leave the
tree, and answers come from the completion cache or the LLM.

    python agents/tree_report.py --trees runs/trees --out runs/tree-report
    python agents/tree_report.py --trees runs/trees --kl runs/kl-test --router runs/kl-st/router \
        --grpo runs/grpo/router --out runs/tree-report

``--kl`` is what agents/collect_kl.py wrote for the same panel, and ``--threshold`` the τ that KL-ST was trained with,
where one was given. ``--out`` then holds tables.md, the numbers in results.json, tree_report.png, decisions.jsonl, a
line a step of the episodes at the highest precision, and oracle.json for ``--oracle`` of agents/evaluate.py, with the
tasks whose best routing is known exactly.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from dmr_gym.command_line import add_env_options, chosen_env, make_envs, recipe_parser, run, settings_of
from dmr_gym.config import EnvConfig
from dmr_gym.deployment import DEFAULT_TAU, budget_text, check_router, forced_types, forcing, read_calibration
from dmr_gym.errors import ConfigError
from dmr_gym.figures import pyplot
from dmr_gym.kl_dataset import KLDataset
from dmr_gym.kl_training import label_dataset
from dmr_gym.latency import make_latency_model
from dmr_gym.oracle_origin import MADE_FOR, oracle_origin
from dmr_gym.parts import prices_of
from dmr_gym.policies import Policy, RandomPolicy, RouterPolicy
from dmr_gym.rollout import rollout
from dmr_gym.router import PrecisionRouter
from dmr_gym.runs import content_address, provenance, write_atomically, write_json
from dmr_gym.serving.settings import served_device
from dmr_gym.tables import write_tables
from dmr_gym.tree.answers import check_trees, check_world
from dmr_gym.tree.decisions import harmless_actions
from dmr_gym.tree.figures import LabelCurve, Point, draw_report
from dmr_gym.tree.frontier import panel_times
from dmr_gym.tree.graph import RoutingTree, load_trees
from dmr_gym.tree.replay import TreeVectorEnv
from dmr_gym.tree.report import (
    TreeEpisode,
    decision_lines,
    decision_row,
    decisions_at_highest,
    label_rows,
    matching_kls,
    mean_bounds,
    on_tree,
    oracle_records,
    policy_row,
)
from dmr_gym.tree.tables import report_tables
from dmr_gym.tree.values import Prices, best_actions, best_values, fixed_values
from dmr_gym.vector import PrecisionRoutingVectorEnv

Played = dict[tuple[str, str], list[TreeEpisode]]
"""Episodes by kind and name of the policy."""


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = recipe_parser(__doc__)
    add = parser.add_argument
    add("--out", type=Path, required=True, metavar="DIR", help="folder for everything this run writes")
    add("--panel", default="test", help="panel of the trees (default: %(default)s)")
    add("--kl", type=Path, metavar="DIR", help="folder that agents/collect_kl.py wrote for the same panel")
    add(
        "--threshold",
        type=float,
        nargs="+",
        metavar="NATS",
        help="τ that KL-ST was trained with, one or P - 1 (default: by the plateau of these KLs)",
    )
    add("--router", type=Path, nargs="+", default=[], metavar="DIR", help="KL-ST routers to place beside the oracle")
    add("--grpo", type=Path, nargs="+", default=[], metavar="DIR", help="routers that GRPO trained, likewise")
    add("--ppo", type=Path, nargs="+", default=[], metavar="DIR", help="routers that PPO trained, likewise")
    add(
        "--thresholds",
        type=Path,
        metavar="FILE",
        help="thresholds.json of agents/calibrate.py for the first router, which is then played at its budgets too",
    )
    add("--lambdas", type=float, nargs="+", default=[0.05, 0.1, 0.2, 0.4], metavar="X", help="(default: %(default)s)")
    add("--random-seeds", type=int, default=3, metavar="N", help="runs of each random policy (default: %(default)s)")
    add("--resamples", type=int, default=2000, metavar="N", help="bootstrap resamples (default: %(default)s)")
    add("--live", action="store_true", help="play routers and random routing in the environment, not on the trees")
    add_env_options(parser)
    args = parser.parse_args(argv)
    if args.trees is None:
        raise ConfigError("tree_report.py needs --trees: the folder that agents/build_trees.py wrote")
    if args.thresholds is not None and not args.router:
        raise ConfigError("--thresholds are those of a router: name it with --router")
    return args


def main(argv: Sequence[str] | None = None) -> None:
    """Value the trees, play the policies, and write tables and picture."""
    args = parse_args(argv)
    pyplot()  # where nothing can be drawn that is said now, not after the last policy
    folder = Path(args.trees)
    args.trees = None if args.live else args.trees
    env_id, config = chosen_env(args, args.out / "cache")
    trees = load_trees(folder / args.panel)
    check_trees(trees, config)
    check_world(trees, replace(config, task_kwargs={**config.task_kwargs, "panel": args.panel}))
    latency = make_latency_model(config.latency, config.precisions)
    lambdas = list(dict.fromkeys([config.lambda_, *args.lambdas]))
    prices = {x: Prices(latency, x) for x in lambdas}
    here = prices[config.lambda_]

    values = {x: [best_values(tree, price) for tree in trees] for x, price in prices.items()}
    oracle = {x: [value.start for value in each] for x, each in values.items()}
    best = [best_actions(tree, value) for tree, value in zip(trees, values[config.lambda_], strict=True)]
    played: Played = {("oracle", "oracle"): [on_tree(n, trees[n], actions, here) for n, actions in enumerate(best)]}
    played |= play(trees, here, config, args)
    rows = [policy_row(*key, episodes, trees, oracle, prices, args.resamples) for key, episodes in played.items()]
    times = panel_times(trees, here)
    best_after = {x: decisions_at_highest(trees, price, values[x]) for x, price in prices.items()}
    decisions = best_after[config.lambda_]
    kls, labels, curves = judge_labels(trees, decisions, args)
    source = prices_of(config, served_device(args.config))
    origin = oracle_origin(config, trees[0].settings.get("models", {}))
    record = {
        "settings": settings_of(args),
        "env_id": env_id,
        "env": asdict(config),
        "precisions": list(config.precisions),
        "latency": asdict(source),
        "trees": describe_trees(trees, folder),
        "tasks_digest": content_address(sorted(tree.task_id for tree in trees)),
        MADE_FOR: origin,
        "oracle": {f"{x:g}": mean_bounds(each) for x, each in oracle.items()},
        "oracle_without_router": {f"{x:g}": free_oracle(trees, price) for x, price in prices.items()},
        "results": rows,
        "frontier": {"success": times.shown().success.tolist(), "time_s": times.shown().time_s.tolist()},
        "frontier_bound": {"success": times.bound().success.tolist(), "time_s": times.bound().time_s.tolist()},
        "steps_of_highest": {
            f"{x:g}": {"best": decision_row(best_after[x]), "highest": highest_after(trees, price)}
            for x, price in prices.items()
        },
        "kl_labels": labels,
        **provenance(),
    }
    write_json(args.out / "results.json", record)
    write_json(args.out / "oracle.json", {**oracle_records(trees, values, prices), MADE_FOR: origin})
    text = decision_lines(trees, decisions, kls)
    write_atomically(args.out / "decisions.jsonl", lambda part: part.write_text(text, encoding="utf-8"))
    shown = [row for row in rows if row["kind"] != "oracle" and not row["left_tree"]]
    points = [Point(row["kind"], row["policy"], row["success"], row["time_s"]) for row in shown]
    picture, drawn = args.out / "tree_report.png", (times.shown(), times.bound(), points, curves, source.label)
    write_atomically(picture, lambda part: draw_report(*drawn, part))
    tables = report_tables(record)
    path = write_tables(args.out, tables, f"{env_id}, panel {args.panel}")
    for table in tables:
        table.show()
    if args.kl is None:
        print("no KLs: --kl compares labels")
    print(
        f"picture: {picture}\ntables: {path}\nnumbers: {args.out / 'results.json'} and {args.out / 'decisions.jsonl'}"
    )


def play(trees: Sequence[RoutingTree], prices: Prices, config: EnvConfig, args: argparse.Namespace) -> Played:
    """Episodes of the fixed precisions, of the routing that changes nothing, of routers, and of random routing."""
    names, free = trees[0].precisions, prices.without_router()
    high = len(names) - 1
    played: Played = {}
    for p in reversed(range(len(names))):
        key = ("high" if p == high else "low", f"always {names[p]}")
        played[key] = [on_tree(n, tree, tree.fixed_path(p), free) for n, tree in enumerate(trees)]
    harmless = [on_tree(n, tree, harmless_actions(tree), prices) for n, tree in enumerate(trees)]
    played["router", "lowest that agrees"] = harmless
    trained = bool(args.router or args.grpo or args.ppo)
    if trained or args.random_seeds:
        envs = make_envs(config, args.panel, args.num_envs)
        for (kind, name), policy in routers(config, args).items():
            played[kind, name] = episodes(envs, trees, policy, name)
            actions = np.concatenate([episode.actions for episode in played[kind, name]])
            shares = (np.bincount(actions, minlength=len(names)) / len(actions)).tolist()
            add_random(played, envs, trees, f"random like {name}", shares, args.random_seeds)
        if not trained:
            add_random(played, envs, trees, "random", [1 / len(names)] * len(names), args.random_seeds)
        envs.close()
    return played


def routers(config: EnvConfig, args: argparse.Namespace) -> dict[tuple[str, str], Policy]:
    """Policies by kind and name: each router at threshold 0.5, the first of KL-ST at its budgets too."""
    policies: dict[tuple[str, str], Policy] = {}
    trained = {"router": args.router, "grpo": args.grpo, "ppo": args.ppo}
    for kind, path in ((k, path) for k, paths in trained.items() for path in paths):
        router = PrecisionRouter.load(path)
        check_router(router, config)
        name = path.parent.name if path.name == "router" else path.name
        forced, high = forced_types(None, router), len(config.precisions) - 1
        policies[kind, f"{name} p≥{DEFAULT_TAU:g}"] = forcing(RouterPolicy(router, tau=DEFAULT_TAU), high, forced)
        if args.thresholds is not None and kind == "router" and path == args.router[0]:
            for t in read_calibration(args.thresholds, router, None, None).thresholds:
                policy = RouterPolicy(router, tau=t.value, tie_probability=t.tie_probability)
                policies[kind, f"{name} K={budget_text(t.budget)}"] = forcing(policy, high, forced)
    return policies


def episodes(
    envs: PrecisionRoutingVectorEnv, trees: Sequence[RoutingTree], policy: Policy, title: str
) -> list[TreeEpisode]:
    """Play a policy once on every task."""
    found = []
    for number, t in enumerate(rollout(envs, policy, [tree.task_id for tree in trees], progress=title)):
        is_whole = not isinstance(envs, TreeVectorEnv) or len(trees[number].path(t.actions)) == len(t.actions)
        end = (t.success, t.time_s) if is_whole else None
        found.append(TreeEpisode(number, t.actions.tolist(), bool(t.router_called.any()), end))
    return found


def add_random(
    played: Played,
    envs: PrecisionRoutingVectorEnv,
    trees: Sequence[RoutingTree],
    name: str,
    shares: Sequence[float],
    seeds: int,
) -> None:
    """Play random routing with these shares of the precisions, once a seed."""
    runs = [episodes(envs, trees, RandomPolicy(shares, len(shares), seed), f"{name}, {seed}") for seed in range(seeds)]
    if runs:
        played["random", name] = [episode for run_of_seed in runs for episode in run_of_seed]


def judge_labels(
    trees: Sequence[RoutingTree], decisions: Any, args: argparse.Namespace
) -> tuple[Any, list[dict[str, Any]], list[LabelCurve]]:
    """KLs of the decisions, how well they find critical steps, and the curves; nothing without a data set."""
    if args.kl is None:
        return None, [], []
    dataset = KLDataset.load(args.kl / "kl.safetensors")
    kls = matching_kls(trees, decisions, dict(zip(dataset.task_ids, dataset.split(dataset.kl_action), strict=True)))
    _, labelling = label_dataset(dataset, "action", args.threshold)
    return kls, *label_rows(trees[0].precisions[:-1], decisions, kls, labelling.thresholds, args.resamples)


def describe_trees(trees: Sequence[RoutingTree], folder: Path) -> dict[str, Any]:
    """How far the trees reach."""
    return {
        "folder": str(folder),
        "trees": len(trees),
        "complete": sum(tree.is_complete for tree in trees),
        "states": np.quantile([tree.expanded for tree in trees], [0, 0.25, 0.5, 0.75, 1]).tolist(),
        "states_of_all": sum(tree.expanded for tree in trees),
    }


def highest_after(trees: Sequence[RoutingTree], prices: Prices) -> dict[str, Any]:
    """What the steps of the highest precision's episodes are where it alone acts after them."""
    high = len(trees[0].precisions) - 1
    return decision_row(decisions_at_highest(trees, prices, [fixed_values(tree, prices, high) for tree in trees]))


def free_oracle(trees: Sequence[RoutingTree], prices: Prices) -> tuple[float, float]:
    """The oracle's mean return if asking a router took no time."""
    return mean_bounds([best_values(tree, prices.without_router()).start for tree in trees])


if __name__ == "__main__":
    run(main)
