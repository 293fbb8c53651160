"""Speed of GRPO and of PPO on one environment: updates a second, and where the time of a GRPO update goes.

Each algorithm does its first update twice from the same weights and seeds, so it asks the LLM and the encoder the same
both times: "cold" computes the answers, "warm" finds them in the cache, and training a second epoch over known tasks is
like that. "rollout" is the environment without its encoder, "router" the decisions, "embedding" the encoder and its
cache, "forward" and "backward" the gradient steps, clipping and optimizer with the latter. The policy stays near a
reference router, as with --router, whose pass counts as "forward". PPO is Stable-Baselines3's, with the router as
policy, on as many steps as GRPO's episodes have had, and its steps a second count its updates too. Times are wall
clock.

    python bench/bench_training.py --env DMR-ALFWorld-v0 --groups 16 --group-size 8
    python bench/bench_training.py --n-layers 4 --d-model 128 --n-heads 4 --d-ff 512    (options of train_grpo.py)
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
for folder in (ROOT, ROOT / "agents"):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))

import train_grpo  # noqa: E402

import dmr_gym  # noqa: E402, F401  registers the ids
from dmr_gym import policies  # noqa: E402
from dmr_gym.command_line import chosen_env, make_envs  # noqa: E402
from dmr_gym.router import PrecisionRouter  # noqa: E402

GOAL_UPDATE_S = 3.0
PPO_ENVS = 16


def timed(call: Callable[..., Any], seconds: dict[str, float], name: str) -> Callable[..., Any]:
    """The same call, with its seconds added up under a name."""

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        began = time.perf_counter()
        try:
            return call(*args, **kwargs)
        finally:
            seconds[name] += time.perf_counter() - began

    return wrapped


def grpo(args: argparse.Namespace, folder: Path) -> tuple[dict[str, dict[str, float]], int, Any]:
    """Do the first update cold and warm; returns its figures in seconds, its steps, and the environment, still open."""
    options = ["--out", str(folder / "grpo"), "--env", args.env, "--groups", str(args.groups)]
    options += ["--group-size", str(args.group_size), "--num-envs", str(args.num_envs), "--cache-dir", str(folder)]
    settings = train_grpo.parse_args([*options, *args.rest, "--router", str(folder / "router")])
    config = chosen_env(settings)[1]
    envs = make_envs(config, "train", args.num_envs)
    torch.manual_seed(0)
    router = PrecisionRouter(train_grpo.router_config(settings, envs.single_observation_space.shape[1], 2)).eval()
    router.save(folder / "router")
    first = {name: weight.clone() for name, weight in router.state_dict().items()}
    figures, steps = {}, 0
    for state in ("cold", "warm"):
        router.load_state_dict(first)
        trainer = train_grpo.Trainer(settings, config, router, envs, envs)
        seconds: dict[str, float] = defaultdict(float)
        encoder = envs._parts.encoder
        encode, act, step = encoder.encode, policies.RouterPolicy.act, router.forward
        encoder.encode = timed(encode, seconds, "embedding")
        policies.RouterPolicy.act = timed(act, seconds, "router")
        router.forward = timed(step, seconds, "forward")
        trainer.reference.forward = timed(trainer.reference.forward, seconds, "forward")
        trainer.learn = timed(trainer.learn, seconds, "learning")
        began = time.perf_counter()
        played = trainer.update(0)
        total = time.perf_counter() - began
        encoder.encode, policies.RouterPolicy.act, router.forward = encode, act, step
        seconds["backward"] = seconds.pop("learning") - seconds["forward"]
        seconds["rollout"] = played["time/rollout_s"] - seconds["embedding"] - seconds["router"]
        figures[state] = {"update": total, **seconds}
        steps = round(played["rollout/steps"] * args.groups * args.group_size)
    return figures, steps, envs


def ppo(args: argparse.Namespace, steps: int, folder: Path) -> dict[str, float]:
    """Steps a second of PPO over about so many steps, cold and warm, updates included."""
    from stable_baselines3 import PPO

    from dmr_gym.sb3 import RouterActorCriticPolicy, RoutingVecEnv

    n_steps = max(1, steps // PPO_ENVS)
    cache = ["--cache-dir", str(folder / "ppo")]  # not GRPO's, whose answers would make this one warm
    settings = train_grpo.parse_args(["--out", "x", "--env", args.env, *cache, *args.rest])
    config = chosen_env(settings)[1]
    sizes = {name: getattr(settings, name) for name in ("n_layers", "d_model", "n_heads", "d_ff")}
    found = {}
    for state in ("cold", "warm"):
        envs = make_envs(config, "train", PPO_ENVS)
        model = PPO(
            RouterActorCriticPolicy,
            RoutingVecEnv(envs),
            policy_kwargs={"router": sizes},
            n_steps=n_steps,
            batch_size=4 * n_steps,
            n_epochs=2,
            gamma=1.0,
            seed=0,
        )
        began = time.perf_counter()
        model.learn(n_steps * PPO_ENVS)
        found[state] = n_steps * PPO_ENVS / (time.perf_counter() - began)
        envs.close()
    return found


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="speed of GRPO and PPO")
    parser.add_argument("--env", default="DMR-ALFWorld-v0", metavar="ID", help="(default: %(default)s)")
    parser.add_argument("--groups", type=int, default=16, metavar="M", help="tasks an update (default: %(default)s)")
    parser.add_argument("--group-size", type=int, default=8, metavar="G", help="(default: %(default)s)")
    parser.add_argument("--num-envs", type=int, default=32, metavar="N", help="(default: %(default)s)")
    args, args.rest = parser.parse_known_args(argv)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        figures, steps, envs = grpo(args, folder)
        envs.close()
        for state, seconds in figures.items():
            goal = f" (goal {GOAL_UPDATE_S:g})" if state == "warm" else ""
            print(f"GRPO update, {state}: {seconds['update']:.2f} s{goal}, {steps / seconds['update']:,.0f} steps/s")
            parts = {part: value for part, value in seconds.items() if part != "update"}
            print(
                "  " + ", ".join(f"{part} {value / seconds['update']:.0%}" for part, value in parts.items()), flush=True
            )
        speeds = ppo(args, steps, folder)
        print("PPO: " + ", ".join(f"{state} {value:,.0f} steps/s" for state, value in speeds.items()))
    return {"env": args.env, "steps": steps, "grpo_s": figures, "ppo_steps_per_s": speeds}


if __name__ == "__main__":
    main()
