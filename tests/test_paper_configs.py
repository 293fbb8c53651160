"""configs/: every file parses, makes an environment, and holds nothing that nobody reads; the paper's eight cells."""

from __future__ import annotations

import inspect
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dmr_gym.backends import make_backend
from dmr_gym.command_line import add_env_options, chosen_env, make_envs, recipe_parser
from dmr_gym.config import EnvConfig, load_config, read_toml
from dmr_gym.errors import ConfigError
from dmr_gym.latency import TABLE_3, price_source
from dmr_gym.serving import read_serve_settings
from dmr_gym.tasks.alfworld.task import AlfworldTask
from dmr_gym.tasks.toy import ToyTask
from dmr_gym.tasks.webshop.task import WebshopTask
from tests.recipes import load_recipe

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted((ROOT / "configs").rglob("*.toml"))
CELLS = sorted((ROOT / "configs" / "paper").glob("*.toml"))
TASKS = {"alfworld": AlfworldTask, "toy": ToyTask, "webshop": WebshopTask}
OFFICIAL_ONLY = {"num_products", "goals", "index_dir"}
SCRIPTED = {"kind": "scripted", "policy": "hash", "choices": ["look", "search[tea]", "go left"]}
REQUIRED = {
    "quantize": (),
    "collect_kl": ("--out", "x"),
    "train_kl_st": ("--out", "x", "--data", "x"),
    "calibrate": ("--out", "x", "--router", "x"),
    "evaluate": ("--out", "x", "--router", "x"),
    "train_grpo": ("--out", "x"),
    "train_ppo": ("--out", "x"),
    "compare_grpo": ("--out", "x", "--router", "x"),
    "calibrate_latency": ("--out", "x"),
}
"""What each recipe asks for besides; the names are all that `EnvConfig.recipe_tables` knows but "serve"."""

every_file = pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT / "configs")))
every_cell = pytest.mark.parametrize("path", CELLS, ids=lambda path: path.stem)


def test_every_recipe_table_is_a_recipe() -> None:
    """The tables that a file may hold are those of recipes that are there, and "serve"."""
    assert set(EnvConfig.recipe_tables) == set(REQUIRED) | {"serve"}
    assert all((ROOT / "agents" / f"{name}.py").is_file() for name in REQUIRED)


@every_file
def test_a_file_begins_with_the_command_that_takes_it(path: Path) -> None:
    """Its first line names a recipe that is there, with this file."""
    name = re.escape(str(path.relative_to(ROOT)))
    command = re.match(rf"# python (agents/\w+\.py) .*--config {name} ", path.read_text(encoding="utf-8"))
    assert (ROOT / command[1]).is_file()


@every_file
def test_a_file_makes_its_environment(path: Path) -> None:
    """With a script in place of the LLMs and generated tasks in place of downloaded ones, it plays two steps."""
    config = load_config(EnvConfig, path)
    assert set(config.task_kwargs) <= set(inspect.signature(TASKS[config.task]).parameters)
    kwargs = {key: value for key, value in config.task_kwargs.items() if key not in OFFICIAL_ONLY}
    if config.task != "toy":
        kwargs["source"] = "embedded"
    config = replace(config, backend=SCRIPTED, encoder={"kind": "hash", "dim": 8}, task_kwargs=kwargs)
    envs = make_envs(config, "test", 2)
    envs.reset(seed=0)
    for action in (0, len(config.precisions) - 1):
        envs.step([action, action])
    assert {turn.request.sampling.max_tokens for turn in envs.turns[0]} == {config.sampling.get("max_tokens", 100)}
    envs.close()


@every_file
def test_every_option_of_a_table_reaches_its_recipe(path: Path) -> None:
    """No table and no key is unknown, and each value arrives where the command line would have put it."""
    tables = {name: table for name, table in read_toml(path).items() if name in REQUIRED}
    for name, table in tables.items():
        args = load_recipe(name).parse_args([*REQUIRED[name], "--config", str(path)])
        args = args[0] if isinstance(args, tuple) else args
        # A path comes as one, and what may be a number or a word as text.
        assert {key: type(value)(getattr(args, key)) for key, value in table.items()} == table


@every_file
def test_a_recipe_takes_the_file_whole(path: Path) -> None:
    """No keyword, and no option of backend or encoder, is unknown to what would be built from it."""
    assert _chosen(path) == load_config(EnvConfig, path)


@pytest.mark.parametrize(
    ("name", "place", "added", "message"),
    [
        ("paper/webshop-4b-awq-w4.toml", "[encoder]", "batch = 7", "option of encoder kind 'minilm': 'batch'"),
        ("webshop-chat.toml", "[backend]", 'devise = "cuda"', "option of backend kind 'local': 'devise'"),
    ],
)
def test_a_misspelt_option_of_backend_or_encoder_is_refused(
    tmp_path: Path, name: str, place: str, added: str, message: str
) -> None:
    """When a recipe reads the file, with nothing built: the checkpoints of the second are not there."""
    text = (ROOT / "configs" / name).read_text(encoding="utf-8")
    path = tmp_path / "mine.toml"
    path.write_text(text.replace(f"\n{place}\n", f"\n{place}\n{added}\n"), encoding="utf-8")
    with pytest.raises(ConfigError, match=f"unknown {message}"):
        _chosen(path)


