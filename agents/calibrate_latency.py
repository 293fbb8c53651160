r"""Measure what a token, a prompt and a routing decision cost on your hardware: Eq. 10 and 11 of the paper.

Each precision plays the panel alone (appendix A), ``--num-envs`` episodes side by side (16, as there), without a
completion cache; ℓ_p is the seconds of all its calls over their completion tokens (Eq. 10). Then a router with random
weights plays it, and ℓ_r is the seconds of its decisions over their number; steps forced to the highest precision do
not count (Eq. 11). The same calls give the coefficients of the kind "prefill-decode", by least squares.

How this differs from the paper:

1. All numbers have 95 % intervals: sessions, one a task, are drawn with replacement.
2. On servers each episode goes at its own pace, as there. A backend in this process computes the calls of all episodes
   as one batch, whose time is that of each: prefill and decoding can then hardly be told apart (a small R²), which
   ``--num-envs 1`` mends.
3. A decision takes what its session waits for, all episodes in step: the sentence encoder on the rows that came, and
   the router on the batch.
4. A precision that no kernel runs can be projected: ``--project w3=w4-awq`` divides by 1.15, as the paper does (A.3).
   Where it is measured all the same, the profile says that its weights were unpacked to 16 bits ("dequantized").

    python agents/calibrate_latency.py --out runs/latency --tasks 16
    python agents/calibrate_latency.py --out runs/latency-4b --config configs/paper/alfworld-4b-awq-w4.toml \
        --hardware "one A6000"

``--switches`` adds what the paper leaves out: the same calls with a cold and with a warm prefix, beside what the fit
says of them. Servers are measured with a prefix cache that begins cold (``cache_salt``).

``--out`` then holds profile.toml, which an environment takes by its path: ``latency = {profile = PATH}``, tables.md,
and all numbers in results.json. The same command goes on with the sessions that are missing.
"""

from __future__ import annotations

import argparse
import json
import platform
import secrets
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from dmr_gym.backends import make_backend, with_world
from dmr_gym.backends.kernels import dequantized_copies
from dmr_gym.cache import CachedEncoder, CompletionCache
from dmr_gym.command_line import (
    add_env_options,
    add_router_options,
    chosen_env,
    first_tasks,
    make_envs,
    recipe_parser,
    router_config,
    run,
    settings_of,
)
from dmr_gym.config import EnvConfig, read_toml, to_toml
from dmr_gym.deployment import BUDGETS, forcing
from dmr_gym.encoders import make_encoder
from dmr_gym.episode import priced_call
from dmr_gym.errors import ConfigError
from dmr_gym.latency import W3_SPEEDUP, Profile, make_latency_model
from dmr_gym.latency.prefix_cache import prompt_text
from dmr_gym.latency_sessions import Session, TimedBackend, TimedEncoder, TimedPolicy, estimate
from dmr_gym.latency_switches import TimedSwitch, switch_costs, switch_table, time_switches
from dmr_gym.latency_tables import break_even_rows, latency_table
from dmr_gym.policies import EpisodeKey, FixedPrecision, Policy, RouterPolicy
from dmr_gym.rollout import Trajectory, rollout
from dmr_gym.router import PrecisionRouter
from dmr_gym.runs import provenance, task_file_stem, write_atomically, write_json
from dmr_gym.serving.settings import DEFAULT_BLOCK_TOKENS, read_serve_settings, served_device
from dmr_gym.tables import write_tables
from dmr_gym.training import claim_folder, stop_on_signal
from dmr_gym.types import Backend

