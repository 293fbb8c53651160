"""Stable-Baselines3 on the batched environment, with the router as its policy.

`RoutingVecEnv` gives SB3 one batch of LLM calls a step, where a DummyVecEnv of N environments makes N calls. The
policy `RouterActorCriticPolicy` reads histories with a `PrecisionRouter`: its trunk is the features extractor, its head
the action net, and a value head stands on the trunk. ``policy.router`` is that router, ready to be saved::

    envs = gymnasium.make_vec("DMR-Toy-v0", num_envs=8, autoreset_mode="Disabled")
    model = PPO(RouterActorCriticPolicy, RoutingVecEnv(envs), gamma=1.0)
    model.learn(20_000)
    model.policy.router.save("runs/ppo/router")

Shapes: B batch, L history length, D embedding width, P precisions, N sub-environments.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from dmr_gym.errors import ConfigError, MissingDependency
from dmr_gym.router import PrecisionRouter, RouterConfig, last_valid_index
from dmr_gym.types import FloatArray
from dmr_gym.vector import PrecisionRoutingVectorEnv

try:
    from stable_baselines3.common.policies import ActorCriticPolicy
    from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
    from stable_baselines3.common.type_aliases import Schedule
    from stable_baselines3.common.vec_env import VecEnv
except ImportError as error:
    raise MissingDependency("stable-baselines3", "train", "dmr_gym.sb3") from error

import torch
from torch import Tensor


class Position(NamedTuple):
    """Where an episode stands: which one it is, and the precisions chosen so far. The rest follows from these."""

    task_id: str
    sample_index: int
    actions: tuple[int, ...]


class RoutingVecEnv(VecEnv):
    """`PrecisionRoutingVectorEnv` as SB3's ``VecEnv``.

    What comes back is what a ``DummyVecEnv`` of N `PrecisionRoutingEnv` gives for the same seeds and actions: float32
    rewards, ``dones``, and one dict of information a sub-environment. An episode that ends is followed by the next in
    the same step; its last observation is in ``info["terminal_observation"]``, the information of the new one in
    `reset_infos`. ``info["TimeLimit.truncated"]`` is always False, as the step cap terminates (see
    `PrecisionRoutingEnv`): SB3 bootstraps no value there. A last step has ``info["episode"]`` too, with r, l and t as
    Monitor and VecMonitor write them, so no monitor is needed around it, and one may be.

    Args:
        envs: with ``autoreset_mode="Disabled"``, as `dmr_gym.rollout.rollout` takes it.

    Raises:
        ConfigError: another autoreset mode.
    """

    def __init__(self, envs: PrecisionRoutingVectorEnv) -> None:
        if envs.metadata.get("autoreset_mode") is not AutoresetMode.DISABLED:
            raise ConfigError(
                "RoutingVecEnv resets finished episodes itself: make the vector environment with "
                'autoreset_mode="Disabled"'
            )
        self.envs = envs
        super().__init__(envs.num_envs, envs.single_observation_space, envs.single_action_space)
        self._actions: NDArray[np.int64] | None = None
        self._returns = np.zeros(self.num_envs)
        self._lengths = np.zeros(self.num_envs, dtype=np.int64)
        self._began = time.time()

    def reset(self) -> FloatArray:
        """Start an episode everywhere, with the seeds and options given before; returns observations (N, L, D)."""
        # Of several dictionaries each may name other options: what one lacks is drawn there.
        names = {name for options in self._options for name in options}
        options = {name: [options.get(name) for options in self._options] for name in names}
        observations, infos = self.envs.reset(seed=self._seeds, options=options)
        self._note_starts(infos, range(self.num_envs))
        self._reset_seeds()
        self._reset_options()
        return observations

    def step_async(self, actions: NDArray[np.int64]) -> None:
        """Keep the actions (N,) for `step_wait`."""
        self._actions = actions

    def step_wait(self) -> tuple[FloatArray, NDArray[np.float32], NDArray[np.bool_], list[dict[str, Any]]]:
        """Step everywhere, and start the next episode where one has ended.

        Returns:
            Observations (N, L, D) float32, rewards (N,) float32, dones (N,) bool, and N dicts.
        """
        observations, rewards, dones, _, columns = self.envs.step(self._actions)
        self._returns += rewards
        self._lengths += 1
        infos = [_entry(columns, i) | {"TimeLimit.truncated": False} for i in range(self.num_envs)]
        if dones.any():
            ended = np.flatnonzero(dones).tolist()
            seconds = round(time.time() - self._began, 6)
            for i in ended:
                infos[i]["terminal_observation"] = observations[i]
                infos[i]["episode"] = {"r": float(self._returns[i]), "l": int(self._lengths[i]), "t": seconds}
            observations, columns = self.envs.reset(options={"reset_mask": dones})
            self._note_starts(columns, ended)
        return observations, rewards.astype(np.float32), dones, infos

    def reseed(self, seeds: Sequence[int]) -> None:
        """Let the draws of coming episodes start from these N seeds, without ending those that run."""
        for rng, seed in zip(self.envs.np_random, seeds, strict=True):
            rng.bit_generator.state = np.random.PCG64(seed).state

    def positions(self) -> list[Position]:
        """Where the N episodes stand. Call it after `reset` or a step."""
        index = {name: number for number, name in enumerate(self.envs.precisions)}
        return [
            Position(
                state.start.task_id, state.sample_index, tuple(index[turn.request.precision] for turn in state.turns)
            )
            for state in self.envs.snapshot()
        ]

    def go_to(self, positions: Sequence[Position]) -> FloatArray:
        """Play N episodes up to where they stood; their answers are in the cache, unless it was deleted.

        Nothing is drawn.

        Returns:
            Observations (N, L, D).
        """
        states = []
        for position in positions:
            # All sub-environments play the same: equal calls of a batch are one, and it is in the cache.
            self.envs.reset(options={"task_id": position.task_id, "sample_index": position.sample_index})
            for action in position.actions:
                self.envs.step(np.full(self.num_envs, action))
            states.append(self.envs.snapshot()[0])
        observations, infos = self.envs.restore(states)
        self._note_starts(infos, range(self.num_envs))
        self._returns[:] = [sum(turn.reward for turn in state.turns) for state in states]
        self._lengths[:] = [len(state.turns) for state in states]
        return observations

    def close(self) -> None:
        """Close the environments."""
        self.envs.close()

    def get_images(self) -> Sequence[Any]:
        """One frame a sub-environment, (height, width, 3) uint8; render_mode is "rgb_array"."""
        return self.envs.render() or [None] * self.num_envs

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """An attribute of each chosen sub-environment: its own where they differ, else the common one.

        Raises:
            AttributeError: there is none of that name.
        """
        value = getattr(self.envs, attr_name)
        own = attr_name in ("np_random", "np_random_seed", "turns")
        return [value[i] if own else value for i in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Refused: the sub-environments share all of their settings."""
        raise ConfigError(f"{attr_name} cannot be set while the environment lives: make a new one with this setting")

    def env_method(self, method_name: str, *method_args: Any, indices: Any = None, **method_kwargs: Any) -> list[Any]:
        """Call "render" or "snapshot" and return the answers of the chosen sub-environments.

        Raises:
            AttributeError: another method; only these answer for each sub-environment.
        """
        if method_name not in ("render", "snapshot"):
            raise AttributeError(
                f"{method_name!r} is no method of single sub-environments here: those are 'render' and 'snapshot'; "
                "the batched environment itself is in the attribute envs"
            )
        answers = getattr(self.envs, method_name)(*method_args, **method_kwargs)
        return [None if answers is None else answers[i] for i in self._get_indices(indices)]

    def env_is_wrapped(self, wrapper_class: type[Any], indices: Any = None) -> list[bool]:
        """Nothing is wrapped around a single sub-environment."""
        return [False for _ in self._get_indices(indices)]

    def _note_starts(self, infos: Mapping[str, Any], began: Sequence[int] | range) -> None:
        for i in began:
            self.reset_infos[i] = _entry(infos, i)
            self._returns[i], self._lengths[i] = 0.0, 0


