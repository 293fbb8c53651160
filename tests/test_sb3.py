"""dmr_gym.sb3: the batched environment is what SB3 expects, and the policy is the router."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from test_vector import HOT, TOY, vector_env

from dmr_gym.backends import ScriptedBackend
from dmr_gym.env import PrecisionRoutingEnv
from dmr_gym.errors import ConfigError
from dmr_gym.policies import RouterPolicy
from dmr_gym.rollout import rollout
from dmr_gym.router import PrecisionRouter, RouterConfig
from dmr_gym.tasks.toy import ANSWERS

sb3 = pytest.importorskip("stable_baselines3")
vec_env = pytest.importorskip("stable_baselines3.common.vec_env")

from dmr_gym.sb3 import RouterActorCriticPolicy, RoutingVecEnv  # noqa: E402 (needs the packages above)

TINY = {"n_layers": 1, "d_model": 32, "n_heads": 2, "d_ff": 64}


def ours(num_envs: int = 3, **settings: Any) -> RoutingVecEnv:
    """The adapter on short corridors."""
    return RoutingVecEnv(vector_env(num_envs, "Disabled", **settings))


def theirs(num_envs: int = 3, **settings: Any) -> Any:
    """SB3's loop over single environments with the same settings."""
    return vec_env.DummyVecEnv([lambda: PrecisionRoutingEnv(**(TOY | settings))] * num_envs)


def model(envs: Any, **settings: Any) -> Any:
    """PPO with a tiny router."""
    kwargs = {"n_steps": 16, "batch_size": 16, "n_epochs": 1, "device": "cpu", "seed": 0}
    kwargs["policy_kwargs"] = {"router": TINY}
    return sb3.PPO(RouterActorCriticPolicy, envs, **(kwargs | settings))


def random_histories(number: int, length: int = 5, width: int = 64, seed: int = 0) -> np.ndarray:
    """(number, length, width) float32 observations of 1 to length unit rows, zeros behind."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(number, length, width))
    rows /= np.linalg.norm(rows, axis=-1, keepdims=True)
    rows[np.arange(length) >= rng.integers(1, length + 1, number)[:, None]] = 0
    return rows.astype(np.float32)


def assert_same_info(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Equal keys, types and values; "episode" is what a monitor adds."""
    one = {name: value for name, value in one.items() if name != "episode"}
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert type(value) is type(other[name]), name
        assert np.array_equal(value, other[name]), name


@pytest.mark.parametrize("settings", [{}, HOT, {"max_steps": 1}], ids=["greedy", "sampled", "one step"])
def test_steps_are_those_of_a_dummy_vec_env(settings: dict[str, Any]) -> None:
    """Equal observations, rewards, dones, infos and reset infos over many episodes, for equal seeds and actions."""
    pair = ours(**settings), theirs(**settings)
    assert pair[0].observation_space == pair[1].observation_space
    assert pair[0].action_space == pair[1].action_space
    assert [envs.seed(7) for envs in pair] == [[7, 8, 9]] * 2
    observations = [envs.reset() for envs in pair]
    assert observations[0].tobytes() == observations[1].tobytes()
    draws, ends = np.random.default_rng(0), 0
    for _ in range(40):
        actions = draws.integers(2, size=3)
        one, other = (envs.step(actions) for envs in pair)
        for mine, expected in zip(one[:3], other[:3], strict=True):
            assert (mine.dtype, mine.shape) == (expected.dtype, expected.shape)
            assert mine.tobytes() == expected.tobytes()
        for infos in (zip(one[3], other[3], strict=True), zip(*(e.reset_infos for e in pair), strict=True)):
            for mine, expected in infos:
                assert_same_info(mine, expected)
        ends += one[2].sum()
    assert ends > 10


