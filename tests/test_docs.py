"""The documentation tells what the package has: one page an id, and every quirk that can be mended."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

import dmr_gym
from dmr_gym.alternatives import Alternatives
from dmr_gym.evaluation import single_precision
from dmr_gym.latency import TABLE_3
from dmr_gym.policies import FixedPrecision
from dmr_gym.records import episode_record
from dmr_gym.rollout import rollout
from dmr_gym.tasks.alfworld.task import AlfworldTask
from dmr_gym.tasks.toy import ToyTask
from dmr_gym.tasks.webshop import panels
from dmr_gym.tasks.webshop.fixes import FIXES
from dmr_gym.tasks.webshop.task import WebshopTask
from dmr_gym.types import SamplingParams
from dmr_gym.vector import PrecisionRoutingVectorEnv

PAGES = Path(__file__).parents[1] / "docs" / "environments"
TASKS = {"alfworld": AlfworldTask, "toy": ToyTask, "webshop": WebshopTask}
IN_WORDS = {"all", "beside the data"}
"""How a table may put the default None."""


@pytest.mark.parametrize("env_id", dmr_gym.ENV_IDS)
def test_every_id_has_a_page_with_its_precisions_and_step_limit(env_id: str) -> None:
    """The table at the top of a page shows what the registry says."""
    world = env_id.removeprefix("DMR-").removesuffix("-v0").lower()
    text = (PAGES / f"{world}.md").read_text(encoding="utf-8")
    settings = dmr_gym.ENV_IDS[env_id]
    assert text.startswith(f"# {env_id}\n")
    actions = ", ".join(f"{index} = `{name}`" for index, name in enumerate(settings["precisions"]))
    assert f"| Action space | `Discrete({len(settings['precisions'])})`: {actions} |" in text
    assert f"| Step limit | {settings.get('max_steps', 50)} |" in text


def test_the_page_of_webshop_lists_every_quirk_as_the_package_words_it() -> None:
    """Each name of `FIXES` stands in the table with its text."""
    text = (PAGES / "webshop.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", text, flags=re.MULTILINE))
    assert {name: rows.get(name) for name in FIXES} == FIXES


@pytest.mark.parametrize("world", TASKS)
def test_the_arguments_of_a_page_are_those_of_its_task(world: str) -> None:
    """Each parameter has one row, in the order of the signature, with its default as Python writes it."""
    text = (PAGES / f"{world}.md").read_text(encoding="utf-8").partition("## Arguments")[2]
    table = text.partition("| key | default | meaning |\n|---|---|---|\n")[2].partition("\n\n")[0]
    rows = [re.match(r"\| `(\w+)` \| (.+?) \|", line).groups() for line in table.splitlines()]
    shown = [(name, "None" if default in IN_WORDS else default.strip("`")) for name, default in rows]
    signature = inspect.signature(TASKS[world]).parameters
    assert shown == [(name, repr(entry.default).replace("'", '"')) for name, entry in signature.items()]


def test_the_page_of_webshop_names_the_rows_of_table_3_and_the_sizes_of_the_panels() -> None:
    """All prices that were measured in this world, and how many goals each embedded panel has."""
    text = (PAGES / "webshop.md").read_text(encoding="utf-8")
    assert set(re.findall(r"`(webshop-\d\S*-w\d)`", text)) == {row for row in TABLE_3 if row.startswith("webshop")}
    for panel in panels.PANELS:
        assert f"| `{panel}` | {len(panels.embedded_goals(panel)):,} |" in text


def test_the_page_of_evaluation_names_every_key_of_an_episode() -> None:
    """The three tables of keys are those of a record, of its steps, and of what else could have been done."""
    envs = PrecisionRoutingVectorEnv(1, autoreset_mode="Disabled", **dmr_gym.ENV_IDS["DMR-Toy-v0"])
    [episode] = rollout(envs, FixedPrecision(1), envs.task_ids[:1], keep_turns=True)
    record = single_precision(1, envs.precisions).head() | episode_record(episode)
    [alternative, _] = Alternatives(ToyTask(), envs.backend, SamplingParams()).of(record)[0]
    text = (PAGES.parent / "evaluation.md").read_text(encoding="utf-8")
    tables = text.partition("### episodes.jsonl")[2].partition("## Metrics")[0].split("\n\n")
    named = [
        {key for line in table.splitlines()[2:] for key in re.findall(r"`(\w+)`", line.split("|")[1])}
        for table in tables
        if table.startswith("| key")
    ]
    step = record["steps"][0]
    assert named == [set(record), set(step), set(alternative)]
