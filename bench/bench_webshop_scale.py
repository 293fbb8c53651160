"""Search index and engine at growing numbers of products: time and memory of building and starting, disk, searches.

Products are invented while the index is built, never held together. Their texts have 5 kB on average and more than 400
different terms: 8,000 usual words that follow Zipf's law, rare ones that make the vocabulary grow about as fast as that
of the official texts, stop words, and punctuation. A query is 3 to 10 words of one product, so frequent ones are among
them; none is asked twice.

The same products, in the format of WebShop's files, are then opened by the engine. "all s" and "all MB" are its first
start, which reads the files and builds catalogue, goals, nouns and index; "start s" is a later one up to the first
purchase, after which "own" and "map" megabytes are resident. Each stage runs in a process of its own, so that its
memory is its own. Times are wall-clock.

    python bench/bench_webshop_scale.py                                        # 1,000 and 10,000 products
    python bench/bench_webshop_scale.py --products 1000 10000 100000 1180000   # half an hour, 18 GB of disk
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import json
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

from bench.bench_webshop import peak_mb  # noqa: E402
from dmr_gym.runs import provenance, write_atomically, write_json  # noqa: E402
from dmr_gym.tasks.webshop.analyzer import STOP_WORDS, analyse  # noqa: E402
from dmr_gym.tasks.webshop.engine import WebShopEngine  # noqa: E402
from dmr_gym.tasks.webshop.index import SearchIndex, build_index  # noqa: E402
from dmr_gym.tasks.webshop.shop import INDEX_FOLDER, open_shop  # noqa: E402

SEED = 20
BLOCK_PRODUCTS = 256
MEAN_WORDS, SPREAD = 990, 0.6
VOCABULARY, USUAL_WORDS, FLATTENING, RARE_SHARE = 50_000_000, 8000, 4, 0.08
OWN_WORDS, OWN_SHARE, STOP_SHARE = 60, 0.15, 0.22
QUERIES, WARM_UP = 500, 20
P50_GOAL_MS, P99_GOAL_MS = 5, 30
TITLE_WORDS, COLORS, SIZES = 12, 3, 2
STAGES = ("build", "search", "files", "open", "start")
COLUMNS = (
    *(("products", "products", 9, 0), ("B each", "text_bytes_a_product", 7, 0), ("terms", "terms_a_product", 6, 0)),
    *(("build s", "build_s", 8, 1), ("peak MB", "build_peak_mb", 8, 0), ("disk MB", "disk_mb", 9, 1)),
    *(("p50 ms", "p50_ms", 8, 3), ("p99 ms", "p99_ms", 8, 3), ("own MB", "search_own_mb", 7, 0)),
    *(("map MB", "search_mapped_mb", 7, 0), ("all s", "open_s", 8, 1), ("all MB", "open_peak_mb", 7, 0)),
    *(("start s", "start_s", 8, 2), ("own MB", "engine_own_mb", 7, 0), ("map MB", "engine_mapped_mb", 7, 0)),
)

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


def draw_asins(n_products: int) -> np.ndarray:
    """Asins in no order; (n_products,) text."""
    return np.char.add("B", np.char.zfill(np.random.default_rng(SEED).permutation(n_products).astype(str), 9))


def official_row(asin: str, text: str) -> dict[str, Any]:
    """A product with this text in the format of ``items_shuffle.json``."""
    words = text.split()
    middle = (TITLE_WORDS + len(words)) // 2
    values = [{"value": value} for value in words[: COLORS + SIZES]]
    return {
        "asin": asin,
        "name": " ".join(words[:TITLE_WORDS]),
        "full_description": " ".join(words[TITLE_WORDS:middle]),
        "small_description": [" ".join(words[middle:])],
        "pricing": f"${5 + len(words) / 100}",
        "customization_options": {"color": values[:COLORS], "size": values[COLORS:]},
        "images": [f"https://example.org/{asin}.jpg"],
        "product_category": f"{words[0]} \u203a {words[1]}",
        "category": ("beauty", "electronics", "fashion", "garden", "grocery")[len(words) % 5],
        "query": " ".join(words[1:3]),
    }


def write_files(n_products: int, folder: Path) -> dict[str, float]:
    """Write the products as official files, one at a time."""
    start = time.perf_counter()
    names = ("items_shuffle", "items_ins_v2", "title_nouns")
    items, entries, nouns = files = [(folder / f"{name}.json").open("w", encoding="utf-8") for name in names]
    for file, opening in zip(files, "[{{", strict=True):
        file.write(opening)
    asins = draw_asins(n_products).tolist()
    for place, (asin, text) in enumerate(zip(asins, Products(n_products).texts(), strict=True)):
        row, comma = official_row(asin, text), ",\n" if place else ""
        wanted = text.split()[-2:]
        entry = {"attributes": wanted, "instruction": f"Find me {row['query']}", "instruction_attributes": wanted}
        items.write(comma + json.dumps(row))
        entries.write(f'{comma}"{asin}": {json.dumps(entry)}')
        nouns.write(f'{comma}"{asin}": {json.dumps(row["name"].split())}')
    for file, closing in zip(files, "]}}", strict=True):
        file.write(closing)
        file.close()
    return {"files_s": time.perf_counter() - start, "files_mb": sum(map(file_mb, folder.glob("*.json")))}


def file_mb(path: Path) -> float:
    """Size of a file."""
    return path.stat().st_size / 1e6


def measure_open(folder: Path, workers: int) -> dict[str, float]:
    """Make an engine in this process on files that have no index."""
    start = time.perf_counter()
    engine = WebShopEngine(open_shop(folder, build_workers=workers))
    seconds = time.perf_counter() - start
    disk_mb = sum(file_mb(path) for path in (folder / INDEX_FOLDER).rglob("*") if path.is_file())
    return {"open_s": seconds, "open_peak_mb": peak_mb(), "open_disk_mb": disk_mb, "goals": len(engine.goals)}


def measure_start(folder: Path) -> dict[str, float]:
    """Make an engine in this process on files with an index, and buy something."""
    start = time.perf_counter()
    engine = WebShopEngine(folder)
    made_s = time.perf_counter() - start
    engine.reset(0)
    engine.step(f"search[{engine.instruction}]")
    for _ in range(2):
        engine.step(f"click[{engine.available['clickables'][-1]}]")
    engine.step("click[buy now]")
    assert engine.done
    return {"start_s": time.perf_counter() - start, "engine_made_s": made_s, **memory_mb("engine")}


def measure_build(n_products: int, folder: Path, workers: int) -> dict[str, float]:
    """Build an index in this process; time without that of inventing the products."""
    products = Products(n_products)
    asins = draw_asins(n_products)
    start = time.perf_counter()
    build_index(products.texts(), asins, folder, workers=workers)
    seconds = time.perf_counter() - start
    postings = int(np.load(folder / "dfs.npy").sum(dtype=np.int64))
    return {
        "text_bytes_a_product": products.n_bytes / n_products,
        "terms_a_product": postings / n_products,
        "generate_s": products.generate_s,
        "build_s": seconds - products.generate_s,
        "build_peak_mb": peak_mb(),
        "disk_mb": sum(map(file_mb, folder.iterdir())),
    }


def memory_mb(name: str) -> dict[str, float]:
    """Resident memory of this process: its own, and pages of mapped files, which it shares; Linux alone tells."""
    status = Path("/proc/self/status")
    rows = dict(line.split(":", 1) for line in status.read_text().splitlines()) if status.exists() else {}
    keys = {f"{name}_own_mb": "RssAnon", f"{name}_mapped_mb": "RssFile"}
    return {figure: int(rows[key].split()[0]) / 1e3 for figure, key in keys.items() if key in rows}


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
    return {"open_ms": 1e3 * open_s, "p50_ms": p50, "p99_ms": p99, "max_ms": max(times_ms), **memory_mb("search")}


def run_stage(stage: str, n_products: int, folder: Path, workers: int) -> dict[str, float]:
    """One stage in a process of its own."""
    command = [sys.executable, __file__, "--stage", stage, "--folder", str(folder)]
    command += ["--products", str(n_products), "--workers", str(workers)]
    figures: dict[str, float] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return figures


def run_here(stage: str, n_products: int, folder: Path, workers: int) -> dict[str, float]:
    """One stage in this process."""
    if stage == "build":
        return measure_build(n_products, folder, workers)
    if stage == "search":
        return measure_search(n_products, folder)
    if stage == "files":
        return write_files(n_products, folder)
    return measure_open(folder, workers) if stage == "open" else measure_start(folder)


def show(figures: dict[str, float]) -> None:
    """Print one row."""
    cells = [f"{figures.get(key, float('nan')):{width},.{digits}f}" for _, key, width, digits in COLUMNS]
    print(" ".join(cells), flush=True)


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
    parser.add_argument("--stage", choices=STAGES, help="measure one stage here and print JSON")
    args = parser.parse_args(argv)
    if args.stage:
        figures = run_here(args.stage, args.products[0], args.folder, args.workers)
        print(json.dumps(figures))
        return figures
    args.out.mkdir(parents=True, exist_ok=True)
    print(" ".join(f"{title:>{width}}" for title, _, width, _ in COLUMNS))
    rows = []
    for size in args.products:
        row: dict[str, float] = {"products": size}
        for stages in (STAGES[:2], STAGES[2:]):
            with tempfile.TemporaryDirectory(dir=args.folder or args.out) as folder:
                for stage in stages:
                    row |= run_stage(stage, size, Path(folder), args.workers)
        rows.append(row)
        show(row)
        write_json(args.out / "webshop_scale.json", {"sizes": rows, "workers": args.workers, **provenance()})
        if importlib.util.find_spec("matplotlib"):
            draw(rows, args.out / "webshop_scale.png")
    print(f"wanted: p50 {P50_GOAL_MS} ms, p99 {P99_GOAL_MS} ms; figures and picture in {args.out}")
    return {"sizes": rows}


if __name__ == "__main__":
    main()
