"""Tokens a second of a rollout on real vLLM servers, against what its prompts reach when they are sent raw.

The servers are those of configs/vllm-cpu.toml, the embedded ALFWorld agent in 4 and 16 bits, on free ports. 16
environments play, with the precision of each step drawn from a seed, the same in every round. Then a plain client sends
the very prompts in the same order, 16 at a time, with no environment behind it. Rollouts and raw calls take turns,
change their order from round to round, and begin with a prefix cache of their own, cold. A round ends when so many
episodes have, so that all 16 play to its end; its tokens are those of the answers that came. "in step" is a rollout in
which all environments wait for the slowest answer, as with a policy that decides for all of them at once.

A rollout's time is waiting for answers, embedding them, and all else: world, prompts, records. Servers, encoder and
client share the machine's cores, so each encoder is measured by itself: hashing takes next to nothing from the servers,
a sentence encoder on the same cores does (``--encoders minilm``).

    python bench/bench_vllm.py

Without vLLM in .venv-vllm (`make vllm`) nothing is measured.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import secrets
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import httpx

from dmr_gym.backends import make_backend
from dmr_gym.backends._openai import completion_fields, read_completion
from dmr_gym.backends.streaming import Stream, generate_each, open_stream
from dmr_gym.cache import CachedEncoder, CompletionCache
from dmr_gym.command_line import make_envs
from dmr_gym.config import EnvConfig, load_config
from dmr_gym.encoders import make_encoder
from dmr_gym.errors import ConfigError
from dmr_gym.latency_sessions import TimedEncoder
from dmr_gym.policies import Policy, RandomPolicy
from dmr_gym.rollout import Trajectory, rollout
from dmr_gym.serving import Servers, read_serve_settings
from dmr_gym.serving.servers import on_free_ports
from dmr_gym.serving.settings import check_interpreter
from dmr_gym.types import Backend, Completion, DistributionRequest, Encoder, Request, TokenDistributions

ROOT = Path(__file__).resolve().parents[1]
WAYS = ("rollout", "raw", "in step")
GOAL = 0.9
ENCODERS: dict[str, dict[str, Any]] = {
    "hash": {"kind": "hash", "dim": 384},
    "minilm": {"kind": "minilm"},
    "minilm-bfloat16": {"kind": "minilm", "dtype": "bfloat16"},
}


class Call(NamedTuple):
    """A call that was answered; seconds from sending to answer."""

    request: Request
    tokens: int
    seconds: float


@dataclass(frozen=True)
class Round:
    """What one way of sending did: its calls in the order of sending, and wall seconds, in all and by part."""

    calls: list[Call]
    seconds: float
    parts: Mapping[str, float]

    @property
    def tokens_per_s(self) -> float:
        """New tokens a second."""
        return sum(call.tokens for call in self.calls) / self.seconds

    @property
    def in_flight(self) -> float:
        """Calls under way, on average."""
        return sum(call.seconds for call in self.calls) / self.seconds


class Recorded:
    """A backend that notes its calls, and how long its caller waits for answers."""

    def __init__(self, backend: Backend) -> None:
        self.backend, self.precisions = backend, backend.precisions
        self.sent: list[tuple[Request, float]] = []
        self.answers: dict[int, tuple[Completion, float]] = {}
        self.waited_s = 0.0

    def digest(self, precision: str) -> str:
        """Content address of a copy."""
        return self.backend.digest(precision)

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        """Answer; see `dmr_gym.types.Backend`."""
        found = dict(pair for group in generate_each(self, requests) for pair in group)
        return [found[i] for i in range(len(requests))]

    def token_distributions(self, requests: Sequence[DistributionRequest]) -> list[TokenDistributions]:
        """Score completions."""
        return self.backend.token_distributions(requests)

    def stream(self) -> Stream:
        """Open a stream that notes what passes."""
        return _RecordedStream(self)

    def calls(self) -> list[Call]:
        """Those that were answered, in the order of sending."""
        pairs = [(self.sent[number], answer) for number, answer in sorted(self.answers.items())]
        return [Call(request, found.completion_tokens, end - start) for (request, start), (found, end) in pairs]


class _RecordedStream:
    def __init__(self, recorded: Recorded) -> None:
        self._recorded, self._inner = recorded, open_stream(recorded.backend)
        self._numbers: dict[int, int] = {}

    def send(self, requests: Mapping[int, Request]) -> None:
        for i, request in requests.items():
            self._numbers[i] = len(self._recorded.sent)
            self._recorded.sent.append((request, time.perf_counter()))
        self._inner.send(requests)

    def receive(self) -> list[tuple[int, Completion]]:
        start = time.perf_counter()
        group = self._inner.receive()
        end = time.perf_counter()
        self._recorded.waited_s += end - start
        self._recorded.answers |= {self._numbers.pop(i): (completion, end) for i, completion in group}
        return group

    def close(self) -> None:
        self._inner.close()


class InStep:
    """A policy that decides for all environments at once, as a router's batch does."""

    def __init__(self, policy: Policy) -> None:
        self.reset, self.act = policy.reset, policy.act