def test_seeds_and_options_are_used_once() -> None:
    """A named task is played at the next reset alone, after which the generators go on drawing, as in a DummyVecEnv."""
    pair = ours(), theirs()
    for envs in pair:
        envs.seed(3)
        envs.set_options([{"task_id": "toy-train-005"}, {}, {"task_id": "toy-train-007"}])
    first = [envs.reset() for envs in pair]
    assert [info["task_id"] for info in pair[0].reset_infos][::2] == ["toy-train-005", "toy-train-007"]
    second = [envs.reset() for envs in pair]
    for one, other in (first, second):
        assert one.tobytes() == other.tobytes()
    assert [info["task_id"] for info in pair[0].reset_infos] == [info["task_id"] for info in pair[1].reset_infos]
    pair[0].set_options({"tsak_id": "x"})
    with pytest.raises(ConfigError, match=r"unknown reset option 'tsak_id'; did you mean 'task_id'\?"):
        pair[0].reset()


def test_a_step_is_one_batch_of_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """The LLM is asked once a step, for all sub-environments."""
    backend = ScriptedBackend(lambda r: ANSWERS[r.precision][str(r.prompt).splitlines()[-2]], ("low", "high"))
    sizes: list[int] = []
    generate = backend.generate
    monkeypatch.setattr(backend, "generate", lambda requests: sizes.append(len(requests)) or generate(requests))
    envs = ours(4, backend=backend)
    envs.reset()
    for _ in range(8):
        envs.step(np.ones(4, dtype=np.int64))
    assert sizes == [4] * 8


def test_episode_statistics_are_those_of_a_monitor() -> None:
    """Without a monitor around it r and l are there already; VecMonitor around it writes the same ones."""
    plain, monitored = ours(), vec_env.VecMonitor(ours())
    for envs in (plain, monitored):
        envs.seed(0)
        envs.reset()
    ends = 0
    for _ in range(12):
        one, other = plain.step([1, 0, 1])[3], monitored.step([1, 0, 1])[3]
        for mine, expected in zip(one, other, strict=True):
            assert ("episode" in mine) == ("episode" in expected)
            if "episode" in mine:
                ends += 1
                assert mine["episode"].keys() == {"r", "l", "t"}
                assert mine["episode"]["l"] == expected["episode"]["l"]
                assert mine["episode"]["r"] == pytest.approx(expected["episode"]["r"], abs=1e-6)
    assert ends > 5


def test_another_autoreset_mode_is_refused() -> None:
    """The message names the mode that works."""
    with pytest.raises(ConfigError, match='autoreset_mode="Disabled"'):
        RoutingVecEnv(vector_env(2, "SameStep"))


def test_attributes_and_methods_of_sub_environments() -> None:
    """What differs between them comes one by one, what they share comes repeated, and the rest is refused."""
    envs = ours(3, render_mode="rgb_array")
    envs.seed(5)
    envs.reset()
    assert envs.get_attr("np_random_seed") == [5, 6, 7]
    assert envs.get_attr("precisions", indices=[0, 2]) == [("low", "high")] * 2
    assert envs.has_attr("task_ids")
    assert not envs.has_attr("absent")
    assert [state.start.task_id for state in envs.env_method("snapshot", indices=1)] == [envs.reset_infos[1]["task_id"]]
    assert envs.env_is_wrapped(object) == [False] * 3
    with pytest.raises(AttributeError, match="'close' is no method of single sub-environments"):
        envs.env_method("close")
    with pytest.raises(ConfigError, match="lambda_ cannot be set"):
        envs.set_attr("lambda_", 1)
    assert len(envs.get_images()) == 3
    assert envs.render().ndim == 3


def test_an_episode_at_the_cap_is_worth_what_it_paid() -> None:
    """The cap terminates: SB3 adds no value to its reward, however large the critic's, and no return looks past it."""
    envs = ours(2, max_steps=4)
    learner = model(envs, n_steps=8, gamma=1.0, gae_lambda=1.0)
    with torch.no_grad():
        learner.policy.value_net.bias.fill_(100.0)
        learner.policy.router.head.bias.copy_(torch.tensor([50.0, 0.0]))  # always low: every corridor ends at the cap
    seen: list[dict[str, Any]] = []
    callback = sb3.common.callbacks.ConvertCallback(lambda locals_, _: seen.extend(locals_["infos"]) or True)
    _, callback = learner._setup_learn(16, callback)
    learner.collect_rollouts(envs, callback, learner.rollout_buffer, 8)
    assert [info["cap_reached"] for info in seen[6:8]] == [True, True]
    assert not any(info["TimeLimit.truncated"] for info in seen)
    paid = learner.rollout_buffer.rewards
    assert np.all((paid < 0) & (paid > -1))
    expected = paid.reshape(2, 4, 2)[:, ::-1].cumsum(1)[:, ::-1].reshape(8, 2)
    assert learner.rollout_buffer.returns == pytest.approx(expected, abs=1e-4)


