"""Prompts and answers to imitate: the expert in generated shops, with mistakes that it recovers from."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

from dmr_gym.errors import ConfigError
from dmr_gym.prompts.webshop_answers import short_answer
from dmr_gym.tasks.webshop.chance import Chance
from dmr_gym.tasks.webshop.engine import WebShopEngine
from dmr_gym.tasks.webshop.expert import ShoppingExpert, read_prompt
from dmr_gym.tasks.webshop.generate import as_shop, generate_shop
from dmr_gym.tasks.webshop.goals import Goal
from dmr_gym.tasks.webshop.shop import Shop
from dmr_gym.tasks.webshop.shop_style import draw_style
from dmr_gym.tasks.webshop.task import WebshopTask

FIRST_SEED = 1_000_000_000
"""Seed of the shop of demonstration 0. Demonstrations with negative numbers, such as those that a tokenizer is trained
on, use the seeds just below; the embedded shop's seed lies far below all of them."""

SHOP_EPISODES = 10
"""So many demonstrations in a row play in the same shop, because making one takes longer than shopping in it."""

REPEAT = 0.2
"""Chance that a mistake is made again at once."""

TEMPTATION = 0.5
"""Chance, in an episode with mistakes, to ask for a wanted value on the page of a product that does not offer it: the
mistake that agents make most, and without an example of the way back they make it for ever."""

HARD = 0.6
"""Share of demonstrations that pick their goal among those that take more than clicking the first result."""

GOAL_TRIES = 10
"""So many goals are drawn for such a demonstration at most."""

_NUMBER = re.compile(r"\[ (\d+)\]")
_MOST_RESULTS = 50
_VALUE = re.compile(r"\[ ([^\[\]]+)\]")

_PRODUCTS = (200, 300)


class Piece(NamedTuple):
    """A step: the prompt, the answer with its line end, and who gave it: "expert" or "mistake" (not to be imitated).

    ``others`` are further tasks asked about the same page, each with the expert's answer: the end of a prompt, from
    "Task: " to ">", and an answer with its line end.
    """

    prompt: str
    answer: str
    author: str
    others: tuple[tuple[str, str], ...] = ()


