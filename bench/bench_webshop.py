"""Speed, start and memory of the WebShop engine, beside what was recorded of the original.

Speed is steps a second over recorded episodes of the original, actions in their recorded order, with what can be
clicked asked for after each step, as an agent would; a reset counts as a step. The first figure is of a fresh process
that has made one purchase: searches are computed and pages made when they first occur. "again" finds most of both in
the engine's caches. The start is measured in fresh processes from the first import to the first purchase: "cold" reads
the data files and builds the index, "warm" maps the index from disk. Speed counts seconds of processor time, starts are
wall-clock, megabytes the most that was resident at a time.

    python bench/bench_webshop.py
    python bench/bench_webshop.py --data DIR --episodes FILE

Without official data a generated shop is played, with actions drawn at random.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("DMR_GYM_SHARED") or ROOT.parent / "shared")
sys.path.insert(0, str(ROOT))

ORIGINAL = {"steps_per_second": "28 - 38", "start_warm_s": "15 - 19", "megabytes": "about 1000"}
WANTED = {"steps_per_second": 8000, "start_warm_s": 2, "megabytes": 150}
RANDOM_EPISODES, RANDOM_STEPS, SHOP_SEED, SHOP_PRODUCTS = 200, 8, 700_000, 1000
LEAST_SECONDS = 1.0
STARTS = 3

Episode = tuple[int, list[str]]


def read_episodes(path: Path) -> list[Episode]:
    """Session and actions of every recorded episode."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        records = [json.loads(line) for line in file]
    return [(record["session"], [step["action"] for step in record["steps"][1:]]) for record in records]


def write_episodes(episodes: Sequence[Episode], path: Path) -> None:
    """Write what `read_episodes` reads."""
    with gzip.open(path, "wt", encoding="utf-8") as file:
        for session, actions in episodes:
            steps = [{"action": action} for action in (None, *actions)]
            file.write(json.dumps({"session": session, "steps": steps}) + "\n")


def draw_episodes(engine: Any) -> list[Episode]:
    """Episodes at random: a search for words of the instruction, then clicks on what the pages offer."""
    chance = random.Random(0)
    episodes = []
    for _ in range(RANDOM_EPISODES):
        session = chance.randrange(len(engine.goals))
        engine.reset(session)
        actions: list[str] = []
        while len(actions) < RANDOM_STEPS and not engine.done:
            clickables = engine.available["clickables"]
            is_search = not actions or engine.page.kind == "start" or chance.random() < 0.1
            words = chance.sample(engine.instruction.split(), 4)
            actions.append(f"search[{' '.join(words)}]" if is_search else f"click[{chance.choice(clickables)}]")
            engine.step(actions[-1])
        episodes.append((session, actions))
    return episodes


def play(engine: Any, episodes: Sequence[Episode]) -> int:
    """Play every episode; the number of steps, resets included."""
    steps = 0
    for session, actions in episodes:
        engine.reset(session)
        assert engine.available
        for action in actions:
            engine.step(action)
            assert engine.available
            assert engine.reward >= 0
        steps += 1 + len(actions)
    return steps


def seconds_a_step(engine: Any, episodes: Sequence[Episode], least_s: float) -> float:
    """Processor seconds a step: plays all episodes once, and again until ``least_s`` have passed."""
    steps, start = 0, time.process_time()
    while not steps or time.process_time() - start < least_s:
        steps += play(engine, episodes)
    return (time.process_time() - start) / steps


def measure_snapshots(engine: Any) -> float:
    """Processor seconds of a snapshot and going back to it."""
    count, start = 20_000, time.process_time()
    for _ in range(count):
        engine.restore(engine.snapshot())
    return (time.process_time() - start) / count


def peak_mb() -> float:
    """The most memory of this process that was resident at a time.

    On Linux ``ru_maxrss`` of a child begins with what its parent had, so the kernel's own mark is read there.
    """
    status = Path("/proc/self/status")
    for line in status.read_text().splitlines() if status.exists() else ():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1e3
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1e6 if sys.platform == "darwin" else 1e3)


