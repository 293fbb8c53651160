"""configs/: each file is a registered id's keywords, whole and explained, and a recipe takes it."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from dmr_gym import ENV_IDS
from dmr_gym.config import EnvConfig, from_mapping, load_config, to_toml

FILES = sorted((Path(__file__).resolve().parents[1] / "configs").glob("*.toml"))
IDS = {re.sub(r"dmr-|-v\d+", "", env_id.lower()): env_id for env_id in ENV_IDS}


def test_the_shipped_worlds_have_a_file() -> None:
    """Every registered id has one."""
    assert set(IDS) <= {path.stem for path in FILES}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_file_is_its_registered_id(path: Path) -> None:
    """configs/alfworld.toml holds what DMR-ALFWorld-v0 is registered with, and survives being written again."""
    config = load_config(EnvConfig, path)
    assert config == from_mapping(EnvConfig, ENV_IDS[IDS[path.stem]])
    assert config == load_config(EnvConfig, base=ENV_IDS[IDS[path.stem]])
    assert f"--config configs/{path.name}" in path.read_text().split("\n\n")[0]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_file_explains_every_keyword(path: Path, tmp_path: Path) -> None:
    """Each field of EnvConfig stands in the file once, under a comment; one at its default none is commented out."""
    text = path.read_text()
    for field in dataclasses.fields(EnvConfig):
        lines = re.findall(rf"^(# .+)\n(?:# )?(?:\[{field.name}\]|{field.name} = .+)$", text, re.MULTILINE)
        assert len(lines) == 1, field.name
    (tmp_path / "again.toml").write_text(to_toml(load_config(EnvConfig, path)))
    assert load_config(EnvConfig, tmp_path / "again.toml") == load_config(EnvConfig, path)
