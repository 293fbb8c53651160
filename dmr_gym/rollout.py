"""Play episodes: the only loop over ``env.step`` in the project.

Episodes fill the sub-environments of a vector environment; when one ends, the next task takes its place, so that the
batch of LLM calls stays full.

Shapes: B sub-environments, T steps of an episode, L history length, D embedding width.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from numpy.typing import NDArray

from dmr_gym.episode import Turn
from dmr_gym.errors import ConfigError
from dmr_gym.history import valid_mask
from dmr_gym.metrics import EpisodeResult
from dmr_gym.policies import Decisions, EpisodeKey, Policy, SlotPolicy
from dmr_gym.types import FloatArray, IntArray, TaskStart
from dmr_gym.vector import PrecisionRoutingVectorEnv


@dataclass(frozen=True, slots=True, eq=False)
class Trajectory:
    """One finished episode.

    Attributes:
        key: the task, and which of its repeats.
        rows: (T + 1, D) float32; rows[: t + 1] is what the decision of step t saw, and the last row follows the end.
        actions: (T,) int64 precision indices.
        rewards: (T,) float64, as the environment gave them.
        p_high: (T,) float32, see `Decisions`.
        logprobs: (T,) float32, see `Decisions`.
        router_called: (T,) bool, see `Decisions`.
        latency_llm_s: (T,) float64 seconds.
        latency_router_s: (T,) float64 seconds, as the environment charges them at every step.
        prompt_tokens: (T,) int64.
        completion_tokens: (T,) int64.
        step_types: T names, as in `dmr_gym.types.TaskStep`.
        success: the task was solved.
        score: task score in [0, 1] at the end.
        turns: the T calls with their texts, where they were asked for.
        start: instruction and first observation, where the turns were asked for.
    """

    key: EpisodeKey
    rows: FloatArray
    actions: IntArray
    rewards: NDArray[np.float64]
    p_high: FloatArray
    logprobs: FloatArray
    router_called: NDArray[np.bool_]
    latency_llm_s: NDArray[np.float64]
    latency_router_s: NDArray[np.float64]
    prompt_tokens: IntArray
    completion_tokens: IntArray
    step_types: tuple[str, ...]
    success: bool
    score: float
    turns: tuple[Turn, ...] = ()
    start: TaskStart | None = None

    @property
    def time_s(self) -> float:
        """T of Eq. 9 in seconds: router time counts only at steps that a router decided."""
        return float(self.latency_llm_s.sum() + self.latency_router_s[self.router_called].sum())

    def state_keys(self) -> list[str]:
        """A key of each decision's history: T texts, equal where rows[: t + 1] are equal byte for byte."""
        digest, keys = hashlib.sha256(), []
        for row in self.rows[:-1]:
            digest.update(row.tobytes())
            keys.append(digest.hexdigest())
        return keys

    def result(self, high: int) -> EpisodeResult:
        """Reduce to what an evaluation needs.

        Args:
            high: index of the highest precision.
        """
        return EpisodeResult(
            task_id=self.key.task_id,
            success=self.success,
            time_s=self.time_s,
            precision_steps=tuple(np.bincount(self.actions, minlength=high + 1).tolist()),
            completion_tokens=int(self.completion_tokens.sum()),
            seed=self.key.repeat,
            score=self.score,
        )


def mean_episode_reward(played: Sequence[Trajectory]) -> float:
    """Mean over episodes of the sum of the environment's rewards: by this number trainings choose their best router.

    That is success - λ·T (Eq. 8), router time at every step, less the price of invalid actions where there is one.
    """
    return float(np.mean([trajectory.rewards.sum() for trajectory in played]))


class _Recorder:
    """Collects the steps of the episode that one sub-environment plays."""

    def __init__(self, index: int, key: EpisodeKey, first_row: FloatArray) -> None:
        self.index = index
        self.key = key
        self.rows = [first_row]
        self.decisions: list[tuple[int, float, float, bool]] = []
        self.rewards: list[float] = []
        self.infos: list[dict[str, Any]] = []

    def decide(self, decided: Decisions, place: int) -> None:
        fields = (decided.actions, decided.p_high, decided.logprobs, decided.router_called)
        self.decisions.append(tuple(field[place] for field in fields))

    def add(self, slot: int, reward: float, row: FloatArray, infos: Mapping[str, Any]) -> None:
        self.rewards.append(reward)
        self.rows.append(row)
        self.infos.append({name: infos[name][slot] for name in _INFOS})

    def trajectory(self, turns: tuple[Turn, ...], start: TaskStart | None) -> Trajectory:
        actions, p_high, logprobs, router_called = zip(*self.decisions, strict=True)
        series = {name: [info[name] for info in self.infos] for name in _INFOS}
        return Trajectory(
            key=self.key,
            rows=np.stack(self.rows),
            actions=np.array(actions, dtype=np.int64),
            rewards=np.array(self.rewards, dtype=np.float64),
            p_high=np.array(p_high, dtype=np.float32),
            logprobs=np.array(logprobs, dtype=np.float32),
            router_called=np.array(router_called, dtype=np.bool_),
            latency_llm_s=np.array(series["latency_llm_s"], dtype=np.float64),
            latency_router_s=np.array(series["latency_router_s"], dtype=np.float64),
            prompt_tokens=np.array(series["prompt_tokens"], dtype=np.int64),
            completion_tokens=np.array(series["completion_tokens"], dtype=np.int64),
            step_types=tuple(series["step_type"]),
            success=bool(series["success"][-1]),
            score=float(series["score"][-1]),
            turns=turns,
            start=start,
        )


