"""The task: reading completions, thoughts, reasons, snapshots."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dmr_gym.errors import ConfigError, TaskError
from dmr_gym.tasks.alfworld import games
from dmr_gym.tasks.alfworld.engine import AlfworldEngine
from dmr_gym.tasks.alfworld.generate import generate_game
from dmr_gym.tasks.alfworld.panels import house_id
from dmr_gym.tasks.alfworld.task import MAX_COMPLETION_CHARS, AlfworldTask, read_completion
from dmr_gym.types import Task

VALIDATION = house_id(200_000)


@pytest.fixture
def task() -> AlfworldTask:
    """The first validation house, just begun."""
    task = AlfworldTask(panel="validation", n_games=8)
    task.reset(VALIDATION)
    return task


def test_task_satisfies_the_protocol(task: AlfworldTask) -> None:
    """It has every member of `Task`."""
    assert isinstance(task, Task)
    assert list(task.task_ids) == [house_id(seed) for seed in range(200_000, 200_008)]


@pytest.mark.parametrize(
    ("completion", "line", "command", "step_type"),
    [
        (" go to bed 1", "go to bed 1", "go to bed 1", "action"),
        ("go to bed 1\n> go to desk 1", "go to bed 1", "go to bed 1", "action"),
        ("\n\n > > go to bed 1 \r\nmore", "go to bed 1", "go to bed 1", "action"),
        ("Action: go to bed 1", "go to bed 1", "go to bed 1", "action"),
        ("> ACTION : > go to bed 1", "go to bed 1", "go to bed 1", "action"),
        (" put mug 1 in/on desk 2", "put mug 1 in/on desk 2", "move mug 1 to desk 2", "action"),
        ("put mug 1 in drawer 3", "put mug 1 in drawer 3", "move mug 1 to drawer 3", "action"),
        ("put mug 1 on desk 2", "put mug 1 on desk 2", "move mug 1 to desk 2", "action"),
        ("put mug 1 into sinkbasin 1", "put mug 1 into sinkbasin 1", "move mug 1 to sinkbasin 1", "action"),
        ("put mug 1", "put mug 1", "put mug 1", "action"),
        (" think: put mug 1 in desk 1", "think: put mug 1 in desk 1", "think: put mug 1 in desk 1", "think"),
        ("> Think: hm", "Think: hm", "Think: hm", "think"),
        ("Thought: hm\nAction: look", "Thought: hm", "Thought: hm", "think"),
        ("thinking hard", "thinking hard", "thinking hard", "action"),
        ("go\tto\x07 bed", "go\ufffdto\ufffd bed", "go\ufffdto\ufffd bed", "action"),
        ("去床边", "去床边", "去床边", "action"),
        ("\ud800", "\ufffd", "\ufffd", "action"),
        ("", "", "", "action"),
        (" \n\t ", "", "", "action"),
        (">", "", "", "action"),
    ],
)
def test_completion_is_read(completion: str, line: str, command: str, step_type: str) -> None:
    """First line, prefixes, old put commands, thoughts, and odd characters."""
    assert read_completion(completion) == (line, command, step_type)


@given(st.text())
def test_any_text_can_be_read_and_shown(completion: str) -> None:
    """What is read is one printable line of bounded length that encodes as UTF-8."""
    line, command, step_type = read_completion(completion)
    assert line.isprintable()
    assert line == line.strip()
    assert len(line) <= MAX_COMPLETION_CHARS
    assert line.encode().decode() == line
    assert step_type in ("action", "think")
    assert command == line or command.startswith("move ")


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.text(max_size=40),
            st.sampled_from(
                ["", "think:", "go to", "go to ", "take  from ", "move a to b", "put x in/on y", "slice with"]
            ),
            st.builds(" ".join, st.lists(st.sampled_from("go to take mug 1 from in with desk use \x00 move".split()))),
        ),
        max_size=5,
    )
)
def test_no_completion_makes_a_step_raise(completions: list[str]) -> None:
    """Whatever a model says, the world answers, and the transcript grows by it."""
    task = AlfworldTask(panel="validation", n_games=1)
    task.reset(VALIDATION)
    for completion in completions:
        before = str(task.prompt())
        step = task.step(completion)
        assert step.observation
        assert str(task.prompt()).startswith(before)


def test_huge_completion_is_cut(task: AlfworldTask) -> None:
    """A million characters cost a line of at most MAX_COMPLETION_CHARS."""
    before = len(str(task.prompt()))
    assert task.step("go " * 1_000_000).observation == "Nothing happens."
    assert len(str(task.prompt())) - before < MAX_COMPLETION_CHARS + 40


def test_walkthrough_wins_with_score_one_and_the_transcript_tells_it(task: AlfworldTask) -> None:
    """Score, done and success turn at the last command; the prompt is the rendered episode."""
    start = task.reset(VALIDATION)
    expected = f"{start.observation}\n>"
    steps = []
    for command in task.engine.walkthrough:
        steps.append(task.step(f" {command}"))
        expected += f" {command}\n{steps[-1].observation}\n>"
    assert [(s.score, s.done, s.success) for s in steps] == [(0.0, False, False)] * (len(steps) - 1) + [
        (1.0, True, True)
    ]
    assert [(s.step_type, s.invalid_reason) for s in steps] == [("action", None)] * len(steps)
    assert task.prompt() == expected
    assert start.observation.endswith(f"Your task is to: {start.instruction}")
    assert start.observation.startswith("You are in the middle of a room.")


def test_thought_is_answered_ok_and_leaves_the_world_alone(task: AlfworldTask) -> None:
    """The engine's state stays, the transcript grows, and nothing is invalid."""
    before = task.engine.snapshot()
    step = task.step(" think: I should go to bed 1")
    assert (step.observation, step.step_type, step.invalid_reason) == ("OK.", "think", None)
    assert task.engine.snapshot() == before
    assert str(task.prompt()).endswith("\n> think: I should go to bed 1\nOK.\n>")


