"""Collect the supervision of KL-ST: how far low precision is from high precision, step by step (paper section 4.2).

The high precision plays every task of the panel. At each step all precisions score, token by token, the completion that
high precision gave, and the divergence of each lower one from the highest is kept beside the step's embedding.

How this differs from the paper, which does not state the first two choices:

1. The divergence is KL(high || low) in nats, exact over the vocabulary, averaged over the tokens of the action block.
   ``--direction`` and ``--reduce`` change it; the data set also holds the value over all tokens of the completion.
2. With ``--top-k`` all vocabulary entries that are not kept on both sides count as one: the KL is then a lower bound.
   So it is with servers that do not give whole vocabularies; run.json says how many entries were kept.
3. The thresholds that the picture shows are found on action steps alone, as the paper does for ALFWorld. Steps of every
   type are recorded, and agents/train_kl_st.py --steps chooses.
4. With more than two precisions each lower one is compared with the highest.

    python agents/collect_kl.py --out runs/kl --tasks 160
    python agents/collect_kl.py --out runs/kl-toy --env DMR-Toy-v0
    python agents/collect_kl.py --out runs/kl --config configs/alfworld.toml --set lambda_=0.05

    tensorboard --logdir runs/kl/tensorboard

``--out`` then holds kl.safetensors, run.json, kl_histogram.png, a file an episode in episodes/, and in history.jsonl
and tensorboard/ the success and KL of the episodes so far. Started again after it was stopped or killed, with the same
options, it goes on with the episodes that are missing; ``--tasks`` may grow.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from dmr_gym.backends import logprob_limit
from dmr_gym.command_line import add_env_options, chosen_env, first_tasks, make_envs, recipe_parser, run
from dmr_gym.encoders import make_encoder
from dmr_gym.errors import ConfigError
from dmr_gym.figures import pyplot
from dmr_gym.kl_dataset import KLDataset, label_trajectory, read_settings
from dmr_gym.kl_figures import draw_kls
from dmr_gym.kl_training import Labelling, label_dataset, labelling_lines
from dmr_gym.policies import FixedPrecision
from dmr_gym.rollout import Trajectory, rollout
from dmr_gym.runs import RunRecord, file_digest, task_file_stem, write_atomically
from dmr_gym.training import RunLog, claim_folder, read_history, stop_on_signal


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = recipe_parser(__doc__, "collect_kl")
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
        help="vocabulary entries kept a token and precision; the KL is then a lower bound (default: all, exact)",
    )
    add_env_options(parser, trees=False)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Play, score, and write the data set."""
    args = parse_args(argv)
    pyplot()  # where nothing can be drawn that is said now, not after the last task
    if args.top_k is not None and args.top_k < 1:
        raise ConfigError(f"--top-k must be at least 1, got {args.top_k}")
    env_id, config = chosen_env(args, args.out / "cache")
    envs = make_envs(config, args.panel, args.num_envs)
    task_ids = first_tasks(envs, args.tasks)
    allowed = logprob_limit(envs.backend)
    top_k = allowed if args.top_k is None else args.top_k
    if args.top_k is None and allowed is not None:
        print(f"the servers give at most {allowed} entries a token, which --max-logprobs -1 of vLLM would lift")
    options = {"direction": args.direction, "reduce": args.reduce, "top_k": top_k}
    settings = {
        "env_id": env_id,
        # Where answers are kept does not change them, so a data set may be continued with another cache.
        "env": {key: value for key, value in asdict(config).items() if key != "cache_dir"},
        "panel": args.panel,
        **options,
        "models": {name: envs.backend.digest(name) for name in envs.precisions},
        "encoder": make_encoder(config.encoder).digest,
    }
    # The same command goes on with what is there, so there is no --resume.
    claim_folder(args.out, settings, resume=True)
    record = RunRecord(args.out, {"settings": settings})
    paths = {task_id: args.out / "episodes" / f"{task_file_stem(task_id)}.safetensors" for task_id in task_ids}
    done = {task_id: path for task_id, path in paths.items() if _is_done(path, settings)}
    missing = [task_id for task_id in task_ids if task_id not in done]
    course = Course(envs.precisions[:-1])
    for path in done.values():
        course.add(KLDataset.load(path))

    with (
        # Of a collection that is asked for fewer tasks than it has, no line is forgotten.
        RunLog(args.out, max(len(done), len(read_history(args.out)))) as log,
        stop_on_signal("episode", "the same command") as stop,
    ):

        def label_and_save(trajectory: Trajectory) -> dict[str, str]:
            path = paths[trajectory.key.task_id]
            labelled = label_trajectory(trajectory, envs.backend, **options)
            record.work()
            labelled.save(path, settings)
            course.add(labelled)
            figures = course.figures()
            log.write(course.episodes, figures)
            stop.leave(f"the episode of {trajectory.key.task_id}")
            kl = np.mean([figures[f"collect/kl_{name}"] for name in course.lower])
            return {"success": f"{figures['collect/success']:.2f}", "KL": f"{kl:.3g} nats"}

        high = FixedPrecision(len(envs.precisions) - 1)
        title = f"{envs.precisions[-1]} plays {args.panel}"
        rollout(envs, high, missing, keep_turns=True, on_episode=label_and_save, progress=title)
    envs.close()

    dataset = KLDataset.concatenate([KLDataset.load(path) for path in paths.values()])
    dataset.save(args.out / "kl.safetensors", settings)
    _, labelling = label_dataset(dataset, "action", None)
    lower, bound = envs.precisions[:-1], top_k is not None
    kls, taus, picture = labelling.counted_kls(dataset), labelling.thresholds, args.out / "kl_histogram.png"
    write_atomically(picture, lambda part: draw_kls(kls, lower, taus, labelling.plateaus, part, bound=bound))
    summary = summarize(dataset, labelling)
    found = {
        "tasks": len(task_ids),
        "kl_is_lower_bound": bound,
        "dataset_sha256": file_digest(args.out / "kl.safetensors"),
        "summary": summary,
    }
    record.end(found)
    print(
        f"{summary['episodes']} episodes, {summary['steps']} steps, success of high precision {summary['success']:.1%}"
    )
    if bound:
        print(f"the KLs are lower bounds: only the {top_k} likeliest tokens of each precision are told apart")
    for line in labelling_lines(labelling, lower):
        print(line)
    print(f"wrote {args.out / 'kl.safetensors'} and {picture}")