_INFOS = (
    "latency_llm_s",
    "latency_router_s",
    "prompt_tokens",
    "completion_tokens",
    "step_type",
    "success",
    "score",
)


def rollout(
    envs: VectorEnv[Any, Any, Any],
    policy: Policy,
    task_ids: Iterable[str],
    *,
    repeats: int = 1,
    first_repeat: int = 0,
    keep_turns: bool = False,
    on_episode: Callable[[Trajectory], object] | None = None,
    progress: str | None = None,
) -> list[Trajectory]:
    """Play each task, ``repeats`` times, and return the episodes in the order of the tasks, repeats side by side.

    Where servers answer one by one, and the policy is a `SlotPolicy`, each episode goes at its own pace: it asks for
    its next step while others still wait, so that the servers have as many calls as there are sub-environments. Else
    all go in step. Episodes are the same either way.

    Args:
        envs: with ``autoreset_mode="Disabled"``. A sub-environment for which no task is left plays over what was
            played before, or plays what another plays: its answers are in the cache, and the outcome is dropped.
        policy: decides every step.
        task_ids: of the environment's panel; each is played exactly ``repeats`` times.
        repeats: episodes a task, for example the group size of GRPO. The repeat is also the sample index, so at a
            temperature above 0 the LLM's draws differ between repeats.
        first_repeat: number of the first of them, so that repeats can also be played in calls of their own.
        keep_turns: keep prompts and completions in the trajectories.
        on_episode: called with each trajectory as it ends, in order of ending; a mapping that it returns, names to
            texts, is shown at the progress bar.
        progress: title of a progress bar on the terminal; None shows none.

    Raises:
        ConfigError: another autoreset mode, ``repeats`` below 1, or ``first_repeat`` below 0.
        BackendError: the backend cannot answer. What it had answered by then is in the cache, if there is one.
    """
    if envs.metadata.get("autoreset_mode") is not AutoresetMode.DISABLED:
        raise ConfigError(
            'rollout chooses the tasks itself: make the vector environment with autoreset_mode="Disabled"'
        )
    if repeats < 1:
        raise ConfigError(f"repeats must be at least 1, got {repeats}")
    if first_repeat < 0:
        raise ConfigError(f"first_repeat must be at least 0, got {first_repeat}")
    numbers = range(first_repeat, first_repeat + repeats)
    keys = [EpisodeKey(task_id, repeat) for task_id in task_ids for repeat in numbers]
    if not keys:
        return []
    return _Rollout(envs, policy, keys, keep_turns).run(on_episode, progress)


