"""Prompt rendering: the plain transcript, and ReAct's worked examples."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmr_gym.errors import ConfigError
from dmr_gym.prompts import react, transcript
from dmr_gym.tasks.alfworld import panels
from dmr_gym.tasks.alfworld.engine import AlfworldEngine
from dmr_gym.tasks.alfworld.generate import generate_game
from dmr_gym.tasks.alfworld.pddl import TASK_TYPES
from dmr_gym.tasks.alfworld.task import AlfworldTask

INTRO = (
    "-= Welcome to TextWorld, ALFRED! =-\n\nYou are in the middle of a room. Looking quickly around you, you see a "
    "bed 1, and a desk 1.\n\nYour task is to: put a book in desk."
)
ROOM = "You are in the middle of a room. Looking quickly around you, you see a bed 1, and a desk 1."
lines = st.text(st.characters(exclude_characters="\n"), max_size=30)


def test_transcript_has_its_documented_form() -> None:
    """The banner and blank lines go, commands follow "> ", and the text ends with ">"."""
    assert transcript.render(INTRO, [("go to bed 1", "You arrive at bed 1."), ("look", "Nothing happens.")]) == (
        f"{ROOM}\nYour task is to: put a book in desk.\n"
        "> go to bed 1\nYou arrive at bed 1.\n> look\nNothing happens.\n>"
    )
    assert transcript.initial(INTRO) == f"{ROOM}\nYour task is to: put a book in desk.\n>"


@given(st.lists(st.tuples(lines, lines), max_size=6))
def test_transcript_is_append_only(turns: list[tuple[str, str]]) -> None:
    """The prompt of each step is a prefix of the next, and appending turns one by one renders the whole."""
    text = transcript.initial(INTRO)
    for count, (command, observation) in enumerate(turns, start=1):
        text += transcript.turn(command, observation)
        assert text == transcript.render(INTRO, turns[:count])
        assert text.endswith("\n>")


def test_introduction_without_banner_is_taken_as_it_is() -> None:
    """Stripping twice changes nothing."""
    assert transcript.strip_banner(transcript.strip_banner(INTRO)) == transcript.strip_banner(INTRO)


@pytest.mark.parametrize("task_type", TASK_TYPES)
def test_worked_examples_are_what_their_houses_answer(task_type: str) -> None:
    """Two examples a task type: each can be replayed in its house line by line and wins at its last command."""
    examples = react.examples(task_type)
    assert len(examples) == 2
    for house, text in examples:
        engine = AlfworldEngine.from_json(generate_game(panels.house_seed(house)), house, task_type)
        assert text.startswith(transcript.strip_banner(engine.reset()) + "\n> think: ")
        turns = [tuple(part.split("\n", 1)) for part in text.removesuffix("\n").split("\n> ")[1:]]
        for index, (command, observation) in enumerate(turns):
            expected = "OK." if command.startswith("think: ") else engine.step(command)
            assert (command, observation) == (command, expected)
            assert observation != "Nothing happens."
            assert engine.won == (index == len(turns) - 1)


def test_worked_examples_come_from_no_panel() -> None:
    """Their houses are in none of the embedded panels, and no two examples share a house."""
    houses = [house for task_type in react.task_types() for house, _ in react.examples(task_type)]
    assert len(houses) == len(set(houses)) == 12
    assert not set(houses) & set(panels.known_hashes())
    hashes = panels.compute_hashes([panels.house_seed(house) for house in houses])
    assert not set(hashes.values()) & set(panels.known_hashes().values())


def test_react_prompt_is_examples_then_the_episode() -> None:
    """It opens and continues as ReAct's prompt does, and knows the six task types of the world."""
    assert react.task_types() == tuple(sorted(TASK_TYPES))
    prompt = react.render("pick_and_place_simple", INTRO, [("think: hm", "OK.")])
    assert prompt.startswith("Interact with a household to solve a task. Here are two examples.\nYou are in the middle")
    assert prompt.endswith(f"\n\nHere is the task.\n{ROOM}\nYour task is to: put a book in desk.\n> think: hm\nOK.\n>")
    assert prompt.count("Your task is to: ") == 3
    assert "#" not in prompt


def test_react_task_puts_the_examples_of_its_own_type_in_front() -> None:
    """The bare transcript follows the head that belongs to the game's task type."""
    bare, styled = AlfworldTask(panel="calibration"), AlfworldTask(panel="calibration", prompt_style="react")
    for task_id in bare.task_ids[:12]:
        bare.reset(task_id)
        styled.reset(task_id)
        for completion in (" think: where to begin?", " look"):
            assert styled.prompt() == react.head(styled.engine.task_type) + str(bare.prompt())
            assert bare.step(completion) == styled.step(completion)


def test_unknown_task_type_is_a_config_error() -> None:
    """The message lists the six types."""
    with pytest.raises(ConfigError, match=r"unknown task type 'stack'.*pick_two_obj_and_place"):
        react.head("stack")