def test_put_is_carried_out_as_move() -> None:
    """An episode played with the older command is won, and the action reported is today's."""
    task = AlfworldTask(panel="validation")
    for task_id in task.task_ids[:20]:
        task.reset(task_id)
        for command in task.engine.walkthrough:
            old = command.replace("move ", "put ").replace(" to ", " in/on ") if command.startswith("move") else command
            step = task.step(old)
            assert step.action == command
            assert step.invalid_reason is None
        assert step.success


def test_command_that_does_nothing_says_why() -> None:
    """Each kind of mistake gives its own reason, and the observation is TextWorld's "Nothing happens."."""
    task = AlfworldTask(panel="train")
    task_id = next(i for i in task.task_ids if _needs_opening(task, i))
    task.reset(task_id)
    opening = next(c for c in task.engine.walkthrough if c.startswith("open "))
    door = opening.removeprefix("open ")
    task.step(f"go to {door}")
    reasons = {}
    for completion in (
        "",
        "dance",
        "take mug 99 from desk 99",
        f"go to {door}",
        f"close {door}",
        "go to bed",
        "take x",
    ):
        step = task.step(completion)
        assert (step.observation, step.step_type) == ("Nothing happens.", "action")
        reasons[completion] = step.invalid_reason
    assert reasons[""] == "empty command"
    assert reasons["dance"] == "unknown command 'dance'"
    assert reasons[f"go to {door}"] == f"already at {door}"
    assert reasons[f"close {door}"] == f"{door} is already closed"
    assert None not in reasons.values()
    assert len(set(reasons.values())) >= 5


def _needs_opening(task: AlfworldTask, task_id: str) -> bool:
    task.reset(task_id)
    return any(command.startswith("open ") for command in task.engine.walkthrough)


