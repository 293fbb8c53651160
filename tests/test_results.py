"""dmr_gym.results and its tables: rows, selection, gaps and returns of policies made by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dmr_gym.errors import ConfigError
from dmr_gym.latency import PriceSource
from dmr_gym.metrics import EpisodeResult
from dmr_gym.records import PlayedPolicy
from dmr_gym.result_tables import result_tables
from dmr_gym.results import OracleEpisode, Results, read_oracle, tabulate
from dmr_gym.tables import Table, number, percent, write_tables

PRICES = PriceSource(None, False, "prices of your own")


def policy(
    name: str, kind: str, solved: int, time_s: float, high: int, like: str | None = None, **setting: float
) -> PlayedPolicy:
    """Four tasks of ten steps, of which so many are solved and take the time; an unsolved one takes twice as long."""
    episodes = tuple(
        EpisodeResult(f"t{i}", i < solved, time_s * (1 if i < solved else 2), (10 - high, high), 50, score=i < solved)
        for i in range(4)
    )
    return PlayedPolicy(name, kind, like, setting.get("budget"), setting.get("lambda_"), episodes)


POLICIES = [
    policy("always bf16", "high", 4, 4.0, 10),
    policy("always w2", "low", 1, 2.0, 0),
    policy("router K=0.50", "router", 3, 2.0, 5, budget=0.5),
    policy("random K=0.50", "random", 2, 3.0, 5, like="router K=0.50"),
    policy("router p≥0.5", "router", 4, 4.5, 8),
    policy("GRPO λ=0.1", "grpo", 4, 3.0, 6, lambda_=0.1),
]
ORACLE = {0.1: {f"t{i}": OracleEpisode(0.8, True, 2.0) for i in range(4)}}


@pytest.fixture(scope="module")
def results() -> Results:
    """With an oracle at λ = 0.1, and rows at λ = 0.05."""
    return tabulate(POLICIES, 0.05, 100, [0.1], ORACLE)


def test_rows_by_hand(results: Results) -> None:
    """K = 0.5 solves 3 in 2 s each, and fails one in 4 s: 2.5 s over all, and speedups 2 and 1.6."""
    row = results.data["results"][2]
    assert (row["success"], row["time_success_s"], row["time_all_s"]) == (0.75, 2.0, 2.5)
    assert (row["speedup_success"], row["speedup_all"]) == (2.0, 1.6)
    assert row["shares"] == (0.5, 0.5)
    assert row["seeds"] == [{"seed": 0, "success": 0.75, "time_success_s": 2.0, "time_all_s": 2.5}]
    assert (row["kind"], row["like"], row["budget"], row["lambda"]) == ("router", None, 0.5, None)


def test_pareto_distances_by_hand(results: Results) -> None:
    """Random is behind K = 0.5 by 0.25 and (4.5 - 2.5) / 4, and behind GRPO by 0.5 and (4.5 - 3) / 4."""
    rows = {row["policy"]: row for row in results.data["results"]}
    assert rows["random K=0.50"]["pareto_distance_all"] == pytest.approx(0.375)
    assert rows["router K=0.50"]["pareto_distance_all"] == 0.0
    # GRPO is as good as bf16, so bf16 is beaten on one axis alone.
    assert rows["always bf16"]["pareto_distance_all"] == 0.0
    # The oracle solves all in 2 s: K = 0.5 lacks 0.25 of success and 0.5 of 4 s.
    assert rows["router K=0.50"]["pareto_distance_oracle"] == pytest.approx(0.125)


def test_the_pool_of_the_selection_has_budgets_and_routers_of_grpo(results: Results) -> None:
    """Not the default threshold, nor random routing, nor PPO; the ranks are those of the two times."""
    solved, everything = (results.data["selection"][name] for name in ("solved", "all"))
    assert solved["names"] == everything["names"] == ("always bf16", "always w2", "router K=0.50", "GRPO λ=0.1")
    # Success ranks 1.5, 4, 3, 1.5; times of solved episodes rank 4, 1.5, 1.5, 3, of all 4, 3, 1, 2.
    assert solved["ranks"] == (2.75, 2.75, 2.25, 2.25)
    assert solved["best"] == ("router K=0.50", "GRPO λ=0.1")
    assert everything["ranks"] == (2.75, 3.5, 2.0, 1.75)
    assert everything["kinds"] == ("grpo",)
    ppo = policy("PPO λ=0.1", "ppo", 4, 1.0, 2, lambda_=0.1)
    assert tabulate([*POLICIES, ppo], 0.05, 10).data["selection"]["all"] == results.data["selection"]["all"]


def test_the_gap_recovered_is_set_beside_random_routing(results: Results) -> None:
    """From 0.25 to 1: K = 0.5 recovers 2/3 at share 0.5, and the default threshold 1 at 0.8; random recovers 1/3."""
    found = results.data["gap_recovered"]
    assert found["router"]["pgr"] == pytest.approx({"router K=0.50": 2 / 3, "router p≥0.5": 1.0})
    assert found["router"]["apgr"] == pytest.approx(0.5 * 1 / 3 + 0.3 * 5 / 6 + 0.2)
    assert found["random router"]["apgr"] == pytest.approx(0.5 * 1 / 6 + 0.5 * 2 / 3)
    assert "random grpo" not in found
    for each in found.values():
        assert each["apgr_ci"]["low"] <= each["apgr"] <= each["apgr_ci"]["high"]


def test_the_interval_of_the_gap_draws_tasks_of_all_policies_together() -> None:
    """A router that solves what bf16 solves has PGR 1 in every draw that has a gap, whatever the tasks."""

    def played(name: str, kind: str, solved: str, high: int) -> PlayedPolicy:
        episodes = [EpisodeResult(f"t{n}", mark == "+", 1.0, (2 - high, high), 5) for n, mark in enumerate(solved)]
        return PlayedPolicy(name, kind, None, None, None, tuple(episodes))

    policies = [played("bf16", "high", "++-", 2), played("w2", "low", "-+-", 0), played("r", "router", "++-", 1)]
    found = tabulate(policies, 0.0, resamples=50).data["gap_recovered"]["router"]
    # From (0, 0) over (0.5, 1) to (1, 1).
    assert found["apgr"] == 0.75
    assert found["apgr_ci"] == {"low": 0.75, "high": 0.75}


def test_returns_stand_beside_the_oracle_where_it_has_their_price(results: Results) -> None:
    """At λ = 0.1 K = 0.5 has 0.75 - 0.25, the oracle 0.8; at 0.05 there is no oracle."""
    rows = {(row["lambda"], row["policy"]): row for row in results.data["returns"]}
    assert len(rows) == 2 * 6
    row = rows[0.1, "router K=0.50"]
    assert (row["mean_return"], row["oracle_gap"]) == pytest.approx((0.5, 0.3))
    assert row["oracle_gap_ci"]["low"] <= 0.3 <= row["oracle_gap_ci"]["high"]
    assert "oracle_gap" not in rows[0.05, "router K=0.50"]


def test_differences_pair_each_router_with_its_random_twin(results: Results) -> None:
    """Where one was played, and with always-high; GRPO with KL-ST's best point too, here p≥0.5 with 0.775."""
    pairs = [(d.policy, d.minus) for d in results.differences]
    assert pairs == [
        ("router K=0.50", "random K=0.50"),
        ("router K=0.50", "always bf16"),
        ("router p≥0.5", "always bf16"),
        ("GRPO λ=0.1", "always bf16"),
        ("GRPO λ=0.1", "router p≥0.5"),
    ]


