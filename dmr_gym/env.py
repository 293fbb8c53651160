"""The paper's problem as a Gymnasium environment: each action picks the precision of the LLM that acts next."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.error import ResetNeeded

from dmr_gym.episode import EpisodeState, Turn, choose_start
from dmr_gym.parts import build_parts, routing_spaces
from dmr_gym.render import check_render_mode, render_frame
from dmr_gym.types import Backend, Encoder, FloatArray, LatencyModel, Task


class PrecisionRoutingEnv(gym.Env[FloatArray, np.int64]):
    """Route every step of an LLM agent to one numeric precision.

    **Action** ``Discrete(P)``: index into `precisions`, 0 the lowest. The chosen copy of the LLM completes the task's
    prompt, and the world carries out what it said.

    **Observation** ``Box(-1, 1, (L, D), float32)``: row 0 embeds the instruction and the first observation; each step
    adds a row for the action taken and what it led to. Oldest first, unused rows zero (`dmr_gym.history.valid_mask`),
    the newest L kept.

    **Reward** ``success − lambda_ · latency_s``: success is 1 on the last step of a solved episode and else 0, and
    latency_s is the modelled time of this step, or what ``latency`` says instead: the measured wall clock, dollars,
    joules. The undiscounted sum is R = r_success − λ·T (Eq. 8, with T of Eq. 9).
    Every step is charged the router's time, the N·ℓ_r of Eq. 9, because the environment cannot know where an action
    came from. A fixed-precision baseline asks no router: add up latency_llm_s alone, as agents/evaluate.py does where
    no router was asked, or make the environment with ``latency={"row": "alfworld-4b-gptq-w3", "router_ms": 0}``.
    With ``invalid_action_penalty`` every step whose info has invalid_action costs that much too. Eq. 8 has no such
    term, so it is 0 unless set; the agents' tables count success and latency alone.

    **End** ``terminated`` when the task is solved, when the world ends, and at ``max_steps`` (then
    ``info["cap_reached"]``). ``truncated`` is always False: the cap is part of the task's definition, an unsolved task
    at the cap has failed, and bootstrapping a value there would reward running out of time.

    **Info** flat, the same keys from reset and step: success, is_success, score (0 to 1), precision (index; -1 at
    reset), latency_s = latency_llm_s + latency_router_s, completion_tokens, prompt_tokens, invalid_action,
    invalid_reason ("" where the action was valid), step_type ("reset" at reset), next_step_type (of the coming step,
    where the world fixes it beforehand: "search" or "click" in WebShop; else ""), step_index, task_id, cap_reached,
    and over the episode so far high_precision_share (steps at the highest precision), episode_latency_s,
    episode_completion_tokens. With ``info_text`` also action, observation, completion, and cache_hit, which depends on
    what earlier episodes computed: it is no function of seed and actions, and so not among the keys that are always
    there, which Gymnasium's checker compares between equal episodes.

    **Reset** ``seed`` draws the task from the panel through ``np_random``; ``options={"task_id": ...}`` names it.
    ``options={"sample_index": ...}`` tells episodes apart that decode with a temperature; else it is drawn.

    Args:
        task: kind of world, "alfworld", "webshop" or "toy".
        task_kwargs: its settings, for example ``{"panel": "train"}``.
        precisions: names in ascending precision.
        backend: kind and settings of the LLM copies; a text is a kind, None is ``{"kind": "embedded"}``.
        encoder: kind and settings of the text encoder; a text is a kind, None is ``{"kind": "minilm"}``.
        latency: a row of the paper's Table 3 by name, or coefficients, another kind of model, or a measured profile
            (`dmr_gym.latency.make_latency_model`).
        lambda_: price of a second of latency (of a dollar, of a joule) in units of reward, at least 0.
        max_steps: step cap of an episode.
        history_length: rows L of the observation.
        sampling: fields of `SamplingParams` that differ from its defaults.
        cache_dir: folder of a cache that outlives the process; None keeps answers in memory.
        info_text: whether info carries texts too.
        invalid_action_penalty: reward that an invalid action costs, at least 0.
        render_mode: "ansi" (transcript), "human" (printed in colour as it happens), "rgb_array", or None.

    ``task``, ``backend``, ``encoder`` and ``latency`` also take a live object of the protocol in `dmr_gym.types`,
    used as it is, without a cache, and left open by `close`. Such an environment cannot go into an `EnvSpec`.

    Raises:
        ConfigError: for a setting that is unknown or out of range.
    """

    metadata: dict[str, Any] = {"render_modes": ["ansi", "human", "rgb_array"], "render_fps": 2}  # noqa: RUF012 (gymnasium's)

    def __init__(
        self,
        task: str | Task = "alfworld",
        task_kwargs: Mapping[str, Any] | None = None,
        precisions: Sequence[str] = ("w3", "bf16"),
        backend: str | Mapping[str, Any] | Backend | None = None,
        encoder: str | Mapping[str, Any] | Encoder | None = None,
        latency: str | Mapping[str, Any] | LatencyModel = "alfworld-4b-gptq-w3",
        lambda_: float = 0.1,
        max_steps: int = 50,
        history_length: int = 64,
        sampling: Mapping[str, Any] | None = None,
        cache_dir: str | None = None,
        info_text: bool = False,
        invalid_action_penalty: float = 0.0,
        render_mode: str | None = None,
    ) -> None:
        self.render_mode = check_render_mode(render_mode, self.metadata["render_modes"])
        self._settings: dict[str, Any] = {
            "task": task,
            "task_kwargs": task_kwargs,
            "precisions": precisions,
            "backend": backend,
            "encoder": encoder,
            "latency": latency,
            "lambda_": lambda_,
            "max_steps": max_steps,
            "history_length": history_length,
            "sampling": sampling,
            "cache_dir": cache_dir,
            "info_text": info_text,
            "invalid_action_penalty": invalid_action_penalty,
        }
        self._parts = build_parts(self._settings)
        [self._episode] = self._parts.episodes
        self.observation_space, self.action_space = routing_spaces(self._parts.rules)

    @property
    def precisions(self) -> tuple[str, ...]:
        """Names of the actions, in ascending precision."""
        return self._parts.rules.precisions

    @property
    def task_ids(self) -> Sequence[str]:
        """Ids of the panel, for ``reset(options={"task_id": ...})``."""
        return self._parts.task_ids

    @property
    def backend(self) -> Backend:
        """The LLM copies, for example to ask for their token distributions."""
        return self._parts.backend

    @property
    def turns(self) -> tuple[Turn, ...]:
        """The steps of the present episode with their prompts and completions."""
        return self._episode.turns

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[FloatArray, dict[str, Any]]:
        """Start an episode; see the class for seed and options.

        Raises:
            ConfigError: for an unknown option.
            TaskError: for a task id that is not in the panel.
        """
        super().reset(seed=seed)
        parts, episode = self._parts, self._episode
        task_id, sample_index = choose_start(self.np_random, parts.task_ids, options, parts.rules.sampling.temperature)
        text = episode.begin(task_id, sample_index)
        episode.append(parts.encoder.encode([text])[0])
        self._show()
        return episode.observation(), episode.info()

    def step(self, action: Any) -> tuple[FloatArray, float, bool, bool, dict[str, Any]]:
        """Let the chosen precision take one step.

        Args:
            action: index into `precisions`, a Python or NumPy integer.

        Raises:
            InvalidAction: for an action outside the space.
            ResetNeeded: before the first reset and after the end of an episode.
            BackendError: when the backend cannot answer; the episode is as before and the step can be tried again.
        """
        parts, episode = self._parts, self._episode
        request = episode.request(action)
        [completion] = parts.backend.generate([request])
        text = episode.apply(request, completion)
        episode.append(parts.encoder.encode([text])[0])
        self._show()
        return episode.observation(), episode.turns[-1].reward, episode.over, False, episode.info()

    def snapshot(self) -> EpisodeState:
        """The episode as it stands: world, history and accounts, without the random generator. Cheap and immutable."""
        return self._episode.snapshot()

    def restore(self, state: EpisodeState) -> tuple[FloatArray, dict[str, Any]]:
        """Go back to a snapshot and return its observation and info, as reset does."""
        self._episode.restore(state)
        return self._episode.observation(), self._episode.info()

    def render(self) -> Any:
        """The transcript so far as text ("ansi") or picture ("rgb_array"); None in the other modes."""
        if self._episode.start is None:
            raise ResetNeeded("cannot render before reset: call env.reset() first")
        if self.render_mode in (None, "human"):
            return None
        return render_frame(self.render_mode, self._episode)

    def close(self) -> None:
        """Close the cache and whatever else this environment has opened; live objects of the caller stay open."""
        self._parts.close()

    def _show(self) -> None:
        if self.render_mode == "human":
            render_frame("human", self._episode)

    def __reduce__(self) -> tuple[Callable[[], PrecisionRoutingEnv], tuple[()], dict[str, Any]]:
        # Rebuilt from plain data, as gymnasium's EzPickle does: open models and caches do not travel.
        rebuild = functools.partial(type(self), **self._settings, render_mode=self.render_mode)
        return rebuild, (), {"spec": self.spec}
