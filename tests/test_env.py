"""dmr_gym.env: what actions, observations, rewards, ends and infos mean."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from typing import Any

import numpy as np
import pytest
from gymnasium.error import InvalidAction, ResetNeeded

from dmr_gym.backends import ScriptedBackend
from dmr_gym.encoders import HashEncoder
from dmr_gym.env import PrecisionRoutingEnv
from dmr_gym.errors import ConfigError, TaskError
from dmr_gym.history import valid_mask
from dmr_gym.latency import TokenLinearLatency, make_latency_model, trajectory_seconds
from dmr_gym.tasks.toy import ToyTask, best_actions, make_signs
from dmr_gym.types import LLMCall, TaskStep
from tests.toy_env import play, toy_env

PRICES = {"ms_per_token": {"low": 10.0, "high": 20.0}, "router_ms": 5.0}
INFO_TYPES = {
    "success": bool,
    "is_success": bool,
    "score": float,
    "precision": int,
    "latency_s": float,
    "latency_llm_s": float,
    "latency_router_s": float,
    "completion_tokens": int,
    "prompt_tokens": int,
    "invalid_action": bool,
    "invalid_reason": str,
    "step_type": str,
    "step_index": int,
    "task_id": str,
    "cap_reached": bool,
    "high_precision_share": float,
    "episode_latency_s": float,
    "episode_completion_tokens": int,
}


def test_spaces_follow_the_settings() -> None:
    """Discrete(P) and Box(-1, 1, (L, D), float32)."""
    env = toy_env(
        precisions=["w3", "w4", "bf16"],
        backend={"kind": "scripted", "policy": "echo"},
        latency={"ms_per_token": {"w3": 1, "w4": 2, "bf16": 3}, "router_ms": 0},
        history_length=7,
        encoder={"kind": "hash", "dim": 5},
    )
    assert env.action_space.n == 3
    assert env.precisions == ("w3", "w4", "bf16")
    assert env.observation_space.shape == (7, 5)
    assert env.observation_space.dtype == np.float32
    assert (env.observation_space.low.min(), env.observation_space.high.max()) == (-1.0, 1.0)


def test_observation_rows_embed_what_happened() -> None:
    """Row 0 is the instruction and first observation; each step adds the action and its answer; the rest is zero."""
    env = toy_env()
    observation, info = env.reset(seed=3)
    signs = make_signs(info["task_id"], 8)
    texts = [f"Follow the signs to the exit.\n{signs[0].text}"]
    for step in range(2):
        assert np.array_equal(observation[: step + 1], HashEncoder(64).encode(texts))
        assert valid_mask(observation).tolist() == [True] * (step + 1) + [False] * (63 - step)
        assert observation in env.observation_space
        observation = env.step(1)[0]
        texts.append(f"go {signs[step].way}\n{signs[step + 1].text}")


def test_newest_rows_stay_when_the_history_is_full() -> None:
    """With L = 3, the rows after five steps are those of the last three steps."""
    env, wide = toy_env(history_length=3), toy_env()
    for each in (env, wide):
        each.reset(options={"task_id": "toy-train-000"})
    narrow, full = play(env, [1] * 5)[-1][0], play(wide, [1] * 5)[-1][0]
    assert np.array_equal(narrow, full[3:6])


def test_reward_is_eq_8_by_hand() -> None:
    """Three signs, λ = 0.5 a second; "go left" has 7 bytes and an end, "go right" one more.

    The ways are right, left, left, the second sign has fallen. Low, high, low takes 9·10 + 8·20 + 8·10 = 330 ms of LLM
    and 3·5 ms of router: R = 1 − 0.5·0.345.
    """
    signs = [("right", False), ("left", True), ("left", False)]
    assert [tuple(sign) for sign in make_signs("toy-train-001", 3)] == signs
    env = toy_env(task_kwargs={"num_signs": 3}, latency=PRICES, lambda_=0.5)
    env.reset(options={"task_id": "toy-train-001"})
    steps = play(env, [0, 1, 0])
    rewards = [step[1] for step in steps]
    assert rewards == pytest.approx([-0.5 * 0.095, -0.5 * 0.165, 1 - 0.5 * 0.085])
    assert sum(rewards) == pytest.approx(1 - 0.5 * 0.345)
    assert [step[2] for step in steps] == [False, False, True]
    info = steps[-1][4]
    assert info["episode_latency_s"] == pytest.approx(0.345)
    assert (info["latency_llm_s"], info["latency_router_s"]) == pytest.approx((0.08, 0.005))
    assert info["latency_s"] == info["latency_llm_s"] + info["latency_router_s"]
    assert info["episode_completion_tokens"] == 25
    assert info["high_precision_share"] == pytest.approx(1 / 3)
    assert (info["success"], info["is_success"], info["score"], info["cap_reached"]) == (True, True, 1.0, False)


def test_return_is_success_less_lambda_times_eq_9() -> None:
    """For any actions, the undiscounted sum equals r_success − λ·T with T from the calls alone."""
    env = toy_env(lambda_=0.3)
    env.reset(seed=11)
    rng = np.random.default_rng(0)
    total, over = 0.0, False
    while not over:
        _, reward, over, _, info = env.step(rng.integers(2))
        total += reward
    calls = [LLMCall(turn.request.precision, 0, turn.completion.completion_tokens) for turn in env.turns]
    seconds = trajectory_seconds(make_latency_model("alfworld-4b-gptq-w3", ("low", "high")), calls)
    assert total == pytest.approx(info["success"] - 0.3 * seconds)
    assert info["episode_latency_s"] == pytest.approx(seconds)


def test_known_best_actions_beat_every_fixed_precision() -> None:
    """High precision at fallen signs alone has the highest return, always-low never arrives."""
    env = toy_env()
    for task_id in env.task_ids[:4]:
        returns = []
        for actions in (best_actions(task_id), [1] * 8, [0] * 50):
            env.reset(options={"task_id": task_id})
            steps = play(env, actions)
            returns.append(sum(step[1] for step in steps))
        assert returns[0] > returns[1] > 0 > returns[2]
        assert steps[-1][4]["cap_reached"]


def test_best_actions_are_the_optimum_of_all_routings() -> None:
    """On three signs, no sequence of up to six decisions has a higher return than the known best one."""
    env = toy_env(task_kwargs={"num_signs": 3}, max_steps=6)
    env.reset(options={"task_id": "toy-train-002"})
    start = env.snapshot()

    def best(state: Any) -> float:
        values = []
        for action in (0, 1):
            env.restore(state)
            _, reward, over, _, _ = env.step(action)
            values.append(reward if over else reward + best(env.snapshot()))
        return max(values)

    optimum = best(start)
    env.restore(start)
    assert sum(step[1] for step in play(env, best_actions("toy-train-002", 3))) == pytest.approx(optimum)


def test_cap_terminates_and_never_truncates() -> None:
    """The step cap ends the task as failed: terminated, cap_reached, no success."""
    env = toy_env(max_steps=3)
    env.reset(seed=0)
    steps = play(env, [0, 0, 0])
    assert [step[2] for step in steps] == [False, False, True]
    assert [step[3] for step in steps] == [False, False, False]
    assert [step[4]["cap_reached"] for step in steps] == [False, False, True]
    assert not steps[-1][4]["success"]
    assert steps[-1][1] < 0


def test_solving_at_the_cap_is_success() -> None:
    """A task that is solved on the last allowed step is solved; the cap did not end it."""
    env = toy_env(task_kwargs={"num_signs": 3}, max_steps=3)
    env.reset(seed=0)
    *_, (_, reward, terminated, _, info) = play(env, [1, 1, 1])
    assert terminated
    assert (info["success"], info["cap_reached"]) == (True, False)
    assert reward > 0


class DeadEnd(ToyTask):
    """A corridor whose first step ends the world without success."""

    def step(self, completion: str) -> TaskStep:
        """End."""
        return dataclasses.replace(super().step(completion), done=True, success=False, score=0.25)


def test_a_world_can_end_without_success() -> None:
    """Done without success terminates with no bonus, and the cap did not do it."""
    env = toy_env(task=DeadEnd(), task_kwargs=None)
    env.reset(seed=0)
    _, reward, terminated, truncated, info = env.step(1)
    assert (terminated, truncated) == (True, False)
    assert reward == -0.2 * info["latency_s"]
    assert (info["success"], info["score"], info["cap_reached"]) == (False, 0.25, False)


def test_info_has_the_same_flat_keys_everywhere() -> None:
    """Reset and every step give the documented keys with plain Python types."""
    env = toy_env()
    infos = [env.reset(seed=1)[1]] + [step[4] for step in play(env, [0, 1, 1])]
    for info in infos:
        assert {key: type(value) for key, value in info.items()} == INFO_TYPES
    assert [info["precision"] for info in infos] == [-1, 0, 1, 1]
    assert [info["step_index"] for info in infos] == [0, 1, 2, 3]
    assert [info["step_type"] for info in infos] == ["reset", "action", "action", "action"]
    assert [info["high_precision_share"] for info in infos] == pytest.approx([0, 0, 1 / 2, 2 / 3])


def test_info_text_adds_texts_and_cache_hits() -> None:
    """With info_text, reset and step carry the same further keys."""
    env = toy_env(info_text=True)
    first, second = env.reset(seed=0)[1], env.step(1)[4]
    extra = {"action": str, "observation": str, "completion": str, "cache_hit": bool}
    for info in (first, second):
        assert {key: type(value) for key, value in info.items()} == INFO_TYPES | extra
    signs = make_signs(first["task_id"], 8)
    assert (first["action"], first["observation"]) == ("", signs[0].text)
    assert (second["action"], second["observation"]) == (f"go {signs[0].way}", signs[1].text)


def test_cache_hits_are_reported(tmp_path: Any) -> None:
    """With a cache that outlives the environment, the second run of an episode is found."""
    hits = []
    for _ in range(2):
        env = toy_env(info_text=True, cache_dir=str(tmp_path))
        env.reset(seed=0)
        hits.append([step[4]["cache_hit"] for step in play(env, [0, 1, 1])])
        env.close()
        env.close()
    assert hits == [[False] * 3, [True] * 3]


def test_invalid_actions_of_the_llm_are_flagged() -> None:
    """Nonsense from the LLM is a step that costs time and leads nowhere; the reason is "" elsewhere."""
    env = toy_env(backend={"kind": "scripted", "answers": {"low": "dance", "high": "go left"}})
    reset = env.reset(seed=0)[1]
    info = env.step(0)[4]
    assert (info["invalid_action"], info["score"]) == (True, 0.0)
    assert info["invalid_reason"] == "expected 'go left' or 'go right', got 'dance'"
    assert (reset["invalid_reason"], env.step(1)[4]["invalid_reason"]) == ("", "")


def test_seed_draws_the_task_and_nothing_else_does() -> None:
    """The same seed draws the same tasks; going on without a seed draws others; options pin one."""
    env = toy_env()
    drawn = [[env.reset(seed=5)[1]["task_id"]] + [env.reset()[1]["task_id"] for _ in range(20)] for _ in range(2)]
    assert drawn[0] == drawn[1]
    assert len(set(drawn[0])) > 10
    np.random.seed(0)
    assert env.reset(seed=5)[1]["task_id"] == drawn[0][0]
    assert env.reset(seed=5, options={"task_id": "toy-train-009"})[1]["task_id"] == "toy-train-009"


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"task_id": "toy-train-99"}, TaskError, r"unknown task id 'toy-train-99'; did you mean 'toy-train-0"),
        (
            {"taskid": "x"},
            ConfigError,
            r"unknown reset option 'taskid'; did you mean 'task_id'\? known: task_id, sample",
        ),
        ({"sample_index": -1}, ConfigError, "sample_index must be a whole number of at least 0, got -1"),
    ],
)
def test_wrong_reset_options_are_named(options: dict[str, Any], error: type[Exception], message: str) -> None:
    """Unknown options and ids raise with the nearest known name, and the present episode goes on."""
    env = toy_env()
    env.reset(seed=0)
    with pytest.raises(error, match=message):
        env.reset(options=options)
    env.step(0)


def test_actions_are_any_integers_of_the_space() -> None:
    """Python, NumPy and zero-dimensional array integers mean the same."""
    env = toy_env()
    for action in (1, np.int64(1), np.uint8(1), np.array(1)):
        env.reset(seed=0)
        info = env.step(action)[4]
        assert (info["precision"], type(info["precision"])) == (1, int)


@pytest.mark.parametrize("action", [2, -1, 0.0, 1.5, "bf16", None, np.array([0, 1])])
def test_other_actions_are_refused(action: object) -> None:
    """The message names the actions, and the episode goes on."""
    env = toy_env()
    env.reset(seed=0)
    with pytest.raises(InvalidAction, match="expected an action among 0 = low, 1 = high, got"):
        env.step(action)
    assert env.step(0)[4]["step_index"] == 1


def test_order_is_enforced() -> None:
    """Stepping, rendering or taking a snapshot without a running episode raises ResetNeeded."""
    env = toy_env(max_steps=1, render_mode="ansi")
    for use in (lambda: env.step(0), env.render, env.snapshot):
        with pytest.raises(ResetNeeded, match="reset"):
            use()
    env.reset(seed=0)
    env.step(0)
    with pytest.raises(ResetNeeded, match=r"this episode is over: call env.reset\(\) to start another"):
        env.step(0)
    env.reset()
    env.step(0)


def test_live_parts_are_taken_as_they_are() -> None:
    """A task, backend, encoder and latency model of one's own need no registration."""
    env = PrecisionRoutingEnv(
        task=ToyTask(num_tasks=1),
        precisions=("small", "large"),
        backend=ScriptedBackend(lambda request: f"go {request.precision}", ("small", "large")),
        encoder=HashEncoder(3),
        latency=TokenLinearLatency({"small": 1.0, "large": 2.0}, 0.0),
    )
    env.reset()
    assert env.step(1)[4]["latency_s"] == 9 * 2.0 / 1000


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lambda_": -1}, "lambda_ must be a finite number of at least 0"),
        ({"max_steps": 0}, "max_steps must be a whole number of at least 1"),
        ({"precisions": ["high"]}, "precisions must be two or more different names"),
        ({"sampling": {"temprature": 1}}, r"unknown SamplingParams setting 'sampling.temprature'; did you mean"),
        ({"sampling": {"top_p": 0.0}}, r"sampling needs temperature >= 0, top_p in \(0, 1\] and max_tokens >= 1"),
        (
            {"render_mode": "rgb"},
            r"unknown render_mode 'rgb'; did you mean 'rgb_array'\? known: ansi, human, rgb_array",
        ),
        ({"latency": TokenLinearLatency}, "latency must be a row of Table 3 or a mapping, got"),
        ({"latency": "alfworld"}, "unknown latency row of Table 3 'alfworld'"),
        ({"backend": {"kind": "vllm"}}, "backend kind must be one of"),
        ({"task": "webshop"}, "unknown task 'webshop'"),
        (
            {"task": ToyTask(), "task_kwargs": {"panel": "test"}},
            "a live task serves one episode and takes no task_kwargs",
        ),
        (
            {"backend": ScriptedBackend(lambda request: "", ("a", "b"))},
            r"the backend's precisions are \('a', 'b'\), the",
        ),
        ({"lambda_": math.inf}, "lambda_ must be a finite number"),
        ({"lambda_": True}, "lambda_ must be a finite number"),
        ({"precisions": "bf16"}, "precisions must be two or more different names, lowest first, got 'bf16'"),
        ({"precisions": None}, "precisions must be two or more different names, lowest first, got None"),
        ({"precisions": 3}, "precisions must be two or more different names, lowest first, got 3"),
        ({"backend": "scripted"}, "either answers or a policy"),
        ({"backend": "vllm"}, "backend kind must be one of .*, got 'vllm'"),
        ({"backend": 3}, r"backend must be a kind, .* the protocol dmr_gym.types.Backend, got 3 \(int\)"),
        ({"backend": ScriptedBackend}, "backend must be a kind, plain data with a kind, or an object of the protocol"),
        ({"encoder": object()}, "encoder must be a kind, .* the protocol dmr_gym.types.Encoder, got"),
        ({"encoder": "glove"}, "encoder kind must be one of"),
        ({"task": None}, r"task must be a kind, .* the protocol dmr_gym.types.Task, got None \(NoneType\)"),
        ({"task_kwargs": "train"}, r"task_kwargs must be a mapping or None, got 'train' \(str\)"),
        ({"sampling": [0.5]}, r"sampling must be a mapping or None, got \[0.5\] \(list\)"),
        ({"cache_dir": 5}, r"cache_dir must be a folder or None, got 5 \(int\)"),
    ],
)
def test_wrong_settings_are_refused_at_construction(settings: dict[str, Any], message: str) -> None:
    """Mistakes raise a ConfigError when the environment is made, not when it is used."""
    with pytest.raises(ConfigError, match=message):
        toy_env(**settings)