def test_a_lower_precision_that_earns_more_alone_is_compared() -> None:
    """At λ = 1 always-high earns 1 - 4, and always-low, here with all four solved in 2 s each, 1 - 2."""
    low = policy("always w2", "low", 4, 2.0, 0)
    differences = tabulate([POLICIES[0], low, *POLICIES[2:]], 1.0, 100).differences
    found = {d.minus: d.mean_return for d in differences if d.policy == "GRPO λ=0.1"}
    assert found["always w2"] == pytest.approx((1 - 3) - (1 - 2))


def test_where_training_began_is_compared_and_not_selected() -> None:
    """GRPO, which solves 4 in 3 s, beside its start, 3 in 2 s; the start itself beside always-high alone."""
    start = policy("KL-ST start", "start", 3, 2.0, 5)
    results = tabulate([*POLICIES[:5], start, POLICIES[5]], 0.1, 100)
    assert results.data["selection"] == tabulate(POLICIES, 0.1, 100).data["selection"]
    pairs = {(d.policy, d.minus): d.success for d in results.differences}
    assert pairs["KL-ST start", "always bf16"] == -0.25
    assert pairs["GRPO λ=0.1", "KL-ST start"] == 0.25
    assert [minus for name, minus in pairs if name == "KL-ST start"] == ["always bf16"]
    # From 0.25 to 1 it recovers 2/3 at share 0.5, and enters the curve of no other.
    assert results.data["gap_recovered"]["start"]["apgr"] == pytest.approx(0.5 * 1 / 3 + 0.5 * 5 / 6)
    assert results.data["gap_recovered"]["router"] == tabulate(POLICIES, 0.1, 100).data["gap_recovered"]["router"]


