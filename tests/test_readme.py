"""README.md: its Python blocks run as printed, its links and its commands exist."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import dmr_gym
from dmr_gym.config import EnvConfig

SMALL = {"total_timesteps": 32, "n_steps": 16, "batch_size": 16}


def python_blocks(text: str) -> list[str]:
    """The blocks fenced as ```python, which claim to run; ```py marks a fragment."""
    return re.findall(r"^```python\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


def shrink(block: str) -> str:
    """The same script with a training budget that fits a test."""
    for name, value in SMALL.items():
        block = re.sub(rf"\b{name}=\d+", f"{name}={value}", block)
    return block


@pytest.fixture(scope="module")
def readme(root: Path) -> str:
    """The text of README.md."""
    return (root / "README.md").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_python_blocks_run_as_printed(readme: str, root: Path) -> None:
    """Every Python block of the README runs in a fresh interpreter, small totals aside."""
    blocks = python_blocks(readme)
    assert blocks
    for block in blocks:
        done = subprocess.run(
            [sys.executable, "-c", shrink(block)], cwd=root, capture_output=True, text=True, timeout=500, check=False
        )
        assert done.returncode == 0, f"{block}\n{done.stderr}"


def test_first_example_is_short_and_early(readme: str) -> None:
    """The first script starts within the first 30 lines and has at most 20."""
    lines = readme.splitlines()
    assert lines.index("```python") < 30
    assert len(python_blocks(readme)[0].splitlines()) <= 20


def test_every_id_is_in_the_table(readme: str) -> None:
    """Each registered id has a row with its step limit."""
    for env_id, settings in dmr_gym.ENV_IDS.items():
        (row,) = re.findall(rf"^\| \[`{env_id}`\].*$", readme, flags=re.MULTILINE)
        assert f"| {settings.get('max_steps', EnvConfig().max_steps)} |" in row


def test_links_and_commands_exist(readme: str, root: Path) -> None:
    """Relative links, make targets and scripts that the README names are there."""
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", readme) if "://" not in link]
    scripts = re.findall(r"\b(?:agents|bench)/\w+\.py\b", readme)
    missing = [path for path in (*links, *scripts) if not (root / path).exists()]
    assert missing == []
    targets = set(re.findall(r"^([a-z-]+):", (root / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
    assert set(re.findall(r"\bmake ([a-z-]+)\b", readme)) - {"and"} <= targets
