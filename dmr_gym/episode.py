"""One episode: a task, its history and its accounts, the same for the single and the vector environment.

A step goes through three calls, so that a vector environment can batch what lies between them::

    request = episode.request(action)          # then the backend completes it
    text = episode.apply(request, completion)  # then the encoder embeds it
    episode.append(embedding)                  # then reward, observation and info are ready
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from gymnasium.error import InvalidAction, ResetNeeded

from dmr_gym.config import unknown_name
from dmr_gym.errors import ConfigError, TaskError
from dmr_gym.history import History
from dmr_gym.latency import cached_prompt_tokens
from dmr_gym.types import (
    Completion,
    FloatArray,
    LatencyModel,
    LLMCall,
    Request,
    SamplingParams,
    Task,
    TaskStart,
    TaskStep,
)

RESET_OPTIONS = ("task_id", "sample_index")


@dataclass(frozen=True)
class Rules:
    """What all episodes of an environment have in common.

    Attributes:
        precisions: names in ascending precision.
        latency: prices calls in seconds.
        lambda_: reward per second of latency that is taken off.
        max_steps: step cap.
        history_length: rows L of the observation.
        dim: embedding width D.
        sampling: how completions are decoded.
        info_text: whether info carries texts too.
        invalid_action_penalty: reward that an invalid action costs; not part of Eq. 8.
    """

    precisions: tuple[str, ...]
    latency: LatencyModel
    lambda_: float
    max_steps: int
    history_length: int
    dim: int
    sampling: SamplingParams = field(default_factory=SamplingParams)
    info_text: bool = False
    invalid_action_penalty: float = 0.0


class Turn(NamedTuple):
    """One step: the call, its answer, what it did to the world, and what it cost (seconds; its part of the reward)."""

    request: Request
    completion: Completion
    step: TaskStep
    latency_llm_s: float
    latency_router_s: float
    reward: float


class Accounts(NamedTuple):
    """Sums over the steps of an episode so far; ``high_steps`` counts those at the highest precision."""

    latency_s: float = 0.0
    completion_tokens: int = 0
    high_steps: int = 0


@dataclass(frozen=True, slots=True)
class EpisodeState:
    """An episode at some time. It shares what cannot change, so that keeping thousands of them is cheap."""

    task: Any
    start: TaskStart
    sample_index: int
    rows: tuple[FloatArray, ...]
    turns: tuple[Turn, ...]
    accounts: Accounts
    over: bool


def choose_start(
    rng: np.random.Generator, task_ids: Sequence[str], options: Mapping[str, Any] | None, temperature: float
) -> tuple[str, int]:
    """Pick the task and the sample index of a new episode.

    Args:
        rng: the only source of chance.
        task_ids: the panel.
        options: may pin "task_id" and "sample_index"; None values are drawn.
        temperature: at 0 completions do not depend on the sample index, and none is drawn.

    Raises:
        ConfigError: for an unknown option or a sample index that is no whole number.
        TaskError: for a task id that is not in the panel.
    """
    options = options or {}
    for key in options:
        if key not in RESET_OPTIONS:
            raise ConfigError(unknown_name("reset option", key, RESET_OPTIONS))
    task_id, sample_index = options.get("task_id"), options.get("sample_index")
    if task_id is None:
        task_id = task_ids[int(rng.integers(len(task_ids)))]
    elif task_id not in task_ids:
        raise TaskError(unknown_name("task id", task_id, task_ids))
    if sample_index is None:
        sample_index = int(rng.integers(2**31)) if temperature > 0 else 0
    elif not isinstance(sample_index, int | np.integer) or sample_index < 0:
        raise ConfigError(f"sample_index must be a whole number of at least 0, got {sample_index!r}")
    return task_id, int(sample_index)


def priced_call(request: Request, completion: Completion, turns: Sequence[Turn]) -> LLMCall:
    """What a latency model is asked to price: a pure function of the episode, so snapshots need no state of servers.

    Args:
        request: the call.
        completion: its answer.
        turns: of the episode before it; the last one of the same precision tells what its server has cached.
    """
    before = next((turn for turn in reversed(turns) if turn.request.precision == request.precision), None)
    cached = 0
    if before is not None:
        cached = cached_prompt_tokens(request.prompt, completion.prompt_tokens, before.request, before.completion)
    return LLMCall(
        precision=request.precision,
        prompt_tokens=completion.prompt_tokens,
        completion_tokens=completion.completion_tokens,
        cached_tokens=cached,
        seconds=completion.seconds,
    )


class Episode:
    """The state of one episode and the rules it is played by.

    Args:
        task: the world; this episode alone uses it.
        rules: see `Rules`.
    """

    def __init__(self, task: Task, rules: Rules) -> None:
        self.task = task
        self.rules = rules
        self.start: TaskStart | None = None
        self.turns: tuple[Turn, ...] = ()
        self.over = False
        self._sample_index = 0
        self._accounts = Accounts()
        self._history = History(rules.history_length, rules.dim)
        self._precision_index = {name: index for index, name in enumerate(rules.precisions)}
        self._awaits_embedding = True

    def begin(self, task_id: str, sample_index: int) -> str:
        """Start a new episode and return the text of the first row: the instruction and the first observation."""
        self._awaits_embedding = True
        self.start = self.task.reset(task_id)
        self.turns, self.over, self._sample_index = (), False, sample_index
        self._accounts = Accounts()
        self._history.clear()
        return f"{self.start.instruction}\n{self.start.observation}"

    def request(self, action: Any) -> Request:
        """The LLM call that an action stands for. Changes nothing.

        Raises:
            ResetNeeded: before the first reset and after the end.
            InvalidAction: for an action outside the space.
        """
        if self.start is None or self._awaits_embedding:
            raise ResetNeeded("cannot step before reset: call env.reset() first")
        if self.over:
            raise ResetNeeded("this episode is over: call env.reset() to start another")
        precisions = self.rules.precisions
        try:
            index = operator.index(action)
        except TypeError:
            index = -1
        if not 0 <= index < len(precisions):
            meaning = ", ".join(f"{i} = {name}" for i, name in enumerate(precisions))
            raise InvalidAction(f"expected an action among {meaning}, got {action!r}")
        # Repeats of one task begin alike, so one server's prefix cache serves them all best.
        session = f"{self.start.task_id}#{self._sample_index}"
        return Request(self.task.prompt(), precisions[index], self.rules.sampling, self._sample_index, session)

    def apply(self, request: Request, completion: Completion) -> str:
        """Carry out a completion, book what it cost, and return the text of its row.

        The reward is 1 at the end of a solved episode, less lambda_ times the step's latency: its sum is
        R = r_success − λ·T (Eq. 8) with T of Eq. 9. Where the rules set a penalty, an invalid action costs that too.
        """
        rules, accounts = self.rules, self._accounts
        self._awaits_embedding = True
        step = self.task.step(completion.text)
        call = priced_call(request, completion, self.turns)
        llm_s, router_s = rules.latency.llm_seconds(call), rules.latency.router_seconds(call)
        reward = float(step.success) - rules.lambda_ * (llm_s + router_s)
        if step.invalid_reason is not None:
            reward -= rules.invalid_action_penalty
        self.turns = (*self.turns, Turn(request, completion, step, llm_s, router_s, reward))
        self._accounts = Accounts(
            accounts.latency_s + llm_s + router_s,
            accounts.completion_tokens + completion.completion_tokens,
            accounts.high_steps + (request.precision == rules.precisions[-1]),
        )
        self.over = step.success or step.done or len(self.turns) >= rules.max_steps
        return f"{step.action}\n{step.observation}"

    def append(self, embedding: FloatArray) -> None:
        """Add the row of the last text: its embedding, (D,) float32 of unit norm."""
        self._history.append(embedding)
        self._awaits_embedding = False

    def observation(self, out: FloatArray | None = None) -> FloatArray:
        """Copy the observation.

        Args:
            out: (L, D) float32 to write into; None makes a new array.

        Returns:
            (L, D) float32, oldest row first, unused rows zero.
        """
        return self._history.observation(out)

    def info(self) -> dict[str, Any]:
        """What the last step did: a new flat dictionary, always with the same keys (see `PrecisionRoutingEnv`)."""
        assert self.start is not None
        accounts, steps = self._accounts, len(self.turns)
        turn = self.turns[-1] if self.turns else None
        step, completion = (turn.step, turn.completion) if turn else (_NO_STEP, _NO_COMPLETION)
        llm_s, router_s = (turn.latency_llm_s, turn.latency_router_s) if turn else (0.0, 0.0)
        info = {
            "success": step.success,
            "is_success": step.success,
            "score": float(step.score),
            "precision": self._precision_index[turn.request.precision] if turn else -1,
            "latency_s": llm_s + router_s,
            "latency_llm_s": llm_s,
            "latency_router_s": router_s,
            "completion_tokens": completion.completion_tokens,
            "prompt_tokens": completion.prompt_tokens,
            "invalid_action": step.invalid_reason is not None,
            "invalid_reason": step.invalid_reason or "",
            "step_type": step.step_type,
            "next_step_type": step.next_step_type if turn else self.start.next_step_type,
            "step_index": steps,
            "task_id": self.start.task_id,
            "cap_reached": self.over and not (step.success or step.done),
            "high_precision_share": accounts.high_steps / steps if steps else 0.0,
            "episode_latency_s": accounts.latency_s,
            "episode_completion_tokens": accounts.completion_tokens,
        }
        if self.rules.info_text:
            info |= {
                "action": step.action,
                "observation": step.observation if turn else self.start.observation,
                "completion": completion.text,
                "cache_hit": completion.cached,
            }
        return info

    def snapshot(self) -> EpisodeState:
        """The present state, to `restore` later.

        Raises:
            ResetNeeded: before the first reset.
        """
        if self.start is None or self._awaits_embedding:
            raise ResetNeeded("there is no episode to take a snapshot of: call env.reset() first")
        rows = self._history.rows
        return EpisodeState(
            self.task.snapshot(), self.start, self._sample_index, rows, self.turns, self._accounts, self.over
        )

    def restore(self, state: EpisodeState) -> None:
        """Go back to a snapshot, taken here or in an environment with the same settings."""
        self.task.restore(state.task)
        self.start, self._sample_index, self.turns = state.start, state.sample_index, state.turns
        self._accounts, self.over, self._awaits_embedding = state.accounts, state.over, False
        self._history.restore(state.rows)


_NO_STEP = TaskStep(action="", observation="", score=0.0, done=False, success=False, step_type="reset")
_NO_COMPLETION = Completion(text="", prompt_tokens=0, completion_tokens=0, seconds=0.0)