def test_a_text_is_a_kind() -> None:
    """The name of a kind stands for the kind with its defaults."""
    assert toy_env(encoder="hash").observation_space == toy_env(encoder={"kind": "hash"}).observation_space


def test_numpy_integers_are_whole_numbers() -> None:
    """Counts that were computed with NumPy work, and infos stay JSON."""
    env = toy_env(max_steps=np.int64(2), history_length=np.int32(3))
    env.reset(seed=0)
    info = play(env, [0, 0])[-1][4]
    assert info["cap_reached"]
    assert json.loads(json.dumps(info)) == info


def test_a_row_without_router_time_prices_baselines() -> None:
    """With router_ms = 0, a fixed-precision episode costs its LLM time alone; else each step adds the router's."""
    latency = {"row": "alfworld-4b-gptq-w3"}
    infos = []
    for settings in (latency, latency | {"router_ms": 0}):
        env = toy_env(latency=settings)
        env.reset(seed=0)
        infos.append(play(env, [1] * 8)[-1][4])
    assert infos[1]["latency_s"] == infos[1]["latency_llm_s"] == infos[0]["latency_llm_s"]
    router_s = make_latency_model("alfworld-4b-gptq-w3", ("low", "high")).router_seconds(LLMCall("low", 0, 0))
    assert infos[0]["episode_latency_s"] - infos[1]["episode_latency_s"] == pytest.approx(8 * router_s)


