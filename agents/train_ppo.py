"""Train a router by PPO: Stable-Baselines3's, unmodified, on the return of the paper (section 4.3's rival to GRPO).

The policy is the router and a value head on its trunk; it is asked, updated and saved as `dmr_gym.sb3` describes, and
every update is one call of ``PPO.learn``. The return is undiscounted by default, R = r_success − λ·T (Eq. 8). Reaching
the step cap terminates an episode, so no value is bootstrapped there.

1. Tasks are drawn at random from ``--panel``, or from the part of it that ``--tasks`` and ``--skip-tasks`` name. The
   likeliest actions are played every ``--evaluate-every`` updates on the held-out ``--validation-panel``, and of these
   routers the one with the best mean return is kept.
2. ``--router`` starts from a router of agents/train_kl_st.py; without it weights are random.
3. All chance of an update is a function of (seed, update). Episodes run on from one update into the next: a state file
   holds each one's task, sample index and actions, and ``--resume`` plays them again, from the completion cache. So a
   killed run that goes on ends in the same weights, bit for bit, as one that was never stopped, and nothing about PPO
   is changed for it. It costs num_envs² · max_steps cached steps at most, once a resumption.
4. Every step of the window is stored as it was seen: n_steps · num_envs · L · D · 4 bytes, 50 MB for ALFWorld.

    python agents/train_ppo.py --env DMR-Toy-v0 --out runs/ppo-toy
    python agents/train_ppo.py --router runs/kl-st/router --out runs/ppo --set lambda_=0.05
    python agents/evaluate.py --router runs/ppo/router --out runs/ppo/evaluation
    tensorboard --logdir runs/ppo/tensorboard

``--out`` then holds the best router in router/, run.json, history.jsonl, tensorboard/ and state.safetensors.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from tqdm import tqdm

from dmr_gym import trained_on
from dmr_gym.command_line import (
    ROUTER_SIZES,
    add_env_options,
    add_task_range,
    chosen_env,
    first_tasks,
    make_envs,
    part_digests,
    recipe_parser,
    run,
    settings_of,
)
from dmr_gym.config import EnvConfig
from dmr_gym.device import torch_device
from dmr_gym.errors import ConfigError
from dmr_gym.policies import RouterPolicy
from dmr_gym.rollout import mean_episode_reward, rollout
from dmr_gym.router import PrecisionRouter, RouterConfig
from dmr_gym.runs import RunRecord
from dmr_gym.sb3 import Position, RouterActorCriticPolicy, RoutingVecEnv
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
from dmr_gym.vector import PrecisionRoutingVectorEnv

SIZES = tuple(name for name in ROUTER_SIZES if name != "max_length")  # that one is the environment's window
FREE = ("out", "router", "config", "resume", "cache_dir")
"""Options that may differ when a run is resumed: of files, what they hold is compared."""
SB3_FIGURES = {
    "kl": "approx_kl",
    "clip_fraction": "clip_fraction",
    "explained_variance": "explained_variance",
    "policy_loss": "policy_gradient_loss",
    "value_loss": "value_loss",
}


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = recipe_parser(__doc__, "train_ppo")
    add = parser.add_argument
    add("--out", type=Path, required=True, metavar="DIR", help="folder for everything this run writes")
    add("--panel", default="train", help="panel of the tasks to learn from (default: %(default)s)")
    add_task_range(parser)
    add("--validation-panel", default="validation", help="panel that chooses the router (default: %(default)s)")
    add("--validation-tasks", type=int, metavar="N", help="first N tasks of that panel (default: all)")
    add(
        "--evaluate-every", type=int, default=10, metavar="N", help="updates between plays of it (default: %(default)s)"
    )
    add("--checkpoint-every", type=int, default=10, metavar="N", help="updates between saves (default: %(default)s)")
    add("--seed", type=int, default=0, help="of weights, tasks, actions and order (default: %(default)s)")
    add("--device", default="cpu", help="torch device (default: %(default)s)")
    add("--resume", action="store_true", help="go on from the last save in --out")
    ppo = parser.add_argument_group("PPO").add_argument
    ppo("--updates", type=int, default=200, metavar="N", help="times to act and learn (default: %(default)s)")
    ppo(
        "--n-steps",
        type=int,
        default=64,
        metavar="N",
        help="steps of each environment an update (default: %(default)s)",
    )
    ppo("--minibatch-size", type=int, default=128, metavar="N", help="steps a gradient (default: %(default)s)")
    ppo("--epochs", type=int, default=8, metavar="N", help="passes over an update's steps (default: %(default)s)")
    ppo("--lr", type=float, default=3e-4, metavar="X", help="learning rate of Adam (default: %(default)s)")
    ppo("--anneal", action="store_true", help="let the learning rate fall linearly to zero")
    ppo("--gamma", type=float, default=1.0, metavar="X", help="discount a step, in (0, 1] (default: %(default)s)")
    ppo("--gae-lambda", type=float, default=1.0, metavar="X", help="of GAE, in [0, 1] (default: %(default)s)")
    ppo("--clip", type=float, default=0.3, metavar="X", help="how far a ratio may leave 1 (default: %(default)s)")
    ppo("--entropy", type=float, default=0.0, metavar="X", help="weight of the entropy in nats (default: %(default)s)")
    ppo("--value-weight", type=float, default=0.5, metavar="X", help="weight of the value loss (default: %(default)s)")
    ppo("--grad-clip", type=float, default=0.5, metavar="X", help="largest gradient norm (default: %(default)s)")
    ppo("--separate-values", action="store_true", help="give values a trunk of their own")
    router = parser.add_argument_group("router").add_argument
    router("--router", type=Path, metavar="DIR", help="folder of a router to start from; it brings its sizes")
    for name in SIZES:
        flag, value = f"--{name.replace('_', '-')}", getattr(RouterConfig(), name)
        router(flag, type=int, metavar="N", help=f"{ROUTER_SIZES[name]} (default: {value}, or that of --router)")
    add_env_options(parser)
    args = parser.parse_args(argv)
    check_args(args)
    return args


def check_args(args: argparse.Namespace) -> None:
    """Refuse numbers with which nothing can be trained, before anything is loaded."""
    for name in ("evaluate_every", "checkpoint_every", "updates", "n_steps", "epochs", "num_envs"):
        if getattr(args, name) < 1:
            raise ConfigError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(args, name)}")
    # A last minibatch of one step would have no standard deviation to divide its advantage by.
    steps = args.n_steps * args.num_envs
    if args.minibatch_size < 2 or steps % args.minibatch_size:
        raise ConfigError(f"--minibatch-size must divide n_steps · num_envs = {steps}, got {args.minibatch_size}")
    for name, low, high in (
        ("lr", 0.0, math.inf),
        ("gamma", 0.0, 1.0),
        ("gae_lambda", -1.0, 1.0),
        ("clip", 0.0, math.inf),
        ("grad_clip", 0.0, math.inf),
    ):
        value = getattr(args, name)
        if not low < value <= high or not math.isfinite(value) or (name == "gae_lambda" and value < 0):
            interval = f"[0, {high}]" if name == "gae_lambda" else f"(0, {high}]"
            raise ConfigError(f"--{name.replace('_', '-')} must lie in {interval}, got {value}")
    for name in ("entropy", "value_weight"):
        if not 0 <= getattr(args, name) < math.inf:
            raise ConfigError(f"--{name.replace('_', '-')} must be a number of at least 0, got {getattr(args, name)}")
    if args.router is not None and any(getattr(args, name) is not None for name in SIZES):
        raise ConfigError(
            "--router brings its sizes: leave out " + ", ".join(f"--{n.replace('_', '-')}" for n in SIZES)
        )
    torch_device(args.device)


def main(argv: Sequence[str] | None = None) -> None:
    """Build, train, and say where the best router lies."""
    args = parse_args(argv)
    env_id, config = chosen_env(args, args.out / "cache")
    start = PrecisionRouter.load(args.router) if args.router is not None else None
    envs = make_envs(config, args.panel, args.num_envs)
    envs.keep_tasks(first_tasks(envs, args.tasks, args.skip_tasks))
    held_out = make_envs(config, args.validation_panel, args.num_envs)
    tasks = first_tasks(held_out, args.validation_tasks)
    models = {name: envs.backend.digest(name) for name in envs.precisions}
    data = trained_on.environment_record(env_id, args.panel, config, models)
    if start is not None:
        for warning in trained_on.check(start.trained_on, data, config.max_steps):
            print(f"warning: {warning}")
    model = build(RoutingVecEnv(envs), config, args)
    model.policy.router.trained_on = data
    settings = settings_of(args)
    settings |= {"env_id": env_id, "env": asdict(replace(config, cache_dir=None)), "models": models}
    settings |= {"start_digest": start.digest() if start is not None else None}
    settings |= part_digests(config, (args.panel, args.validation_panel))
    claim_folder(args.out, settings, args.resume, FREE)
    sizes = asdict(model.policy.router.config)
    record = RunRecord(args.out, {"settings": settings, "trained_on": data, "sizes": sizes})

    history = Trainer(model, held_out, tasks, record, args).train()
    best = max((entry for entry in history if "validation/return" in entry), key=lambda e: e["validation/return"])
    digest = PrecisionRouter.load(args.out / "router").digest()
    record.end({"best": best, "last": history[-1], "router_digest": digest})
    held_out.close()
    envs.close()
    print(f"best update {best['update']}: return {best['validation/return']:.3f} on {len(tasks)} held-out tasks")
    print(f"wrote {args.out / 'router'} and {record.path}")


def build(venv: RoutingVecEnv, config: EnvConfig, args: argparse.Namespace) -> PPO:
    """SB3's PPO around the router."""
    torch.manual_seed(update_seed(args.seed, 0, "weights"))
    sizes = {name: getattr(args, name) for name in SIZES if getattr(args, name) is not None}
    policy: dict[str, Any] = {"share_features_extractor": not args.separate_values}
    policy |= {"router_weights": str(args.router)} if args.router is not None else {"router": sizes}
    model = PPO(
        RouterActorCriticPolicy,
        venv,
        learning_rate=args.lr,
        n_steps=args.n_steps,
        batch_size=args.minibatch_size,
        n_epochs=args.epochs,
        gamma=args.gamma,
        gae_lambda=args.gae_lambda,
        clip_range=args.clip,
        ent_coef=args.entropy,
        vf_coef=args.value_weight,
        max_grad_norm=args.grad_clip,
        policy_kwargs=policy,
        device=args.device,
    )
    model.set_logger(Logger(folder=None, output_formats=[]))
    return model


