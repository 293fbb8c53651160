"""The task contract on every shipped world, and the factory that builds them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from dmr_gym.errors import ConfigError
from dmr_gym.tasks import TASKS, make_task
from dmr_gym.tasks.toy import ANSWERS, PANELS, ToyTask, best_actions, make_signs
from dmr_gym.types import Task
from tests.task_contract import TaskContract


class TestToyTask(TaskContract):
    """The contract on corridors of signs."""

    @pytest.fixture
    def make(self) -> Callable[[], Task]:
        """Small corridors."""
        return lambda: make_task("toy", num_tasks=3, num_signs=4)

    def solution(self, task: Task, task_id: str) -> Sequence[str]:
        """The ways that the signs mean."""
        return [f"go {sign.way}" for sign in make_signs(task_id, 4)]


class TestAlfworldTask(TaskContract):
    """The contract on embedded houses."""

    @pytest.fixture(params=["transcript", "react"])
    def make(self, request: pytest.FixtureRequest) -> Callable[[], Task]:
        """Two embedded houses, in either prompt style."""
        return lambda: make_task("alfworld", panel="test", prompt_style=request.param, n_games=2)

    def solution(self, task: Task, task_id: str) -> Sequence[str]:
        """The game's own walkthrough."""
        return list(task.engine.walkthrough)


class TestWebshopTask(TaskContract):
    """The contract on the embedded shop."""

    step_types = frozenset({"search", "click"})
    next_step_types = step_types
    prompt_only_grows = False

    @pytest.fixture(params=["short", "chat"])
    def make(self, request: pytest.FixtureRequest) -> Callable[[], Task]:
        """Three goals, in either prompt style."""
        return lambda: make_task("webshop", panel="test", prompt_style=request.param, n_goals=3)

    def solution(self, task: Task, task_id: str) -> Sequence[str]:
        """Search for the target's title, turn to its page of the results, choose its options, buy it."""
        goal = task.engine.goal
        page = task.engine.search(goal.title).index(goal.asin) // 10
        clicks = ["next >"] * page + [goal.asin.lower(), *goal.options, "buy now"]
        actions = [f"search[{goal.title}]", *(f"click[{name}]" for name in clicks)]
        if isinstance(task.prompt(), str):
            return actions
        return [f"<think>as planned</think><action>{action}</action>" for action in actions]


@pytest.mark.parametrize(
    ("kind", "kwargs", "message"),
    [
        ("alfwrld", {}, r"unknown task 'alfwrld'; did you mean 'alfworld'\? known: alfworld, toy, webshop"),
        (
            "toy",
            {"pannel": "x"},
            r"unknown toy task setting 'pannel'; did you mean 'panel'\? known: panel, num_",
        ),
        ("toy", {"panel": "trian"}, r"unknown toy panel 'trian'; did you mean 'train'\?"),
        ("toy", {"num_signs": 0}, "num_tasks and num_signs must be at least 1, got 32 and 0"),
    ],
)
def test_factory_names_what_is_wrong(kind: str, kwargs: dict[str, object], message: str) -> None:
    """Unknown kinds and settings raise with the nearest name."""
    with pytest.raises(ConfigError, match=message):
        make_task(kind, **kwargs)


def test_every_world_has_a_contract_test() -> None:
    """A new world cannot be registered without being tested."""
    assert set(TASKS) == {"alfworld", "toy", "webshop"}


def test_toy_panels_share_no_corridor() -> None:
    """Each panel has its own ids, and one and the same id is the same corridor everywhere."""
    panels = [set(ToyTask(panel).task_ids) for panel in PANELS]
    assert len(set.union(*panels)) == sum(map(len, panels)) == 4 * 32
    assert make_signs("toy-train-000", 8) == make_signs("toy-train-000", 8)[:8]


def test_toy_corridors_mix_upright_and_fallen_signs() -> None:
    """About a quarter of all signs has fallen, and at least one in each corridor."""
    corridors = [best_actions(task_id) for task_id in ToyTask(num_tasks=200).task_ids]
    share = sum(map(sum, corridors)) / (200 * 8)
    assert 0.2 < share < 0.35
    assert all(1 <= sum(corridor) < 8 for corridor in corridors)


@pytest.mark.parametrize("precision", ["low", "high"])
def test_toy_answers_err_exactly_at_fallen_signs_in_low_precision(precision: str) -> None:
    """High precision always finds the way; low precision is misled by fallen signs only."""
    for sign in make_signs("toy-train-004", 40):
        right = ANSWERS[precision][sign.text] == f"go {sign.way}"
        assert right == (precision == "high" or not sign.fallen)


def test_toy_wrong_way_leads_back_to_the_entrance() -> None:
    """A wrong turn loses all progress but not the task."""
    task = ToyTask(num_signs=3)
    task.reset("toy-train-000")
    ways = [sign.way for sign in make_signs("toy-train-000", 3)]
    assert task.step(f"go {ways[0]}").score == pytest.approx(1 / 3)
    wrong = {"left": "right", "right": "left"}[ways[1]]
    back = task.step(f" go {wrong} ")
    assert (back.score, back.done) == (0.0, False)
    assert back.observation == make_signs("toy-train-000", 3)[0].text


def test_toy_thoughts_change_nothing() -> None:
    """A line that begins with "think:" is its own step type and leaves the walker where they are."""
    task = ToyTask()
    task.reset("toy-train-000")
    step = task.step("think: the sign has fallen")
    assert (step.step_type, step.observation, step.score, step.invalid_reason) == ("think", "OK.", 0.0, None)
