"""dmr_gym.ablations: where thresholds are placed, and tables in the paper's format."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dmr_gym.ablation_figures import draw_budgets, draw_kl_types, draw_sizes
from dmr_gym.ablations import (
    PLACES,
    Variant,
    advantage_table,
    depth_table,
    kl_by_type,
    step_type_rows,
    step_type_table,
    threshold_places,
    threshold_table,
    tokens_table,
    width_table,
)
from dmr_gym.calibration_tables import shift_table
from dmr_gym.errors import ConfigError
from dmr_gym.kl_dataset import KLDataset
from dmr_gym.metrics import Difference, Interval


def row(kind: str, policy: str, success: float, seconds: float | None, budget: float | None = None) -> dict:
    """What results.json says of a policy."""
    found = {"kind": kind, "policy": policy, "budget": budget, "success": success, "score": success + 0.01}
    found |= {"success_ci": {"low": success - 0.1, "high": success + 0.1}, "seeds": [{}, {}, {}]}
    return found | {"time_success_s": seconds, "time_all_s": 6.0, "speedup_success": 1.06}


def variant(name: str, *successes: float, tau: float = 0.1) -> Variant:
    """A setting that was evaluated at two budgets."""
    singles = (row("high", "always bf16", 0.9, 5.0), row("low", "always w2", 0.0, None))
    budgets = tuple(row("router", f"K={k}", s, 4.0, k) for k, s in zip((0.2, 0.4), successes, strict=True))
    return Variant(name, 0.75, singles, budgets, (tau,))


def dataset(kls: list[float], types: list[str]) -> KLDataset:
    """One trajectory with these KLs."""
    column = np.array(kls, dtype=np.float32)[:, None]
    return KLDataset(
        rows=np.ones((len(kls), 2), np.float32),
        kl_action=column,
        kl_all=column,
        lengths=np.array([len(kls)]),
        success=np.array([True]),
        completion_tokens=np.ones(len(kls), dtype=np.int64),
        step_types=tuple(types),
        task_ids=("t",),
    )


def two_modes() -> np.ndarray:
    """Nine hundred KLs around 1e-4 and a hundred around 1, with nothing between 1e-3 and 0.1."""
    low, high = np.random.default_rng(0).normal(0, 0.2, 900), np.random.default_rng(1).normal(0, 0.2, 100)
    return (10 ** np.concatenate([low - 4, high])).astype(np.float32)


def test_thresholds_lie_where_their_names_say() -> None:
    """A twentieth of the low mode below the edge, all of it below the plateau, half of the high mode above the last."""
    kls = two_modes()
    places = threshold_places(np.stack([kls, kls * 2], axis=1))
    assert tuple(places) == PLACES
    below = {place: int((kls <= taus[0]).sum()) for place, taus in places.items()}
    assert below["edge"] == pytest.approx(45, abs=1)
    assert below["plateau"] == below["plateau edge"] == 900
    assert below["dense mode"] == pytest.approx(950, abs=1)
    assert places["plateau"][0] < places["plateau edge"][0]
    # The second precision has twice the KLs: its thresholds are its own.
    assert places["dense mode"][1] == pytest.approx(2 * places["dense mode"][0], rel=1e-5)


def test_without_a_plateau_there_are_no_places() -> None:
    """One mode has no middle ground; the way out is named."""
    kls = 10 ** np.random.default_rng(0).normal(-2, 0.3, (200, 1))
    with pytest.raises(ConfigError, match=r"the KLs of lower precision 0 have no plateau .* name four with --taus"):
        threshold_places(kls.astype(np.float32))


def test_the_table_of_depths_by_hand() -> None:
    """Accuracy and the mean over budgets stand once a depth; singles in the note."""
    table = depth_table([variant("2", 0.5, 0.7), variant("8", 0.6, 0.9)], "DMR-Toy-v0, panel test")
    assert table.rows == (
        ("2", "75.0", "60.0", "0.2", "50.0 [40.0, 60.0]", "4.00", "6.00"),
        ("", "", "", "0.4", "70.0 [60.0, 80.0]", "4.00", "6.00"),
        ("8", "75.0", "75.0", "0.2", "60.0 [50.0, 70.0]", "4.00", "6.00"),
        ("", "", "", "0.4", "90.0 [80.0, 100.0]", "4.00", "6.00"),
    )
    assert table.notes[1] == (
        "DMR-Toy-v0, panel test, 3 router seeds. Brackets: 95 % intervals over tasks. "
        "always bf16 90.0 %, 5.00 s; always w2 0.0 %, – s."
    )
    assert "flatters" in table.notes[2]
    by_width = width_table([variant("64", 0.5, 0.7), variant("384", 0.6, 0.9)], "DMR-Toy-v0, panel test")
    assert (by_width.title, by_width.columns[0], by_width.columns[1:]) == ("Router width", "width", table.columns[1:])
    assert [row[1:] for row in by_width.rows] == [row[1:] for row in table.rows]
    assert [row[0] for row in by_width.rows] == ["64", "", "384", ""]


def test_the_table_of_thresholds_by_hand() -> None:
    """Place and τ, then success, score and time at each budget."""
    table = threshold_table([variant("edge", 0.5, 0.7, tau=1e-5)], "here")
    assert table.rows[0] == ("edge", "1e-05", "60.0", "0.2", "50.0 [40.0, 60.0]", "0.510", "4.00", "6.00")
    assert table.rows[1][:4] == ("", "", "", "0.4")


def test_the_table_of_tokens_by_hand() -> None:
    """The paper's Table 5: both successes, their difference in points, and the speedup of the first."""
    nothing = Interval(0.0, 0.0)
    gaps = [
        Difference("AO", "AS", gap, Interval(gap - 0.02, gap + 0.02), 0.0, nothing, 0.0, nothing, 1.0, nothing)
        for gap in (0.013, -0.02)
    ]
    table = tokens_table(variant("AO", 0.4219, 0.5), variant("AS", 0.4089, 0.52), gaps, "here")
    assert table.rows[0] == ("0.2", "42.19", "4.00", "40.89", "4.00", "+1.30 [-0.70, +3.30]", "1.06x")
    assert table.rows[1][5] == "-2.00 [-4.00, +0.00]"