def test_snapshot_restores_the_world_and_the_transcript_also_across_games(task: AlfworldTask) -> None:
    """Going back and playing the same commands gives the same steps; a snapshot outlives other episodes."""
    task.step(" look")
    state, prompt = task.snapshot(), task.prompt()
    first = [task.step(command) for command in task.engine.walkthrough]
    task.reset(house_id(200_001))
    task.step(" inventory")
    task.restore(state)
    assert task.prompt() == prompt
    assert [task.step(command) for command in task.engine.walkthrough] == first


def test_snapshot_survives_a_full_cache() -> None:
    """Games dropped from the cache are loaded again when a snapshot needs them."""
    task = AlfworldTask(panel="validation", cache_size=1)
    task.reset(task.task_ids[0])
    command = task.engine.admissible[0]
    task.step(command)
    state = task.snapshot()
    following = task.step("inventory"), task.prompt()
    for task_id in task.task_ids[1:4]:
        task.reset(task_id)
    task.restore(state)
    assert (task.step("inventory"), task.prompt()) == following


def test_houses_are_made_once_and_played_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tasks side by side in one house, as a group of GRPO is, share its making and nothing of its play."""
    made: list[int] = []

    def counted(seed: int) -> dict[str, Any]:
        made.append(seed)
        return generate_game(seed)

    monkeypatch.setattr(games, "generate_game", counted)
    games._generated_world.cache_clear()
    group = [AlfworldTask(panel="validation", n_games=8) for _ in range(3)]
    starts = [task.reset(VALIDATION) for task in group]
    assert made == [200_000]
    assert starts[0] == starts[1] == starts[2]
    steps = [group[0].step(command) for command in group[0].engine.walkthrough]
    assert steps[-1].done
    assert group[1].step("inventory").observation == "You are not carrying anything."
    assert [group[2].step(command) for command in group[2].engine.walkthrough] == steps


def test_resetting_again_begins_afresh(task: AlfworldTask) -> None:
    """A second reset of the same game has no memory of the first."""
    first = (task.reset(VALIDATION), task.prompt())
    for command in task.engine.walkthrough:
        task.step(command)
    assert (task.reset(VALIDATION), task.prompt()) == first
    assert not task.step("look").done


def test_id_outside_the_panel_is_a_task_error(task: AlfworldTask) -> None:
    """A house of another panel is refused even though it exists."""
    with pytest.raises(TaskError, match=r"'house-100000' is not in this panel of 8 games"):
        task.reset(house_id(100_000))


def test_step_before_reset_is_a_task_error() -> None:
    """The message says what to call."""
    with pytest.raises(TaskError, match=r"call reset\(task_id\) first"):
        AlfworldTask().step("look")


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"engine": "unity"}, "engine must be one of native, textworld; found 'unity'"),
        ({"prompt_style": "chat"}, "prompt_style must be one of transcript, react; found 'chat'"),
        ({"panel": "dev"}, "unknown panel 'dev'"),
        ({"cache_size": 0}, "cache_size must be at least 1, found 0"),
        ({"n_games": -1}, "n_games must lie in 1 to 2000"),
        ({"n_games": "10"}, "n_games must be a whole number, found '10'"),
        ({"cache_size": None}, "cache_size must be a whole number, found None"),
        ({"panel": ["train"]}, r"panel must be a string, found \['train'\]"),
        ({"source": 3}, "source must be a string, found 3"),
        ({"source": "/nonexistent"}, "expected a folder with json_2"),
    ],
)
def test_wrong_argument_is_a_config_error(keywords: dict[str, object], message: str) -> None:
    """The message names the argument, what it may be, and what came."""
    with pytest.raises(ConfigError, match=message):
        AlfworldTask(**keywords)  # type: ignore[arg-type]


def test_every_task_type_is_won_by_its_walkthrough() -> None:
    """200 generated games of all types load and are won, not earlier than by the last command."""
    for seed in range(200):
        game = generate_game(seed)
        engine = AlfworldEngine.from_json(game, str(seed), game["traj_data"]["task_type"])
        engine.reset()
        for command in engine.walkthrough:
            assert not engine.won
            assert engine.step(command) != "Nothing happens."
        assert engine.won
