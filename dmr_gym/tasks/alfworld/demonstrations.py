"""Transcripts to imitate: the exploring expert in generated houses, with mistakes that it recovers from."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from dmr_gym.prompts.transcript import initial
from dmr_gym.tasks.alfworld.engine import AlfworldEngine
from dmr_gym.tasks.alfworld.expert import ExploringExpert
from dmr_gym.tasks.alfworld.generate import generate_game
from dmr_gym.tasks.alfworld.task import AlfworldTask

FIRST_SEED = 1_000_000_000
"""Demonstrations use houses from this seed on; the seeds of every task panel lie below."""

REPEAT = 0.3
"""Chance that a mistake is made again at once."""


class Piece(NamedTuple):
    """A stretch of a transcript and who wrote it: "world", "expert", or "mistake" (a command not to be imitated)."""

    text: str
    author: str


def demonstration(seed: int, noisy_episodes: float = 0.0, noise: float = 0.0, max_steps: int = 50) -> Iterator[Piece]:
    """Yield one episode, piece by piece, in a house that only this seed makes.

    Args:
        seed: number of the demonstration; house `FIRST_SEED` + seed.
        noisy_episodes: share of episodes in which mistakes occur at all.
        noise: chance of a mistake at each step of such an episode.
        max_steps: the episode is cut there.
    """
    rng = random.Random(f"transcript {seed}")
    engine = AlfworldEngine.from_json(generate_game(FIRST_SEED + seed))
    intro = engine.reset()
    expert = ExploringExpert(intro)
    noise = noise if rng.random() < noisy_episodes else 0.0
    previous, author = "", "expert"
    yield Piece(initial(intro), "world")
    for _ in range(max_steps):
        command = expert.act()
        if author == "mistake" and rng.random() < REPEAT:
            command = previous
        elif rng.random() < noise:
            command, author = _mistake(command, previous, expert.target, engine.admissible, rng), "mistake"
        else:
            author = "expert"
        previous = command
        observation = engine.step(command)
        expert.observe(command, observation)
        yield Piece(f" {command}\n", author)
        yield Piece(f"{observation}\n>", "world")
        if engine.won:
            return


def panel_transcripts(panel: str, n_games: int, max_steps: int = 50) -> list[str]:
    """Whole episodes of the exploring expert in a panel's embedded houses, as an agent's last prompt would have them.

    Args:
        panel: of embedded houses.
        n_games: the first so many of them.
        max_steps: an episode is cut there.

    Raises:
        ConfigError: the panel is unknown, or has not so many houses.
    """
    task = AlfworldTask(panel=panel, n_games=n_games)
    texts = []
    for task_id in task.task_ids:
        expert = ExploringExpert(task.reset(task_id).observation)
        for _ in range(max_steps):
            command = expert.act()
            step = task.step(f" {command}")
            expert.observe(command, step.observation)
            if step.done:
                break
        texts.append(str(task.prompt()).removesuffix("\n>"))
    return texts


def _mistake(command: str, previous: str, wanted: str, admissible: Sequence[str], rng: random.Random) -> str:
    """A wrong command as a weak agent would make it.

    It takes what it wants from where it is not, says again what it just said, gets a number wrong, or strays.
    """
    kind = rng.random()
    if kind < 0.3:
        places = [line.removeprefix("examine ") for line in admissible if line.startswith("examine ")]
        return f"take {wanted} {rng.randint(1, 3)} from {rng.choice(places or ['cabinet 1'])}"
    if kind < 0.45 and previous:
        return previous
    if kind < 0.7:
        return re.sub(r"\d+", lambda match: str(rng.randint(1, max(3, int(match[0]) + 2))), command)
    return rng.choice(admissible)
