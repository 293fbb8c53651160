"""The documentation tells what the package has: one page an id, and every quirk that can be mended."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import dmr_gym
from dmr_gym.tasks.webshop.fixes import FIXES

PAGES = Path(__file__).parents[1] / "docs" / "environments"


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