class _Rollout:
    """The state of one call of `rollout`: who plays what, and what has ended."""

    def __init__(
        self, envs: VectorEnv[Any, Any, Any], policy: Policy, keys: list[EpisodeKey], keep_turns: bool
    ) -> None:
        self.envs = envs
        self.policy = policy
        self.keys = keys
        self.keep_turns = keep_turns
        self.queue = iter(enumerate(keys))
        self.playing: list[_Recorder | None] = [None] * envs.num_envs  # None: what is played there is dropped
        self.started = [key for key, _ in zip(_cycle(keys), range(envs.num_envs), strict=False)]
        self.done: dict[int, Trajectory] = {}

    def run(self, on_episode: Callable[[Trajectory], object] | None, progress: str | None) -> list[Trajectory]:
        from tqdm import tqdm

        # A log file gets a line every ten seconds, not a screenful.
        interval = 0.2 if sys.stderr.isatty() else 10.0
        with (
            tqdm(
                total=len(self.keys), desc=progress, unit="episode", disable=progress is None, mininterval=interval
            ) as bar,
            closing(self._ended()) as ended,
        ):
            for trajectory in ended:
                figures = None if on_episode is None else on_episode(trajectory)
                if isinstance(figures, Mapping):
                    bar.set_postfix(figures, refresh=False)
                bar.update()
        return [self.done[index] for index in range(len(self.keys))]

    def _ended(self) -> Generator[Trajectory, None, None]:
        """Play, and yield the episodes as they end."""
        envs, policy = self.envs, self.policy
        if isinstance(envs, PrecisionRoutingVectorEnv) and envs.is_streaming and isinstance(policy, SlotPolicy):
            try:
                yield from self._each_at_its_pace(envs, policy)
            finally:
                envs.give_up()
        else:
            yield from self._in_step()

    def _in_step(self) -> Iterator[Trajectory]:
        everyone = range(self.envs.num_envs)
        observations, infos = self._begin({slot: next(self.queue, None) for slot in everyone})
        while len(self.done) < len(self.keys):
            decided = self.policy.act(observations, infos)
            self._note(everyone, decided)
            observations, rewards, terminated, truncated, infos = self.envs.step(decided.actions)
            over = np.asarray(terminated | truncated, dtype=np.bool_)
            self._record(everyone, rewards, observations, infos)
            ended = np.flatnonzero(over).tolist()
            yield from self._collect(ended)
            if ended and len(self.done) < len(self.keys):
                observations, fresh = self._begin({slot: next(self.queue, None) for slot in ended})
                for name in infos.keys() & fresh.keys():
                    infos[name][over] = fresh[name][over]

    def _each_at_its_pace(self, envs: PrecisionRoutingVectorEnv, policy: SlotPolicy) -> Iterator[Trajectory]:
        slots = list(range(min(envs.num_envs, len(self.keys))))
        observations, infos = self._begin({slot: next(self.queue) for slot in slots})
        observations, ended = observations[slots], list[Trajectory]()
        while len(self.done) < len(self.keys):
            if slots:
                decided = policy.act_in(slots, observations, infos)
                self._note(slots, decided)
                envs.send(slots, decided.actions)
            yield from ended  # what is done with them takes no time from the servers
            slots, observations, rewards, over, infos = envs.receive()
            self._record(slots, rewards, observations, infos)
            ended = self._collect([slot for slot, is_over in zip(slots, over, strict=True) if is_over])
            fresh = {slot: item for slot in slots if self.playing[slot] is None and (item := next(self.queue, None))}
            if fresh:
                begun, new_infos = self._begin(fresh)
                observations[[slots.index(slot) for slot in fresh]] = begun[list(fresh)]
                for name in infos.keys() & new_infos.keys():
                    infos[name][list(fresh)] = new_infos[name][list(fresh)]
            going = [place for place, slot in enumerate(slots) if self.playing[slot] is not None]
            if len(going) < len(slots):
                slots, observations = [slots[place] for place in going], observations[going]
        yield from ended

    def _begin(self, taken: Mapping[int, tuple[int, EpisodeKey] | None]) -> tuple[FloatArray, dict[str, Any]]:
        """Start a task in each of these slots, or for None the one that was played there last again."""
        slots, mask = list(taken), np.zeros(self.envs.num_envs, dtype=np.bool_)
        mask[slots] = True
        for slot, item in taken.items():
            self.started[slot] = item[1] if item is not None else self.started[slot]
        options = {
            "reset_mask": mask,
            "task_id": [key.task_id for key in self.started],
            "sample_index": [key.repeat for key in self.started],
        }
        observations, infos = self.envs.reset(options=options)
        rows = _newest_rows(observations[slots])
        for row, (slot, item) in zip(rows, taken.items(), strict=True):
            self.playing[slot] = None if item is None else _Recorder(*item, row)
        self.policy.reset(slots, [self.started[slot] for slot in slots], self.envs.num_envs)
        return observations, infos

    def _note(self, slots: Sequence[int], decided: Decisions) -> None:
        for place, slot in enumerate(slots):
            if (recorder := self.playing[slot]) is not None:
                recorder.decide(decided, place)

    def _record(self, slots: Sequence[int], rewards: Any, observations: FloatArray, infos: Mapping[str, Any]) -> None:
        rows = _newest_rows(observations)
        for place, slot in enumerate(slots):
            if (recorder := self.playing[slot]) is not None:
                recorder.add(slot, float(rewards[place]), rows[place], infos)

    def _collect(self, slots: Sequence[int]) -> list[Trajectory]:
        """Take the episodes that have ended in these slots."""
        ended = []
        unwrapped: Any = self.envs.unwrapped
        kept = list(zip(unwrapped.turns, unwrapped.starts, strict=True)) if self.keep_turns and slots else None
        for slot in slots:
            recorder, self.playing[slot] = self.playing[slot], None
            if recorder is not None:
                trajectory = recorder.trajectory(*(kept[slot] if kept is not None else ((), None)))
                self.done[recorder.index] = trajectory
                ended.append(trajectory)
        return ended


def _newest_rows(observations: FloatArray) -> FloatArray:
    """The last valid row of each sub-environment: (B, L, D) -> (B, D), sharing no memory."""
    last = valid_mask(observations).sum(axis=1) - 1
    rows: FloatArray = observations[np.arange(len(observations)), last]
    return rows


def _cycle(keys: Sequence[EpisodeKey]) -> Iterable[EpisodeKey]:
    while True:
        yield from keys