class _Enough(Exception):
    """So many episodes have ended."""


def play(config: EnvConfig, encoder: Encoder, args: argparse.Namespace, in_step: bool) -> Round:
    """Let the environments play until enough episodes have ended."""
    backend = make_backend({**config.backend, "cache_salt": secrets.token_hex(8)}, config.precisions)
    recorded, timed = Recorded(backend), TimedEncoder(CachedEncoder(encoder, CompletionCache()), time.perf_counter)
    envs = make_envs(config, args.panel, args.num_envs, backend=recorded, encoder=timed, cache_dir=None)
    policy: Policy = RandomPolicy([1 / len(config.precisions)] * len(config.precisions), len(config.precisions))
    ended = itertools.count(1)

    def count(_: Trajectory) -> None:
        if next(ended) == args.episodes:
            raise _Enough

    timed.take()
    start = time.perf_counter()
    try:
        rollout(envs, InStep(policy) if in_step else policy, envs.task_ids, on_episode=count)
        raise ConfigError(f"--episodes must be below the panel's {len(envs.task_ids)} tasks, got {args.episodes}")
    except _Enough:
        seconds = time.perf_counter() - start
    envs.close()
    backend.close()
    parts = {"waiting": recorded.waited_s, "encoder": timed.take()}
    return Round(recorded.calls(), seconds, parts | {"environment": seconds - sum(parts.values())})


def send_raw(config: EnvConfig, calls: Sequence[Call], concurrency: int) -> Round:
    """Send the prompts of calls in their order, so many at a time."""
    salt = {"cache_salt": secrets.token_hex(8)}
    names, urls = config.backend["model"], config.backend["urls"]
    bodies = [
        (urls[r.precision][0], {"model": names[r.precision], **completion_fields(r, {}), **salt}, r)
        for r in (call.request for call in calls)
    ]
    done: dict[int, Call] = {}

    async def work(client: httpx.AsyncClient, queue: Iterator[tuple[int, tuple[str, dict[str, Any], Request]]]) -> None:
        for i, (url, body, request) in queue:
            begun = time.perf_counter()
            response = await client.post(f"{url}/completions", json=body)
            seconds = time.perf_counter() - begun
            done[i] = Call(request, read_completion(response.json(), seconds, url).completion_tokens, seconds)

    async def everything() -> None:
        queue = iter(enumerate(bodies))
        async with httpx.AsyncClient(timeout=300.0, trust_env=False) as client:
            await asyncio.gather(*(work(client, queue) for _ in range(concurrency)))

    start = time.perf_counter()
    asyncio.run(everything())
    return Round([done[i] for i in range(len(bodies))], time.perf_counter() - start, {})


def measure(config: EnvConfig, args: argparse.Namespace) -> dict[str, list[Round]]:
    """The rounds of each way; what comes first changes from round to round."""
    encoder = make_encoder(config.encoder)
    encoder.encode(["warm up"])  # loads its weights
    latest = play(config, encoder, args, in_step=False)  # servers warm up, too
    rounds: dict[str, list[Round]] = {way: [] for way in WAYS}
    for number in range(args.rounds):
        for way in WAYS if number % 2 == 0 else WAYS[::-1]:
            if way == "raw":
                rounds[way].append(send_raw(config, latest.calls, args.num_envs))
            else:
                rounds[way].append(play(config, encoder, args, in_step=way == "in step"))
            if way == "rollout":
                latest = rounds[way][-1]
    return rounds