def demonstration(
    seed: int, noisy_episodes: float = 0.0, noise: float = 0.0, max_steps: int = 20, other_tasks: int = 0
) -> Iterator[Piece]:
    """Yield one episode, step by step, on a goal of a shop that is made for it and its neighbours.

    Args:
        seed: number of the demonstration, any integer; shop `FIRST_SEED` + seed // `SHOP_EPISODES`.
        noisy_episodes: share of episodes in which mistakes occur at all.
        noise: chance of a mistake at each step of such an episode.
        max_steps: the episode is cut there.
        other_tasks: most further tasks asked about each page. Reading a page costs a learner far more than an answer
            does, so a page that is asked about six times teaches almost six times as much.
    """
    chance = Chance(f"dmr-gym webshop demonstration {seed}")
    task = _task(seed // SHOP_EPISODES)
    expert = _begin(chance, task)
    noise = noise if chance.happens(noisy_episodes) else 0.0
    previous, author = "", "expert"
    for _ in range(max_steps):
        prompt = str(task.prompt())
        action = expert.act(prompt)
        if author == "mistake" and chance.happens(REPEAT):
            action = previous
        elif (missing := _missing_values(action, prompt, expert.values)) and noise and chance.happens(TEMPTATION):
            author, action = "mistake", f"click[{chance.pick(missing)}]"
        elif chance.happens(noise):
            mistake = _mistake(chance, action, prompt, expert.values)
            author, action = ("mistake", mistake) if mistake != action else ("expert", action)
        else:
            author = "expert"
        previous, answer = action, short_answer(action)
        others = _asked_otherwise(seed, prompt, task, other_tasks) if other_tasks else ()
        yield Piece(prompt, answer, author, others)
        if task.step(answer).done:
            return


def panel_transcripts(panel: str, n_steps: int, max_steps: int = 15) -> list[str]:
    """Steps of the expert on a panel's goals in the embedded shop: each a prompt with its answer.

    Args:
        panel: of the embedded shop.
        n_steps: so many steps, of as many goals as that takes.
        max_steps: an episode is cut there.

    Raises:
        ConfigError: the panel is unknown, or has not so many steps.
    """
    task = WebshopTask(panel=panel)
    texts: list[str] = []
    for task_id in task.task_ids:
        task.reset(task_id)
        expert = expert_for(task.engine.goal)
        for _ in range(max_steps):
            if len(texts) == n_steps:
                return texts
            prompt = str(task.prompt())
            answer = short_answer(expert.act(prompt))
            texts.append(prompt + answer)
            if task.step(answer).done:
                break
    if len(texts) < n_steps:
        raise ConfigError(f"the panel {panel!r} has {len(texts)} steps, but {n_steps} were asked for")
    return texts


def _task(number: int) -> WebshopTask:
    """A task of its own for each caller; every other shop asks as customers do, the others as WebShop's script."""
    return WebshopTask(_shop(number), panel="all", goals=("human", "synthetic")[number % 2])


@lru_cache(maxsize=1)
def _shop(number: int) -> Shop:
    """A shop in a style of its own."""
    seed = FIRST_SEED + number
    size = Chance(f"dmr-gym webshop demonstration shop {seed}").integer(*_PRODUCTS)
    return as_shop(generate_shop(seed, size, draw_style(seed)), f"shop {seed}")


@lru_cache(maxsize=1)
def _goals(number: int) -> tuple[dict[str, list[Goal]], dict[str, list[Goal]]]:
    """All goals of a shop by the asin of their target, and by its type."""
    by_asin: dict[str, list[Goal]] = {}
    by_query: dict[str, list[Goal]] = {}
    task = _task(number)
    task.reset(task.task_ids[0])
    for goal in task.engine.goals:
        by_asin.setdefault(goal.asin.lower(), []).append(goal)
        by_query.setdefault(goal.query, []).append(goal)
    return by_asin, by_query


def _asked_otherwise(seed: int, prompt: str, task: WebshopTask, count: int) -> tuple[tuple[str, str], ...]:
    """What else could be asked on a prompt's page: for products that it shows, or others of their type."""
    goal = task.engine.goal
    chance = Chance(f"dmr-gym webshop demonstration {seed} otherwise {prompt}")
    by_asin, by_query = _goals(seed // SHOP_EPISODES)
    view = read_prompt(prompt)
    count = count if view.body else count // 3  # the start page shows nothing to choose from
    wanted = [each for asin in task.links.values() for each in by_asin.get(asin, ())]
    alike = by_query[goal.query]
    is_item = view.summary.startswith("item")
    chosen = chance.sample(wanted, count - 1 if is_item else (count + 1) // 2)
    # On the page of a product that nearly nobody wants, an agent would learn to go back whatever is asked.
    chosen += chance.sample(alike, min(count - len(chosen), (len(chosen) + 1) // 2) if is_item else count - len(chosen))
    page = prompt.partition("\n")[2].rpartition("\nTask: ")[0]
    tails = {}
    for text, other in {each.instruction_text: each for each in chosen}.items():
        request = f"Task: {text}"
        action = expert_for(other).act(f"{request}\n{page}\n{request}\n>")
        # Whoever does not want the product shown would not have come here, so all that the expert knows is to go back.
        is_at_home = not is_item or other.asin.lower() in task.links.values()
        if text != goal.instruction_text and (is_at_home or action == "click[< prev]"):
            tails[f"{request}\n>"] = short_answer(action)
    return tuple(tails.items())


def _begin(chance: Chance, task: WebshopTask) -> ShoppingExpert:
    """Reset the task to a goal; in `HARD` of the demonstrations to one where the first product found will not do."""
    tries = GOAL_TRIES if chance.happens(HARD) else 1
    for _ in range(tries):
        task.reset(chance.pick(task.task_ids))
        goal = task.engine.goal
        expert = expert_for(goal)
        if tries == 1 or not _is_first_right(task.engine, expert):
            break
    return expert


def _is_first_right(engine: WebShopEngine, expert: ShoppingExpert) -> bool:
    """Whether the first product found may cost no more than the cap and offers the wanted values."""
    found = engine.search(expert.core(engine.goal.instruction_text))
    if not found:
        return False
    catalogue = engine.shop.catalogue
    product = catalogue[catalogue.index_of(found[0])]
    offered = {value for values in product.options.values() for value in values}
    return offered.issuperset(expert.values) and min(product.prices) <= engine.goal.price_upper


def expert_for(goal: Goal) -> ShoppingExpert:
    """The expert that knows what a goal's words mean, and not which product is its target."""
    values = goal.options.values() if isinstance(goal.options, dict) else goal.options
    return ShoppingExpert(goal.attributes, tuple(values), goal.query)


def _missing_values(action: str, prompt: str, wanted: Sequence[str]) -> list[str]:
    """Wanted values that an item's page does not offer, where the expert is about to leave it; else none."""
    if action != "click[< prev]" or not read_prompt(prompt).summary.startswith("item"):
        return []
    offered = {value for line in read_prompt(prompt).body[2:] for value in _VALUE.findall(line)}
    return [value for value in wanted if value not in offered]


def _mistake(chance: Chance, action: str, prompt: str, wanted: Sequence[str]) -> str:
    """A wrong action as a weak agent would make it, which the expert can recover from; the right one if none fits."""
    view = read_prompt(prompt)
    if view.summary == "start":
        words = action[7:-1].split()
        del words[chance.integer(0, len(words) - 1)]
        return f"search[{' '.join(words)}]" if words else action
    if view.summary.startswith("results"):
        return _mistake_on_results(chance, action, view.body)
    if view.summary.startswith("item"):
        return _mistake_on_item(chance, action, view.body[2:], wanted)
    return chance.pick(("click[back to search]", "click[buy now]", f"click[{view.summary.rpartition(' ')[2]}]"))


def _mistake_on_results(chance: Chance, action: str, body: Sequence[str]) -> str:
    """A product that stands before the right one, one that is not on the page, or a new search."""
    listed = [match[1] for match in map(_NUMBER.match, body) if match]
    number = action[6:-1]
    before = listed[: listed.index(number)] if number in listed else listed
    kind = chance.weighted((5, 2, 1))
    if kind == 0 and before:
        return f"click[{chance.pick(before)}]"
    absent = [str(other) for other in range(1, _MOST_RESULTS + 1) if str(other) not in listed]
    if kind == 1:
        return f"click[{chance.pick(absent)}]"
    return "click[back to search]"


def _mistake_on_item(chance: Chance, action: str, body: Sequence[str], wanted: Sequence[str]) -> str:
    """Another value of the same option, a value nobody offers, a page that tells nothing new, or the way back."""
    value = action[6:-1]
    options = [_VALUE.findall(line) for line in body]
    rivals = [other for values in options if value in values for other in values if other not in wanted]
    kind = chance.weighted((5, 3, 1, 1))
    if kind == 0 and rivals:
        return f"click[{chance.pick(rivals)}]"
    if kind == 2 and wanted:
        words = chance.pick(wanted).split()
        return f"click[{' '.join(words[:-1] or ['any', *words])}]"
    if kind == 3:
        return "click[< prev]"
    return f"click[{chance.pick(('description', 'features', 'reviews'))}]"
