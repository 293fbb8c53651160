"""Refine a router by GRPO: the second stage of the paper (section 4.3).

Each update draws tasks, plays every one G times with the present policy, compares the returns R = success - λ·T (Eq. 8)
inside each group, and raises the probability of the decisions of trajectories that did better than their group. There
is no value network. The policy stays near the router that it began with through an exact KL term. ``--start-threshold``
begins with that router at the threshold of a budget.

How this differs from the paper, which states neither G, λ, clip, KL weight, nor any rate:

1. Advantages are R minus the group's mean. The paper reads as a division by the group's standard deviation too
   (``--advantages group_std``): where all members of a group succeed, that makes a difference in latency count as much
   as one in success, whatever λ is, and drives the policy to the lowest precision.
2. The loss divides by a constant, trajectories times the step cap, so that every step weighs the same.
3. The KL to the first router is exact, as there are P numbers to sum; an entropy floor keeps the policy exploring.
4. The router that is kept is the one with the best greedy return on held-out tasks; with ``--average``, a moving
   average of the weights is validated in their place.

    python agents/train_grpo.py --router runs/kl-st/router --out runs/grpo --set lambda_=0.1
    python agents/train_grpo.py --env DMR-Toy-v0 --out runs/grpo-toy --updates 60 --n-layers 1 --d-model 64 --n-heads 2
    tensorboard --logdir runs/grpo/tensorboard

``--out`` then holds the best router in router/, run.json, history.jsonl, and curves. A killed or stopped run goes on
with ``--resume`` and ends in the same weights.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from dmr_gym import trained_on
from dmr_gym.command_line import (
    add_env_options,
    add_router_options,
    add_task_range,
    chosen_env,
    first_tasks,
    make_envs,
    part_digests,
    recipe_parser,
    router_config,
    run,
    settings_of,
)
from dmr_gym.config import EnvConfig
from dmr_gym.device import torch_device
from dmr_gym.errors import ConfigError
from dmr_gym.grpo_batch import STATE_MODES, Batch, batch_logits, decision_advantages, to_batch
from dmr_gym.losses import ADVANTAGE_MODES, GRPOTerms, grpo_loss, mixed_groups
from dmr_gym.policies import RouterPolicy
from dmr_gym.rollout import mean_episode_reward, rollout
from dmr_gym.router import PrecisionRouter
from dmr_gym.runs import RunRecord
from dmr_gym.training import (
    STATE_FILE,
    RunLog,
    claim_folder,
    load_extra,
    load_training_state,
    save_training_state,
    stop_on_signal,
    update_seed,
)
from dmr_gym.types import SamplingParams
from dmr_gym.vector import PrecisionRoutingVectorEnv

FREE = ("out", "router", "config", "resume", "cache_dir", "checkpoint_every")
"""Options that may differ when a run is resumed. Of files, what they hold is compared; where they lie does not matter.

They change no bit of what is learnt, but for ``cache_dir`` with MiniLM: the last bits of an embedding that has to be
computed again depend on how many texts are embedded at once.
"""
COLLAPSED_SHARE = 0.95
"""Of the greedy decisions on held-out tasks: a precision that takes so many has taken over.

