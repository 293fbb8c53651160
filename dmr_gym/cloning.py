"""An expert's demonstrations as batches with a weight for every token, and the loss of cloning them."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from transformers import PreTrainedTokenizerFast

from dmr_gym.tasks.alfworld import demonstrations as alfworld
from dmr_gym.tasks.webshop import demonstrations as webshop
from dmr_gym.tasks.webshop.drills import drill

POOL = 16
"""Updates whose demonstrations are drawn together, to be sorted by length."""

OTHERS_WEIGHT = 0.5
"""Loss weight of the answers to further tasks about a page, which are asked more often than an agent needs them."""


@dataclass(frozen=True)
class Demonstrations:
    """What is cloned.

    Attributes:
        world: "alfworld" or "webshop".
        seed: of the demonstrations.
        tokens_per_update: tokens of one update, padding included.
        max_tokens: longest sequence; a longer transcript is cut there, a longer prompt is left out.
        observation_weight: loss weight of the world's tokens; the expert's commands weigh 1.
        noisy_episodes: share of episodes with mistakes.
        noise: chance of a mistake at a step of such an episode.
        drill_updates: first updates, which are copying drills of rising length (WebShop).
        other_tasks: further tasks asked about each page (WebShop).
    """

    world: str
    seed: int
    tokens_per_update: int
    max_tokens: int
    observation_weight: float
    noisy_episodes: float
    noise: float
    drill_updates: int = 0
    other_tasks: int = 0


def sequences(seed: int, data: Demonstrations) -> Iterator[list[tuple[str, float]]]:
    """Yield the training sequences of one demonstration, each a list of (text, loss weight).

    ALFWorld's prompts only grow, so an episode is one sequence. WebShop's prompt is written anew at every step, so each
    of the expert's answers is a sequence with its own prompt.
    """
    if data.world == "alfworld":
        weights = {"world": data.observation_weight, "expert": 1.0, "mistake": 0.0}
        episode = alfworld.demonstration(seed, data.noisy_episodes, data.noise)
        yield [(text, weights[author]) for text, author in episode]
        return
    for piece in webshop.demonstration(seed, data.noisy_episodes, data.noise, other_tasks=data.other_tasks):
        if piece.author == "expert":
            others = [
                (text, weight) for pair in piece.others for text, weight in zip(pair, (0.0, OTHERS_WEIGHT), strict=True)
            ]
            yield [(piece.prompt, data.observation_weight), (piece.answer, 1.0), *others]


def encode(
    seed: int, tokenizer: PreTrainedTokenizerFast, data: Demonstrations, hardness: float = 1.0
) -> Iterator[tuple[list[int], list[float]]]:
    """Yield token ids and loss weights of each sequence of one demonstration; of drills while hardness is below 1."""
    for sequence in sequences(seed, data):
        if hardness < 1:
            shown, answers = drill(sequence[0][0], seed, hardness)
            sequence = [(shown, data.observation_weight), (answers, 1.0)]
        ids: list[int] = []
        weights: list[float] = []
        for text, weight in sequence:
            piece = tokenizer(text)["input_ids"]
            ids += piece
            weights += [weight] * len(piece)
        ids, weights = ids[: data.max_tokens], weights[: data.max_tokens]
        # A transcript that is cut has lost only its end, but a prompt that is cut has lost its answer.
        if data.world == "alfworld" or 1.0 in weights:
            yield ids, weights


def pool_rows(
    pool: int, tokenizer: PreTrainedTokenizerFast, data: Demonstrations
) -> list[tuple[list[int], list[float]]]:
    """Draw the sequences of one pool: enough of them for `POOL` updates."""
    rows: list[tuple[list[int], list[float]]] = []
    first, tokens = data.seed * 10**8 + pool * 1000, 0
    for seed in range(first, first + 1000):
        if tokens >= POOL * data.tokens_per_update:
            break
        for row in encode(seed, tokenizer, data, pool * POOL / data.drill_updates if data.drill_updates else 1.0):
            rows.append(row)
            tokens += len(row[0])
    return rows


def batches(
    tokenizer: PreTrainedTokenizerFast, data: Demonstrations, start: int, updates: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield ((B, T) int64 ids, (B, T) float32 weights) for updates start, start + 1, ...

    Each pool of `POOL` updates draws its own demonstrations, sorts their sequences by length and shuffles the batches,
    so padding is rare and update t is a function of (seed, t).
    """
    for pool in range(start // POOL, math.ceil(updates / POOL)):
        rng = random.Random(f"pool {data.seed} {pool}")
        rows = sorted(pool_rows(pool, tokenizer, data), key=lambda row: len(row[0]))
        groups, group = [], [rows[0]]
        for row in rows[1:]:
            if (len(group) + 1) * len(row[0]) > data.tokens_per_update:
                groups.append(group)
                group = []
            group.append(row)
        groups.append(group)
        order = rng.sample(range(len(groups)), min(POOL, len(groups)))
        order += rng.choices(range(len(groups)), k=POOL - len(order))
        for update, chosen in enumerate(order, pool * POOL):
            if start <= update < updates:
                yield pad(groups[chosen])


def pad(rows: Sequence[tuple[list[int], list[float]]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Right-pad to the longest row; padding weighs nothing."""
    length = max(len(ids) for ids, _ in rows)
    ids = torch.zeros(len(rows), length, dtype=torch.int64)
    weights = torch.zeros(len(rows), length)
    for index, (row_ids, row_weights) in enumerate(rows):
        ids[index, : len(row_ids)] = torch.tensor(row_ids)
        weights[index, : len(row_weights)] = torch.tensor(row_weights)
    return ids, weights


def weighted_loss(logits: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Weighted mean cross-entropy of the next token; loss and greedy accuracy on the expert's command tokens, (2,)."""
    targets, scale = ids[:, 1:], weights[:, 1:]
    losses = F.cross_entropy(logits[:, :-1].flatten(0, 1), targets.flatten(), reduction="none").view_as(targets)
    is_command = scale == 1.0
    right = (logits[:, :-1].argmax(-1) == targets)[is_command].float().mean()
    return (losses * scale).sum() / scale.sum(), torch.stack([losses[is_command].mean().detach(), right])