ROUTER = "router"
HEADER = "# A latency profile, see docs/latency.md: an environment takes it with latency = {profile = THIS FILE}.\n"


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = recipe_parser(__doc__, "calibrate_latency")
    add = parser.add_argument
    add("--out", type=Path, required=True, metavar="DIR", help="folder for everything this run writes")
    add("--panel", default="test", help="panel of tasks (default: %(default)s)")
    add("--tasks", type=int, metavar="N", help="first N tasks of that panel, a session each (default: all)")
    add("--hardware", default="", metavar="TEXT", help="what the models run on, in words, for the profile")
    add("--project", nargs="*", default=[], metavar="NAME=SOURCE", help="price NAME as SOURCE / 1.15, unmeasured")
    add(
        "--processor-time",
        action="store_true",
        help="count processor time in place of wall clock, for models in this process on a busy machine",
    )
    add(
        "--block-tokens",
        type=int,
        metavar="N",
        help="tokens of a block of the servers' prefix cache (default: --block-size among the flags of [serve] in "
        "--config, where there are such servers, else 16; 1 for models in this process)",
    )
    add("--switches", action="store_true", help="time switches of precision on servers; with --num-envs 1")
    add("--force-high", nargs="*", default=[], metavar="TYPE", help="types of steps that no router decides (none)")
    add("--resamples", type=int, default=2000, metavar="N", help="bootstrap resamples (default: %(default)s)")
    add("--seed", type=int, default=0, help="of the router's weights and draws (default: %(default)s)")
    add("--device", default="cpu", help="torch device of the router (default: %(default)s)")
    add_env_options(parser)
    add_router_options(parser)
    parser.set_defaults(num_envs=16)
    args = parser.parse_args(argv)
    for name in ("resamples", "num_envs", "block_tokens"):
        if (value := getattr(args, name)) is not None and value < 1:
            raise ConfigError(f"--{name.replace('_', '-')} must be at least 1, got {value}")
    if args.switches and args.num_envs != 1:
        raise ConfigError(
            f"--switches times single calls, which the fit of calls under load says nothing of: --num-envs 1, got "
            f"{args.num_envs}"
        )
    if args.cache_dir is not None:
        raise ConfigError("--cache-dir has no place here: a completion that is found takes no time to measure")
    return args


def main(argv: Sequence[str] | None = None) -> None:
    """Play, time, fit, and write the profile."""
    args = parse_args(argv)
    env_id, config = chosen_env(args)
    projected = read_projections(args.project, config.precisions)
    measured = [name for name in config.precisions if name not in projected]
    backend = connect(config)
    if args.switches and config.backend.get("kind") != "vllm":
        raise ConfigError("--switches times servers (backend kind vllm), whose prefix caches can begin empty")
    if args.processor_time:
        if config.backend.get("kind") not in ("embedded", "local"):
            raise ConfigError("--processor-time counts what this process computes: servers need the wall clock")
        backend = TimedBackend(backend, time.process_time)
    settings = settings_of(args)
    described = asdict(replace(config, cache_dir=None))
    models = {name: backend.digest(name) for name in measured}
    free = ("out", "config", "tasks", "resamples", "hardware", "project", "block_tokens", "switches")
    claim_folder(args.out, settings | {"env": described, "models": models}, True, free)

    sessions = {name: play_alone(backend, config, name, args) for name in measured}
    routed = play_routed(backend, config, args)
    options = {"block_tokens": block_tokens(args, config), "resamples": args.resamples, "seed": args.seed}
    found = estimate(sessions, routed, projected, **options)
    switched = time_all_switches(backend, config, measured, args) if args.switches else {}
    made = provenance()
    made["versions"] |= server_versions(backend, config)
    profile = Profile(
        date=time.strftime("%Y-%m-%d", time.gmtime()),
        command=shlex.join(["python", "agents/calibrate_latency.py", *(sys.argv[1:] if argv is None else argv)]),
        hardware=describe_hardware(args.hardware),
        versions={"python": made["python"], **{name: version for name, version in made["versions"].items() if version}},
        kinds=found.kinds,
        projected={name: f"{source} / {W3_SPEEDUP}" for name, source in projected.items()},
        dequantized=dequantized_copies(with_world(config.backend, config.task), measured, served_device(args.config)),
        measurement={
            "env_id": env_id,
            "panel": args.panel,
            "sessions": len(routed),
            "concurrency": args.num_envs,
            "clock": "processor time" if args.processor_time else "wall clock",
            "git": made["git"] or "unknown",
            "models": models,
        },
        intervals=found.intervals,
        fit=found.fit,
    )
    path = args.out / "profile.toml"
    write_atomically(path, lambda part: part.write_text(HEADER + to_toml(profile), encoding="utf-8"))
    break_even = break_even_rows(profile, config.precisions, (0.0, *BUDGETS))
    tables, costs = [latency_table(profile, config.precisions, break_even)], {}
    if switched:
        model = make_latency_model({"kind": "prefill-decode", **found.kinds["prefill-decode"]}, config.precisions)
        costs = {n: switch_costs(s, n, model, args.resamples, args.seed) for n, s in switched.items()}
        tables.append(switch_table(costs))
    record = {
        "settings": settings,
        "env": described,
        "profile": asdict(profile),
        "break_even": break_even,
        "switches": {name: [asdict(cost) for cost in each] for name, each in costs.items()},
        **made,
    }
    write_json(args.out / "results.json", record)
    for table in tables:
        table.show()
    print(f"tables: {write_tables(args.out, tables)}\nnumbers: {args.out / 'results.json'}")
    print(f"wrote {path}; an environment takes it with --set 'latency={{profile = \"{path}\"}}'")


