"""The native engine: each of the six goals is won when its definition says so."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dmr_gym.errors import TaskError
from dmr_gym.tasks.alfworld.engine import AlfworldEngine, EngineState
from dmr_gym.tasks.alfworld.generate import generate_game
from dmr_gym.tasks.alfworld.pddl import TASK_TYPES
from tests.alfworld_house import house, play


@pytest.mark.parametrize(
    ("task_type", "commands"),
    [
        (
            TASK_TYPES[0],
            "go to shelf 1/take apple 2 from shelf 2/go to fridge 1/open fridge 1/move apple 2 to fridge 1",
        ),
        (TASK_TYPES[1], "go to shelf 1/take apple 2 from shelf 2/use desklamp 1"),
        (TASK_TYPES[1], "go to shelf 1/use desklamp 1/take apple 2 from shelf 2"),
        (
            TASK_TYPES[2],
            "go to shelf 1/take apple 2 from shelf 2/go to sinkbasin 1/clean apple 2 with sinkbasin 1/"
            "go to shelf 1/move apple 2 to shelf 1",
        ),
        (
            TASK_TYPES[3],
            "go to shelf 1/take apple 2 from shelf 2/go to fridge 1/heat apple 2 with microwave 1/"
            "go to shelf 2/move apple 2 to shelf 2",
        ),
        (
            TASK_TYPES[4],
            "go to shelf 1/take apple 2 from shelf 2/go to fridge 1/heat apple 2 with microwave 1/"
            "cool apple 2 with fridge 1/go to shelf 2/move apple 2 to shelf 2",
        ),
        (TASK_TYPES[5], "go to shelf 1/open drawer 1/take apple 1 from drawer 1/move apple 1 to shelf 2"),
    ],
)
def test_goal_of_each_type_is_won_by_the_last_command_and_lost_again(task_type: str, commands: str) -> None:
    """The goal is checked on the state: undoing the last deed ends it, as in TextWorld."""
    engine = house(task_type)
    assert engine.task_type == task_type
    for command in commands.split("/"):
        assert not engine.won
        play(engine, command)
    assert engine.won
    undo = engine.admissible
    play(engine, next((c for c in undo if c.startswith("take apple")), "go to sinkbasin 1"))
    assert not engine.won


def test_two_objects_in_two_receptacles_of_the_type_do_not_win() -> None:
    """Both must lie in the same one."""
    engine = house(TASK_TYPES[5])
    play(engine, "go to shelf 1", "open drawer 1", "take apple 1 from drawer 1", "move apple 1 to shelf 1")
    assert not engine.won
    play(engine, "take apple 1 from shelf 1", "move apple 1 to shelf 2")
    assert engine.won


def test_task_type_that_is_not_the_goals_is_a_task_error() -> None:
    """traj_data.json and the PDDL must agree."""
    game = generate_game(0, TASK_TYPES[0])
    with pytest.raises(
        TaskError, match="task_type is 'pick_heat_then_place_in_recep', but the goal is one of 'pick_and"
    ):
        AlfworldEngine.from_json(game, "game", TASK_TYPES[3])


def _goal_by_definition(engine: AlfworldEngine, state: EngineState) -> bool:
    """The goal as its PDDL reads, without counts."""
    goal, facts = engine.game.goal, engine.game.facts
    kinds, places = dict(facts["objecttype"]), dict(facts["receptacleatlocation"])
    rtypes, receptacles = dict(facts["receptacletype"]), sorted(places)
    inside = dict(zip(receptacles, state.inside, strict=True))
    if goal.lamp_type:
        lit = any(
            kinds.get(o) == goal.lamp_type and ("istoggled", o) in state.states and places[r] == state.location
            for r, content in inside.items()
            for o in content
        )
        return lit and state.held is not None and kinds.get(state.held) == goal.object_type
    able = {p: {fact[0] for fact in facts.get(p, ())} for p in ("cleanable", "heatable", "coolable")}
    return any(
        sum(
            kinds.get(o) == goal.object_type
            and all(o in able[p] if p in able else (p, o) in state.states for p in goal.states)
            for o in content
        )
        >= goal.count
        for r, content in inside.items()
        if rtypes.get(r) == goal.receptacle_type
    )


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), task_type=st.sampled_from(TASK_TYPES), chance=st.randoms(use_true_random=False))
def test_counted_goal_is_the_goal_by_definition(seed: int, task_type: str, chance: random.Random) -> None:
    """Random play, detours from the walkthrough, and restored snapshots keep the counts right."""
    engine = AlfworldEngine.from_json(generate_game(seed, task_type), str(seed))
    engine.reset()
    states = [engine.snapshot()]
    for command in engine.walkthrough:
        for _ in range(chance.randrange(4)):
            handling = [c for c in engine.admissible if not c.startswith(("go", "examine", "help", "look", "inv"))]
            engine.step(chance.choice(handling or engine.admissible))
            assert engine.won == _goal_by_definition(engine, engine.snapshot())
        engine.step(command)
        states.append(engine.snapshot())
        if chance.random() < 0.2:
            engine.restore(chance.choice(states))
        assert engine.won == _goal_by_definition(engine, engine.snapshot())
