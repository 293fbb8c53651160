"""Speed and memory of the ALFWorld engine, beside TextWorld's on the same houses and commands.

"step" is a command and the goal check after it; "+ admissible" also lists the admissible commands, which TextWorld
cannot leave out. Times are seconds of processor time, so that a busy machine changes them little. TextWorld runs in a
process of its own: with this Python where the package alfworld is installed, else with ``--textworld-python``.

    python bench/bench_alfworld.py --houses 60
    python bench/bench_alfworld.py --textworld-python .venv-textworld/bin/python
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import random
import resource
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from dmr_gym.tasks.alfworld.engine import AlfworldEngine  # noqa: E402
from dmr_gym.tasks.alfworld.generate import generate_game  # noqa: E402
from dmr_gym.tasks.alfworld.panels import house_id  # noqa: E402
from dmr_gym.tasks.alfworld.task import AlfworldTask  # noqa: E402

FIRST_SEED = 600_000
COMMANDS_A_HOUSE = 50
LEAST_SECONDS = 1.0
TEXTWORLD_HOUSES = 4
TEXTWORLD_COMMANDS = 15
WANTED_RATIO = 3000

Engine = Any


def draw_commands(game: dict[str, Any], count: int) -> list[str]:
    """Admissible commands drawn at random, the same for the same house."""
    engine, chance = AlfworldEngine.from_json(game), random.Random(game["id"])
    engine.reset()
    commands = []
    for _ in range(count):
        commands.append(chance.choice(engine.admissible))
        engine.step(commands[-1])
    return commands


def seconds_each(action: Callable[[], int], least_s: float = LEAST_SECONDS) -> float:
    """Processor seconds a unit: repeats ``action``, which returns how many units it did, for some time."""
    units, start = 0, time.process_time()
    while not units or time.process_time() - start < least_s:
        units += action()
    return (time.process_time() - start) / units


def play(engines: Iterable[Engine], scripts: Iterable[Sequence[str]], with_admissible: bool) -> int:
    """Carry out every script with the goal check after each command; the number of steps."""
    steps = 0
    for engine, script in zip(engines, scripts, strict=True):
        engine.reset()
        for command in script:
            engine.step(command)
            assert not with_admissible or engine.admissible
            assert engine.won in (True, False)
        steps += len(script)
    return steps


def play_task(task: AlfworldTask, task_ids: Sequence[str], scripts: Sequence[Sequence[str]]) -> int:
    """Carry out every script through the task, its prompt included; the number of steps."""
    for task_id, script in zip(task_ids, scripts, strict=True):
        task.reset(task_id)
        for command in script:
            assert task.prompt()
            task.step(command)
    return sum(map(len, scripts))


def measure_native(n_houses: int) -> dict[str, float]:
    """Figures of the native engine."""
    games = [generate_game(FIRST_SEED + index) for index in range(n_houses)]
    scripts = [draw_commands(game, COMMANDS_A_HOUSE) for game in games]
    tracemalloc.start()
    engines = [AlfworldEngine.from_json(game) for game in games]
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    task = AlfworldTask(n_games=n_houses, cache_size=n_houses)
    task_scripts = [
        draw_commands(generate_game(int(i.removeprefix("house-"))), COMMANDS_A_HOUSE) for i in task.task_ids
    ]
    generate = iter(range(FIRST_SEED + n_houses, 10**9))
    return {
        "generate_s": seconds_each(lambda: len([generate_game(next(generate))])),
        "load_s": seconds_each(lambda: len([AlfworldEngine.from_json(game) for game in games])),
        "reset_s": seconds_each(lambda: len([engine.reset() for engine in engines])),
        "step_s": seconds_each(lambda: play(engines, scripts, with_admissible=False)),
        "step_and_admissible_s": seconds_each(lambda: play(engines, scripts, with_admissible=True)),
        "task_step_s": seconds_each(lambda: play_task(task, task.task_ids, task_scripts)),
        "megabytes_a_game": held / n_houses / 1e6,
        "process_megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
    }


def measure_textworld() -> dict[str, float]:
    """Figures of TextWorld; load, reset and step each on every house."""
    from dmr_gym.tasks.alfworld.textworld import TextworldEngine

    games = [generate_game(FIRST_SEED + index) for index in range(TEXTWORLD_HOUSES)]
    TextworldEngine(games[0]).reset()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    engines: list[TextworldEngine] = []
    load_s = seconds_each(lambda: len([engines.append(TextworldEngine(game)) for game in games]), 0)
    reset_s = seconds_each(lambda: len([engine.reset() for engine in engines]), 0)
    scripts = [draw_commands(game, TEXTWORLD_COMMANDS) for game in games]
    for engine in engines:
        engine.reset()
    start = time.process_time()
    steps = 0
    for engine, script in zip(engines, scripts, strict=True):
        for command in script:
            engine.step(command)
            steps += 1
            assert engine.won in (True, False)
    step_s = (time.process_time() - start) / steps
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "load_s": load_s,
        "reset_s": reset_s,
        "step_s": step_s,
        "step_and_admissible_s": step_s,
        "megabytes_a_game": (peak - before) / 1e3 / (TEXTWORLD_HOUSES - 1),
        "process_megabytes": peak / 1e3,
    }


def run_textworld(python: Path | None) -> dict[str, float] | None:
    """TextWorld's figures from a fresh process; None where there is no Python with the package alfworld."""
    if python is None or not python.exists():
        return None
    command = [str(python), __file__, "--textworld-here"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if run.returncode:
        print(f"TextWorld could not be measured with {python}: {run.stderr.strip().splitlines()[-1:]}")
        return None
    figures: dict[str, float] = json.loads(run.stdout.splitlines()[-1])
    return figures


def show(native: dict[str, float], reference: dict[str, float] | None) -> None:
    """Print both columns; times in milliseconds."""
    print(f"{'':24}{'native':>14}{'TextWorld':>14}{'ratio':>10}")
    for key, value in native.items():
        other = (reference or {}).get(key)
        scale, unit = (1e3, "ms") if key.endswith("_s") else (1, "MB")
        columns = f"{other * scale:11.1f} {unit}{other / value:10,.0f}" if other else f"{'-':>14}{'-':>10}"
        print(f"{key.removesuffix('_s').replace('_', ' '):24}{value * scale:11.4f} {unit}{columns}")
    print(f"steps a second: {1 / native['step_s']:,.0f}", end="")
    if reference is None:
        print("; TextWorld is not installed (pip install alfworld==0.4.2)")
        return
    ratio = reference["step_s"] / native["step_s"]
    print(f", TextWorld's {1 / reference['step_s']:.1f}: {ratio:,.0f} times (wanted: {WANTED_RATIO:,})")


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print the table, and return the figures: seconds and megabytes by engine."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--houses", type=int, default=30, help="houses of the native engine (default: %(default)s)")
    parser.add_argument(
        "--textworld-python", type=Path, help="a Python that has alfworld (default: this one if it has)"
    )
    parser.add_argument("--textworld-here", action="store_true", help="measure TextWorld alone and print JSON")
    args = parser.parse_args(argv)
    if args.textworld_here:
        with contextlib.redirect_stdout(sys.stderr):
            figures = measure_textworld()
        print(json.dumps(figures))
        return figures
    has_alfworld = importlib.util.find_spec("alfworld") is not None
    default = Path(sys.executable) if has_alfworld else ROOT / ".venv-textworld" / "bin" / "python"
    native, reference = measure_native(args.houses), run_textworld(args.textworld_python or default)
    show(native, reference)
    return {"native": native, "textworld": reference, "first_house": house_id(FIRST_SEED)}


if __name__ == "__main__":
    main()
