"""Copying drills: exercises on the shop's pages with which the training of an agent begins.

A demonstration asks for few copies of names; a drill asks for all of a page at once.
"""

from __future__ import annotations

import random
import re

_NAMES = re.compile(r"\[ (?!back to|< prev|next >|description|features|reviews|buy now)([^\[\]\n]+)\]")
_SPANS = 3
_SPAN_WORDS = (2, 6)


def drill(prompt: str, seed: int, hardness: float) -> tuple[str, str]:
    """A copying exercise on a page: answers that repeat what stands in brackets and spans of the task, in random order.

    Args:
        prompt: of a step, in the style "short".
        seed: of the demonstration.
        hardness: in [0, 1]: 0 shows two names alone, 1 the whole prompt.

    Returns:
        The prompt, and the answers, a line each.
    """
    rng = random.Random(f"drill {seed} {prompt}")
    task, page = prompt.split("\n", 1)
    words = task.split()[1:]
    starts = [rng.randrange(len(words)) for _ in range(_SPANS)]
    spans = [" ".join(words[start : start + rng.randint(*_SPAN_WORDS)]) for start in starts]
    names = list(dict.fromkeys([*_NAMES.findall(page), spans[0]]))
    rng.shuffle(names)
    names = names[: 2 + round(hardness * rng.random() * len(names))]
    answers = [f"click[ {name}]" for name in names]
    if rng.random() < hardness:
        shown = f"Copy{prompt.removeprefix('Task')}"
        answers = [answer for answer in answers if spans[0] not in answer] + [f"search[ {span}]" for span in spans]
    else:
        shown = "Copy: " + " ".join(f"[ {name}]" for name in names) + "\n>"
        answers *= 2
    rng.shuffle(answers)
    return shown, "\n>".join(f" {answer}" for answer in answers) + "\n"