def test_without_the_highest_precision_nothing_can_be_compared() -> None:
    """It is the reference of every speedup."""
    with pytest.raises(ConfigError, match="needs the highest precision alone as its reference"):
        tabulate(POLICIES[1:], 0.1)


def test_routers_at_no_budget_have_no_selection() -> None:
    """Single precisions alone are no pool."""
    data = tabulate([*POLICIES[:2], POLICIES[4]], 0.1, 10).data
    assert data["selection"] == {"solved": None, "all": None}


def test_calls_that_cost_nothing_have_no_distance() -> None:
    """There is no time to measure it by."""
    free = [policy("h", "high", 4, 0.0, 10), policy("l", "low", 1, 0.0, 0)]
    assert tabulate(free, 0.1, 10).data["results"][1]["pareto_distance_all"] is None


def test_the_tables_hold_the_numbers(results: Results) -> None:
    """Shares of both precisions in one column, dashes for what is unknown, the notes in words."""
    policies, differences, returns = result_tables(results, ("w2", "bf16"), PRICES)
    cells = dict(zip(policies.columns, policies.rows[2], strict=False))
    assert cells["w2 / bf16 %"] == "50 / 50"
    assert cells["EP time, s"] == "2.00 [2.00, 2.00]"
    assert policies.rows[2][:2] == ("router K=0.50", "75.0 [25.0, 100.0]")
    assert "score" not in policies.columns  # it says no more than success
    assert any("router K=0.50, GRPO λ=0.1 with 2.25" in note for note in policies.notes)
    assert differences.rows[0][0] == "router K=0.50 − random K=0.50"
    assert returns.columns == ("policy", "return, λ=0.05", "return, λ=0.1", "oracle − this")
    assert returns.rows[2][3].startswith("0.300 [")


def test_prices_of_another_unit_are_named_and_shown_with_enough_decimals(results: Results) -> None:
    """An episode that costs thousandths of a dollar does not show as 0.00."""
    dollars = PriceSource(None, False, "prices of your own", "dollars", "$")
    policies, differences, _ = result_tables(results, ("w2", "bf16"), dollars)
    assert dict(zip(policies.columns, policies.rows[2], strict=False))["EP time, $"] == "2.000000 [2.000000, 2.000000]"
    assert any(note.startswith("Dollars, prices of your own.") for note in policies.notes)
    assert "time of all, $" in differences.columns


def test_an_oracle_is_read_by_price_and_task(tmp_path: Path) -> None:
    """The plain JSON that is documented, beside which a file may say what it was made for."""
    path = tmp_path / "oracle.json"
    best = {"t0": {"return": 0.8, "success": True, "time_s": 2.0}}
    path.write_text(json.dumps({"0.1": best, "made_for": {"max_steps": 30}}))
    assert read_oracle(path) == {0.1: {"t0": OracleEpisode(0.8, True, 2.0)}}


@pytest.mark.parametrize("text", ["{", "[]", '{"a": {}}', '{"0.1": {"t0": {"return": 0.8}}}', '{"0.1": 3}'])
def test_files_that_are_no_oracle_are_refused(tmp_path: Path, text: str) -> None:
    """With what was expected."""
    (tmp_path / "o.json").write_text(text)
    with pytest.raises(ConfigError, match="is no oracle: expected"):
        read_oracle(tmp_path / "o.json")


def test_a_table_in_markdown_and_on_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Bars in cells are escaped, brackets are no markup, and a narrow terminal cuts nothing."""
    table = Table("T [bold]", ("a", "b"), (("x|y", "1 [0, 2]"), ("z" * 60, "[red]")), ("A note.",))
    path = write_tables(tmp_path, [table], "Head")
    assert path.read_text() == (
        f"# Head\n\n## T [bold]\n\n| a | b |\n| --- | ---: |\n| x\\|y | 1 [0, 2] |\n| {'z' * 60} | [red] |\n\nA note.\n"
    )
    table.show()
    shown = capsys.readouterr().out
    assert all(part in shown for part in ("T [bold]", "x|y", "1 [0, 2]", "z" * 60, "[red]", "A note."))


def test_numbers_that_are_not_known_are_dashes() -> None:
    """None and NaN."""
    assert [number(None, 2), number(float("nan"), 2), percent(None), percent(0.125)] == ["–", "–", "–", "12.5"]
