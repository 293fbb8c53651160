"""An initialisation in which a small Qwen3 can copy from its prompt before it is trained.

Copying a name from a page takes two attention layers (Olsson et al., 2022, "In-context learning and induction heads"):
a head that looks one token back and writes that token's embedding down, and a head that looks for the place where the
present token was written down and repeats what stands there. Gradient descent finds the pair late when the names are
rare tokens, and nothing of a shop can be learned before. Here both are written into layers 0 and 1; training does the
rest. The idea of starting attention near the maps it ends in is that of mimetic initialisation (Trockman and Kolter,
2023).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from dmr_gym.errors import ConfigError

_FAST_PAIRS = 4  # rotary pairs that tell neighbours apart
_SLOW_FROM = 9 / 16  # rotary pairs from this share on hardly turn over a prompt's length
_LOOK_BACK = 1.3  # query and key norm of layer 0
_LOOK_UP = 2.0  # query and key norm of layer 1
_WRITE_DOWN = 0.2
_REPEAT = 0.6


def write_induction(model: Any, seed: int = 0) -> None:
    """Overwrite the embedding and parts of the first two attention layers of a fresh ``Qwen3ForCausalLM``.

    Embeddings become random unit vectors beside a first coordinate of 1, which gives layer 0 something constant to look
    back from. Heads of key-value group 0 in layer 0 attend to the previous token through the fastest rotary pairs. All
    heads of layer 1 compare embeddings through the slowest pairs and pass the embedding on.

    Args:
        model: untrained, with tied embeddings, two layers or more, and two key-value heads whose head_dim is half of
            hidden_size.
        seed: of the random maps.

    Raises:
        ConfigError: the model has another shape.
    """
    config = model.config
    width, head = config.hidden_size, config.head_dim
    if config.num_key_value_heads != 2 or 2 * head != width or config.num_hidden_layers < 2:
        found = f"{config.num_key_value_heads} of {head} at width {width} in {config.num_hidden_layers} layers"
        raise ConfigError(f"induction needs two key-value heads of half the width in two layers or more, found {found}")
    generator = torch.Generator().manual_seed(seed)
    written = torch.zeros(head, width)  # what of an embedding is written down; not its first coordinate
    written[:, 1:] = _orthonormal(head, width - 1, generator)
    place = torch.zeros(width, head)  # and where
    place[1:] = _orthonormal(head, width - 1, generator).T
    with torch.no_grad():
        embedding = model.get_input_embeddings().weight
        embedding.normal_(std=width**-0.5, generator=generator)
        embedding[:, 0] = 1.0
        layers = model.model.layers
        _look_back(layers[0].self_attn, config.rope_parameters["rope_theta"], written, place)
        _look_up(layers[1].self_attn, written, place, _orthonormal(width, width, generator))


@contextlib.contextmanager
def absent_rows_kept(embedding: torch.Tensor, ids: torch.Tensor) -> Iterator[None]:
    """Put the embeddings of tokens that a batch does not have back after an optimizer's step inside the context.

    Absent tokens feel only the softmax, all in one direction. Adam would blow that up to full steps until rare tokens
    cannot be told apart, which copying needs.

    Args:
        embedding: (V, D), changed in place.
        ids: token ids of the batch, integers of any shape, on the embedding's device.
    """
    absent = torch.ones(len(embedding), dtype=torch.bool, device=ids.device).index_fill_(0, ids.flatten(), False)
    kept = embedding.detach()[absent].clone()
    yield
    with torch.no_grad():
        embedding[absent] = kept


def _look_back(attention: Any, theta: float, written: torch.Tensor, place: torch.Tensor) -> None:
    """Attend one token back and write its embedding down. Shapes: written (head, width), place (width, head)."""
    head = len(written)
    half, heads = head // 2, attention.q_proj.out_features // head // 2
    fast = torch.arange(_FAST_PAIRS)
    angle = theta ** (-fast / half)  # what a rotary pair turns from one token to the next
    for index in range(heads):
        query = attention.q_proj.weight[index * head : (index + 1) * head]
        query.zero_()
        query[fast, 0] = 1.0
        attention.o_proj.weight[:, index * head : (index + 1) * head] = _WRITE_DOWN / heads * place
    key = attention.k_proj.weight[:head]
    key.zero_()
    key[fast, 0], key[fast + half, 0] = angle.cos(), angle.sin()
    attention.v_proj.weight[:head] = written
    attention.q_norm.weight.fill_(_LOOK_BACK)
    attention.k_norm.weight.fill_(_LOOK_BACK)


def _look_up(attention: Any, written: torch.Tensor, place: torch.Tensor, basis: torch.Tensor) -> None:
    """Attend to where the present token was written down, and pass on the embedding there, half of it a group."""
    head = len(written)
    half, heads = head // 2, attention.q_proj.out_features // head // 2
    slow = torch.arange(int(_SLOW_FROM * half), half)
    slow = torch.cat([slow, slow + half])
    for group in range(2):
        part = basis[group * head : (group + 1) * head]
        key = attention.k_proj.weight[group * head : (group + 1) * head]
        key.zero_()
        key[slow] = place.T[: len(slow)]
        attention.v_proj.weight[group * head : (group + 1) * head] = part
        for index in range(group * heads, (group + 1) * heads):
            query = attention.q_proj.weight[index * head : (index + 1) * head]
            query.zero_()
            query[slow] = written[: len(slow)]
            attention.o_proj.weight[:, index * head : (index + 1) * head] = _REPEAT / heads * part.T
    attention.q_norm.weight.fill_(_LOOK_UP)
    attention.k_norm.weight.fill_(_LOOK_UP)


def _orthonormal(rows: int, columns: int, generator: torch.Generator) -> torch.Tensor:
    """(rows, columns) with orthonormal rows, rows <= columns."""
    basis: torch.Tensor = torch.linalg.qr(torch.randn(columns, rows, generator=generator))[0]
    return basis.T
