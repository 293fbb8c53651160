"""configs/: a file named after a registered id is its keywords; every file is whole, explained, and for a recipe."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from dmr_gym import ENV_IDS
from dmr_gym.backends import embedded_precisions
from dmr_gym.config import EnvConfig, from_mapping, load_config, to_toml
from dmr_gym.latency import TABLE_3
from dmr_gym.tasks.webshop.task import WebshopTask
from dmr_gym.types import SamplingParams

FOLDER = Path(__file__).resolve().parents[1] / "configs"
FILES = sorted(FOLDER.glob("*.toml"))
IDS = {re.sub(r"dmr-|-v\d+", "", env_id.lower()): env_id for env_id in ENV_IDS}


def test_the_shipped_worlds_have_a_file() -> None:
    """Every registered id has one."""
    assert set(IDS) <= {path.stem for path in FILES}


@pytest.mark.parametrize("world", IDS)
def test_a_file_is_its_registered_id(world: str) -> None:
    """configs/alfworld.toml holds what DMR-ALFWorld-v0 is registered with."""
    config = load_config(EnvConfig, FOLDER / f"{world}.toml")
    assert config == from_mapping(EnvConfig, ENV_IDS[IDS[world]])
    assert config == load_config(EnvConfig, base=ENV_IDS[IDS[world]])


def test_the_chat_file_has_settings_in_which_reasoning_fits() -> None:
    """The paper's protocol: 30 steps, two earlier pages, 512 tokens, and no newline that ends them."""
    config = load_config(EnvConfig, FOLDER / "webshop-chat.toml")
    sampling = SamplingParams(**config.sampling)
    assert (sampling.max_tokens, sampling.temperature, tuple(sampling.stop)) == (512, 0.4, ())
    assert (config.max_steps, config.task_kwargs["history_length"], config.task_kwargs["prompt_style"]) == (
        30,
        2,
        "chat",
    )
    assert set(config.precisions) == set(config.backend["models"])
    task = WebshopTask(**config.task_kwargs)
    task.reset(task.task_ids[0])
    assert task.prompt()[0].role == "user"


def test_the_four_precisions_cost_what_table_3_says_and_projects() -> None:
    """bf16 and W4 as measured, W3 as the paper projects it, and W2 by the same step of 1.15 from W3."""
    config = load_config(EnvConfig, FOLDER / "alfworld-four.toml")
    awq, w3 = TABLE_3["alfworld-4b-awq-w4"], TABLE_3["alfworld-4b-gptq-w3"]
    expected = {"w2": round(w3.low_ms / 1.15, 2), "w3": w3.low_ms, "w4": awq.low_ms, "bf16": awq.high_ms}
    assert config.latency == {"router_ms": awq.router_ms, "ms_per_token": expected}
    assert list(config.precisions) == list(expected)
    assert set(expected) <= set(embedded_precisions("alfworld"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_file_explains_every_keyword(path: Path, tmp_path: Path) -> None:
    """Each field of EnvConfig stands in the file once, under a comment; one at its default none is commented out."""
    text = path.read_text()
    for field in dataclasses.fields(EnvConfig):
        lines = re.findall(rf"^(# .+)\n(?:# )?(?:\[{field.name}\]|{field.name} = .+)$", text, re.MULTILINE)
        assert len(lines) == 1, field.name
    (tmp_path / "again.toml").write_text(to_toml(load_config(EnvConfig, path)))
    assert load_config(EnvConfig, tmp_path / "again.toml") == load_config(EnvConfig, path)
