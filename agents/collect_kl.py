"""Collect the supervision of KL-ST: how far low precision is from high precision, step by step (paper section 4.2).

The high precision plays every task of the panel. At each step all precisions score, token by token, the completion that
high precision gave, and the divergence of each lower one from the highest is kept beside the step's embedding.

How this differs from the paper, which does not state the first two choices:

1. The divergence is KL(high || low) in nats, exact over the vocabulary, averaged over the tokens of the action block.
   ``--direction`` and ``--reduce`` change it; the data set also holds the value over all tokens of the completion.
2. The threshold that the picture shows is found on action steps alone, as the paper does for ALFWorld.
3. In WebShop the paper learns from click steps only; here searches are action steps as well.

    python agents/collect_kl.py --out runs/kl --tasks 160
    python agents/collect_kl.py --out runs/kl-toy --env DMR-Toy-v0
    python agents/collect_kl.py --out runs/kl --config configs/alfworld.toml --set lambda_=0.05

``--out`` then holds kl.safetensors, run.json, kl_histogram.png, and a file an episode in episodes/. Started again after
an interruption with the same options, it goes on with the episodes that are missing.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from dmr_gym.calibration import KL_FLOOR, Plateau, find_plateau
from dmr_gym.command_line import add_env_options, chosen_env, first_tasks, make_envs, recipe_parser, run
from dmr_gym.encoders import make_encoder
from dmr_gym.errors import ConfigError
from dmr_gym.kl import counted_steps
from dmr_gym.kl_dataset import KLDataset, label_trajectory, read_settings
from dmr_gym.policies import FixedPrecision
from dmr_gym.rollout import Trajectory, rollout
from dmr_gym.runs import file_digest, provenance, write_atomically, write_json


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = recipe_parser(__doc__)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for everything this run writes")
    parser.add_argument("--tasks", type=int, metavar="N", help="first N tasks of the panel (default: all)")
    parser.add_argument("--panel", default="train", help="panel of tasks (default: %(default)s)")
    parser.add_argument(
        "--direction",
        choices=("high_low", "low_high"),
        default="high_low",
        help="KL(high || low) or KL(low || high) (default: %(default)s)",
    )
    parser.add_argument(
        "--reduce",
        choices=("mean", "sum", "max"),
        default="mean",
        help="how the KLs of a step's tokens become one number, in nats (default: %(default)s)",
    )
    parser.add_argument(
        "--top-k",
        type=int,
        metavar="K",
        help="vocabulary entries kept a token; the KL is then a lower bound (default: all, exact)",
    )
    add_env_options(parser)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Play, score, and write the data set."""
    args = parse_args(argv)
    env_id, config = chosen_env(args, args.out / "cache")
    envs = make_envs(config, args.panel, args.num_envs)
    task_ids = first_tasks(envs, args.tasks)
    options = {"direction": args.direction, "reduce": args.reduce, "top_k": args.top_k}
    settings = {
        "env_id": env_id,
        # Where answers are kept does not change them, so a data set may be continued with another cache.
        "env": {key: value for key, value in asdict(config).items() if key != "cache_dir"},
        "panel": args.panel,
        **options,
        "models": {name: envs.backend.digest(name) for name in envs.precisions},
        "encoder": make_encoder(config.encoder).digest,
    }
    paths = {task_id: _episode_path(args.out, task_id) for task_id in task_ids}
    missing = [task_id for task_id, path in paths.items() if not _is_done(path, settings)]

    def label_and_save(trajectory: Trajectory) -> None:
        path = paths[trajectory.key.task_id]
        label_trajectory(trajectory, envs.backend, **options).save(path, settings)

    high = FixedPrecision(len(envs.precisions) - 1)
    title = f"{envs.precisions[-1]} plays {args.panel}"
    rollout(envs, high, missing, keep_turns=True, on_episode=label_and_save, progress=title)
    envs.close()

    dataset = KLDataset.concatenate([KLDataset.load(path) for path in paths.values()])
    dataset.save(args.out / "kl.safetensors", settings)
    plateau = action_plateau(dataset)
    picture = args.out / "kl_histogram.png"
    write_atomically(picture, lambda part: plot_kl(dataset, envs.precisions[:-1], plateau, part))
    summary = summarize(dataset, plateau)
    record = {
        "settings": settings,
        "tasks": len(task_ids),
        "dataset_sha256": file_digest(args.out / "kl.safetensors"),
        "summary": summary,
        **provenance(),
    }
    write_json(args.out / "run.json", record)
    print(
        f"{summary['episodes']} episodes, {summary['steps']} steps, success of high precision {summary['success']:.1%}"
    )
    found = "between two modes" if plateau.bimodal else "by Otsu's method: there is one mode only"
    print(f"threshold {plateau.threshold:.2g} nats {found}; {plateau.share_above:.1%} of action steps lie above it")
    print(f"wrote {args.out / 'kl.safetensors'} and {picture}")


def action_plateau(dataset: KLDataset) -> Plateau:
    """Find the threshold on the action steps' KLs, all lower precisions together."""
    return find_plateau(dataset.kl_action[counted_steps(dataset.step_types, "action")].ravel())


def summarize(dataset: KLDataset, plateau: Plateau) -> dict[str, Any]:
    """The numbers that tell whether the data set is usable."""
    return {
        "episodes": len(dataset),
        "steps": len(dataset.rows),
        "success": float(dataset.success.mean()),
        "action_steps": int(counted_steps(dataset.step_types, "action").sum()),
        "kl_mean": dataset.kl_action.mean(axis=0).tolist(),
        "kl_median": np.median(dataset.kl_action, axis=0).tolist(),
        "plateau": asdict(plateau),
    }


def plot_kl(dataset: KLDataset, lower: Sequence[str], plateau: Plateau, path: Path) -> None:
    """Draw the distribution of the KLs on a logarithmic scale, as Figure 3 (left) of the paper, with the threshold."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    kls = np.maximum(dataset.kl_action[counted_steps(dataset.step_types, "action")], KL_FLOOR)
    edges = np.geomspace(kls.min() * 0.9, kls.max() * 1.1, 60)
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for p, name in enumerate(lower):
        axes.hist(kls[:, p], bins=edges, histtype="stepfilled", alpha=0.55, label=f"{name}, {len(kls)} steps")
    if plateau.bimodal:
        inside = f"plateau, {plateau.share_inside:.1%} of steps"
        axes.axvspan(plateau.low, plateau.high, color="0.88", zorder=0, label=inside)
    axes.axvline(plateau.threshold, color="black", linestyle="--", linewidth=1.2, label=f"τ = {plateau.threshold:.2g}")
    axes.set(xscale="log", xlabel="KL to the highest precision, nats (log scale)", ylabel="action steps")
    axes.set_title(f"{plateau.share_above:.1%} of steps need high precision", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _episode_path(out: Path, task_id: str) -> Path:
    # Task ids of official games are long paths.
    return out / "episodes" / f"{hashlib.sha256(task_id.encode()).hexdigest()[:20]}.safetensors"


def _is_done(path: Path, settings: dict[str, Any]) -> bool:
    if not path.is_file():
        return False
    before, now = read_settings(path), json.loads(json.dumps(settings))
    if before != now:
        changed = sorted(key for key in now if before.get(key) != now[key])
        raise ConfigError(f"{path.parent} holds episodes made with other {', '.join(changed)}: choose another --out")
    return True


if __name__ == "__main__":
    run(main)
