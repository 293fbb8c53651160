"""docs/latency.md and docs/configs.md tell what the package and its files hold."""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path

import pytest

from dmr_gym.config import EnvConfig
from dmr_gym.latency import TABLE_3, break_even_tokens, load_profile, per_token_speedup, settings
from dmr_gym.latency.settings import QUANTITIES

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "latency.md").read_text(encoding="utf-8")
CONFIGS = (ROOT / "docs" / "configs.md").read_text(encoding="utf-8")


def rows(text: str, first_cell: str) -> list[list[str]]:
    """Cells of the table rows whose first cell has this form."""
    found = re.findall(rf"^\| ({first_cell}) \| (.*) \|$", text, flags=re.MULTILINE)
    return [[first, *rest.split(" | ")] for first, rest in found]


def test_every_kind_stands_there_with_its_unit_and_settings() -> None:
    """In the order of the signatures, defaults as Python writes them."""
    table = {cells[0].split("`")[1]: cells for cells in rows(PAGE, r"`[a-z-]+`(?: \(default\))?") if len(cells) == 4}
    assert table.pop("kind")
    assert set(table) == set(QUANTITIES)
    for kind, (_, _, unit, told) in table.items():
        assert unit == QUANTITIES[kind][1]
        builder = getattr(settings, f"_{kind.replace('-', '_')}")
        options = list(inspect.signature(builder).parameters.values())[1:]
        values = {"_VLLM_BLOCK": "16"}
        shown = [p.name if p.default is p.empty else f"{p.name}={values.get(p.default, p.default)}" for p in options]
        assert told == ", ".join(f"`{text}`" for text in shown)


def test_table_3_is_the_packages() -> None:
    """Coefficients, sessions, and what is projected."""
    table = [cells for cells in rows(PAGE, r"`\w+-[\d.]+b-\w+-w\d`") if len(cells) == 5]
    expected = [
        [f"`{name}`", f"{r.high_ms:.2f}", f"{r.low_ms:.2f}{', projected' if r.projected else ''}", f"{r.router_ms:.2f}"]
        for name, r in TABLE_3.items()
    ]
    assert [cells[:4] for cells in table] == expected
    assert [int(cells[4]) for cells in table] == [r.sessions for r in TABLE_3.values()]


def test_break_even_table_is_what_the_functions_give() -> None:
    """Ratio, tokens at four budgets, and the largest speed-up."""
    table = [cells for cells in rows(PAGE, r"`\w+-[\d.]+b-\w+-w\d`(?:, projected)?") if len(cells) == 7]
    assert len(table) == len(TABLE_3)
    for cells, (name, r) in zip(table, TABLE_3.items(), strict=True):
        assert cells[0] == f"`{name}`" + (", projected" if r.projected else "")
        tokens = [break_even_tokens(r.high_ms, r.low_ms, r.router_ms, share) for share in (0, 0.2, 0.4, 0.7)]
        speedups = [per_token_speedup(r.high_ms, r.low_ms), per_token_speedup(r.high_ms, r.low_ms, 0.2)]
        expected = [f"{speedups[0]:.3f}", *(f"{n:.1f}" for n in tokens), f"{speedups[1]:.3f}"]
        assert cells[1:] == expected


def test_the_packaged_profile_is_shown_as_it_is() -> None:
    """The command, and each coefficient with its interval."""
    profile = load_profile("alfworld-embedded-cpu")
    assert profile.command in PAGE
    linear, ends = profile.kinds["token-linear"], profile.intervals["token-linear"]
    fitted = profile.kinds["prefill-decode"]
    table = {cells[0]: cells[1:] for cells in rows(PAGE, r"`(?:w2|bf16)`") if len(cells) == 6}
    for name, ms in linear["ms_per_token"].items():
        low, high = ends["ms_per_token"][name]
        assert table[f"`{name}`"] == [
            f"{ms:.2f} [{low:.2f}, {high:.2f}]",
            *(f"{fitted[kind][name]:.3f}" for kind in ("ms_per_prefill_token", "ms_per_decode_token", "ms_per_call")),
            f"{profile.fit[name]['r_squared']:.2f}",
        ]
    assert "{:.2f} ms [{:.2f}, {:.2f}]".format(linear["router_ms"], *ends["router_ms"]) in PAGE


def test_the_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    """The block fenced as Python runs as printed, and prints a time."""
    [block] = re.findall(r"^```python\n(.*?)^```", PAGE, flags=re.DOTALL | re.MULTILINE)
    exec(compile(block, "docs/latency.md", "exec"), {})
    assert float(capsys.readouterr().out) > 0


def test_the_page_of_files_names_every_table_and_every_cell() -> None:
    """And its commands are scripts that are there."""
    told = CONFIGS.partition("There may be tables for ")[2].partition(". `[serve]`")[0]
    assert {*re.findall(r"`(\w+)`", told), "serve"} == set(EnvConfig.recipe_tables)
    cells = {cells[0].strip("`") for cells in rows(CONFIGS, r"`[\w.-]+\.toml`")}
    assert cells == {path.name for path in (ROOT / "configs" / "paper").glob("*.toml")}
    for page in (PAGE, CONFIGS):
        assert all((ROOT / path).is_file() for path in re.findall(r"python (agents/\w+\.py)", page))
        links = [link for link in re.findall(r"\]\(([^)#]+)\)", page) if "://" not in link]
        assert all((ROOT / "docs" / link).exists() for link in links)


def test_what_is_said_of_switches_is_what_was_measured() -> None:
    """No cost that can be told from zero up to the fourth step; from the eighth on one, of less than a warm call."""
    assert "can be told from zero up to the fourth step" in PAGE
    assert "from the eighth on it is a part of a warm call" in PAGE
    measured = json.loads((ROOT / "results" / "vllm-switches" / "results.json").read_text(encoding="utf-8"))
    costs = [cost for found in measured["switches"].values() for cost in found]
    assert {cost["step"] for cost in costs} == {1, 2, 4, 8, 16, 32}
    for cost in costs:
        known = cost["sessions"] > 1
        if cost["step"] <= 4:
            assert known
            assert cost["interval"]["low"] <= 0
        else:
            assert 0 < cost["switch_ms"] < cost["warm_ms"]
            assert cost["interval"]["low"] > 0 or not known