class Course:
    """What the episodes of a collection have had so far, in any order.

    Args:
        lower: names of the lower precisions.
    """

    def __init__(self, lower: Sequence[str]) -> None:
        self.lower, self.episodes, self.solved, self.steps = tuple(lower), 0, 0, 0
        self.kl = np.zeros(len(lower))

    def add(self, data: KLDataset) -> None:
        """Count an episode."""
        self.episodes += len(data)
        self.solved += int(data.success.sum())
        self.steps += len(data.kl_action)
        self.kl += data.kl_action.sum(axis=0, dtype=np.float64)

    def figures(self) -> dict[str, float]:
        """Success, steps an episode, and the mean KL of a step's action in nats for each lower precision."""
        found = {"collect/success": self.solved / self.episodes, "collect/steps": self.steps / self.episodes}
        kls = (self.kl / max(self.steps, 1)).tolist()
        return found | {f"collect/kl_{name}": kl for name, kl in zip(self.lower, kls, strict=True)}


def summarize(dataset: KLDataset, labelling: Labelling) -> dict[str, Any]:
    """The numbers that tell whether the data set is usable; KLs in nats, a number for each lower precision."""
    kls = labelling.counted_kls(dataset)
    return {
        "episodes": len(dataset),
        "steps": len(dataset.rows),
        "success": float(dataset.success.mean()),
        "action_steps": len(kls),
        "step_types": {kind: dataset.step_types.count(kind) for kind in sorted(set(dataset.step_types))},
        "kl_action_mean": kls.mean(axis=0).tolist(),
        "kl_action_median": np.median(kls, axis=0).tolist(),
        "kl_all_mean": dataset.kl_all.mean(axis=0).tolist(),
        "labelling": asdict(labelling),
    }


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