def read_projections(pairs: Sequence[str], precisions: Sequence[str]) -> dict[str, str]:
    """The precisions that are not measured, each with the one that it is derived from.

    Raises:
        ConfigError: a pair that is none, or names that the environment has not, or a source that is projected itself.
    """
    projected = dict(pair.partition("=")[::2] for pair in pairs)
    for name, source in projected.items():
        if name not in precisions or source not in precisions or source in projected:
            raise ConfigError(
                f"--project expects NAME=SOURCE with two of the precisions {list(precisions)}, SOURCE measured, "
                f"got {name}={source}; --set precisions adds one"
            )
    return projected


def connect(config: EnvConfig) -> Backend:
    """The backend; servers begin with a prefix cache of its own, whatever they were asked before."""
    settings = with_world(config.backend, config.task)
    if config.backend.get("kind") == "vllm":
        settings = {**settings, "cache_salt": secrets.token_hex(8)}
    return make_backend(settings, config.precisions)


def server_versions(backend: Any, config: EnvConfig) -> dict[str, str]:
    """The version of vLLM behind a backend of that kind; nothing where no server tells."""
    told = backend.server_versions() if config.backend.get("kind") == "vllm" else ()
    return {"vllm": ", ".join(told)} if told else {}


def block_tokens(args: argparse.Namespace, config: EnvConfig) -> int:
    """Tokens of a block of the prefix cache; a backend in this process keeps every token."""
    if args.block_tokens is not None:
        return args.block_tokens
    if config.backend.get("kind") != "vllm":
        return 1
    served = args.config is not None and "serve" in read_toml(args.config)
    return read_serve_settings(args.config).block_tokens if served else DEFAULT_BLOCK_TOKENS["cuda"]


def play_alone(backend: Backend, config: EnvConfig, name: str, args: argparse.Namespace) -> list[Session]:
    """Let one precision play what is missing of its sessions."""
    policy = FixedPrecision(config.precisions.index(name))
    return play(backend, config, policy, {"kind": "hash", "dim": 8}, name, args)


