"""dmr_gym.env: the keys of info, what stands in them, and that they are plain data."""

from __future__ import annotations

from typing import Any

import pytest

from dmr_gym.tasks.toy import make_signs
from tests.toy_env import play, toy_env

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
    "next_step_type": str,
    "step_index": int,
    "task_id": str,
    "cap_reached": bool,
    "high_precision_share": float,
    "episode_latency_s": float,
    "episode_completion_tokens": int,
}


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
