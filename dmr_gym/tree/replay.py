"""The vector environment on routing trees: no world and no LLM, only look-ups.

Shapes: B sub-environments, S states of all trees, P precisions, L history length, D embedding width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium.error import InvalidAction, ResetNeeded
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from dmr_gym.cache import CachedEncoder, CompletionCache
from dmr_gym.config import EnvConfig, check_count
from dmr_gym.encoders import make_encoder
from dmr_gym.episode import Accounts, EpisodeState, Rules, Turn
from dmr_gym.errors import ConfigError
from dmr_gym.history import checked_row
from dmr_gym.latency import make_latency_model
from dmr_gym.parts import Parts
from dmr_gym.tree.answers import TreeBackend, answer_table, check_trees
from dmr_gym.tree.graph import RoutingTree
from dmr_gym.types import (
    Completion,
    Encoder,
    FloatArray,
    IntArray,
    Request,
    SamplingParams,
    TaskStart,
    TaskStep,
)
from dmr_gym.vector import PrecisionRoutingVectorEnv

_NONE = np.zeros(0, dtype=np.int64)


class TreeVectorEnv(PrecisionRoutingVectorEnv):
    """`PrecisionRoutingVectorEnv` played on routing trees, with the same observations, rewards, ends and infos.

    Infos have no texts, whatever ``info_text`` says, as trees keep no prompts and no completions.

    Rows are embedded when they are first met. An episode that comes to a state which a tree's budget left open ends
    there, and its last reward also has the lower bound of whatever may follow (`dmr_gym.tree.values.episode_return`),
    so that leaving the tree never looks better than it is; ``info["left_tree"]`` tells. On complete trees it is always
    False.

    Args:
        trees: one a task: the panel.
        config: keywords of the environment; world, backend and sampling are the trees' own and count for nothing.
        num_envs: sub-environments B.
        autoreset_mode: "NextStep" or "Disabled", see `PrecisionRoutingVectorEnv`.
        encoder: a live encoder in place of the one that ``config`` names.
        copy: whether observations are copies. Without, `reset` and `step` return the same array each time, and what
            they returned before changes with it: faster where observations are used up at once.

    Raises:
        ConfigError: no trees, two of a task, another order of precisions or step cap than ``config`` has, or another
            autoreset mode.
    """

    def __init__(
        self,
        trees: Sequence[RoutingTree],
        config: EnvConfig,
        num_envs: int = 1,
        *,
        autoreset_mode: str | AutoresetMode = AutoresetMode.NEXT_STEP,
        encoder: Encoder | None = None,
        copy: bool = True,
    ) -> None:
        check_count("num_envs", num_envs)
        check_trees(trees, config)
        built: list[object] = []
        if encoder is None:
            store = CompletionCache(config.cache_dir)
            encoder = CachedEncoder(make_encoder(config.encoder), store)
            built = [encoder, store]
        rules = Rules(
            precisions=config.precisions,
            latency=make_latency_model(config.latency, config.precisions),
            lambda_=config.lambda_,
            max_steps=config.max_steps,
            history_length=config.history_length,
            dim=encoder.dim,
            sampling=SamplingParams(max_tokens=trees[0].max_tokens),
            invalid_action_penalty=config.invalid_action_penalty,
        )
        task_ids = tuple(tree.task_id for tree in trees)
        backend = TreeBackend(config.precisions, trees[0].settings.get("models", {}))
        self.render_mode = None
        self._set_up(Parts((), backend, encoder, rules, task_ids, tuple(built)), int(num_envs), autoreset_mode)
        if self.autoreset_mode is AutoresetMode.SAME_STEP:
            raise ConfigError('an environment on routing trees has the autoreset modes "NextStep" and "Disabled"')
        self._copy = copy
        self._n_precisions = len(rules.precisions)
        self._lay_out(trees)
        self._rows = np.zeros((len(self._texts), rules.dim), dtype=np.float32)
        self._has_row = np.zeros(len(self._texts), dtype=np.bool_)
        self._stack = np.zeros((num_envs, rules.history_length, rules.dim), dtype=np.float32)
        self._used = np.zeros(num_envs, dtype=np.int64)  # rows of each history; 0 before the first reset
        self._state = np.zeros(num_envs, dtype=np.int64)  # among those of all trees
        self._over = np.zeros(num_envs, dtype=np.bool_)
        self._number = np.zeros(num_envs, dtype=np.int64)  # of each one's tree
        self._steps = np.zeros(num_envs, dtype=np.int64)
        self._tokens = np.zeros(num_envs, dtype=np.int64)
        self._high_steps = np.zeros(num_envs, dtype=np.int64)
        self._latency_s = np.zeros(num_envs)
        self._trails: list[list[int]] = [[] for _ in range(num_envs)]  # answers of each episode so far

    @property
    def turns(self) -> tuple[tuple[Turn, ...], ...]:
        """For each sub-environment, the steps of its present episode; trees keep no prompts and no completions."""
        return tuple(tuple(self._turn(answer) for answer in trail) for trail in self._trails)

    @property
    def starts(self) -> tuple[TaskStart | None, ...]:
        """None for each sub-environment: trees keep a start as the one text that is embedded."""
        return (None,) * self.num_envs

    def step(
        self, actions: Any
    ) -> tuple[FloatArray, NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]:
        """Step every sub-environment; see `PrecisionRoutingVectorEnv.step`."""
        is_late = self._over if self.autoreset_mode is AutoresetMode.NEXT_STEP else np.zeros_like(self._over)
        stepping, resetting = np.flatnonzero(~is_late), np.flatnonzero(is_late)
        answers = self._state[stepping] * self._n_precisions + self._checked(actions, stepping)
        self._take(stepping, answers)
        if resetting.size:
            self._enter(resetting, [self._choose(i)[0] for i in resetting.tolist()])
        rewards = np.zeros(self.num_envs)
        rewards[stepping] = self._table["reward"][answers]
        infos = self._infos_of(stepping, answers, resetting)
        return self._observed(), rewards, self._over.copy(), np.zeros(self.num_envs, dtype=np.bool_), infos

    def snapshot(self) -> tuple[EpisodeState, ...]:
        """All B episodes as they stand."""
        if not self._used.all():
            raise ResetNeeded("there is no episode to take a snapshot of: call reset() first")
        return tuple(self._snapshot(i) for i in range(self.num_envs))

    def restore(self, states: Sequence[EpisodeState]) -> tuple[FloatArray, dict[str, Any]]:
        """Put B snapshots in place, of this environment or of another on the same trees, in any order."""
        states = self._listed("states", states, range(self.num_envs))
        trails = [state.task for state in states]
        self._enter(np.arange(self.num_envs), [state.start.task_id for state in states])
        for step in range(max(map(len, trails))):
            going = np.array([i for i, trail in enumerate(trails) if step < len(trail)], dtype=np.int64)
            self._take(going, np.array([trails[i][step] for i in going], dtype=np.int64))
        moved = np.array([i for i, trail in enumerate(trails) if trail], dtype=np.int64)
        last = np.array([trails[i][-1] for i in moved], dtype=np.int64)
        return self._observed(), self._infos_of(moved, last, np.setdiff1d(np.arange(self.num_envs), moved))

    def render(self) -> None:
        """Trees have no transcript to show."""

    def _begin(self, indices: Sequence[int], starts: Sequence[tuple[str, int]]) -> tuple[FloatArray, dict[str, Any]]:
        chosen = np.array(indices, dtype=np.int64)
        self._enter(chosen, [task_id for task_id, _ in starts])
        return self._observed(), self._infos_of(_NONE, _NONE, chosen)

    def _checked(self, actions: Any, stepping: IntArray) -> IntArray:
        actions = np.asarray(actions)
        if actions.shape != (self.num_envs,):
            raise InvalidAction(f"expected {self.num_envs} actions, got an array of shape {actions.shape}")
        if not self._used[stepping].all():
            raise ResetNeeded("cannot step before reset: call env.reset() first")
        if self._over[stepping].any():
            raise ResetNeeded("an episode is over: call env.reset() to start another")
        actions = actions[stepping]
        if actions.dtype.kind not in "iu" or not ((actions >= 0) & (actions < self._n_precisions)).all():
            raise InvalidAction(f"expected whole numbers below {self._n_precisions}, got {actions!r}")
        checked: IntArray = actions.astype(np.int64)
        return checked

    def _enter(self, indices: IntArray, task_ids: Sequence[str]) -> None:
        """Go to the starts of tasks."""
        self._number[indices] = [self._numbers[task_id] for task_id in task_ids]
        self._state[indices] = self._first[self._number[indices]]
        for array in (self._over, self._used, self._steps, self._tokens, self._high_steps, self._latency_s):
            array[indices] = 0
        self._stack[indices] = 0
        for i in indices.tolist():
            self._trails[i] = []
        self._append(indices, self._start_row[self._number[indices]])

    def _take(self, indices: IntArray, answers: IntArray) -> None:
        """Let sub-environments take the steps of answers."""
        table = self._table
        self._state[indices] = table["child"][answers]
        self._over[indices] = table["ends"][answers]
        self._steps[indices] += 1
        self._tokens[indices] += table["completion_tokens"][answers]
        self._high_steps[indices] += answers % self._n_precisions == self._n_precisions - 1
        # In the order in which an episode adds them up, so that the last bits agree.
        self._latency_s[indices] = self._latency_s[indices] + table["llm_s"][answers] + table["router_s"][answers]
        for i, answer in zip(indices.tolist(), answers.tolist(), strict=True):
            self._trails[i].append(answer)
        self._append(indices, table["row"][answers])

    def _append(self, indices: IntArray, texts: IntArray) -> None:
        """Add a row to histories; the oldest gives way where one is full."""
        new = np.unique(texts[~self._has_row[texts]])
        if new.size:
            found = self._parts.encoder.encode(self._texts[new].tolist())
            self._rows[new] = [checked_row(row, self._parts.rules.dim) for row in found]
            self._has_row[new] = True
        length = self._stack.shape[1]
        for i in indices[self._used[indices] == length].tolist():
            self._stack[i, :-1] = self._stack[i, 1:]
        place = np.minimum(self._used[indices], length - 1)
        self._stack[indices, place] = self._rows[texts]
        self._used[indices] = place + 1

    def _observed(self) -> FloatArray:
        return self._stack.copy() if self._copy else self._stack

    def _infos_of(self, stepped: IntArray, answers: IntArray, begun: IntArray) -> dict[str, Any]:
        """Infos of the sub-environments that have taken answers, and of those at the start of an episode."""
        table, steps = self._table, self._steps[stepped]
        llm_s, router_s = table["llm_s"][answers], table["router_s"][answers]
        columns = {
            "success": table["success"][answers],
            "is_success": table["success"][answers],
            "score": table["score"][answers],
            "precision": answers % self._n_precisions,
            "latency_s": llm_s + router_s,
            "latency_llm_s": llm_s,
            "latency_router_s": router_s,
            "completion_tokens": table["completion_tokens"][answers],
            "prompt_tokens": table["prompt_tokens"][answers],
            "invalid_action": table["invalid"][answers],
            "invalid_reason": self._texts[table["invalid_reason"][answers]],
            "step_type": self._texts[table["step_type"][answers]],
            "next_step_type": self._texts[table["next_step_type"][answers]],
            "step_index": steps,
            "task_id": self._ids[self._number[stepped]],
            "cap_reached": table["cap_reached"][answers],
            "high_precision_share": self._high_steps[stepped] / np.maximum(steps, 1),
            "episode_latency_s": self._latency_s[stepped],
            "episode_completion_tokens": self._tokens[stepped],
            "left_tree": table["left_tree"][answers],
        }
        infos: dict[str, Any] = columns
        if len(stepped) < self.num_envs:
            at_start = {"precision": -1, "invalid_reason": "", "step_type": "reset"}
            at_start["next_step_type"] = self._texts[self._start_type[self._number[begun]]]
            at_start["task_id"] = self._ids[self._number[begun]]
            infos = {}
            for name, values in columns.items():
                infos[name] = np.zeros(self.num_envs, dtype=values.dtype)
                if values.dtype == object:
                    infos[name][:] = None
                infos[name][stepped] = values
                infos[name][begun] = at_start.get(name, 0)
        known = np.zeros(self.num_envs, dtype=np.bool_)
        known[stepped] = known[begun] = True
        return infos | {f"_{name}": known.copy() for name in infos}

    def _turn(self, answer: int) -> Turn:
        one, parts = {name: values[answer] for name, values in self._table.items()}, self._parts
        prompt_tokens, completion_tokens = int(one["prompt_tokens"]), int(one["completion_tokens"])
        action, _, observation = str(self._texts[one["row"]]).partition("\n")
        step = TaskStep(
            action=action,
            observation=observation,
            score=float(one["score"]),
            done=bool(one["done"]),
            success=bool(one["success"]),
            step_type=self._texts[one["step_type"]],
            invalid_reason=self._texts[one["invalid_reason"]] if one["invalid"] else None,
            next_step_type=self._texts[one["next_step_type"]],
        )
        request = Request("", parts.rules.precisions[answer % self._n_precisions], parts.rules.sampling)
        completion = Completion("", prompt_tokens, completion_tokens, seconds=0.0, cached=True)
        return Turn(request, completion, step, float(one["llm_s"]), float(one["router_s"]), float(one["reward"]))

    def _snapshot(self, i: int) -> EpisodeState:
        start = int(self._number[i])
        first, _, rest = str(self._texts[self._start_row[start]]).partition("\n")
        sums = (float(self._latency_s[i]), int(self._tokens[i]), int(self._high_steps[i]))
        return EpisodeState(
            task=tuple(self._trails[i]),
            start=TaskStart(self._ids[start], first, rest, self._texts[self._start_type[start]]),
            sample_index=0,
            rows=tuple(row.copy() for row in self._stack[i, : self._used[i]]),
            turns=tuple(self._turn(answer) for answer in self._trails[i]),
            accounts=Accounts(*sums),
            over=bool(self._over[i]),
        )

    def _lay_out(self, trees: Sequence[RoutingTree]) -> None:
        """Join the trees: their states, answers and texts get common numbers."""
        texts: dict[str, int] = {}
        sizes = np.array([len(tree) for tree in trees], dtype=np.int64)
        self._first = np.cumsum(sizes) - sizes  # (number of trees,) each one's start
        parts = []
        rows, types = [], []
        for tree, first in zip(trees, self._first.tolist(), strict=True):
            number = np.array([texts.setdefault(text, len(texts)) for text in tree.texts], dtype=np.int64)
            rows.append(texts.setdefault(tree.start_text, len(texts)))
            types.append(texts.setdefault(tree.start_step_type, len(texts)))
            parts.append(answer_table(tree, self._parts.rules, first, number))
        self._table = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        self._start_row, self._start_type = np.array(rows, dtype=np.int64), np.array(types, dtype=np.int64)
        self._texts = np.array([*texts, None], dtype=object)[:-1]  # the None keeps NumPy from looking into the texts
        self._ids = np.array([*(tree.task_id for tree in trees), None], dtype=object)[:-1]
        self._numbers = {tree.task_id: index for index, tree in enumerate(trees)}