class Closing:
    """Counts how often it is closed."""

    closed = 0

    def close(self) -> None:
        """Count."""
        self.closed += 1


class ClosingTask(Closing, ToyTask):
    """A world that counts."""


class ClosingBackend(Closing, ScriptedBackend):
    """A backend that counts."""


class ClosingEncoder(Closing, HashEncoder):
    """An encoder that counts."""


def test_close_leaves_live_parts_open() -> None:
    """What the caller passed in, the caller closes: it may serve other environments."""
    parts = ClosingTask(), ClosingBackend(lambda request: "", ("low", "high")), ClosingEncoder(4)
    task, backend, encoder = parts
    env = toy_env(task=task, task_kwargs=None, backend=backend, encoder=encoder)
    env.close()
    assert [part.closed for part in parts] == [0, 0, 0]


def test_close_closes_what_the_environment_built(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    """Task, backend and encoder made from plain data are closed, through their caches."""
    parts = ClosingTask(), ClosingBackend(lambda request: "", ("low", "high")), ClosingEncoder(4)
    for name, part in zip(("make_task", "make_backend", "make_encoder"), parts, strict=True):
        monkeypatch.setattr(f"dmr_gym.parts.{name}", lambda *args, _part=part, **kwargs: _part)
    toy_env(cache_dir=str(tmp_path)).close()
    assert [part.closed for part in parts] == [1, 1, 1]


def test_same_seed_same_bytes() -> None:
    """The bytes of three episodes of DMR-Toy-v0 are the same in every process and on every machine."""
    env = toy_env()
    digest = hashlib.sha256()
    for seed in range(3):
        observation, info = env.reset(seed=seed)
        for step in range(12):
            digest.update(observation.tobytes())
            digest.update(json.dumps(info, sort_keys=True).encode())
            observation, reward, terminated, _, info = env.step((seed + step * step) % 2)
            digest.update(repr(reward).encode())
            if terminated:
                break
    assert digest.hexdigest() == "68be18f0a799aec3734d0825ecf36660022805836d110b9c93291a61f5acc8db"