A policy that still draws takes the other one now and then for a long time after that.
"""


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = recipe_parser(__doc__, "train_grpo")
    add = parser.add_argument
    add("--router", type=Path, metavar="DIR", help="router to begin with and to stay near (default: a new one)")
    add(
        "--start-threshold",
        type=float,
        default=0.5,
        metavar="X",
        help="score of --router at which it takes the highest precision to begin with, in (0, 1), such as its best "
        "budget's (default: %(default)s)",
    )
    add("--out", type=Path, required=True, metavar="DIR", help="folder for everything this run writes")
    add("--panel", default="train", help="panel of tasks to learn from (default: %(default)s)")
    add_task_range(parser)
    add("--validation-panel", default="validation", help="panel of held-out tasks (default: %(default)s)")
    add("--validation-tasks", type=int, metavar="N", help="first N tasks of that panel (default: all)")
    add("--validate-every", type=int, default=10, metavar="N", help="updates between validations (default: 10)")
    add("--updates", type=int, default=100, metavar="N", help="times to play and learn (default: %(default)s)")
    add("--groups", type=int, default=16, metavar="M", help="tasks an update (default: %(default)s)")
    add("--group-size", type=int, default=8, metavar="G", help="episodes of each task (default: %(default)s)")
    add(
        "--advantages",
        choices=(*ADVANTAGE_MODES, *STATE_MODES),
        default="mean",
        help="one a trajectory, or one a decision: state and successor, see state_advantages (default: %(default)s)",
    )
    add("--drop-same-success", action="store_true", help="learn only from groups that solved and failed their task")
    add("--epochs", type=int, default=2, metavar="N", help="gradient steps on each update's episodes (default: 2)")
    add("--lr", type=float, default=3e-4, metavar="X", help="learning rate of AdamW (default: %(default)s)")
    add("--anneal", action="store_true", help="let the learning rate fall linearly to zero")
    add(
        "--average",
        type=float,
        default=0.0,
        metavar="X",
        help="decay an update of the moving average of weights that is validated and kept; 0: the weights themselves",
    )
    add("--grad-clip", type=float, default=1.0, metavar="X", help="largest gradient norm (default: %(default)s)")
    add(
        "--clip-low",
        type=float,
        default=0.2,
        metavar="X",
        help="a ratio of probabilities counts no further below 1 (default: %(default)s)",
    )
    add(
        "--clip-high",
        type=float,
        default=0.2,
        metavar="X",
        help="a ratio of probabilities counts no further above 1 (default: %(default)s)",
    )
    add("--kl-weight", type=float, default=0.001, metavar="X", help="reward a nat from --router (default: %(default)s)")
    add("--entropy-floor", type=float, default=0.2, metavar="X", help="nats, mean over steps (default: %(default)s)")
    add("--entropy-weight", type=float, default=0.1, metavar="X", help="reward a nat below it (default: %(default)s)")
    add(
        "--normaliser",
        choices=("constant", "steps"),
        default="constant",
        help="what the loss is divided by: trajectories times the step cap, or the steps taken (default: %(default)s)",
    )
    add("--checkpoint-every", type=int, default=5, metavar="N", help="updates between checkpoints (default: 5)")
    add("--seed", type=int, default=0, help="of weights, tasks and draws (default: %(default)s)")
    add("--device", default="cpu", help="torch device (default: %(default)s)")
    add("--resume", action="store_true", help="go on from the last checkpoint in --out")
    add_env_options(parser)
    add_router_options(parser)
    parser.set_defaults(num_envs=32)
    args = parser.parse_args(argv)
    check_args(args)
    return args


def check_args(args: argparse.Namespace) -> None:
    """Refuse numbers with which nothing can be trained, and a device that is not there."""
    for name in ("updates", "groups", "group_size", "epochs", "validate_every", "checkpoint_every", "num_envs"):
        if getattr(args, name) < 1:
            raise ConfigError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(args, name)}")
    if args.group_size < 2:
        raise ConfigError("--group-size must be at least 2: an episode is compared with the others of its task")
    for name in ("lr", "grad_clip", "clip_low", "clip_high"):
        if not 0 < getattr(args, name) < float("inf"):
            raise ConfigError(f"--{name.replace('_', '-')} must be a finite number above 0, got {getattr(args, name)}")
    if not 0 <= args.average < 1:
        raise ConfigError(f"--average must be at least 0 and below 1, got {args.average}")
    if not 0 < args.start_threshold < 1:
        raise ConfigError(f"--start-threshold must lie between 0 and 1, got {args.start_threshold}")
    if args.start_threshold != 0.5 and args.router is None:
        raise ConfigError("--start-threshold is one of a router that there is: name it with --router")
    for name in ("kl_weight", "entropy_floor", "entropy_weight"):
        if not 0 <= getattr(args, name) < float("inf"):
            raise ConfigError(f"--{name.replace('_', '-')} must be a finite number of at least 0")
    torch_device(args.device)


def main(argv: Sequence[str] | None = None) -> None:
    """Build environments and router, train, and keep the best router."""
    args = parse_args(argv)
    env_id, config = chosen_env(args, args.out / "cache")
    panels = (args.panel, args.validation_panel)
    envs, held_out = (make_envs(config, panel, args.num_envs) for panel in panels)
    with closing(envs), closing(held_out):
        models = {name: envs.backend.digest(name) for name in envs.precisions}
        here = trained_on.environment_record(env_id, args.panel, config, models)
        router = first_router(args, config, here)
        settings = settings_of(args)
        begun = {"env_id": env_id, "env": asdict(config), "models": models, **part_digests(config, panels)}
        begun["env"].pop("cache_dir")
        begun |= {"router_digest": router.digest(), "kept_near_router": args.router is not None}
        claim_folder(args.out, settings | begun, args.resume, FREE)
        record = RunRecord(args.out, {"settings": settings, **begun})
        Trainer(args, config, router, envs, held_out).train(record)
    record.end({"best_digest": PrecisionRouter.load(args.out / "router").digest()})
    print(f"wrote {args.out / 'router'} and {record.path}")


def first_router(args: argparse.Namespace, config: EnvConfig, here: dict[str, Any]) -> PrecisionRouter:
    """The router to begin with: that of ``--router``, or a new one."""
    if args.router is not None:
        router = given_router(args)
        for warning in trained_on.check(router.trained_on, here, config.max_steps):
            print(f"warning: {warning}")
    else:
        torch.manual_seed(args.seed)
        router = PrecisionRouter(router_config(args, here["embedding_dim"], len(config.precisions))).to(args.device)
    window = min(router.config.max_length, config.history_length)
    if window < config.max_steps:
        raise ConfigError(
            f"the router sees {window} rows at most, episodes have up to {config.max_steps}, scored whole: "
            "take a larger history_length and --max-length, or fewer max_steps"
        )
    router.trained_on = here
    return router.eval()  # dropout would make the policy that learns another one than the policy that acted


def given_router(args: argparse.Namespace) -> PrecisionRouter:
    """The router of ``--router``, which decides at one half as it does at ``--start-threshold``."""
    router = PrecisionRouter.load(args.router, args.device)
    router.move_threshold(args.start_threshold)
    return router


class Trainer:
    """A router with its optimizer, its environments, and the router that it is kept near.

    Args:
        args: the command line.
        config: keywords of the environments.
        router: to be trained.
        envs: of the tasks to learn from.
        held_out: of the tasks that choose the best router.
    """

    def __init__(
        self,
        args: argparse.Namespace,
        config: EnvConfig,
        router: PrecisionRouter,
        envs: PrecisionRoutingVectorEnv,
        held_out: PrecisionRoutingVectorEnv,
    ) -> None:
        self.args, self.config, self.router, self.envs, self.held_out = args, config, router, envs, held_out
        self.reference = given_router(args) if args.router is not None else None
        self.optimizer = torch.optim.AdamW(router.parameters(), args.lr, weight_decay=0.0)
        self.averaged = copy.deepcopy(router) if args.average else router
        self.task_ids = first_tasks(envs, args.tasks, args.skip_tasks)
        self.validation_ids = first_tasks(held_out, args.validation_tasks)
        # Draws of the LLM belong to a sample index, so every update needs indices of its own to see new ones. Greedy
        # decoding has no draws, and there the decisions' own draws are left as they are.
        self.is_drawn = SamplingParams(**config.sampling).temperature > 0
        if args.groups > len(self.task_ids):
            raise ConfigError(f"--groups {args.groups} needs as many tasks, the panel has {len(self.task_ids)}")

    def train(self, record: RunRecord) -> None:
        """Update until the end; validate, save and log on the way."""
        args, out = self.args, self.args.out
        progress = load_training_state(out / STATE_FILE, self.router, [self.optimizer])
        start, best = int(progress.get("update", -1)), progress.get("best", float("-inf"))
        if args.average and start >= 0:
            self.averaged.load_state_dict(load_extra(out / STATE_FILE))
        with RunLog(out, start) as log, stop_on_signal() as stop:
            if start < 0:
                best = self.validate(log, 0, best)
                self.save(record, 0, best)
                stop.leave("the first validation")
            bar = tqdm(range(max(start, 0), args.updates), initial=max(start, 0), total=args.updates, unit="update")
            for update in bar:
                figures = self.update(update)
                bar.set_postfix_str(
                    f"return {figures['rollout/return']:.3f} success {figures['rollout/success']:.2f} "
                    f"high {figures[f'rollout/share_{self.envs.precisions[-1]}']:.2f} best {best:.3f}"
                )
                done = update + 1
                log.write(done, figures)
                if done % args.validate_every == 0 or done == args.updates:
                    best = self.validate(log, done, best)
                if done % args.checkpoint_every == 0 or done == args.updates or stop.signal is not None:
                    self.save(record, done, best)
                stop.leave(f"update {done}")

    def save(self, record: RunRecord, done: int, best: float) -> None:
        """Write weights, averaged ones too, optimizer and progress."""
        record.work()
        state, path = {"update": done, "best": best}, self.args.out / STATE_FILE
        averaged = dict(self.averaged.named_parameters()) if self.args.average else None
        save_training_state(path, self.router, [self.optimizer], state, averaged)

    def update(self, update: int) -> dict[str, float]:
        """Play and learn once; returns the figures to log."""
        args = self.args
        if args.anneal:
            self.optimizer.param_groups[0]["lr"] = args.lr * (1 - update / args.updates)
        seed = update_seed(args.seed, update)
        began = time.perf_counter()
        order = np.random.default_rng(seed).permutation(len(self.task_ids))[: args.groups]
        policy = RouterPolicy(self.router, mode="sample", seed=seed)
        tasks = [self.task_ids[i] for i in order]
        first = update * args.group_size if self.is_drawn else 0
        played = rollout(self.envs, policy, tasks, repeats=args.group_size, first_repeat=first)
        shape = (args.groups, args.group_size)
        returns = np.array([trajectory.rewards.sum() for trajectory in played]).reshape(shape)
        success = np.array([trajectory.success for trajectory in played]).reshape(shape)
        played_s = time.perf_counter() - began
        advantages = decision_advantages(played, args.group_size, args.advantages, args.drop_same_success)
        batch = to_batch(played, advantages, args.device)
        begun, last, norm = self.learn(batch)
        actions = np.concatenate([trajectory.actions for trajectory in played])
        shares = np.bincount(actions, minlength=len(self.envs.precisions)) / len(actions)
        return {
            "rollout/return": float(returns.mean()),
            "rollout/success": float(success.mean()),
            "rollout/time_s": float(np.mean([trajectory.time_s for trajectory in played])),
            "rollout/steps": len(actions) / len(played),
            **{f"rollout/share_{name}": float(share) for name, share in zip(self.envs.precisions, shares, strict=True)},
            "groups/zero_spread": float((np.ptp(returns, axis=1) == 0).mean()),
            "groups/same_success": float(1 - mixed_groups(success).mean()),
            "train/surrogate": begun.surrogate.item(),
            "train/kl": last.kl.item(),
            "train/entropy": last.entropy.item(),
            "train/clip_fraction": last.clip_fraction.item(),
            "train/gradient_norm": norm,
            "time/rollout_s": played_s,
            "time/update_s": time.perf_counter() - began,
        }

    def learn(self, batch: Batch) -> tuple[GRPOTerms, GRPOTerms, float]:
        """Take the gradient steps; returns the terms of the first and of the last, and the last gradient's norm."""
        args = self.args
        reference = None
        if self.reference is not None:
            with torch.no_grad():
                reference = batch_logits(self.reference, batch)
        terms: list[GRPOTerms] = []
        for _ in range(args.epochs):
            terms.append(
                grpo_loss(
                    batch_logits(self.router, batch),
                    batch.actions,
                    batch.old_logprobs,
                    batch.advantages,
                    batch.mask,
                    reference_logits=reference,
                    clip_low=args.clip_low,
                    clip_high=args.clip_high,
                    kl_weight=args.kl_weight,
                    entropy_floor=args.entropy_floor,
                    entropy_weight=args.entropy_weight,
                    normaliser=args.normaliser,
                    max_steps=self.config.max_steps,
                )
            )
            self.optimizer.zero_grad()
            terms[-1].loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(self.router.parameters(), args.grad_clip)
            self.optimizer.step()
        if args.average:
            with torch.no_grad():
                for mean, weight in zip(self.averaged.parameters(), self.router.parameters(), strict=True):
                    mean.lerp_(weight, 1 - args.average)
        return terms[0], terms[-1], norm.item()

    def validate(self, log: RunLog, done: int, best: float) -> float:
        """Play the held-out tasks greedily, save the router if it is the best so far, and return the best return."""
        played = rollout(self.held_out, RouterPolicy(self.averaged, mode="argmax"), self.validation_ids)
        value = mean_episode_reward(played)
        actions = np.concatenate([trajectory.actions for trajectory in played])
        shares = np.bincount(actions, minlength=len(self.envs.precisions)) / len(actions)
        figures = {"return": value, "success": float(np.mean([t.success for t in played])), "high": float(shares[-1])}
        figures["collapsed"] = float(self.alarm(log, done, shares))
        log.write(done, {f"validation/{name}": number for name, number in figures.items()})
        if value > best:
            self.averaged.save(self.args.out / "router")
        return max(value, best)

    def alarm(self, log: RunLog, done: int, shares: np.ndarray) -> bool:
        """Tell whether one precision has taken over, and say so once: it may be the best policy, or a run to look at.

        Nothing is said before the first update, since a new router mostly prefers one precision.
        """
        key = "validation/collapsed"
        before = next((entry[key] for entry in reversed(log.history) if key in entry and entry["update"] > 0), 0.0)
        collapsed = bool(shares.max() >= COLLAPSED_SHARE)
        if done > 0 and collapsed and not before:
            name = self.envs.precisions[int(shares.argmax())]
            tqdm.write(f"update {done}: collapse, {name} takes {shares.max():.1%} of the steps of held-out tasks")
        return collapsed


if __name__ == "__main__":
    run(main)
