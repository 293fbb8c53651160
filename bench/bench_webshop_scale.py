"""The search index at growing numbers of products: time and memory to build it, bytes on disk, time to search.

Products are invented while the index is built, never held together. Their texts have 5 kB on average and more than 400
different terms: 8,000 usual words that follow Zipf's law, rare ones that make the vocabulary grow about as fast as that
of the official texts, stop words, and punctuation. A query is 3 to 10 words of one product, so frequent ones are among
them; none is asked twice. Building and searching run in processes of their own, so that memory is theirs. Times are
wall-clock.

    python bench/bench_webshop_scale.py                                        # 1,000 and 10,000 products
    python bench/bench_webshop_scale.py --products 1000 10000 100000 1180000   # some minutes and 10 GB of disk
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from dmr_gym.runs import provenance, write_atomically, write_json  # noqa: E402
from dmr_gym.tasks.webshop.analyzer import STOP_WORDS, analyse  # noqa: E402
from dmr_gym.tasks.webshop.index import SearchIndex, build_index  # noqa: E402

SEED = 20
BLOCK_PRODUCTS = 256
MEAN_WORDS, SPREAD = 990, 0.6
VOCABULARY, USUAL_WORDS, FLATTENING, RARE_SHARE = 50_000_000, 8000, 4, 0.08
OWN_WORDS, OWN_SHARE, STOP_SHARE = 60, 0.15, 0.22
QUERIES, WARM_UP = 500, 20
P50_GOAL_MS, P99_GOAL_MS = 5, 30

MARKS, PLAIN_TO_MARKED = ("", ",", ".", ";"), 16
SYLLABLES = [consonant + vowel for consonant in "bcdfghjklmnpqrstvwxz" for vowel in "aeiou"]
PAIRS = [first + second for first in SYLLABLES for second in SYLLABLES]


def word(rank: int) -> str:
    """The word of a rank, four or eight letters."""
    return PAIRS[rank] if rank < len(PAIRS) else PAIRS[rank // len(PAIRS)] + PAIRS[rank % len(PAIRS)]


def draw_ranks(chance: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Ranks of words: as likely as 1 / (rank + `FLATTENING`) among the usual ones, else as rank to the power -1.6."""
    usual = FLATTENING * np.exp(np.log((USUAL_WORDS + FLATTENING) / FLATTENING) * chance.random(shape)) - FLATTENING
    rare = USUAL_WORDS * (1 - chance.random(shape)) ** (-1 / 0.6)
    ranks = np.where(chance.random(shape) < RARE_SHARE, rare, usual)
    return ranks.clip(max=VOCABULARY - 1).astype(np.int64)


@functools.cache
def usual_words() -> np.ndarray:
    """Each usual word with each mark behind it, then the stop words; (n,) object."""
    marked = [word(rank) + mark for rank in range(USUAL_WORDS) for mark in MARKS]
    return np.array([*marked, *sorted(STOP_WORDS)], dtype=object)


def block_of_texts(number: int) -> list[str]:
    """Texts of `BLOCK_PRODUCTS` products, the same for the same block number."""
    chance = np.random.default_rng([SEED, number])
    counts = (chance.lognormal(-(SPREAD**2) / 2, SPREAD, BLOCK_PRODUCTS) * MEAN_WORDS).astype(np.int64).clip(10, 6000)
    total = int(counts.sum())
    ranks = draw_ranks(chance, (total,))
    own = draw_ranks(chance, (BLOCK_PRODUCTS, OWN_WORDS))
    is_own = chance.random(total) < OWN_SHARE
    products = np.repeat(np.arange(BLOCK_PRODUCTS), counts)[is_own]
    ranks[is_own] = own[products, chance.integers(0, OWN_WORDS, len(products))]
    marks = (chance.integers(0, PLAIN_TO_MARKED + len(MARKS), total) - PLAIN_TO_MARKED).clip(min=0)
    is_rare = ranks >= USUAL_WORDS
    places = np.where(is_rare, 0, ranks * len(MARKS) + marks)
    is_stop_word = ~is_rare & (chance.random(total) < STOP_SHARE)
    places[is_stop_word] = chance.integers(len(usual_words()) - len(STOP_WORDS), len(usual_words()), is_stop_word.sum())
    words = usual_words()[places]
    words[is_rare] = [word(rank) for rank in ranks[is_rare].tolist()]
    parts = np.split(words, np.cumsum(counts)[:-1])
    return [" ".join(part.tolist()) for part in parts]


