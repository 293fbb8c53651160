"""What every `dmr_gym.types.Task` must do.

Subclass `TaskContract` in a test file to check a world of your own::

class TestMyTask(TaskContract):
    @pytest.fixture
    def make(self):
        return MyTask

    def solution(self, task, task_id):
        return ["go north", "take lamp"]
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from dmr_gym.errors import TaskError
from dmr_gym.types import Message, Prompt, Task, TaskStart, TaskStep

STRANGE_COMPLETIONS = [
    "",
    " ",
    "\n\n",
    "\x00",
    "\ud7ff\U0001f600 ünïcode",
    "[bold]markup[/bold] {braces} %s",
    "Action:",
    ">>> >",
    "think:",
    "go to \n go to",
    "search[",
    "word " * 4000,
]


class TaskContract:
    """Tests of the protocol; ``make`` builds equal tasks, ``solution`` gives completions that solve one."""

    step_types: frozenset[str] = frozenset({"action", "think"})
    next_step_types: frozenset[str] = frozenset({""})
    prompt_only_grows: bool = True

    @pytest.fixture
    def make(self) -> Callable[[], Task]:
        """Return a function that builds the task, the same each time it is called."""
        raise pytest.UsageError(f"{type(self).__name__} must define the fixture make")

    @pytest.fixture
    def task(self, make: Callable[[], Task]) -> Task:
        """A fresh task."""
        return make()

    def solution(self, task: Task, task_id: str) -> Sequence[str]:
        """Completions that solve ``task_id``, on which ``task`` has been reset."""
        raise pytest.UsageError(f"{type(self).__name__} must define solution")

    def test_implements_the_protocol(self, task: Task) -> None:
        """It has all members of `Task`."""
        assert isinstance(task, Task)

    def test_panel_has_a_fixed_order(self, make: Callable[[], Task]) -> None:
        """Ids are different non-empty strings, in the same order in every instance and after episodes."""
        task, other = make(), make()
        ids = list(task.task_ids)
        assert ids
        assert len(set(ids)) == len(ids)
        assert all(isinstance(task_id, str) and task_id for task_id in ids)
        task.reset(ids[-1])
        assert list(task.task_ids) == ids == list(other.task_ids)

    def test_reset_starts_the_chosen_task(self, task: Task) -> None:
        """Reset returns texts, and the prompt holds what the observation says."""
        for task_id in list(task.task_ids)[:3]:
            start = task.reset(task_id)
            assert isinstance(start, TaskStart)
            assert start.task_id == task_id
            assert start.instruction.strip()
            assert start.observation.strip()
            assert start.observation.splitlines()[-1] in text(task.prompt())

    def test_the_type_of_the_next_step_is_told_where_the_world_fixes_it(self, task: Task) -> None:
        """Start and steps name one of the world's types beforehand, and a good answer is then of that type."""
        task_id = task.task_ids[0]
        told = task.reset(task_id).next_step_type
        for completion in self.solution(task, task_id):
            assert told in self.next_step_types
            step = task.step(completion)
            assert step.step_type == told or not told
            told = step.next_step_type
        assert told in self.next_step_types

    def test_unknown_task_is_refused(self, task: Task) -> None:
        """An id that is not in the panel raises TaskError, also in the middle of an episode."""
        with pytest.raises(TaskError, match="no-such-task"):
            task.reset("no-such-task")
        task.reset(task.task_ids[0])
        with pytest.raises(TaskError):
            task.reset("")

    def test_prompt_is_read_only(self, task: Task) -> None:
        """Asking for the prompt changes nothing."""
        task.reset(task.task_ids[0])
        prompt = task.prompt()
        assert isinstance(prompt, str) or all(isinstance(message, Message) for message in prompt)
        assert task.prompt() == prompt

    def test_prompt_shows_each_step(self, task: Task) -> None:
        """A step changes the prompt; where a world says so, it only appends to it, which keeps prefix caches warm."""
        task.reset(task.task_ids[0])
        for completion in self.solution(task, task.task_ids[0])[:3]:
            before = text(task.prompt())
            task.step(completion)
            after = text(task.prompt())
            assert after != before
            if self.prompt_only_grows:
                assert after.startswith(before)

    def test_solution_solves_at_its_last_step(self, task: Task) -> None:
        """Score, success and done rise when the task is fulfilled, and not before."""
        for task_id in list(task.task_ids)[:2]:
            task.reset(task_id)
            *before, last = [check(task.step(completion)) for completion in self.solution(task, task_id)]
            assert all(not step.success and not step.done and step.score < 1 for step in before)
            assert (last.success, last.done, last.score) == (True, True, 1.0)
            assert last.invalid_reason is None

    @pytest.mark.parametrize("completion", STRANGE_COMPLETIONS, ids=lambda completion: repr(completion)[:20])
    def test_strange_completions_do_no_harm(self, task: Task, completion: str) -> None:
        """Any text can be stepped with; what cannot be carried out has a reason, and the task can still be solved."""
        task_id = task.task_ids[0]
        task.reset(task_id)
        solution = self.solution(task, task_id)
        step = check(task.step(completion))
        assert step.step_type in self.step_types
        assert step.invalid_reason is None or step.invalid_reason
        assert not step.success
        assert [task.step(part) for part in solution][-1].success

    def test_episodes_repeat(self, make: Callable[[], Task]) -> None:
        """The same completions give the same steps and prompts, again and in another instance."""
        task, other = make(), make()
        first = self._play(task)
        other.reset(other.task_ids[-1])
        assert self._play(task) == first == self._play(other)

    def test_instances_share_no_state(self, make: Callable[[], Task]) -> None:
        """Stepping one task leaves another alone."""
        task, other = make(), make()
        task.reset(task.task_ids[0])
        other.reset(other.task_ids[0])
        prompt = other.prompt()
        task.step(self.solution(task, task.task_ids[0])[0])
        assert other.prompt() == prompt

    def test_restore_goes_back_anywhere(self, make: Callable[[], Task]) -> None:
        """A snapshot continues as the original did: after its end, from another task, and in another instance."""
        task, other = make(), make()
        task_id = task.task_ids[0]
        task.reset(task_id)
        solution = self.solution(task, task_id)
        half = len(solution) // 2
        for completion in solution[:half]:
            task.step(completion)
        state, prompt = task.snapshot(), task.prompt()
        rest = [task.step(completion) for completion in solution[half:]]
        assert rest[-1].success
        for restored in (task, task, other):
            restored.reset(restored.task_ids[-1])
            restored.restore(state)
            assert restored.prompt() == prompt
            assert [restored.step(completion) for completion in solution[half:]] == rest

    def _play(self, task: Task) -> list[Any]:
        task_id = task.task_ids[0]
        record: list[Any] = [task.reset(task_id)]
        for completion in (*self.solution(task, task_id)[:-1], "nonsense"):
            record += [task.prompt(), task.step(completion)]
        return record


def text(prompt: Prompt) -> str:
    """All words of a prompt."""
    return prompt if isinstance(prompt, str) else "\n".join(message.content for message in prompt)


def check(step: TaskStep) -> TaskStep:
    """Types and ranges of a step, which infos and rewards are made of."""
    assert isinstance(step, TaskStep)
    assert type(step.success) is bool
    assert type(step.done) is bool
    assert 0 <= step.score <= 1
    assert all(isinstance(part, str) for part in (step.action, step.observation, step.step_type))
    assert step.observation.strip()
    return step
