"""The environment for N tasks at once: one batch of LLM calls and one batch of embeddings a step."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from gymnasium.error import InvalidAction, ResetNeeded
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from dmr_gym.backends.streaming import Stream, generate_each, is_streaming, open_stream
from dmr_gym.config import EnvConfig, check_count, unknown_name
from dmr_gym.episode import EpisodeState, Turn, choose_start
from dmr_gym.errors import ConfigError
from dmr_gym.parts import Parts, build_parts, routing_spaces
from dmr_gym.render import check_render_mode, render_frame
from dmr_gym.types import Backend, FloatArray, Request, TaskStart


class PrecisionRoutingVectorEnv(VectorEnv[FloatArray, NDArray[np.int64], NDArray[Any]]):
    """N copies of `PrecisionRoutingEnv` that share one backend, encoder and cache.

    Observations, rewards, ends and infos are those of the single environment for the same seeds and actions; only the
    calls are batched. Two things depend on the batch: with ``info_text``, cache_hit (equal calls of a batch are
    computed once), and the last bits of MiniLM embeddings, which agree to about 1e-6; they are byte-equal with
    `HashEncoder`, or with a ``cache_dir`` that both environments share. ``gymnasium.make_vec(id, num_envs=N)`` makes
    one.

    Args:
        num_envs: sub-environments N.
        autoreset_mode: "NextStep" (a step after the end resets and ignores its action), "SameStep" (the last step
            resets; infos carry final_obs and final_info), or "Disabled" (reset with ``options={"reset_mask": ...}``).
        render_mode: "ansi", "rgb_array" or None.
        **settings: keywords of `PrecisionRoutingEnv`. A live ``task`` object cannot be shared, so ``task`` is a kind.

    Raises:
        ConfigError: for a setting that is unknown or out of range.
    """

    def __init__(
        self,
        num_envs: int = 1,
        *,
        autoreset_mode: str | AutoresetMode = AutoresetMode.NEXT_STEP,
        render_mode: str | None = None,
        **settings: Any,
    ) -> None:
        defaults = EnvConfig().kwargs()
        for key in settings:
            if key not in defaults:
                raise ConfigError(unknown_name("PrecisionRoutingVectorEnv setting", key, defaults))
        check_count("num_envs", num_envs)
        self.render_mode = check_render_mode(render_mode, ["ansi", "rgb_array"])
        self._set_up(build_parts(defaults | settings, copies=int(num_envs)), int(num_envs), autoreset_mode)

    def _set_up(self, parts: Parts, num_envs: int, autoreset_mode: str | AutoresetMode) -> None:
        self.num_envs = num_envs
        self.autoreset_mode = _autoreset_mode(autoreset_mode)
        self.metadata = {"render_modes": ["ansi", "rgb_array"], "render_fps": 2, "autoreset_mode": self.autoreset_mode}
        self._parts = parts
        self._stream: Stream | None = None
        self._under_way: dict[int, Request] = {}
        self._rngs: list[tuple[np.random.Generator, int] | None] = [None] * num_envs
        self.single_observation_space, self.single_action_space = routing_spaces(parts.rules)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)

    @property
    def precisions(self) -> tuple[str, ...]:
        """Names of the actions, in ascending precision."""
        return self._parts.rules.precisions

    @property
    def task_ids(self) -> Sequence[str]:
        """Ids of the panel, for ``reset(options={"task_id": ...})``."""
        return self._parts.task_ids

    def keep_tasks(self, task_ids: Sequence[str]) -> None:
        """Draw from some tasks of the panel alone, where `reset` is told none; `task_ids` are these from then on.

        Args:
            task_ids: of the panel, at least one.

        Raises:
            ConfigError: none, or one that the panel has not.
        """
        unknown = sorted(set(task_ids) - set(self.task_ids))
        if unknown or not task_ids:
            came = f"{unknown[0]!r}, which it has not" if unknown else "none"
            raise ConfigError(f"expected tasks of the panel of {len(self.task_ids)}, got {came}")
        self._parts = dataclasses.replace(self._parts, task_ids=tuple(task_ids))

    @property
    def is_streaming(self) -> bool:
        """Whether answers come one by one, so that `send` and `receive` gain something over `step`."""
        return is_streaming(self._parts.backend)

    @property
    def backend(self) -> Backend:
        """The LLM copies, for example to ask for their token distributions."""
        return self._parts.backend

    @property
    def turns(self) -> tuple[tuple[Turn, ...], ...]:
        """For each sub-environment, the steps of its present episode with their prompts and completions."""
        return tuple(episode.turns for episode in self._parts.episodes)

    @property
    def starts(self) -> tuple[TaskStart | None, ...]:
        """For each sub-environment, how its present episode began; None before the first reset."""
        return tuple(episode.start for episode in self._parts.episodes)

    @property  # type: ignore[misc]  # as in gymnasium's SyncVectorEnv
    def np_random(self) -> tuple[np.random.Generator, ...]:  # type: ignore[override]
        """The random generator of each sub-environment."""
        return tuple(self._rng(i)[0] for i in range(self.num_envs))

    @property
    def np_random_seed(self) -> tuple[int, ...]:  # type: ignore[override]  # as in gymnasium's SyncVectorEnv
        """The seed of each sub-environment's random generator."""
        return tuple(self._rng(i)[1] for i in range(self.num_envs))

    def __setattr__(self, name: str, value: Any) -> None:
        """Keep the spec that `gymnasium.make_vec` sets plain data, so that it goes to JSON."""
        if name == "spec" and value is not None and isinstance(value.kwargs.get("autoreset_mode"), AutoresetMode):
            value = dataclasses.replace(
                value, kwargs=value.kwargs | {"autoreset_mode": value.kwargs["autoreset_mode"].value}
            )
        super().__setattr__(name, value)

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[FloatArray, dict[str, Any]]:
        """Start episodes.

        Args:
            seed: an int gives sub-environment i the seed ``seed + i``; a list gives each its own (a group of G equal
                episodes is ``[s] * G``); None goes on drawing.
            options: as in the single environment, each value for all or a list of N; and "reset_mask", an (N,) bool
                array with the sub-environments to reset (all without it).

        Returns:
            Observations (N, L, D), and infos with entries where an episode began.
        """
        options = dict(options or {})
        chosen = self._reset_indices(options.pop("reset_mask", None))
        self._check_idle(chosen)
        seeds = [seed + i for i in range(self.num_envs)] if isinstance(seed, int | np.integer) else seed
        each = self._split(options)
        for i, one in zip(chosen, self._listed("seed", seeds, chosen), strict=True):
            if one is not None:
                self._rngs[i] = seeding.np_random(one)
        return self._begin(chosen, [self._choose(i, each[i]) for i in chosen])

    def _begin(self, indices: Sequence[int], starts: Sequence[tuple[str, int]]) -> tuple[FloatArray, dict[str, Any]]:
        """Start episodes by task id and sample index; return what reset does."""
        self._observe(
            indices, [self._parts.episodes[i].begin(*start) for i, start in zip(indices, starts, strict=True)]
        )
        return self._observations(), self._infos(indices)

    def step(
        self, actions: Any
    ) -> tuple[FloatArray, NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]:
        """Step every sub-environment.

        Args:
            actions: (N,) integers, indices into `precisions`.

        Returns:
            Observations (N, L, D) float32, rewards (N,) float64, terminated and truncated (N,) bool, and infos: arrays
            over the sub-environments with a ``_key`` mask for each key.

        Raises:
            InvalidAction, ResetNeeded, BackendError: as in the single environment; nothing has changed then.
        """
        actions = np.asarray(actions)
        if actions.shape != (self.num_envs,):
            raise InvalidAction(f"expected {self.num_envs} actions, got an array of shape {actions.shape}")
        self._check_idle(range(self.num_envs))
        episodes, mode = self._parts.episodes, self.autoreset_mode
        resetting = [i for i, e in enumerate(episodes) if e.over] if mode is AutoresetMode.NEXT_STEP else []
        stepping = [i for i in range(self.num_envs) if i not in resetting]
        self._carry_out(stepping, [episodes[i].request(actions[i]) for i in stepping], resetting)

        rewards = np.zeros(self.num_envs)
        rewards[stepping] = [episodes[i].turns[-1].reward for i in stepping]
        terminated = np.array([episode.over for episode in episodes], dtype=np.bool_)
        infos: dict[str, Any] = {}
        if mode is AutoresetMode.SAME_STEP and terminated.any():
            infos = self._reset_at_once(np.flatnonzero(terminated).tolist())
        infos = self._infos(range(self.num_envs), infos)
        return self._observations(), rewards, terminated, np.zeros(self.num_envs, dtype=np.bool_), infos

    def send(self, indices: Sequence[int], actions: Sequence[int] | NDArray[np.int64]) -> None:
        """Begin a step in some sub-environments, which `receive` ends: each goes at its own pace.

        Args:
            indices: n of them.
            actions: n integers, theirs.

        Raises:
            ConfigError: an index twice, or one that there is not.
            InvalidAction, ResetNeeded, BackendError: as `step`; nothing has changed then.
        """
        if len(actions) != len(indices):
            raise InvalidAction(f"expected {len(indices)} actions, one a sub-environment, got {len(actions)}")
        if len(set(indices)) < len(indices) or not set(indices) <= set(range(self.num_envs)):
            raise ConfigError(f"expected each index once, and below {self.num_envs}, got {list(indices)}")
        self._check_idle(indices)
        requests = {i: self._parts.episodes[i].request(action) for i, action in zip(indices, actions, strict=True)}
        if self._stream is None:
            self._stream = open_stream(self._parts.backend)
        self._stream.send(requests)
        self._under_way |= requests

    def receive(self) -> tuple[list[int], FloatArray, NDArray[np.float64], NDArray[np.bool_], dict[str, Any]]:
        """Wait until a step ends that `send` began. An episode that is over waits for `reset`, in any autoreset mode.

        Returns:
            Indices of the n sub-environments whose steps have ended; their observations (n, L, D) float32, rewards (n,)
            float64, and terminated (n,) bool; and infos as `step` has them, with entries for these n.

        Raises:
            BackendError: a request cannot be answered. What is under way is given up, and its steps can be sent again.
        """
        episodes, before = self._parts.episodes, {}
        if self._stream is None or not self._under_way:
            raise ResetNeeded("no step is under way: call envs.send() first")
        try:
            group = self._stream.receive()
            indices = [i for i, _ in group]
            before = {i: episodes[i].snapshot() for i in indices}
            self._observe(indices, [episodes[i].apply(self._under_way[i], completion) for i, completion in group])
        except BaseException:
            self.give_up()
            for i, state in before.items():
                episodes[i].restore(state)
            raise
        for i in indices:
            del self._under_way[i]
        observations = self._observations(indices)
        rewards = np.array([episodes[i].turns[-1].reward for i in indices])
        over = np.array([episodes[i].over for i in indices], dtype=np.bool_)
        return indices, observations, rewards, over, self._infos(indices)

    def give_up(self) -> None:
        """Drop the steps under way; their episodes are as before them."""
        self._under_way = {}
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def snapshot(self) -> tuple[EpisodeState, ...]:
        """All N episodes as they stand."""
        return tuple(episode.snapshot() for episode in self._parts.episodes)

    def restore(self, states: Sequence[EpisodeState]) -> tuple[FloatArray, dict[str, Any]]:
        """Put N snapshots in place, of this environment or of others with the same settings, in any order.

        Returns:
            Observations and infos, as reset does.
        """
        everyone = range(self.num_envs)
        self._check_idle(everyone)
        for i, state in zip(everyone, self._listed("states", states, everyone), strict=True):
            self._parts.episodes[i].restore(state)
        return self._observations(), self._infos(everyone)

    def render(self) -> tuple[Any, ...] | None:
        """One frame a sub-environment; None without a render mode."""
        if self.render_mode is None:
            return None
        if any(episode.start is None for episode in self._parts.episodes):
            raise ResetNeeded("cannot render before reset: call envs.reset() first")
        return tuple(render_frame(self.render_mode, episode) for episode in self._parts.episodes)

    def close_extras(self, **kwargs: Any) -> None:
        """Close the cache and whatever else this environment has opened; live objects of the caller stay open."""
        self.give_up()
        self._parts.close()

    def _check_idle(self, indices: Iterable[int]) -> None:
        busy = sorted(self._under_way.keys() & set(indices))
        if busy:
            raise ResetNeeded(f"steps are under way in sub-environments {busy}: call envs.receive() or envs.give_up()")

    def _carry_out(self, stepping: list[int], requests: Sequence[Request], resetting: list[int]) -> None:
        """Let answers reach their episodes as they come, then start new ones; an error of the backend undoes it."""
        episodes = self._parts.episodes
        left = len(stepping)
        before: dict[int, EpisodeState] = {}
        try:
            for group in generate_each(self._parts.backend, requests) if requests else [[]]:
                left -= len(group)
                indices = [stepping[i] for i, _ in group]
                if left:
                    before |= {i: episodes[i].snapshot() for i in indices}
                texts = [episodes[stepping[i]].apply(requests[i], completion) for i, completion in group]
                if not left:
                    indices += resetting
                    texts += [episodes[i].begin(*self._choose(i)) for i in resetting]
                self._observe(indices, texts)
        except BaseException:
            for i, state in before.items():
                episodes[i].restore(state)
            raise

    def _choose(self, i: int, options: dict[str, Any] | None = None) -> tuple[str, int]:
        temperature = self._parts.rules.sampling.temperature
        return choose_start(self._rng(i)[0], self._parts.task_ids, options, temperature)

    def _rng(self, i: int) -> tuple[np.random.Generator, int]:
        rng = self._rngs[i]
        if rng is None:
            rng = self._rngs[i] = seeding.np_random()
        return rng

    def _observe(self, indices: Sequence[int], texts: Sequence[str]) -> None:
        embeddings = self._parts.encoder.encode(texts)
        for i, embedding in zip(indices, embeddings, strict=True):
            self._parts.episodes[i].append(embedding)

    def _observations(self, indices: Sequence[int] | None = None) -> FloatArray:
        episodes = self._parts.episodes if indices is None else [self._parts.episodes[i] for i in indices]
        batch = np.empty((len(episodes), *(self.single_observation_space.shape or ())), dtype=np.float32)
        for row, episode in zip(batch, episodes, strict=True):
            episode.observation(row)
        return batch

    def _infos(self, indices: Sequence[int], infos: dict[str, Any] | None = None) -> dict[str, Any]:
        """What `_add_info` would make of the infos one by one; all have the same keys, so a column at a time."""
        infos, mask = infos or {}, np.zeros(self.num_envs, dtype=np.bool_)
        mask[indices] = True
        each = {i: self._parts.episodes[i].info() for i in indices}
        for key, value in each[indices[0]].items() if each else ():
            is_number = isinstance(value, int | float | np.number)
            array = np.zeros(self.num_envs, type(value)) if is_number else np.empty(self.num_envs, object)
            for i, info in each.items():
                array[i] = info[key]
            infos[key], infos[f"_{key}"] = array, mask.copy()
        return infos

    def _reset_at_once(self, ended: list[int]) -> dict[str, Any]:
        infos: dict[str, Any] = {}
        for i in ended:
            episode = self._parts.episodes[i]
            infos = self._add_info(infos, {"final_obs": episode.observation(), "final_info": episode.info()}, i)
        self._observe(ended, [self._parts.episodes[i].begin(*self._choose(i)) for i in ended])
        return infos

    def _reset_indices(self, mask: Any) -> list[int]:
        if mask is None:
            return list(range(self.num_envs))
        expected = isinstance(mask, np.ndarray) and mask.dtype == np.bool_ and mask.shape == (self.num_envs,)
        if not expected or not mask.any():
            raise ConfigError(f"reset_mask must be a bool array of shape ({self.num_envs},) with a True, got {mask!r}")
        return [int(i) for i in np.flatnonzero(mask)]

    def _listed(self, name: str, values: Sequence[Any] | NDArray[Any] | None, indices: Iterable[int]) -> list[Any]:
        if values is None:
            values = [None] * self.num_envs
        if len(values) != self.num_envs:
            raise ConfigError(f"expected {self.num_envs} {name}, one a sub-environment, got {len(values)}")
        return [values[i] for i in indices]

    def _split(self, options: dict[str, Any]) -> list[dict[str, Any]]:
        everyone = range(self.num_envs)
        columns = {}
        for key, value in options.items():
            each = value if isinstance(value, list | tuple | np.ndarray) else [value] * self.num_envs
            columns[key] = self._listed(key, each, everyone)
        return [{key: column[i] for key, column in columns.items()} for i in everyone]


def _autoreset_mode(mode: str | AutoresetMode) -> AutoresetMode:
    try:
        return AutoresetMode(mode)
    except ValueError as error:
        raise ConfigError(unknown_name("autoreset_mode", mode, [known.value for known in AutoresetMode])) from error
