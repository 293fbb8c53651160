"""The record of an episode: what each key says, and files that are no record."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dmr_gym.errors import ConfigError
from dmr_gym.policies import FixedPrecision
from dmr_gym.records import FORMAT, episode_record, read_policies, read_records
from dmr_gym.rollout import Trajectory, rollout
from dmr_gym.tasks.toy import make_signs
from dmr_gym.vector import PrecisionRoutingVectorEnv
from tests.toy_env import TASK, envs, solved

__all__ = ["envs", "solved"]  # fixtures for tests here

KEYS = {"format", "task_id", "seed", "success", "score", "time_s", "cap_reached", "instruction", "observation", "steps"}
STEP_KEYS = {"precision", "router_called", "p_high", "step_type", "latency_llm_s", "latency_router_s", "prompt_tokens"}
STEP_KEYS |= {"completion_tokens", "invalid_action", "action", "observation", "completion", "invalid_reason"}


def test_a_record_tells_the_whole_episode(solved: Trajectory) -> None:
    """Plain JSON with the documented keys; T of Eq. 9 is the sum over its steps, without a router's time here."""
    record = json.loads(json.dumps(episode_record(solved)))
    assert set(record) == KEYS
    assert (record["format"], record["task_id"], record["seed"]) == (FORMAT, TASK, 2)
    assert (record["success"], record["score"], record["cap_reached"]) == (True, 1.0, False)
    assert record["instruction"] == "Follow the signs to the exit."
    assert record["observation"] == make_signs(TASK, 8)[0].text
    assert len(record["steps"]) == 8
    assert all(set(step) == STEP_KEYS for step in record["steps"])
    assert sum(s["latency_llm_s"] + s["latency_router_s"] for s in record["steps"]) == pytest.approx(record["time_s"])
    ways = [f"go {sign.way}" for sign in make_signs(TASK, 8)]
    assert [step["action"] for step in record["steps"]] == ways
    assert record["steps"][-1]["observation"] == "You reach the exit."


def test_an_episode_that_runs_out_of_steps_says_so(envs: PrecisionRoutingVectorEnv) -> None:
    """Low precision turns back at every fallen sign, fifty times."""
    [lost] = rollout(envs, FixedPrecision(0), [TASK], keep_turns=True)
    record = episode_record(lost, texts=False)
    assert (record["success"], record["cap_reached"], len(record["steps"])) == (False, True, 50)
    assert set(record) == KEYS - {"instruction", "observation"}
    assert "action" not in record["steps"][0]


def line(policy: str, task: str, precisions: list[int], **changes: object) -> str:
    """One line of a file of episodes."""
    steps = [{"precision": p, "completion_tokens": 3} for p in precisions]
    record = {"format": FORMAT, "policy": policy, "kind": "router", "like": None, "budget": 0.2, "lambda": None}
    record |= {"task_id": task, "seed": 0, "success": True, "score": 1.0, "time_s": 2.0, "steps": steps}
    return json.dumps(record | changes) + "\n"


def test_policies_are_read_in_the_order_of_the_file(tmp_path: Path) -> None:
    """Steps of three precisions are counted, tokens summed, episodes kept with their policy."""
    path = tmp_path / "episodes.jsonl"
    path.write_text(line("b", "t1", [0, 2, 2]) + line("a", "t1", [1], kind="random", like="b") + line("b", "t2", [1]))
    b, a = read_policies(path, 3)
    assert (b.name, b.kind, b.budget, a.like) == ("b", "router", 0.2, "b")
    assert [episode.precision_steps for episode in b.episodes] == [(1, 0, 2), (0, 1, 0)]
    assert [episode.completion_tokens for episode in b.episodes] == [9, 3]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "line 1: not the record of an episode"),
        ("[1]", "line 1: not the record of an episode"),
        (line("a", "t", [0]) + '{"a": 1}\n', "line 2: not the record of an episode"),
        (line("a", "t", [0], format=FORMAT + 1), f"has format {FORMAT + 1}, expected {FORMAT}"),
    ],
)
def test_files_that_are_no_record_are_refused(tmp_path: Path, text: str, message: str) -> None:
    """With the number of the line."""
    (tmp_path / "e.jsonl").write_text(text)
    with pytest.raises(ConfigError, match=message):
        list(read_records(tmp_path / "e.jsonl"))
    with pytest.raises(ConfigError, match=r"agents/evaluate\.py writes one"):
        list(read_records(tmp_path / "nothing.jsonl"))
