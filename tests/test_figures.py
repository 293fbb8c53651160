"""dmr_gym.figures: names that can be read, and a picture of every policy."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dmr_gym.errors import MissingDependency
from dmr_gym.figures import draw_accuracy_latency, place_labels, pyplot, together
from dmr_gym.metrics import EpisodeResult, OperatingPoint, Summary, summarize
from tests.recipes import load_recipe

BOUNDS = (0.0, 0.0, 600.0, 400.0)
pixels = st.tuples(st.floats(20, 580), st.floats(20, 380))


def overlaps(low: np.ndarray, size: np.ndarray, other_low: np.ndarray, other_size: np.ndarray) -> bool:
    """Whether two boxes share more than an edge."""
    return bool(((low + size > other_low + 1e-3) & (other_low + other_size > low + 1e-3)).all())


def test_a_label_alone_stands_aslant_of_its_point() -> None:
    """To the upper right, 12 pixels away, and at the right edge to the upper left."""
    size = np.array([[60.0, 14.0]])
    [corner] = place_labels(np.array([[300.0, 200.0]]), size, BOUNDS)
    assert corner == pytest.approx([300 + 12 * np.cos(np.radians(40)), 200 + 12 * np.sin(np.radians(40))], abs=0.2)
    [corner] = place_labels(np.array([[590.0, 200.0]]), size, BOUNDS)
    assert corner[0] + 60 < 590


@settings(max_examples=30, deadline=None)
@given(centre=pixels, spread=st.floats(0, 30), seed=st.integers(0, 1000))
def test_names_of_close_points_cover_neither_each_other_nor_a_point(
    centre: tuple[float, float], spread: float, seed: int
) -> None:
    """Six policies within a few pixels, among them equal ones, and the crosses of random routing between them."""
    chance = np.random.default_rng(seed)
    points = (np.array(centre) + chance.normal(0, spread, (10, 2))).clip(5, [595, 395])
    anchors, crosses = points[:6], points[6:]
    sizes = np.column_stack([chance.uniform(30, 80, 6), np.full(6, 14.0)])
    corners = place_labels(anchors, sizes, BOUNDS, crosses)
    for index in range(6):
        assert (corners[index] >= -1e-3).all()
        assert (corners[index] + sizes[index] <= np.array(BOUNDS[2:]) + 1e-3).all()
        for other in range(index):
            assert not overlaps(corners[index], sizes[index], corners[other], sizes[other])
        for point in points:
            assert not overlaps(corners[index], sizes[index], point, np.zeros(2))


def test_a_label_stands_nearest_to_its_own_point() -> None:
    """Three points in a row, 20 pixels apart: no label of 60 pixels can be taken for that of a neighbour."""
    anchors = np.array([[300.0, 200.0], [320.0, 200.0], [340.0, 200.0]])
    sizes = np.full((3, 2), (60.0, 14.0))
    for order in ([0, 1, 2], [2, 0, 1], [1, 2, 0]):
        corners = place_labels(anchors[order], sizes, BOUNDS)
        for corner, size, anchor in zip(corners, sizes, anchors[order], strict=True):
            gaps = np.linalg.norm(anchors.clip(corner, corner + size) - anchors, axis=1)
            own = np.linalg.norm(anchor.clip(corner, corner + size) - anchor)
            assert own <= gaps.min() + 3


def test_without_room_labels_are_still_placed() -> None:
    """An area smaller than a label gets it all the same."""
    corners = place_labels(np.full((3, 2), 5.0), np.full((3, 2), 50.0), (0.0, 0.0, 10.0, 10.0))
    assert np.isfinite(corners).all()


def test_points_at_one_place_have_one_name() -> None:
    """In the order of the first of each place; what differs by whatever little keeps its own."""
    places = [(1.0, 2.0), (1.0, 3.0), (1.0, 2.0), (1.0, 2.0 + 1e-9), (1.0, 2.0), (1.0, 3.0)]
    assert together(["a", "b", "c", "d", "e", "f"], places) == [(0, "a = c = e"), (1, "b = f"), (3, "d")]
    assert together([], []) == []


def policy(name: str, share: float, time_s: float) -> Summary:
    """A policy that solves a share of 20 tasks in some time each."""
    episodes = [EpisodeResult(f"t{i}", i < 20 * share, time_s + i / 100, (3, 2), 50) for i in range(20)]
    return summarize(name, episodes, 0.1, resamples=50)


def test_the_picture_names_every_policy_but_random_routing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both panels, once a place; without one that solves nothing; the legend tells what random routing shares."""
    from matplotlib.figure import Figure

    texts: list[str] = []

    def save(figure: Figure, path: Path, **options: object) -> None:
        texts.extend(text.get_text() for axes in figure.axes for text in axes.texts)
        texts.extend(text.get_text() for legend in figure.legends for text in legend.get_texts())
        original(figure, path, **options)

    original = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", save)
    policies = [("high", policy("always high", 0.9, 5.0)), ("low", policy("always low", 0.0, 9.0))]
    policies += [("router", policy(f"router K={k}", 0.9, 5.5)) for k in (0.2, 0.4)]
    policies += [("ppo", policy("PPO λ=0.1", 0.9, 5.5001))]
    policies += [("random", policy("random K=0.2", 0.5, 6.0))]
    best = [OperatingPoint("oracle λ=0.1", "oracle", 0.95, 4.0)]
    draw_accuracy_latency(policies, "prices of your own", tmp_path / "picture.png", best)
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
    assert texts == [
        *("always high", "K=0.2 = K=0.4", "PPO λ=0.1"),
        *("always high", "always low", "K=0.2 = K=0.4", "PPO λ=0.1"),
        *("router", "PPO", "random routing with the same shares of precisions", "best routing of each task"),
    ]


def test_no_policy_solves_anything(tmp_path: Path) -> None:
    """There is no time of solved episodes, and the picture is drawn all the same."""
    policies = [(kind, policy(f"always {kind}", 0.0, 5.0)) for kind in ("high", "low")]
    draw_accuracy_latency(policies, "prices of your own", tmp_path / "picture.png")
    assert (tmp_path / "picture.png").is_file()


def test_without_matplotlib_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The recipes draw at their end, and ask at their start."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingDependency, match=r'matplotlib.*pip install "dmr-gym\[train\]"'):
        pyplot()


@pytest.mark.parametrize(
    ("recipe", "options"),
    [
        ("ablate", ("step-types", "--data", "cell=absent")),
        ("agent_card", ("--env", "DMR-Toy-v0")),
        ("calibrate", ("--router", "absent")),
        ("collect_kl", ()),
        ("compare_grpo", ("--router", "absent")),
        ("evaluate", ("--router", "absent")),
        ("tree_report", ("--trees", "absent")),
    ],
)
def test_recipes_that_draw_at_their_end_ask_at_their_start(
    recipe: str, options: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before they look for what the options name: nobody waits for the last task to learn that it cannot be drawn."""
    main = load_recipe(recipe).main
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingDependency, match="matplotlib"):
        main([*options, "--out", str(tmp_path / "out")])
    assert list(tmp_path.iterdir()) == []
