"""The copying drills that begin the training of a shop's agent."""

from __future__ import annotations

import pytest

from dmr_gym.tasks.webshop.drills import drill

PROMPT = "Task: i need a tea, price lower than 30.00 dollars\nStep 1\n[13] $3.0 green tea\n[14] $4.0 mug\n[next >]\n>"


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("hardness", [0.0, 0.5, 1.0])
def test_a_drill_asks_only_for_what_its_prompt_shows(seed: int, hardness: float) -> None:
    """Each answer is a line that repeats a name in brackets or words of the task, never a fixed button."""
    shown, answers = drill(PROMPT, seed, hardness)
    assert shown.endswith("\n>")
    assert answers.endswith("]\n")
    for answer in answers.splitlines():
        assert answer[answer.index("[") + 1 : -1].strip() in shown
    assert "next >" not in answers


def test_easy_drills_show_two_names_and_hard_ones_the_page() -> None:
    """At hardness 0 two names stand alone and are asked for twice; at 1 the whole page is shown."""
    easy, answers = drill(PROMPT, 0, 0.0)
    assert easy.count("[") == 2
    assert len(answers.splitlines()) == 4
    assert drill(PROMPT, 0, 1.0)[0] == "Copy" + PROMPT.removeprefix("Task")
    assert drill(PROMPT, 0, 1.0) != drill(PROMPT, 1, 1.0)
