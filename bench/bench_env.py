"""Steps a second of the environment: alone and as a batch of 16, cold and warm, and where the time goes.

Cold: the LLM and the encoder compute every answer. Warm: the same episodes with the same decisions once more, all of it
in the cache in memory. Decisions alternate between the precisions. "Alone" and "batch" are what ``gymnasium.make`` and
``gymnasium.make_vec`` return, their wrappers included. Cold speeds are by the wall clock. Warm speeds and the table of
parts are by processor time, which is one core's here and which a busy machine changes little.

    python bench/bench_env.py --env DMR-ALFWorld-v0 --steps 400
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium
import numpy as np

import dmr_gym  # noqa: F401 - registers the ids
from dmr_gym.backends import make_backend, with_world
from dmr_gym.cache import CachedBackend, CachedEncoder, CompletionCache
from dmr_gym.command_line import env_config
from dmr_gym.encoders import make_encoder
from dmr_gym.env import PrecisionRoutingEnv
from dmr_gym.tasks import make_task

ENVS = ("DMR-ALFWorld-v0", "DMR-WebShop-v0")
WARM_STEPS = 10_000
BATCH = 16


class Timed:
    """Stands for another object and adds up the processor seconds spent in its methods.

    Args:
        inner: the object.
        seconds: where the sums go, by ``name``.
        name: of this object.
    """

    def __init__(self, inner: Any, seconds: dict[str, float], name: str) -> None:
        self._inner, self._seconds, self._name = inner, seconds, name

    def __getattr__(self, attribute: str) -> Any:
        """Hand out the other object's attribute, methods with a stop watch around them."""
        value = getattr(self._inner, attribute)
        if not callable(value):
            return value

        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.process_time()
            try:
                return value(*args, **kwargs)
            finally:
                self._seconds[self._name] += time.process_time() - start

        self.__dict__[attribute] = timed
        return timed


def play(env: Any, steps: int, clock: Callable[[], float] = time.process_time) -> float:
    """Take so many steps from seed 0, episode after episode; returns seconds. The same call does the same again."""
    precisions = env.action_space.n
    start = clock()
    env.reset(seed=0)
    for step in range(steps):
        if env.step(step % precisions)[2]:
            env.reset()
    return clock() - start


def play_batch(envs: Any, steps: int, clock: Callable[[], float] = time.process_time) -> float:
    """Take so many steps of all sub-environments from seed 0; returns seconds."""
    precisions = envs.single_action_space.n
    start = clock()
    envs.reset(seed=0)
    for step in range(steps):
        envs.step((np.arange(envs.num_envs) + step) % precisions)
    return clock() - start


def steps_per_second(env_id: str, settings: dict[str, Any], steps: int) -> dict[str, float]:
    """Steps a second of the environment alone and in batches, all sub-environments together; warm, the best round."""
    env = gymnasium.make(env_id, **settings)
    play(env, 2)  # loads models
    figures = {"alone, cold": steps / play(env, steps, time.perf_counter)}
    repeats = max(1, WARM_STEPS // steps)
    figures["alone, warm"] = steps / min(play(env, steps) for _ in range(repeats))
    env.close()

    envs = gymnasium.make_vec(env_id, num_envs=BATCH, **settings)
    play_batch(envs, 1)
    rounds = max(1, steps // BATCH)
    figures[f"batch of {BATCH}, cold"] = rounds * BATCH / play_batch(envs, rounds, time.perf_counter)
    figures[f"batch of {BATCH}, warm"] = rounds * BATCH / min(play_batch(envs, rounds) for _ in range(repeats))
    envs.close()
    return figures


def time_shares(settings: dict[str, Any], steps: int) -> dict[str, dict[str, float]]:
    """Processor milliseconds a step by part, cold and warm. Parts are disjoint; "rest" is the environment itself."""
    precisions, store = settings["precisions"], CompletionCache(None)
    seconds: dict[str, float] = defaultdict(float)
    backend = Timed(make_backend(with_world(settings["backend"], settings["task"]), precisions), seconds, "LLM")
    encoder = Timed(make_encoder(settings["encoder"]), seconds, "encoder")
    parts = {
        "task": Timed(make_task(settings["task"], **settings["task_kwargs"]), seconds, "world and prompt"),
        "backend": Timed(CachedBackend(backend, store), seconds, "completions"),
        "encoder": Timed(CachedEncoder(encoder, store), seconds, "embeddings"),
    }
    env = PrecisionRoutingEnv(**{**settings, **parts, "task_kwargs": None, "cache_dir": None})
    play(env, 2)
    shares = {}
    for state, repeats in (("cold", 1), ("warm", max(1, WARM_STEPS // steps))):
        seconds.clear()
        total = sum(play(env, steps) for _ in range(repeats))
        spent = {
            "LLM": seconds["LLM"],
            "encoder": seconds["encoder"],
            "cache of completions": seconds["completions"] - seconds["LLM"],
            "cache of embeddings": seconds["embeddings"] - seconds["encoder"],
            "world and prompt": seconds["world and prompt"],
        }
        spent["rest"] = total - sum(spent.values())
        shares[state] = {name: 1000 * value / (steps * repeats) for name, value in spent.items()}
    env.close()
    return shares


def measure(env_id: str, settings: dict[str, Any], steps: int) -> dict[str, Any]:
    """Measure one environment and print its two tables."""
    figures = steps_per_second(env_id, settings, steps)
    for name, value in figures.items():
        print(f"{env_id}, {name:<20} {value:>12,.1f} steps/s", flush=True)
    shares = time_shares(settings, steps)
    print(f"\n{'processor ms a step, alone':<28}{'cold':>10}{'warm':>10}")
    for name in shares["cold"]:
        print(f"{name:<28}{shares['cold'][name]:>10.4f}{shares['warm'][name]:>10.4f}")
    print()
    return {"steps_per_second": figures, "ms_per_step": shares}


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure each environment; returns the figures by id."""
    parser = argparse.ArgumentParser(description="steps a second of the environment, and where the time goes")
    parser.add_argument("--env", nargs="+", default=list(ENVS), metavar="ID", help="(default: %(default)s)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a keyword, as in TOML")
    parser.add_argument("--steps", type=int, default=400, help="steps of a cold measurement (default: %(default)s)")
    args = parser.parse_args(argv)
    return {env_id: measure(env_id, env_config(env_id, args.set).kwargs(), args.steps) for env_id in args.env}


if __name__ == "__main__":
    main()
