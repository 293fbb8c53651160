"""Demonstrations as batches, and the loss of cloning them."""

from __future__ import annotations

import math

import torch

from dmr_gym import cloning
from dmr_gym.cloning import Demonstrations, batches, encode, pad, sequences, weighted_loss

HOUSES = Demonstrations("alfworld", 0, 256, 96, observation_weight=0.2, noisy_episodes=1.0, noise=0.3)


class Letters:
    """A tokenizer of one token a character."""

    def __call__(self, text: str) -> dict[str, list[int]]:
        return {"input_ids": [ord(letter) % 128 for letter in text]}


def test_rows_are_padded_to_the_longest_with_weight_zero() -> None:
    """Two rows of two and three tokens."""
    ids, weights = pad([([5, 6], [1.0, 0.2]), ([7, 8, 9], [0.2, 0.2, 1.0])])
    assert ids.tolist() == [[5, 6, 0], [7, 8, 9]]
    torch.testing.assert_close(weights, torch.tensor([[1.0, 0.2, 0.0], [0.2, 0.2, 1.0]]))


def test_commands_weigh_one_the_world_less_and_mistakes_nothing() -> None:
    """An episode of ALFWorld is one sequence of all three, cut at the longest length, with a weight for every token."""
    [sequence] = sequences(0, HOUSES)
    assert {weight for _, weight in sequence} == {0.0, 0.2, 1.0}
    [(ids, weights)] = encode(0, Letters(), HOUSES)
    assert len(ids) == len(weights) == 96
    assert "".join(text for text, _ in sequence)[:96] == "".join(map(chr, ids))


def test_update_t_is_a_function_of_seed_and_t() -> None:
    """Batches from update 17 on are those that a run from the start has there; no batch has too many tokens."""
    whole = list(batches(Letters(), HOUSES, 0, 20))
    later = list(batches(Letters(), HOUSES, 17, 20))
    assert (len(whole), len(later)) == (20, 3)
    for (ids, weights), (same_ids, same_weights) in zip(whole[17:], later, strict=True):
        assert torch.equal(ids, same_ids)
        assert torch.equal(weights, same_weights)
    assert all(ids.numel() <= HOUSES.tokens_per_update for ids, _ in whole)
    assert cloning.POOL == 16  # so that the updates above are of two pools


def test_the_loss_is_the_weighted_mean_and_right_counts_commands() -> None:
    """Logits that give 3/4 to the right of two tokens, then 1/4: (ln 4/3 + 0.2 ln 4) / 1.2, and one command of one."""
    wide = math.log(3.0)
    logits = torch.tensor([[[wide, 0.0], [wide, 0.0], [0.0, 0.0]]])
    loss, command = weighted_loss(logits, torch.tensor([[1, 0, 1]]), torch.tensor([[1.0, 1.0, 0.2]]))
    torch.testing.assert_close(loss, torch.tensor((math.log(4 / 3) + 0.2 * math.log(4)) / 1.2))
    torch.testing.assert_close(command, torch.tensor([math.log(4 / 3), 1.0]))


def test_padding_and_mistakes_carry_no_loss() -> None:
    """Positions of weight 0 do not change the loss."""
    torch.manual_seed(0)
    logits, ids, weights = torch.randn(1, 4, 7), torch.tensor([[1, 2, 3, 4]]), torch.tensor([[1.0, 1.0, 0.0, 0.2]])
    changed = logits.clone()
    changed[0, 1] += torch.randn(7)  # predicts the token at index 2, which weighs nothing
    assert torch.equal(weighted_loss(logits, ids, weights)[0], weighted_loss(changed, ids, weights)[0])