def test_the_table_of_step_types_by_hand() -> None:
    """Two clicks near zero and one large, one search in between; a second cell without searches; both pooled."""
    cells = {
        "a": (dataset([0.0, 0.005, 0.7, 0.05], ["click", "click", "click", "search"]), ["w4"]),
        "b": (dataset([0.3], ["click"]), ["w4"]),
    }
    rows = step_type_rows(cells)
    table = step_type_table(rows)
    assert table.columns[1:3] == ("mean KL, click", "mean KL, search")
    assert table.rows == (
        ("a w4", "0.235", "0.05", "66.7", "0.0", "33.3", "0.0", "3", "1"),
        ("b w4", "0.3", "–", "0.0", "–", "100.0", "–", "1", "0"),
        ("Pooled", "0.251", "0.05", "50.0", "0.0", "50.0", "0.0", "4", "1"),
    )
    assert rows[0]["types"]["click"] == pytest.approx(
        {"steps": 3, "mean_kl": 0.235, "near_zero": 2 / 3, "large": 1 / 3}
    )
    assert list(rows[1]["types"]) == ["click"]
    assert kl_by_type(cells["a"][0], 0)["search"].tolist() == pytest.approx([0.05])


def test_the_table_of_the_shift_by_hand() -> None:
    """A line a pool."""
    pool = {"steps": 10, "mean": 0.27, "percentile_of_half": 73.0, "share_at_least_half": 0.27}
    pool["quantiles"] = {"0.05": 0.0, "0.25": 0.1, "0.50": 0.2, "0.75": 0.6, "0.95": 0.9}
    table = shift_table({"training": pool})
    assert table.rows == (("training", "10", "0.270", "73.0", "27.0", "0.000", "0.200", "0.900"),)


def test_the_table_of_advantages_by_hand() -> None:
    """Two ways at one λ, other policies left out, and the difference beside the first."""
    ci = {"low": 0.4, "high": 0.6}
    common = {"lambda": 0.1, "return_ci": ci, "success": 0.9, "time_s": 2.0, "high_share": 0.5}
    rows = [
        {"kind": "grpo", "advantages": way, "return": r, **common} for way, r in (("mean", 0.5), ("group_std", 0.4))
    ]
    rows.append({"kind": "high", "advantages": "mean", "return": 0.3, **common})
    gap = {"lambda": 0.1, "return": 0.1, "return_ci": {"low": 0.05, "high": 0.15}}
    courses = [
        {"advantages": way, "lambda": 0.1, "returns": [0.1, end], "high_shares": [0.9, high]}
        for way, end, high in (("mean", 0.3, 0.4), ("mean", 0.2, 0.5), ("group_std", -0.1, 0.0))
    ]
    record = {"results": rows, "advantage_gaps": [gap], "settings": {"seeds": 5}, "courses": courses}
    table = advantage_table(record)
    assert table.columns[6] == "mean − group_std"
    kept = [(f"{r:.3f} [0.400, 0.600]", "90.0", "2.00", "50") for r in (0.5, 0.4)]
    assert table.rows == (
        ("0.1", "mean", *kept[0], "+0.100 [+0.050, +0.150]", "0.300 / 0.200", "40 / 50"),
        ("", "group_std", *kept[1], "", "-0.100", "0"),
    )


def test_the_pictures_are_drawn(tmp_path: Path) -> None:
    """Also where a single precision solves nothing, and with KLs of zero."""
    variants = [variant("2", 0.5, 0.7), variant("8", 0.6, 0.9)]
    draw_sizes(variants, "layers of the router", tmp_path / "a.png")
    draw_budgets(variants, tmp_path / "b.png", np.array([[0.0], [0.5], [2.0]], np.float32), ["w2"])
    draw_budgets(variants, tmp_path / "c.png")
    draw_kl_types({"x": {"click": np.array([0.0, 1.0]), "search": np.array([np.inf])}}, tmp_path / "d.png")
    for path in tmp_path.iterdir():
        assert path.read_bytes().startswith(b"\x89PNG")
    assert len(list(tmp_path.iterdir())) == 4