class Episodes(BaseCallback):
    """Keeps the information of the episodes that end."""

    def __init__(self) -> None:
        super().__init__()
        self.ended: list[dict[str, Any]] = []

    def _on_step(self) -> bool:
        self.ended += [info for info in self.locals["infos"] if "episode" in info]
        return True

    def figures(self) -> dict[str, float]:
        """Means over the episodes that ended; none where none did."""
        columns = {
            "train/return": [info["episode"]["r"] for info in self.ended],
            "train/success": [info["success"] for info in self.ended],
            "train/steps": [info["episode"]["l"] for info in self.ended],
            "train/latency_s": [info["episode_latency_s"] for info in self.ended],
        }
        return {name: float(np.mean(values)) for name, values in columns.items() if values}


class Trainer:
    """The loop of a run, which `dmr_gym.training` describes."""

    def __init__(
        self,
        model: PPO,
        held_out: PrecisionRoutingVectorEnv,
        tasks: Sequence[str],
        record: RunRecord,
        args: argparse.Namespace,
    ) -> None:
        self.model, self.held_out, self.tasks, self.record, self.args = model, held_out, tasks, record, args
        self.venv: RoutingVecEnv = model.env
        self.router: PrecisionRouter = model.policy.router
        self.best = -math.inf
        self.bar: Any = None

    def train(self) -> list[dict[str, float]]:
        """Run from the last save to the last update and return the history."""
        args, path = self.args, self.args.out / STATE_FILE
        progress = load_training_state(path, self.model.policy, [self.model.policy.optimizer])
        self.best = progress.get("best", -math.inf)
        # A run without a state has not even kept the figures of its first router.
        done = int(progress.get("update", -1))
        if done > 0:
            self.take_up(load_extra(path), done)
        interval = 0.5 if sys.stderr.isatty() else 10.0  # a log file gets a line every ten seconds
        with (
            RunLog(args.out, done) as log,
            stop_on_signal() as stop,
            tqdm(total=args.updates, initial=max(done, 0), unit="update", mininterval=interval) as self.bar,
        ):
            if done < 0:
                log.write(0, self.evaluate())
                self.save(0)
                stop.leave("the first play of the held-out tasks")
            for update in range(max(done, 0), args.updates):
                figures = self.update(update)
                last = update + 1 == args.updates
                if (update + 1) % args.evaluate_every == 0 or last:
                    figures |= self.evaluate()
                log.write(update + 1, figures)
                self.show(figures)
                if (update + 1) % args.checkpoint_every == 0 or last or stop.signal:
                    self.save(update + 1)
                stop.leave(f"update {update + 1}")
            return log.history

    def update(self, update: int) -> dict[str, float]:
        """Act and learn once; the figures of it."""
        args, model, began = self.args, self.model, time.perf_counter()
        torch.manual_seed(update_seed(args.seed, update))
        np.random.seed(update_seed(args.seed, update, "order") % 2**32)  # SB3 shuffles minibatches with it
        self.venv.reseed([update_seed(args.seed, update, f"environment {i}") for i in range(args.num_envs)])
        model.lr_schedule = lambda _: args.lr * (1 - update / args.updates if args.anneal else 1)
        episodes = Episodes()
        steps = args.n_steps * args.num_envs
        model.learn(steps, callback=episodes, log_interval=None, reset_num_timesteps=False)
        found = model.logger.name_to_value
        actions = model.rollout_buffer.actions.astype(np.int64).ravel()
        shares = np.bincount(actions, minlength=len(self.held_out.precisions)) / len(actions)
        figures = episodes.figures()
        figures |= {f"share/{name}": float(s) for name, s in zip(self.held_out.precisions, shares, strict=True)}
        figures |= {f"train/{name}": float(found[f"train/{key}"]) for name, key in SB3_FIGURES.items()}
        figures |= {"train/entropy": -float(found["train/entropy_loss"])}
        figures |= {"time/steps_per_s": steps / (time.perf_counter() - began)}
        return {name: value for name, value in figures.items() if math.isfinite(value)}

    def evaluate(self) -> dict[str, float]:
        """Play the held-out tasks with the likeliest actions, and keep the router if it is the best so far."""
        high = len(self.held_out.precisions) - 1
        played = rollout(self.held_out, RouterPolicy(self.router, mode="argmax"), self.tasks)
        results = [trajectory.result(high) for trajectory in played]
        steps = sum(result.steps for result in results)
        figures = {
            "validation/return": mean_episode_reward(played),
            "validation/success": float(np.mean([result.success for result in results])),
            "validation/time_s": float(np.mean([result.time_s for result in results])),
            "validation/steps": steps / len(results),
            "validation/high_share": sum(result.high_steps for result in results) / steps,
        }
        if figures["validation/return"] > self.best:
            self.best = figures["validation/return"]
            self.router.save(self.args.out / "router")
        return figures

    def save(self, update: int) -> None:
        """Write weights, optimizer, and where the episodes stand."""
        self.record.work()
        index = {name: number for number, name in enumerate(self.venv.envs.task_ids)}
        extra = {}
        for i, position in enumerate(self.venv.positions() if update else ()):
            where = (index[position.task_id], position.sample_index, *position.actions)
            extra[f"episode.{i}"] = torch.tensor(where, dtype=torch.int64)
        policy, progress = self.model.policy, {"update": update, "best": self.best}
        save_training_state(self.args.out / STATE_FILE, policy, [policy.optimizer], progress, extra)

    def take_up(self, extra: dict[str, torch.Tensor], done: int) -> None:
        """Go on with the episodes of a save."""
        numbers = [extra[f"episode.{i}"].tolist() for i in range(self.args.num_envs)]
        positions = [Position(self.venv.envs.task_ids[n[0]], n[1], tuple(n[2:])) for n in numbers]
        self.model._last_obs = self.venv.go_to(positions)
        self.model._last_episode_starts = np.array([not position.actions for position in positions])
        self.model.num_timesteps = done * self.args.n_steps * self.args.num_envs

    def show(self, figures: dict[str, float]) -> None:
        """Move the progress bar on."""
        shown = {
            "return": "train/return",
            "success": "train/success",
            "kl": "train/kl",
            "held out": "validation/return",
        }
        values = {name: f"{figures[key]:.3f}" for name, key in shown.items() if key in figures}
        self.bar.set_postfix(values, refresh=False)
        self.bar.update()


if __name__ == "__main__":
    run(main)