TOGETHER = 16
"""Histories that go through a router at once on a CPU: fewer need less padding, more compute faster."""


class RouterTrunk(BaseFeaturesExtractor):
    """A router without its head: observations (B, L, D) to what its head reads at the last valid row, (B, d_model).

    Dropout stays off: PPO compares the probabilities of learning with those of acting, which have none.

    Args:
        observation_space: Box (L, D).
        config: sizes of the router.
    """

    def __init__(self, observation_space: spaces.Box, config: RouterConfig) -> None:
        super().__init__(observation_space, config.d_model)
        self.router = PrecisionRouter(config).eval()

    def forward(self, observations: Tensor) -> Tensor:
        """Return (B, d_model) features; all-zero rows are padding, as no unit-norm embedding is zero."""
        valid = (observations != 0).any(-1)
        lengths = valid.sum(1)
        # Histories of like length together: rows stand oldest first, and what lies behind the longest is padding.
        order = lengths.argsort(stable=True)
        together, longest = TOGETHER if order.device.type == "cpu" else len(order), lengths[order].tolist()
        last = []
        for first in range(0, len(order), together):
            places = order[first : first + together]
            shown = valid[places, : longest[min(first + together, len(order)) - 1]]
            hidden = self.router.hidden(observations[places, : shown.shape[1]], shown)
            last.append(hidden[torch.arange(len(hidden), device=hidden.device), last_valid_index(shown)])
        return torch.cat(last)[order.argsort()]

    def train(self, mode: bool = True) -> RouterTrunk:
        """Note the mode, which changes nothing here."""
        super().train(mode)
        self.router.eval()
        return self


