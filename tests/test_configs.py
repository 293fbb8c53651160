"""configs/: a file named after a registered id is its keywords; every file is whole, explained, and for a recipe."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest

from dmr_gym import ENV_IDS
from dmr_gym.backends import embedded_precisions
from dmr_gym.backends.checkpoint import resolve_checkpoint
from dmr_gym.config import EnvConfig, from_mapping, load_config, to_toml
from dmr_gym.latency import TABLE_3, make_latency_model
from dmr_gym.latency.table import project_w3_row
from dmr_gym.parts import prices_of
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
    """ALFWorld: bf16 and W4 as measured, W3 as the paper projects it, and W2 by the same step of 1.15 from W3."""
    config = load_config(EnvConfig, FOLDER / "alfworld-four.toml")
    awq, w3 = TABLE_3["alfworld-4b-awq-w4"], TABLE_3["alfworld-4b-gptq-w3"]
    expected = {"w2": round(w3.low_ms / 1.15, 2), "w3": w3.low_ms, "w4": awq.low_ms, "bf16": awq.high_ms}
    assert config.latency == {"router_ms": 5.0, "projected": ["w2", "w3"], "ms_per_token": expected}
    assert list(config.precisions) == list(expected)
    assert set(expected) <= set(embedded_precisions("alfworld"))
    assert prices_of(config).title == "modelled seconds, prices of your own, w2 and w3 projected"


def test_the_four_precisions_of_webshop_cost_what_table_3_says_and_projects() -> None:
    """bf16 and GPTQ's W4 as measured, W3 as the paper projects it, and W8 on the line through 4 and 16 bits."""
    config = load_config(EnvConfig, FOLDER / "webshop-four.toml")
    gptq, w3 = TABLE_3["webshop-4b-gptq-w4"], project_w3_row("webshop-4b-awq-w4")
    w8 = gptq.low_ms + (gptq.high_ms - gptq.low_ms) * (8 - 4) / (16 - 4)
    expected = {"w3-gptq": round(w3.low_ms, 2), "w4": gptq.low_ms, "w8": round(w8, 2), "bf16": gptq.high_ms}
    assert config.latency == {"router_ms": 5.0, "projected": ["w3-gptq", "w8"], "ms_per_token": expected}
    assert list(config.precisions) == list(expected)
    assert set(expected) <= set(embedded_precisions("webshop"))
    assert prices_of(config).title == "modelled seconds, prices of your own, w3-gptq and w8 projected"
    card = resolve_checkpoint("embedded:webshop/w4") / "quantization.json"
    assert json.loads(card.read_text())["method"] == "gptq"


def test_a_pair_of_the_four_is_priced_as_the_page_of_evaluation_says() -> None:
    """Its settings take the file of ALFWorld, and leave out what is projected but not played."""
    page = (FOLDER.parent / "docs" / "evaluation.md").read_text(encoding="utf-8")
    settings = [f"--{text}" for text in re.findall(r"--set '(.+?)'", page.partition("A pair at the same prices")[2])]
    config = load_config(EnvConfig, FOLDER / "alfworld-four.toml", settings)
    make_latency_model(config.latency, config.precisions)
    assert config.precisions == ("w2", "bf16")
    assert prices_of(config).label == "prices of your own, w2 projected"


def test_no_two_files_name_one_folder() -> None:
    """The commands at the top may all be run, one after the other: a folder holds the data of one environment."""
    folders = [re.findall(r"--out (\S+)", path.read_text().splitlines()[0])[0] for path in FILES]
    assert len(set(folders)) == len(folders)
    for world in ("alfworld", "webshop"):
        named = re.findall(r"runs/\S+/kl", (FOLDER / f"{world}-four.toml").read_text())
        assert set(named) == {f"runs/{world}-four/kl"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_file_explains_every_keyword(path: Path, tmp_path: Path) -> None:
    """Each field of EnvConfig stands in the file once, under a comment; one at its default none is commented out."""
    text = path.read_text()
    for field in dataclasses.fields(EnvConfig):
        lines = re.findall(rf"^(# .+)\n(?:# )?(?:\[{field.name}\]|{field.name} = .+)$", text, re.MULTILINE)
        assert len(lines) == 1, field.name
    (tmp_path / "again.toml").write_text(to_toml(load_config(EnvConfig, path)))
    assert load_config(EnvConfig, tmp_path / "again.toml") == load_config(EnvConfig, path)
