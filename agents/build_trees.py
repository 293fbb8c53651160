"""Build the routing tree of every task of a panel: all states that any choice of precisions can lead to.

Under greedy decoding an episode is a function of its task and of the precisions chosen. Every precision is asked at
every state that can be reached, cheapest states first, and states with equal futures are one. On the trees the best
routing of each task is known exactly, or within stated bounds where ``--budget`` cut a tree off
(agents/tree_report.py), and routers train and are evaluated without world or LLM (``--trees`` of the recipes).

    python agents/build_trees.py --out runs/trees
    python agents/build_trees.py --out runs/trees --env DMR-WebShop-v0 --panel train --tasks 100 --budget 4000
    python agents/build_trees.py --out runs/trees --until decided

``--out`` then holds a folder a panel, with index.json, run.json and a file a tree in trees/, and the completion cache.
The same command goes on where it was stopped or killed, to the same files byte for byte, as long as the cache is kept:
answers are found there. ``--tasks`` and ``--budget`` may then be others; trees of another budget grow anew.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from dmr_gym.command_line import add_env_options, add_task_range, chosen_env, first_tasks, recipe_parser, run
from dmr_gym.config import EnvConfig
from dmr_gym.errors import ConfigError
from dmr_gym.parts import Parts, build_parts
from dmr_gym.runs import provenance, task_file_stem, write_json
from dmr_gym.training import claim_folder, stop_on_signal
from dmr_gym.tree.build import STATES_AT_ONCE, grow_trees
from dmr_gym.tree.graph import INDEX_FILE, RoutingTree, load_trees, read_settings
from dmr_gym.tree.growth import UNTIL
from dmr_gym.tree.report import mean_bounds
from dmr_gym.tree.values import Prices, best_values, episode_return

LIMITS = ("budget", "until", "states_at_once")
"""Settings that decide where trees are cut off, and may differ between runs in one folder."""

IRRELEVANT = ("cache_dir", "encoder", "history_length", "info_text", "invalid_action_penalty", "lambda_", "render_mode")
"""Keywords of the environment that no tree depends on."""


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = recipe_parser(__doc__)
    add = parser.add_argument
    add("--out", type=Path, required=True, metavar="DIR", help="folder for everything this run writes")
    add("--panel", default="test", help="panel of tasks (default: %(default)s)")
    add_task_range(parser)
    add(
        "--budget",
        type=int,
        default=2000,
        metavar="N",
        help="most states of a tree at which the precisions answer (default: %(default)s)",
    )
    add(
        "--until",
        choices=UNTIL,
        default="complete",
        help='"decided" also stops where what is left can change neither the oracle nor which decisions of a '
        "successful episode at the highest precision are critical (default: %(default)s)",
    )
    add(
        "--states-at-once",
        type=int,
        default=STATES_AT_ONCE,
        metavar="N",
        help="states that each tree adds to a batch; --num-envs trees grow side by side (default: %(default)s)",
    )
    add_env_options(parser)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Grow the trees that are missing, and say what they show."""
    args, began = parse_args(argv), time.perf_counter()
    env_id, config = chosen_env(args, args.out / "cache")
    config = replace(config, task_kwargs={**config.task_kwargs, "panel": args.panel})
    # No text is embedded here, and the real encoder takes seconds to load.
    parts = build_parts(replace(config, encoder={"kind": "hash", "dim": 1}).kwargs())
    task_ids = first_tasks(parts, args.tasks, args.skip_tasks)
    folder = args.out / args.panel
    settings = tree_settings(env_id, config, parts, args)
    claim_folder(folder, settings, resume=True, free=LIMITS)
    paths = {task_id: folder / "trees" / f"{task_file_stem(task_id)}.safetensors" for task_id in task_ids}
    missing = [task_id for task_id, path in paths.items() if not is_done(path, settings)]

    with stop_on_signal("batch", "the same command") as stop:
        grow_trees(
            parts,
            missing,
            args.budget,
            args.until,
            settings=settings,
            tasks_at_once=args.num_envs,
            states_at_once=args.states_at_once,
            on_tree=lambda tree: tree.save(paths[tree.task_id]),
            on_round=lambda: stop.leave("a batch"),
            progress=f"trees of {args.panel}",
        )
    parts.close()
    index = {task_id: path.relative_to(folder).as_posix() for task_id, path in paths.items()}
    write_json(folder / INDEX_FILE, {"trees": index, "settings": settings})
    trees = load_trees(folder, task_ids)
    summary = summarize(trees, Prices(parts.rules.latency, config.lambda_))
    seconds = {"built_now": len(missing), "wall_s": time.perf_counter() - began}
    write_json(folder / "run.json", {"settings": settings, "summary": summary, **seconds, **provenance()})
    show(summary, config.lambda_, folder)


def tree_settings(env_id: str, config: EnvConfig, parts: Parts, args: argparse.Namespace) -> dict[str, Any]:
    """What the trees depend on, as plain data."""
    settings = {
        "env_id": env_id,
        "env": {key: value for key, value in asdict(config).items() if key not in IRRELEVANT},
        "panel": args.panel,
        "models": {name: parts.backend.digest(name) for name in parts.rules.precisions},
        **{name: getattr(args, name) for name in LIMITS},
    }
    plain: dict[str, Any] = json.loads(json.dumps(settings))
    return plain


def is_done(path: Path, settings: dict[str, Any]) -> bool:
    """Whether the tree is there, whole, and grown with the same limits."""
    try:
        return path.is_file() and read_settings(path) == settings
    except ConfigError:
        return False


def summarize(trees: Sequence[RoutingTree], prices: Prices) -> dict[str, Any]:
    """The numbers that tell how far the trees reach."""
    oracle = [best_values(tree, prices).start for tree in trees]
    summary: dict[str, Any] = {
        "trees": len(trees),
        "complete": sum(tree.is_complete for tree in trees),
        "states": np.quantile([tree.expanded for tree in trees], [0, 0.25, 0.5, 0.75, 1]).tolist(),
        "states_of_all": sum(tree.expanded for tree in trees),
        "lambda": prices.lambda_,
        "oracle_return": mean_bounds(oracle),
    }
    for p, name in enumerate(trees[0].precisions):
        summary[f"always_{name}_return"] = mean_bounds([episode_return(t, prices, t.fixed_path(p)) for t in trees])
    return summary


def show(summary: dict[str, Any], lambda_: float, folder: Path) -> None:
    """Print the summary."""
    quartiles = " / ".join(f"{number:,.0f}" for number in summary["states"])
    print(f"{summary['complete']} of {summary['trees']} trees are complete; states (min, quartiles, max): {quartiles}")
    for name, (low, high) in ((name, value) for name, value in summary.items() if name.endswith("_return")):
        bounds = f"{low:.4f}" if high - low < 5e-5 else f"{low:.4f} to {high:.4f}"
        print(f"mean return at lambda {lambda_:g}, {name.removesuffix('_return').replace('_', ' ')}: {bounds}")
    print(f"wrote {folder / INDEX_FILE}")


if __name__ == "__main__":
    run(main)