class RouterActorCriticPolicy(ActorCriticPolicy):
    """SB3's actor-critic policy around a router.

    Args:
        observation_space: Box (L, D), of the environment.
        action_space: Discrete (P), of the environment.
        lr_schedule: SB3's.
        router: sizes of a new router, as `RouterConfig` takes them; ``embedding_dim`` and ``n_precisions`` come from
            the spaces, and ``max_length`` is L unless given.
        router_weights: folder of a router to start from, as `PrecisionRouter.save` writes it; gives the sizes too.
        **kwargs: of ``ActorCriticPolicy``. With ``share_features_extractor=False`` values have a trunk of their own.

    Raises:
        ConfigError: both ``router`` and ``router_weights``, or a router that does not fit the spaces.
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        lr_schedule: Schedule,
        router: Mapping[str, Any] | None = None,
        router_weights: str | None = None,
        **kwargs: Any,
    ) -> None:
        if router and router_weights:
            raise ConfigError("a router that is loaded has its sizes: give router or router_weights, not both")
        if not isinstance(observation_space, spaces.Box) or len(observation_space.shape) != 2:
            raise ConfigError(
                f"the router reads histories, Box (L, D), got {observation_space}: leave them unflattened"
            )
        if not isinstance(action_space, spaces.Discrete):
            raise ConfigError(f"the router chooses among precisions, Discrete (P), got {action_space}")
        length, width = observation_space.shape
        start = PrecisionRouter.load(router_weights) if router_weights else None
        sizes = {"embedding_dim": width, "n_precisions": int(action_space.n)}
        config = start.config if start else RouterConfig(**({"max_length": length} | dict(router or {}) | sizes))
        if replace(config, **sizes) != config:
            found = {name: getattr(config, name) for name in sizes}
            raise ConfigError(f"the router at {router_weights} has {found}, but the environment has {sizes}")
        self._router_kwargs = {"router": None if router is None else dict(router), "router_weights": router_weights}
        settings: dict[str, Any] = {"net_arch": [], "ortho_init": False} | kwargs
        settings |= {"features_extractor_class": RouterTrunk, "features_extractor_kwargs": {"config": config}}
        super().__init__(observation_space, action_space, lr_schedule, **settings)
        if start is not None:
            self.load_router(start)

    @property
    def router(self) -> PrecisionRouter:
        """The router that acts: the actor's trunk and the action net as its head. Save it with its own `save`."""
        trunk = self.pi_features_extractor
        assert isinstance(trunk, RouterTrunk)
        return trunk.router

    def load_router(self, router: PrecisionRouter) -> None:
        """Take over the weights of a router of the same sizes, for values too, and what it was trained on."""
        weights = router.state_dict()
        self.router.load_state_dict(weights)
        values = self.vf_features_extractor
        if values is not self.pi_features_extractor:
            values.load_state_dict({f"router.{name}": w for name, w in weights.items() if not name.startswith("head.")})
        self.router.trained_on = copy.deepcopy(router.trained_on)

    def _build(self, lr_schedule: Schedule) -> None:
        super()._build(lr_schedule)
        values = self.vf_features_extractor
        if values is not self.pi_features_extractor:
            assert isinstance(values, RouterTrunk)
            del values.router.head  # the value net is the head there
        self.action_net = self.router.head
        settings: dict[str, Any] = {"lr": lr_schedule(1)} | self.optimizer_kwargs
        self.optimizer = self.optimizer_class(self.parameters(), **settings)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        parameters = super()._get_constructor_parameters()
        for name in ("features_extractor_class", "features_extractor_kwargs"):
            del parameters[name]
        return parameters | self._router_kwargs | {"share_features_extractor": self.share_features_extractor}


def _entry(columns: Mapping[str, Any], i: int) -> dict[str, Any]:
    """The information of one sub-environment, with Python's own types as the single environment gives them."""
    entry = {}
    for name, column in columns.items():
        if not name.startswith("_") and columns[f"_{name}"][i]:
            value = column[i]
            entry[name] = value.item() if isinstance(value, np.generic) else value
    return entry