def summarize(rounds: Mapping[str, Sequence[Round]]) -> dict[str, Any]:
    """Medians over rounds, and the ratios of rounds side by side."""
    figures: dict[str, Any] = {}
    for way, played in rounds.items():
        speeds = [each.tokens_per_s for each in played]
        figures[way] = {
            "tokens_per_s": median(speeds),
            "tokens_per_s_range": [min(speeds), max(speeds)],
            "calls_in_flight": median(each.in_flight for each in played),
            "calls": median(len(each.calls) for each in played),
            "shares": {part: median(each.parts[part] / each.seconds for each in played) for part in played[0].parts},
        }
    raw = rounds["raw"]
    for way in ("rollout", "in step"):
        ratios = [ours.tokens_per_s / theirs.tokens_per_s for ours, theirs in zip(rounds[way], raw, strict=True)]
        figures[way] |= {"of_raw": median(ratios), "of_raw_range": [min(ratios), max(ratios)]}
    return figures


def show(figures: Mapping[str, Any], args: argparse.Namespace) -> None:
    """Print the table."""
    columns = ("tokens/s", "of raw", "in flight", "waiting", "encoder", "environment")
    print(f"{f'{args.num_envs} at a time, {args.rounds} rounds, medians':<38}" + "".join(f"{c:>13}" for c in columns))
    for way in WAYS:
        found = figures[way]
        ratio = f"{found['of_raw']:.1%}" if "of_raw" in found else ""
        shares = "".join(f"{found['shares'][part]:>13.1%}" if found["shares"] else f"{'':>13}" for part in columns[3:])
        print(f"{way:<38}{found['tokens_per_s']:>13.1f}{ratio:>13}{found['calls_in_flight']:>13.1f}{shares}")
    low, high = figures["rollout"]["of_raw_range"]
    reached = "reached" if figures["rollout"]["of_raw"] >= GOAL else "missed"
    print(f"rollout of raw: {figures['rollout']['of_raw']:.1%}, rounds {low:.1%} to {high:.1%}", end="")
    print(f" (goal >= {GOAL:.0%}: {reached})", flush=True)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure; returns the figures, or why there are none."""
    parser = argparse.ArgumentParser(description="tokens a second of a rollout on vLLM servers, and of its prompts")
    parser.add_argument("--config", default=str(ROOT / "configs" / "vllm-cpu.toml"), metavar="FILE")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a keyword, as in TOML")
    known = f"of {', '.join(ENCODERS)} (default: hash)"
    parser.add_argument("--encoders", nargs="+", choices=ENCODERS, default=["hash"], metavar="NAME", help=known)
    parser.add_argument("--panel", default="test", help="panel of tasks (default: %(default)s)")
    parser.add_argument("--num-envs", type=int, default=16, metavar="N", help="(default: %(default)s)")
    parser.add_argument("--episodes", type=int, default=96, metavar="N", help="a round (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="of each way (default: %(default)s)")
    args = parser.parse_args(argv)
    settings = on_free_ports(read_serve_settings(args.config))
    try:
        check_interpreter(settings.interpreter)
    except ConfigError as error:
        print(f"skipped: {error}")
        return {"skipped": str(error)}
    config = load_config(EnvConfig, args.config, [f"--{setting}" for setting in args.set])
    with tempfile.TemporaryDirectory() as folder, Servers(settings, Path(folder)) as servers:
        config = replace(config, backend={**config.backend, "urls": servers.urls})
        figures = {}
        for name in args.encoders:
            figures[name] = summarize(measure(replace(config, encoder=ENCODERS[name]), args))
            print(f"encoder {name}")
            show(figures[name], args)
    return figures


if __name__ == "__main__":
    main()
