"""dmr_gym.render: the transcript as text, in colour, and as a picture."""

from __future__ import annotations

import sys
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from dmr_gym import ENV_IDS
from dmr_gym.env import PrecisionRoutingEnv
from dmr_gym.errors import MissingDependency
from dmr_gym.render import HEIGHT, WIDTH

SHORT = ENV_IDS["DMR-Toy-v0"] | {"task_kwargs": {"num_signs": 3}}
TRANSCRIPT = """\
toy-train-001: Follow the signs to the exit.
A sign points right.
  1   low  0.151 s > go right
A fallen sign shows right.
  2  high  0.220 s > go left
A sign points left.
  3   low  0.137 s > go left
You reach the exit.
-- solved after 3 steps, 0.508 s, 33% at high"""


def played(mode: str | None, actions: tuple[int, ...] = (0, 1, 0), **settings: Any) -> PrecisionRoutingEnv:
    """A short corridor after some steps."""
    env = PrecisionRoutingEnv(**(SHORT | settings), render_mode=mode)
    env.reset(options={"task_id": "toy-train-001"})
    for action in actions:
        env.step(action)
    return env


def test_ansi_shows_each_step_with_its_precision() -> None:
    """The transcript names precision, time and command of every step, and how it ended."""
    assert played("ansi").render() == TRANSCRIPT
    assert played("ansi", ()).render() == "\n".join(TRANSCRIPT.splitlines()[:2])


@pytest.mark.parametrize(
    ("settings", "ending"),
    [
        ({"max_steps": 2}, "-- step cap reached after 2 steps, 0.371 s, 50% at high"),
        ({"backend": {"kind": "scripted", "answers": "[dance]"}}, "  2  high  0.220 s > [dance]\nNothing happens."),
    ],
)
def test_ansi_shows_failures(settings: dict[str, Any], ending: str) -> None:
    """The cap and commands that do nothing are told as what they are."""
    assert played("ansi", (0, 1), **settings).render().endswith(ending)


def test_human_prints_each_step_once(capsys: pytest.CaptureFixture[str]) -> None:
    """Reset and step print what is new; render itself adds nothing."""
    env = played("human")
    assert env.render() is None
    assert capsys.readouterr().out.splitlines() == TRANSCRIPT.splitlines()


def test_human_colours_precisions(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """On a colour terminal, the lowest precision is green and the highest magenta."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    played("human")
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].startswith("\x1b[1;32m")
    assert lines[4].startswith("\x1b[1;35m")
    assert lines[3] == TRANSCRIPT.splitlines()[3]


def test_rgb_array_is_a_picture_of_fixed_size() -> None:
    """Every frame has the same shape; lines appear as steps are taken, in the colour of their precision."""
    env = played("rgb_array", ())
    first = env.render()
    env.step(1)
    second = env.render()
    for frame in (first, second):
        assert frame.shape == (HEIGHT, WIDTH, 3)
        assert frame.dtype == np.uint8
    changed = np.flatnonzero((first != second).any(axis=(1, 2)))
    assert changed.min() > 30
    red, green = second[changed, :, 0].astype(int), second[changed, :, 1].astype(int)
    assert (red - green).max() > 60  # the magenta of the highest precision
    assert np.array_equal(second, env.render())


def test_rgb_array_shows_the_newest_lines() -> None:
    """A transcript longer than the picture scrolls; odd characters do no harm."""
    env = played("rgb_array", (0,) * 30, backend={"kind": "scripted", "answers": "\u2603 " * 80})
    assert env.render()[-40:].max() > 200


def test_rgb_array_without_pillow_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where Pillow is absent, the message says what to install."""
    env = played("rgb_array")
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(MissingDependency, match=r"""'pillow': pip install "dmr-gym\[train\]\""""):
        env.render()


def test_without_a_mode_render_returns_nothing() -> None:
    """No render mode, no frame."""
    assert played(None).render() is None


def test_modes_are_declared() -> None:
    """The metadata lists what works, so that recording wrappers accept it."""
    assert PrecisionRoutingEnv.metadata["render_modes"] == ["ansi", "human", "rgb_array"]
    env = gym.wrappers.RenderCollection(gym.make("DMR-Toy-v0", render_mode="rgb_array"))
    env.reset(seed=0)
    env.step(0)
    assert [frame.shape for frame in env.render()] == [(HEIGHT, WIDTH, 3)] * 2