def _chosen(path: Path) -> EnvConfig:
    parser = recipe_parser("A recipe.")
    add_env_options(parser)
    return chosen_env(parser.parse_args(["--config", str(path)]))[1]


@every_file
def test_servers_of_a_file_are_those_that_its_backend_calls(path: Path) -> None:
    """Every precision has a model under the name that is asked for, at the addresses that are called."""
    config = load_config(EnvConfig, path)
    if config.backend["kind"] != "vllm":
        assert "serve" not in read_toml(path)
        return
    assert make_backend(config.backend, config.precisions).precisions == config.precisions
    assert set(config.backend["model"]) == set(config.backend["urls"]) == set(config.precisions)
    settings = read_serve_settings(path)
    assert set(settings.models) == set(config.precisions)
    assert load_recipe("serve_pair").mismatches(settings, config.backend) == []


def test_the_paper_has_eight_cells() -> None:
    """A file for each row of Table 3, whose prices it takes; only the 3-bit one says that they are projected."""
    assert {path.stem for path in CELLS} == set(TABLE_3)
    for path in CELLS:
        config = load_config(EnvConfig, path)
        assert config.latency == path.stem
        source = price_source(config.latency, config.precisions)
        assert source.projected == ("projected" in path.read_text(encoding="utf-8")) == path.stem.endswith("w3")


@every_cell
def test_a_cell_makes_the_quantized_model_that_it_serves(path: Path) -> None:
    """Its name says of which size, method and bits; the rest is the paper's Appendix E, in groups of 128."""
    settings, servers = load_recipe("quantize").parse(["--config", str(path)]), read_serve_settings(path)
    _, size, method, low = path.stem.split("-")
    assert (settings.model, str(settings.out)) == (servers.models["bf16"], servers.models[low])
    assert f"qwen3-{size}" in settings.model.lower()
    assert str(settings.out).endswith(f"-{method}-{low}")
    assert (settings.method, settings.scheme) == (method, f"{low.upper()}A16")
    assert (settings.calibration, settings.samples, settings.max_length) == ("c4", 128, 2048)
    assert settings.group_size == 128
    text = path.read_text(encoding="utf-8")
    assert f"python agents/quantize.py --config {path.relative_to(ROOT)}\n" in text


def test_a_misspelt_table_of_quantize_is_told(tmp_path: Path) -> None:
    """Before its options count as missing."""
    (tmp_path / "c.toml").write_text('[quantise]\nmodel = "m"\nout = "o"\n')
    with pytest.raises(ConfigError, match="did you mean 'quantize'"):
        load_recipe("quantize").parse(["--config", str(tmp_path / "c.toml")])


@every_cell
def test_a_cell_has_the_protocol_of_its_benchmark(path: Path) -> None:
    """Caps, decoding, prompts, panels, budgets and λs: what the paper states, and what docs/configs.md calls ours."""
    config, tables = load_config(EnvConfig, path), read_toml(path)
    world, _, _, low = path.stem.split("-")
    assert (config.task, config.precisions) == (world, (low, "bf16"))
    sampling = (config.sampling["temperature"], config.sampling["max_tokens"], config.sampling["stop"])
    steps = {name: table["steps"] for name, table in tables.items() if name in REQUIRED and "steps" in table}
    if world == "alfworld":
        assert (config.max_steps, sampling) == (50, (0.0, 100, ["\n"]))
        assert config.task_kwargs["prompt_style"] == "react"
        assert set(steps.values()) == {"action"}
        assert tables["calibrate_latency"]["tasks"] == 64
        assert tables["evaluate"]["tasks"] == 128
    else:
        assert (config.max_steps, sampling) == (30, (0.4, 512, []))
        assert (config.task_kwargs["prompt_style"], config.task_kwargs["history_length"]) == ("chat", 2)
        assert set(steps.values()) == {"click"}
        assert tables["calibrate_latency"] | {"force_high": ["search"]} == tables["calibrate_latency"]
        assert tables["calibrate_latency"]["tasks"] == tables["evaluate"]["tasks"] == 256
    assert tables["calibrate_latency"]["num_envs"] == 16
    assert tables["collect_kl"]["tasks"] == 1000
    for name in ("calibrate", "evaluate", "compare_grpo"):
        assert tables[name]["budgets"] == [0.2, 0.4, 0.7]
    assert len(tables["compare_grpo"]["lambdas"]) == 3
    assert config.lambda_ in tables["compare_grpo"]["lambdas"]
    assert (tables["compare_grpo"]["seeds"], tables["evaluate"]["seeds"]) == (3, 3)


@pytest.mark.slow
@pytest.mark.parametrize("path", [path for path in CELLS if "webshop" in path.stem], ids=lambda path: path.stem)
def test_a_webshop_cell_finds_its_tasks_in_official_data(path: Path, shared_data: Path, tmp_path: Path) -> None:
    """The released 1,000 products have as many goals as its recipes play."""
    config, tables = load_config(EnvConfig, path), read_toml(path)
    kwargs: dict[str, Any] = {**config.task_kwargs, "source": str(shared_data / "webshop"), "index_dir": str(tmp_path)}
    for name, panel, key in (("collect_kl", "panel", "tasks"), ("compare_grpo", "test_panel", "test_tasks")):
        task = WebshopTask(**kwargs | {"panel": tables[name][panel]})
        assert len(task.task_ids) >= tables[name][key]
        task.reset(task.task_ids[0])
        assert task.prompt()[0].role == "user"