def measure_here(data: Path, episodes_path: Path) -> dict[str, float]:
    """Figures of this process, which must be a fresh one."""
    start = time.perf_counter()
    from dmr_gym.tasks.webshop.engine import WebShopEngine

    engine = WebShopEngine(data)
    engine.reset(0)
    engine.step("search[red shirt]")
    engine.step(f"click[{engine.available['clickables'][-1]}]")
    engine.step("click[buy now]")
    assert engine.done
    figures = {"start_s": time.perf_counter() - start}
    episodes = read_episodes(episodes_path)
    figures["first_s"] = seconds_a_step(engine, episodes, 0)
    figures["again_s"] = seconds_a_step(engine, episodes, LEAST_SECONDS)
    figures["snapshot_s"] = measure_snapshots(engine)
    figures["megabytes"] = peak_mb()
    figures["steps"] = sum(1 + len(actions) for _, actions in episodes)
    return figures


def measure_in_fresh_process(data: Path, episodes: Path) -> dict[str, float]:
    """`measure_here` in a process of its own."""
    command = [sys.executable, __file__, "--here", "--data", str(data), "--episodes", str(episodes)]
    run = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    figures: dict[str, float] = json.loads(run.stdout.splitlines()[-1])
    return figures


def measure(data: Path | None, episodes: Path | None) -> dict[str, float]:
    """Copy or generate the data, start cold once and warm `STARTS` times; the medians of the warm ones."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "data"
        if data is None:
            from dmr_gym.tasks.webshop.generate import generate_shop, write_shop

            write_shop(generate_shop(SHOP_SEED, SHOP_PRODUCTS), folder)
        else:
            folder.mkdir()
            for path in data.glob("*.json"):
                shutil.copyfile(path, folder / path.name)
        if episodes is None:
            from dmr_gym.tasks.webshop.engine import WebShopEngine

            episodes = Path(name) / "episodes.jsonl.gz"
            write_episodes(draw_episodes(WebShopEngine(folder, index_dir=Path(name) / "index")), episodes)
        cold = measure_in_fresh_process(folder, episodes)
        warm = [measure_in_fresh_process(folder, episodes) for _ in range(STARTS)]
    middle = {key: sorted(figures[key] for figures in warm)[STARTS // 2] for key in warm[0]}
    return {
        "steps_per_second": 1 / middle["first_s"],
        "steps_per_second_again": 1 / middle["again_s"],
        "start_cold_s": cold["start_s"],
        "start_warm_s": middle["start_s"],
        "megabytes": middle["megabytes"],
        "megabytes_cold": cold["megabytes"],
        "snapshot_and_restore_us": middle["snapshot_s"] * 1e6,
        "steps": middle["steps"],
    }


def show(figures: dict[str, float]) -> None:
    """Print the figures, those recorded of the original, and what is wanted."""
    print(f"{'':26}{'native':>12}{'original':>14}{'wanted':>10}")
    for key, value in figures.items():
        digits = 0 if value >= 100 else 2
        name = key.replace("_", " ")
        print(f"{name:26}{value:12,.{digits}f}{ORIGINAL.get(key, '-'):>14}{WANTED.get(key, '-'):>10}")


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Measure, print the table, and return the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=SHARED / "data" / "webshop", help="folder of official files")
    parser.add_argument(
        "--episodes",
        type=Path,
        default=SHARED / "conformance" / "webshop_episodes.jsonl.gz",
        help="recorded episodes, one JSON object a line",
    )
    parser.add_argument("--here", action="store_true", help="measure this process alone and print JSON")
    args = parser.parse_args(argv)
    episodes = args.episodes if args.episodes.is_file() else None
    if args.here:
        with contextlib.redirect_stdout(sys.stderr):
            figures = measure_here(args.data, args.episodes)
        print(json.dumps(figures))
        return figures
    data = args.data if args.data.is_dir() else None
    episodes = episodes if data else None
    figures = measure(data, episodes)
    kind = "actions drawn at random" if episodes is None else "recorded episodes"
    print(f"{'a generated shop' if data is None else data}, {kind}")
    show(figures)
    return figures


if __name__ == "__main__":
    main()