def play_routed(backend: Backend, config: EnvConfig, args: argparse.Namespace) -> list[Session]:
    """Let a router with random weights play what is missing of its sessions."""
    clock = time.process_time if args.processor_time else time.perf_counter
    encoder = TimedEncoder(CachedEncoder(make_encoder(config.encoder), CompletionCache()), clock)
    torch.manual_seed(args.seed)
    router = PrecisionRouter(router_config(args, encoder.dim, len(config.precisions))).to(args.device).eval()
    # Weights load and kernels warm up at the first call, which is no decision's fault.
    warm = RouterPolicy(router)
    warm.reset([0], [EpisodeKey("warm")], 1)
    row = np.zeros((1, config.history_length, encoder.dim), dtype=np.float32)
    row[0, 0] = encoder.encode(["warm up"])[0]
    warm.act(row, {})
    encoder.take()
    routed = RouterPolicy(router, mode="sample", seed=args.seed)
    policy = TimedPolicy(forcing(routed, len(config.precisions) - 1, args.force_high), encoder, clock)
    # All episodes wait for the batch, and so for the encoding of all rows that came.
    return play(TimedBackend(backend, clock), config, policy, encoder, ROUTER, args)


def play(
    backend: Backend, config: EnvConfig, policy: Policy, encoder: Any, stage: str, args: argparse.Namespace
) -> list[Session]:
    """Play the tasks that have no session yet, and return the sessions of all; a file each."""
    free = {"ms_per_token": dict.fromkeys(config.precisions, 0.0), "router_ms": 0.0}
    envs = make_envs(config, args.panel, args.num_envs, backend=backend, encoder=encoder, latency=free, cache_dir=None)
    folder = args.out / "sessions" / stage
    paths = {task: folder / f"{task_file_stem(task)}.json" for task in first_tasks(envs, args.tasks)}
    missing = [task for task, path in paths.items() if not path.is_file()]
    with stop_on_signal("session", "the same command") as stop:

        def save(trajectory: Trajectory) -> None:
            turns, key = trajectory.turns, trajectory.key
            calls = [priced_call(turn.request, turn.completion, turns[:i]) for i, turn in enumerate(turns)]
            counted = [[c.seconds, c.prompt_tokens, c.cached_tokens, c.completion_tokens] for c in calls]
            seconds, decisions = policy.sessions[key] if isinstance(policy, TimedPolicy) else (0.0, 0)
            session = Session(counted, prompt_text(turns[0].request.prompt), seconds, int(decisions))
            write_json(paths[key.task_id], asdict(session))
            stop.leave(f"the session of {key.task_id}")

        rollout(envs, policy, missing, keep_turns=True, on_episode=save, progress=f"{stage}, {args.num_envs} at a time")
    envs.close()
    return [Session(**json.loads(path.read_text(encoding="utf-8"))) for path in paths.values()]


def time_all_switches(
    backend: Backend, config: EnvConfig, names: Sequence[str], args: argparse.Namespace
) -> dict[str, list[list[TimedSwitch]]]:
    """Time switches to each precision along episodes of the highest one; a file an episode, as far as missing."""
    encoder = {"kind": "hash", "dim": 8}
    envs = make_envs(config, args.panel, 1, backend=backend, encoder=encoder, cache_dir=None)
    high = FixedPrecision(len(config.precisions) - 1)
    found: dict[str, list[list[TimedSwitch]]] = {name: [] for name in names}
    with stop_on_signal("session", "the same command") as stop:
        for task in tqdm(first_tasks(envs, args.tasks), desc="switches", unit="episode"):
            path = args.out / "switches" / f"{task_file_stem(task)}.json"
            if not path.is_file():
                [episode] = rollout(envs, high, [task], keep_turns=True)
                write_json(path, {n: time_switches(lambda: connect(config), episode.turns, n) for n in names})
                stop.leave(f"the switches of {task}")
            timed = json.loads(path.read_text(encoding="utf-8"))
            for name in names:
                found[name].append([TimedSwitch(*one) for one in timed[name]])
    envs.close()
    return found


def describe_hardware(words: str) -> dict[str, Any]:
    """What this process runs on, and what the user says the models run on."""
    cpuinfo = Path("/proc/cpuinfo")
    names = (
        [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        if (cpuinfo.is_file())
        else []
    )
    found: dict[str, Any] = {"processor": names[0] if names else platform.processor() or platform.machine()}
    found["threads"] = torch.get_num_threads()
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    return ({"models": words} if words else {}) | found


if __name__ == "__main__":
    run(main)