def test_the_policy_is_the_router() -> None:
    """SB3's distribution is the router's, for histories of every length; so are its likeliest actions."""
    policy = model(ours()).policy
    observations = random_histories(40)
    expected = policy.router.act(observations)
    found = policy.get_distribution(torch.as_tensor(observations)).distribution.probs.detach().numpy()
    assert found == pytest.approx(expected, abs=1e-6)
    assert expected.std(axis=0).min() > 1e-4  # a constant would show nothing
    assert policy.predict(observations, deterministic=True)[0].tolist() == expected.argmax(1).tolist()


def test_a_trained_policy_is_saved_as_an_ordinary_router(tmp_path: Path) -> None:
    """The head and trunk learn, and a router loaded from the folder plays the same episodes."""
    envs = ours(4)
    learner = model(envs, learning_rate=1e-2)
    before = {name: weight.clone() for name, weight in learner.policy.router.state_dict().items()}
    learner.learn(128)
    router = learner.policy.router
    assert all(not torch.equal(weight, before[name]) for name, weight in router.state_dict().items() if "qkv" in name)
    assert not torch.equal(router.head.weight, before["head.weight"])
    router.save(tmp_path)
    loaded = PrecisionRouter.load(tmp_path)
    observations = random_histories(10)
    expected = learner.policy.get_distribution(torch.as_tensor(observations)).distribution.probs.detach().numpy()
    assert loaded.act(observations) == pytest.approx(expected, abs=1e-6)
    episodes = rollout(envs.envs, RouterPolicy(loaded, mode="argmax"), envs.envs.task_ids[:4])
    for episode in episodes:
        history = np.zeros((1, 5, 64), dtype=np.float32)
        for t, action in enumerate(episode.actions[:5]):
            history[0, t] = episode.rows[t]
            assert learner.predict(history, deterministic=True)[0] == action


@pytest.mark.parametrize("share", [True, False])
def test_training_starts_from_a_router(tmp_path: Path, share: bool) -> None:
    """Weights and record come from the folder; sizes too; values begin on the same trunk."""
    router = PrecisionRouter(RouterConfig(embedding_dim=64, max_length=9, dropout=0.5, **TINY))
    router.trained_on = {"panel": "train"}
    router.save(tmp_path)
    kwargs = {"router_weights": str(tmp_path), "share_features_extractor": share}
    policy = model(ours(), policy_kwargs=kwargs).policy
    assert policy.router.digest() == router.digest()
    assert policy.router.trained_on == {"panel": "train"}
    observations = random_histories(10)
    assert policy.router.act(observations) == pytest.approx(router.act(observations), abs=1e-6)
    values = policy.vf_features_extractor.router
    assert (values is policy.router) == share
    assert torch.equal(values.positions, router.positions)


def test_values_may_have_a_trunk_of_their_own() -> None:
    """Then the value loss leaves the router's weights alone."""
    policy = model(ours(), policy_kwargs={"router": TINY, "share_features_extractor": False}).policy
    policy.predict_values(torch.as_tensor(random_histories(4))).sum().backward()
    assert all(weight.grad is None for weight in policy.router.parameters())
    assert policy.vf_features_extractor.router.positions.grad is not None
    trained = sum(weight.numel() for group in policy.optimizer.param_groups for weight in group["params"])
    trunk = policy.router.n_parameters - policy.router.head.weight.numel() - policy.router.head.bias.numel()
    assert trained == policy.router.n_parameters + trunk + policy.value_net.weight.numel() + 1


def test_learning_sees_the_probabilities_of_acting() -> None:
    """With dropout in its sizes, a policy in training mode gives the log-probabilities that it acted with."""
    policy = model(ours(), policy_kwargs={"router": TINY | {"dropout": 0.5}}).policy
    observations = torch.as_tensor(random_histories(20))
    policy.set_training_mode(False)
    with torch.no_grad():
        actions, values, logprobs = policy(observations)
        policy.set_training_mode(True)
        found = policy.evaluate_actions(observations, actions)
    assert torch.equal(found[0], values)
    assert torch.equal(found[1], logprobs)


