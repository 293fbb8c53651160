"""Fixed panels of goals: what trains, calibrates, validates and tests.

=========== ================================ ================================== ==================================
panel       embedded shop (human requests)   official data (shuffled goals)     for
=========== ================================ ================================== ==================================
test        200                              0 to 499                           the numbers one reports
validation  100                              500 to 1,499                       choosing hyper-parameters
calibration 200                              1,500 to 1,699                     quantisation, thresholds
train       all others, more than 700        1,700 and on                       gradient steps, KL labels
=========== ================================ ================================== ==================================

Never train or tune on ``test``. In the embedded shop a product is the target of goals of one panel alone, and no
sentence stands in two goals; type, attributes and values of a test goal may be those of a train goal, as they are for 7
of the 200. The official ranges are WebShop's own, which counts our calibration panel to train.

``python -m dmr_gym.tasks.webshop.panels`` makes the embedded shop and compares its goals with the hashes shipped in
``panel_hashes.txt``; with ``--write FILE`` it records them.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from pathlib import Path

from dmr_gym.errors import ConfigError
from dmr_gym.tasks.webshop.generate import embedded_shop
from dmr_gym.tasks.webshop.goals import Goal, GoalBook

PANELS = ("train", "calibration", "validation", "test")
EMBEDDED_GOAL_SEED = 0
"""Seed of prices and price caps in the embedded shop: engines that play its panels take it."""

_SIZES = {"test": 200, "validation": 100, "calibration": 200}
_OFFICIAL = {"test": (0, 500), "validation": (500, 1500), "calibration": (1500, 1700), "train": (1700, None)}
_HASH_FILE = "panel_hashes.txt"
_HASH_DIGITS = 16


def embedded_goals(panel: str) -> Mapping[str, int]:
    """The goals of a panel of the embedded shop.

    Returns:
        Task id, "shop-test-0007", to the goal's number in an engine of the embedded shop with human goals and the
        seed `EMBEDDED_GOAL_SEED`, in the order of the ids.

    Raises:
        ConfigError: the panel is unknown.
    """
    if panel not in PANELS:
        raise ConfigError(f"unknown panel {panel!r}: the embedded shop has the panels {', '.join(PANELS)}")
    return _embedded_panels()[panel]


def official_goals(panel: str, n_goals: int) -> Mapping[str, int]:
    """The goals of a panel of official data.

    Args:
        panel: one of `PANELS`.
        n_goals: how many goals the data has.

    Returns:
        Task id, "webshop-1500", to the goal's number after WebShop's shuffle.

    Raises:
        ConfigError: the panel is unknown, or the data has so few goals that the panel is empty.
    """
    if panel not in PANELS:
        raise ConfigError(f"unknown panel {panel!r}: official data has the panels {', '.join(PANELS)}")
    first, end = _OFFICIAL[panel]
    numbers = range(first, n_goals if end is None else min(end, n_goals))
    if not numbers:
        raise ConfigError(
            f"panel {panel!r} begins at goal {first}, but this data has {n_goals} goals; "
            "take synthetic goals, the full data, or panel 'test'"
        )
    return {f"webshop-{number}": number for number in numbers}


def goal_hash(goal: Goal) -> str:
    """Hash of a goal and of the product it asks for.

    Returns:
        64 hexadecimal digits of SHA-256.
    """
    catalogue = embedded_shop().catalogue
    product = catalogue[catalogue.index_of(goal.asin)]
    row = [product.title, product.description, product.bullets, product.prices, product.options, product.attributes]
    content = [goal.instruction_text, goal.asin, goal.attributes, goal.options, goal.price_upper, goal.query, row]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


@cache
def known_hashes() -> Mapping[str, str]:
    """The shipped table: task id to the first 16 hexadecimal digits of the goal's `goal_hash`."""
    text = resources.files("dmr_gym.tasks.webshop").joinpath("data", _HASH_FILE).read_text(encoding="ascii")
    pairs = (line.split() for line in text.splitlines())
    return {task_id: value for task_id, value in pairs}


def compute_hashes(panel: str) -> dict[str, str]:
    """Hash the goals of a panel, in the form that `known_hashes` has."""
    goals = _embedded_book()
    return {task_id: goal_hash(goals[number])[:_HASH_DIGITS] for task_id, number in embedded_goals(panel).items()}


def main(argv: Sequence[str] | None = None) -> int:
    """Check, or record with ``--write``, the content hashes of all embedded panels; 0 when they hold."""
    parser = argparse.ArgumentParser(description="content hashes of the embedded shop's panels")
    parser.add_argument("--write", metavar="FILE", type=Path, help="record the hashes in FILE instead of checking them")
    arguments = parser.parse_args(argv)
    hashes = {task_id: value for panel in PANELS for task_id, value in compute_hashes(panel).items()}
    if arguments.write:
        lines = (f"{task_id} {value}\n" for task_id, value in hashes.items())
        arguments.write.write_text("".join(lines), encoding="ascii")
        print(f"{len(hashes)} hashes written to {arguments.write}")
        return 0
    known = known_hashes()
    changed = [task_id for task_id in {**known, **hashes} if known.get(task_id) != hashes.get(task_id)]
    print(f"{len(hashes)} goals, {len(changed)} differ from the shipped hashes {', '.join(changed[:10])}".rstrip())
    return 1 if changed else 0


@cache
def _embedded_book() -> GoalBook:
    shop = embedded_shop()
    return GoalBook.build(shop.catalogue, shop.human, "human", random.Random(EMBEDDED_GOAL_SEED))


@cache
def _embedded_panels() -> Mapping[str, Mapping[str, int]]:
    """Deal products out, in the order of a hash of their asin, until each panel is full; train takes the rest."""
    numbers: dict[str, list[int]] = {}
    sentences: set[str] = set()
    for number, goal in enumerate(_embedded_book()):
        sentence = goal.instruction_text.partition(", and price lower than")[0]
        if sentence not in sentences:
            sentences.add(sentence)
            numbers.setdefault(goal.asin, []).append(number)
    panels: dict[str, list[int]] = {panel: [] for panel in PANELS}
    for asin in sorted(numbers, key=lambda asin: hashlib.sha256(asin.encode()).digest()):
        open_panels = (p for p, size in _SIZES.items() if len(panels[p]) + len(numbers[asin]) <= size)
        panels[next(open_panels, "train")] += numbers[asin]
    return {p: {f"shop-{p}-{i:04d}": number for i, number in enumerate(sorted(panels[p]))} for p in PANELS}


if __name__ == "__main__":
    raise SystemExit(main())
