"""What a quantization will take: sizes, memory and time by hand, and what is refused for them."""

from __future__ import annotations

import itertools
import sys
import types
from pathlib import Path

import pytest
import torch

from dmr_gym.backends.checkpoint import Layout
from dmr_gym.errors import ConfigError
from dmr_gym.quantization import estimate
from dmr_gym.quantization.estimate import PROGRAM_BYTES, Rates, Work, check_disk, check_groups

LAYOUT = Layout(
    architecture="TinyForCausalLM",
    linear={"model.layers.0.down": (4, 8), "model.layers.0.up": (8, 4)},
    head="lm_head",
    head_shape=(10, 8),
    other_parameters=100,
    dtype=torch.bfloat16,
)
WORK = Work(calibration=1000, longest=100, held_out=100)


@pytest.mark.parametrize(
    ("bits", "group_size", "size"),
    [(4, 4, 32 + 2 * 16 + 200), (3, 4, 24 + 2 * 16 + 200), (8, None, 64 + 2 * 12 + 200)],
)
def test_a_copy_has_packed_weights_and_a_scale_a_group(bits: int, group_size: int | None, size: int) -> None:
    """64 weights, 16 groups of four or 12 rows with scales of two bytes, and 100 other parameters of two bytes."""
    assert estimate.copy_bytes(LAYOUT, bits, group_size) == size


@pytest.mark.parametrize(
    ("method", "size"),
    [
        # Weights; what goes in and comes out; squares of both widths; three squares of the wider one.
        ("gptq", 2 * 164 + 2 * 1000 * 8 * 2 + 4 * (64 + 16) + 3 * 4 * 64),
        # Weights; what goes in and comes out; both layers' inputs, and four times the width.
        ("awq", 2 * 164 + 2 * 1000 * 8 * 2 + 1000 * (8 + 4 + 4 * 8) * 2),
        # The perplexity takes more: float32 weights, and three times the logits of a text.
        ("rtn", 4 * 164 + 3 * 4 * 100 * 10),
    ],
)
def test_memory_is_that_of_the_greedier_stage(method: str, size: int) -> None:
    """By hand for two layers of one block, 1,000 calibration tokens, and a text of 100 tokens."""
    assert estimate.memory_bytes(LAYOUT, method, WORK) == PROGRAM_BYTES + size


@pytest.mark.parametrize(("method", "time_s"), [("rtn", 0.8), ("gptq", 0.8 + 4 + 3 + 0.012 + 0.001536), ("awq", 67.8)])
def test_time_counts_the_passes_of_a_method(method: str, time_s: float) -> None:
    """Two perplexities; two passes, squares, 12 columns and 1,536 operations of GPTQ; 33.5 passes of AWQ."""
    rates = Rates(forward=1e-3, scoring=2e-3, hessian=3e-3, flop=1e-6)
    assert estimate.seconds(LAYOUT, method, WORK, rates) == pytest.approx(time_s)


def test_rates_are_those_of_products_with_the_models_shapes() -> None:
    """With a clock by which every product takes 0.1 s: two layers, the head with them, and two widths to square."""
    ticks = itertools.count()
    rates = estimate.measure_rates(LAYOUT, clock=lambda: next(ticks) * 0.1)
    token = 0.1 / estimate.TIMED_TOKENS
    assert rates.forward == pytest.approx(2 * token)
    assert rates.scoring == pytest.approx(3 * token)
    assert rates.hessian == pytest.approx(2 * token)
    assert rates.flop == pytest.approx(token / (2 * 8 * 8))


def test_rates_of_large_shapes_are_those_of_their_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """With two rows timed, layers of four and eight take 0.2 and 0.4 s, the head of ten 0.5, squares 0.4 and 0.2."""
    monkeypatch.setattr(estimate, "TIMED_ROWS", 2)
    ticks = itertools.count()
    rates = estimate.measure_rates(LAYOUT, clock=lambda: next(ticks) * 0.1)
    found = [rates.forward, rates.scoring, rates.hessian]
    assert [seconds * estimate.TIMED_TOKENS for seconds in found] == pytest.approx([0.6, 1.1, 0.6])


def test_groups_that_do_not_fit_are_refused_with_their_layers_and_those_that_would_do() -> None:
    """Layers of all blocks are named once, with their widths; a scale a channel always fits."""
    linear = {f"model.layers.{n}.{kind}": (8, width) for n in range(3) for kind, width in (("q", 576), ("o", 128))}
    layout = Layout("TinyForCausalLM", linear, "lm_head", (10, 576), 100, torch.bfloat16)
    message = (
        r"--group-size 128 must divide the input width of every layer; it does not divide that of "
        r"model\.layers\.\*\.q \(576\): give --group-size 64 or 32 or channel$"
    )
    with pytest.raises(ConfigError, match=message):
        check_groups(layout, 128)
    check_groups(layout, 64)
    check_groups(layout, None)
    with pytest.raises(ConfigError, match="no Linear layer but its output head"):
        check_groups(Layout("OddForCausalLM", {}, "lm_head", (10, 8), 100, torch.bfloat16), None)


def test_what_goes_to_one_disk_is_added_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two folders that are not there yet, 5 MB each on the same disk, want 12 MB, a fifth to spare."""
    needs = {tmp_path / "a" / "b": 5_000_000, tmp_path / "c": 5_000_000}
    monkeypatch.setattr(estimate.shutil, "disk_usage", lambda path: types.SimpleNamespace(free=11_999_999))
    with pytest.raises(ConfigError, match=r"expected 12.0 MB of free disk, found 12.0 MB: make room"):
        check_disk(needs)
    monkeypatch.setattr(estimate.shutil, "disk_usage", lambda path: types.SimpleNamespace(free=12_000_000))
    check_disk(needs)


@pytest.mark.parametrize(
    ("duration_s", "text"), [(0.2, "1 s"), (42.4, "42 s"), (100, "2 min"), (3000, "50 min"), (9000, "2.5 h")]
)
def test_times_are_told_as_roughly_as_they_are_known(duration_s: float, text: str) -> None:
    """Seconds, minutes or hours."""
    assert estimate.in_time(duration_s) == text


def test_short_memory_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where less is free than a stage takes, the line says so and what takes less; swap may yet do, so nothing ends."""
    rates = Rates(1e-3, 2e-3, 3e-3, 1e-6)
    settings = types.SimpleNamespace(method="gptq")
    monkeypatch.setattr(estimate, "available_memory", lambda: 800_000_000)
    assert "900.0 MB of memory (800.0 MB free), 8 s for 1,000 calibration and 100 held-out tokens" in (
        line := estimate.work_line(LAYOUT, settings, WORK, rates)
    )
    assert "warning: that is more memory than is free; fewer --samples" in line
    for free in (2_000_000_000, None):
        monkeypatch.setattr(estimate, "available_memory", lambda free=free: free)
        assert "warning" not in estimate.work_line(LAYOUT, settings, WORK, rates)


@pytest.mark.parametrize(("platform", "size"), [("linux", 4_096_000), ("darwin", 4_000)])
def test_peak_memory_is_in_bytes(monkeypatch: pytest.MonkeyPatch, platform: str, size: int) -> None:
    """The system's count is in KiB, and in bytes on macOS."""
    import resource

    monkeypatch.setattr(resource, "getrusage", lambda who: types.SimpleNamespace(ru_maxrss=4_000))
    monkeypatch.setattr(estimate.sys, "platform", platform)
    assert estimate.peak_memory() == size


def test_without_a_count_of_memory_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows has no such module."""
    monkeypatch.setitem(sys.modules, "resource", None)
    assert estimate.peak_memory() is None