def queries(n_products: int) -> Iterator[str]:
    """Different queries: words of a product in its blocks, drawn as often as they stand there, stop words left out."""
    chance = np.random.default_rng([SEED, n_products, 1])
    asked: set[str] = set()
    while True:
        for text in block_of_texts(int(chance.integers(0, max(1, n_products // BLOCK_PRODUCTS)))):
            words = [chunk for chunk in text.split() if analyse(chunk)]
            query = " ".join(chance.choice(words, int(chance.integers(3, 11))).tolist())
            if query not in asked:
                asked.add(query)
                yield query


class Products:
    """Texts of some products, one after the other; counts what they cost.

    Args:
        count: number of products.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self.generate_s = 0.0
        self.n_bytes = 0

    def texts(self) -> Iterator[str]:
        """The texts."""
        for first in range(0, self.count, BLOCK_PRODUCTS):
            start = time.perf_counter()
            block = block_of_texts(first // BLOCK_PRODUCTS)[: self.count - first]
            self.generate_s += time.perf_counter() - start
            self.n_bytes += sum(map(len, block))
            yield from block


def measure_build(n_products: int, folder: Path, workers: int) -> dict[str, float]:
    """Build an index in this process; time without that of inventing the products."""
    products = Products(n_products)
    asins = np.char.add("B", np.char.zfill(np.random.default_rng(SEED).permutation(n_products).astype(str), 9))
    start = time.perf_counter()
    build_index(products.texts(), asins, folder, workers=workers)
    seconds = time.perf_counter() - start
    postings = int(np.load(folder / "dfs.npy").sum(dtype=np.int64))
    return {
        "text_bytes_a_product": products.n_bytes / n_products,
        "terms_a_product": postings / n_products,
        "generate_s": products.generate_s,
        "build_s": seconds - products.generate_s,
        "build_peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
        "disk_mb": sum(path.stat().st_size for path in folder.iterdir()) / 1e6,
    }


def memory_mb() -> dict[str, float]:
    """Resident memory of this process: its own, and pages of mapped files, which it shares; Linux alone tells."""
    status = Path("/proc/self/status")
    rows = dict(line.split(":", 1) for line in status.read_text().splitlines()) if status.exists() else {}
    names = {"search_own_mb": "RssAnon", "search_mapped_mb": "RssFile"}
    return {name: int(rows[key].split()[0]) / 1e3 for name, key in names.items() if key in rows}


def measure_search(n_products: int, folder: Path) -> dict[str, float]:
    """Open an index in this process and ask queries, each once."""
    start = time.perf_counter()
    index = SearchIndex.open(folder)
    open_s = time.perf_counter() - start
    stream = queries(n_products)
    for _ in range(WARM_UP):
        index.search(next(stream))
    asked = [next(stream) for _ in range(QUERIES)]
    times_ms = []
    for query in asked:
        start = time.perf_counter()
        index.search(query)
        times_ms.append(1e3 * (time.perf_counter() - start))
    p50, p99 = np.percentile(times_ms, [50, 99]).tolist()
    return {"open_ms": 1e3 * open_s, "p50_ms": p50, "p99_ms": p99, "max_ms": max(times_ms), **memory_mb()}


def run_stage(stage: str, n_products: int, folder: Path, workers: int) -> dict[str, float]:
    """One stage in a process of its own."""
    command = [sys.executable, __file__, "--stage", stage, "--folder", str(folder)]
    command += ["--products", str(n_products), "--workers", str(workers)]
    figures: dict[str, float] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return figures


def show(figures: dict[str, float]) -> None:
    """Print one row."""
    print(
        f"{figures['products']:>9,} {figures['text_bytes_a_product']:>8,.0f} {figures['terms_a_product']:>7.0f}"
        f" {figures['generate_s']:>9.1f} {figures['build_s']:>8.1f} {figures['build_peak_mb']:>8,.0f}"
        f" {figures['disk_mb']:>9,.1f} {figures['p50_ms']:>8.3f} {figures['p99_ms']:>8.3f}"
        f" {figures.get('search_own_mb', float('nan')):>8,.0f} {figures.get('search_mapped_mb', float('nan')):>8,.0f}",
        flush=True,
    )


def draw(rows: Sequence[dict[str, float]], path: Path) -> None:
    """Draw search time, build time, and size against the number of products."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.8), layout="constrained")
    panels = figure.subplots(1, 3)
    products = [row["products"] for row in rows]
    lines = [
        [("p50_ms", "p50", "#1f4e9c"), ("p99_ms", "p99", "#d9822b")],
        [("build_s", "build (s)", "#2e8b57")],
        [("disk_mb", "on disk", "#1f4e9c"), ("build_peak_mb", "memory, building", "#d9822b")],
    ]
    titles = ("milliseconds a search", "seconds to build the index", "megabytes")
    for axes, columns, title in zip(panels, lines, titles, strict=True):
        for column, label, color in columns:
            axes.loglog(products, [row[column] for row in rows], marker="o", color=color, label=label)
        axes.set_title(title)
        axes.set_xlabel("products")
        axes.grid(color="0.93", which="both")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    for goal, color in ((P50_GOAL_MS, "#1f4e9c"), (P99_GOAL_MS, "#d9822b")):
        panels[0].axhline(goal, color=color, linestyle=":", linewidth=1)
    panels[0].legend(title="dotted: wanted", frameon=False)
    panels[2].legend(frameon=False)
    write_atomically(path, lambda part: figure.savefig(part, dpi=150))


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print the table, and return the figures: one dict of seconds, milliseconds and megabytes a size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--products", type=int, nargs="+", default=[1000, 10_000], help="(default: %(default)s)")
    parser.add_argument("--workers", type=int, default=0, help="processes that analyse texts (default: %(default)s)")
    parser.add_argument("--folder", type=Path, help="where indexes are built (default: a temporary folder in --out)")
    parser.add_argument("--out", type=Path, default=Path("runs/webshop_scale"), help="(default: %(default)s)")
    parser.add_argument("--stage", choices=["build", "search"], help="measure one stage here and print JSON")
    args = parser.parse_args(argv)
    if args.stage:
        size = args.products[0]
        figures = (
            measure_build(size, args.folder, args.workers)
            if args.stage == "build"
            else measure_search(size, args.folder)
        )
        print(json.dumps(figures))
        return figures
    args.out.mkdir(parents=True, exist_ok=True)
    print(
        f"{'products':>9} {'B each':>8} {'terms':>7} {'invent s':>9} {'build s':>8} {'peak MB':>8} {'disk MB':>9}"
        f" {'p50 ms':>8} {'p99 ms':>8} {'own MB':>8} {'map MB':>8}"
    )
    rows = []
    for size in args.products:
        with tempfile.TemporaryDirectory(dir=args.folder or args.out) as folder:
            row: dict[str, float] = {"products": size, **run_stage("build", size, Path(folder), args.workers)}
            row |= run_stage("search", size, Path(folder), args.workers)
        rows.append(row)
        show(row)
        write_json(args.out / "webshop_scale.json", {"sizes": rows, "workers": args.workers, **provenance()})
        if importlib.util.find_spec("matplotlib"):
            draw(rows, args.out / "webshop_scale.png")
    print(f"wanted: p50 {P50_GOAL_MS} ms, p99 {P99_GOAL_MS} ms; figures and picture in {args.out}")
    return {"sizes": rows}


if __name__ == "__main__":
    main()