@pytest.mark.parametrize(
    ("space", "actions", "kwargs", "message"),
    [
        (spaces.Box(-1, 1, (320,)), spaces.Discrete(2), {}, r"histories, Box \(L, D\), got Box"),
        (spaces.Box(-1, 1, (5, 64)), spaces.Box(-1, 1, (1,)), {}, r"Discrete \(P\), got Box"),
        (spaces.Box(-1, 1, (5, 64)), spaces.Discrete(2), {"router": TINY, "router_weights": "x"}, "not both"),
        (spaces.Box(-1, 1, (5, 64)), spaces.Discrete(3), {"router_weights": "router"}, "'n_precisions': 2.* has .*: 3"),
    ],
)
def test_what_no_router_can_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, space: Any, actions: Any, kwargs: dict[str, Any], message: str
) -> None:
    """Spaces that are no histories or precisions, and a router for others."""
    monkeypatch.chdir(tmp_path)
    PrecisionRouter(RouterConfig(embedding_dim=64, **TINY)).save("router")
    with pytest.raises(ConfigError, match=message):
        RouterActorCriticPolicy(space, actions, lambda _: 1e-3, **kwargs)


@pytest.mark.parametrize("settings", [{}, HOT], ids=["greedy", "sampled"])
def test_episodes_go_on_from_where_they_stood(settings: dict[str, Any]) -> None:
    """A new environment that is led to the positions of another, with equal seeds, steps as that one does."""
    first, second = ours(**settings), ours(**settings)
    first.seed(1)
    first.reset()
    draws = np.random.default_rng(0)
    for _ in range(9):
        last = first.step(draws.integers(2, size=3))[0]
    positions = first.positions()
    assert len({len(position.actions) for position in positions}) > 1
    assert second.go_to(positions).tobytes() == last.tobytes()
    assert second.positions() == positions
    for envs in (first, second):
        envs.reseed([11, 12, 13])
    for _ in range(12):
        actions = draws.integers(2, size=3)
        one, other = first.step(actions), second.step(actions)
        assert all(a.tobytes() == b.tobytes() for a, b in zip(one[:3], other[:3], strict=True))
        for mine, expected in zip(one[3], other[3], strict=True):
            assert mine.get("episode", {}).get("r") == expected.get("episode", {}).get("r")
            assert mine["task_id"] == expected["task_id"]


def test_reseeding_decides_what_is_drawn_and_ends_nothing() -> None:
    """Equal seeds draw equal tasks afterwards, others others; running episodes go on."""
    envs = ours(2)
    envs.reset()
    envs.step([0, 0])
    before = envs.positions()
    envs.reseed([5, 6])
    assert envs.positions() == before
    drawn = [[generator.integers(2**31) for generator in envs.get_attr("np_random")]]
    for seeds in ([5, 6], [6, 5]):
        envs.reseed(seeds)
        drawn.append([generator.integers(2**31) for generator in envs.get_attr("np_random")])
    assert drawn[0] == drawn[1] == drawn[2][::-1]


def test_sb3_saves_and_loads_the_policy(tmp_path: Path) -> None:
    """SB3's own files work for those who trust them."""
    learner = model(ours())
    learner.save(tmp_path / "model")
    loaded = sb3.PPO.load(tmp_path / "model", device="cpu")
    observations = random_histories(10)
    assert loaded.policy.router.act(observations) == pytest.approx(learner.policy.router.act(observations), abs=1e-7)
    learner.policy.save(tmp_path / "policy")
    again = RouterActorCriticPolicy.load(tmp_path / "policy", device="cpu")
    assert again.router.digest() == learner.policy.router.digest()


def test_without_sb3_the_extra_is_named() -> None:
    """Importing the module tells which extra brings the package."""
    code = "import sys; sys.modules['stable_baselines3'] = None; import dmr_gym.sb3"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert "dmr_gym.sb3 needs the package 'stable-baselines3': pip install \"dmr-gym[train]\"" in done.stderr
