"""Demonstrations: what the embedded agent imitates."""

from __future__ import annotations

from dmr_gym.prompts.transcript import initial
from dmr_gym.tasks.alfworld import panels
from dmr_gym.tasks.alfworld.demonstrations import FIRST_SEED, demonstration, panel_transcripts
from dmr_gym.tasks.alfworld.engine import AlfworldEngine
from dmr_gym.tasks.alfworld.generate import generate_game


def test_a_demonstration_without_noise_is_the_expert_winning() -> None:
    """Its commands, replayed in the same house, give its observations and win."""
    pieces = list(demonstration(3))
    engine = AlfworldEngine.from_json(generate_game(FIRST_SEED + 3))
    assert pieces[0] == (initial(engine.reset()), "world")
    for command, answer in zip(pieces[1::2], pieces[2::2], strict=True):
        assert command.author == "expert"
        assert answer == (f"{engine.step(command.text.strip())}\n>", "world")
    assert engine.won


def test_mistakes_are_marked_and_the_expert_wins_all_the_same() -> None:
    """With noise in every episode there are mistakes, none at the end, and each of 30 houses is won."""
    mistakes = 0
    for seed in range(30):
        pieces = list(demonstration(seed, noisy_episodes=1.0, noise=0.3))
        engine = AlfworldEngine.from_json(generate_game(FIRST_SEED + seed))
        for command in pieces[1::2]:
            engine.step(command.text.strip())
        mistakes += sum(piece.author == "mistake" for piece in pieces)
        assert engine.won
    assert mistakes > 30


def test_the_same_seed_gives_the_same_demonstration() -> None:
    """A demonstration is a function of its arguments."""
    assert list(demonstration(5, 1.0, 0.2)) == list(demonstration(5, 1.0, 0.2))


def test_no_panel_shares_a_house_with_the_demonstrations() -> None:
    """Panel seeds lie below the first seed, and no content of 300 demonstrations' houses is that of a panel's."""
    for panel in panels.PANELS:
        assert panels.embedded_seeds(panel).stop <= FIRST_SEED
    hashes = {panels.house_hash(generate_game(FIRST_SEED + seed))[:16] for seed in range(300)}
    known = set(panels.known_hashes().values())
    assert len(known) > 2000
    assert len(next(iter(known))) == 16
    assert not hashes & known


def test_transcripts_are_whole_episodes_of_one_panel() -> None:
    """Texts repeat exactly, panels share none, and each has the form of the agent's prompts up to the solution."""
    texts = panel_transcripts("calibration", 8)
    assert texts == panel_transcripts("calibration", 8)
    assert not set(texts) & set(panel_transcripts("validation", 8))
    for text in texts:
        assert text.startswith("You are in the middle of a room.")
        assert "\n> " in text
        assert not text.endswith(">")
