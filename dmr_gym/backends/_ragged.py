"""Forward passes over sequences of different lengths without padding, and reuse of their keys and values.

The new tokens of B sequences lie behind one another in one packed row of N tokens. Everything but attention works token
by token and does not notice; attention runs sequence by sequence on that sequence's own keys and values. So nothing is
padded, positions are right by construction, and a sequence's attention never depends on its neighbours.

Shapes: B sequences, N packed new tokens, V vocabulary, H query heads, G key-value heads, C capacity, E head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from dmr_gym.errors import BackendError

ATTENTION = "dmr_gym_ragged"
CAPACITY_STEP = 256


class KVRow:
    """Keys and values of one token sequence, in one buffer (layers, 2, G, C, E) that grows as needed.

    Attributes:
        tokens: the token ids whose keys and values are in the buffer.
        buffer: the buffer; entries from ``len(tokens)`` on are undefined.
    """

    __slots__ = ("buffer", "tokens")

    def __init__(self, tokens: list[int], buffer: torch.Tensor) -> None:
        self.tokens = tokens
        self.buffer = buffer

    @classmethod
    def empty(cls, model: Any, capacity: int) -> KVRow:
        """Allocate a row for a model."""
        config = model.config
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        shape = (config.num_hidden_layers, 2, heads, _round_up(capacity), width)
        return cls([], torch.empty(shape, dtype=model.dtype, device=model.device))

    @property
    def nbytes(self) -> int:
        """Memory of the buffer in bytes."""
        return self.buffer.numel() * self.buffer.element_size()

    def reserve(self, capacity: int) -> None:
        """Make room for ``capacity`` tokens."""
        if capacity > self.buffer.shape[3]:
            self._move(_round_up(capacity))

    def copy(self, length: int, capacity: int) -> KVRow:
        """Return a new row with the first ``length`` tokens and room for ``capacity``."""
        row = KVRow(self.tokens[:length], self.buffer[:, :, :, :length])
        row._move(_round_up(capacity))
        return row

    def _move(self, capacity: int) -> None:
        layers, two, heads, _, width = self.buffer.shape
        buffer = self.buffer.new_empty((layers, two, heads, capacity, width))
        buffer[:, :, :, : len(self.tokens)] = self.buffer[:, :, :, : len(self.tokens)]
        self.buffer = buffer


class Batch:
    """What attention has to know of one packed forward pass, cut once for all layers.

    Attributes:
        counts: B numbers of new tokens.
        lengths: B numbers of tokens with the new ones.
        masks: for each row None or (n, m), what is added to the scores of its new tokens.
        layers: for each layer and row the places of the new keys and values, (2, G, n, E), and all of them,
            (2, 1, G, m, E).
    """

    __slots__ = ("counts", "layers", "lengths", "masks")

    def __init__(self, rows: Sequence[KVRow], counts: list[int]) -> None:
        self.counts = counts
        self.lengths = [len(row.tokens) + count for row, count in zip(rows, counts, strict=True)]
        views = [
            zip(
                row.buffer[:, :, :, length - count : length].unbind(),
                row.buffer[:, :, None, :, :length].unbind(),
                strict=True,
            )
            for row, count, length in zip(rows, counts, self.lengths, strict=True)
        ]
        self.layers = list(zip(*views, strict=True))
        self.masks = [
            _suffix_mask(length - count, count, row.buffer)
            for row, count, length in zip(rows, counts, self.lengths, strict=True)
        ]


def ragged_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    ragged: Batch | None = None,
    sliding_window: int | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Attend every sequence of a packed batch to its own past; called by transformers inside a model's forward.

    Args:
        module: the attention layer; ``layer_idx`` names its place in the buffers.
        query: (1, H, N, E).
        key: (1, G, N, E), written into the rows' buffers.
        value: (1, G, N, E), written into the rows' buffers.
        attention_mask: unused; what a token may see follows from ``ragged``.
        scaling: factor on the scores.
        ragged: the batch.
        sliding_window: most positions a token sees, where a model limits them.
        **options: other attention options of transformers; those that change the result are refused.

    Returns:
        (1, N, H, E) outputs, and None in place of attention weights.

    Raises:
        BackendError: the model uses a kind of attention that this function does not compute.
    """
    refused = [name for name in ("softcap", "s_aux", "position_bias") if options.get(name) is not None]
    if ragged is None or refused:
        raise BackendError(
            f"LocalBackend computes plain causal attention only, this model asks for {refused or 'more'}"
        )
    longest = max(ragged.lengths)
    if sliding_window is not None and longest > sliding_window:
        raise BackendError(
            f"a sequence of {longest} tokens exceeds the model's attention window of {sliding_window}; "
            "shorten the prompt"
        )
    fresh = torch.split(torch.stack((key[0], value[0])), ragged.counts, dim=2)
    queries = torch.split(query, ragged.counts, dim=2)
    outputs = []
    for (places, (keys, values)), new, asking, mask in zip(
        ragged.layers[module.layer_idx], fresh, queries, ragged.masks, strict=True
    ):
        places.copy_(new)
        outputs.append(_attend(asking, keys, values, mask, scaling))
    packed = outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=2)
    return packed.transpose(1, 2).contiguous(), None


def _attend(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor | None, scaling: float | None
) -> torch.Tensor:
    """Attend the (1, H, n, E) new tokens of one sequence to its (1, G, m, E) keys and values, the new ones last."""
    heads, groups = query.shape[1], keys.shape[1]
    if query.shape[2] == 1:  # the query heads of a group become the query's length: no copy of keys for grouped heads
        folded = query.reshape(1, groups, heads // groups, -1)
        return scaled_dot_product_attention(folded, keys, values, scale=scaling).reshape(1, heads, 1, -1)
    return scaled_dot_product_attention(
        query, keys, values, attn_mask=mask, is_causal=mask is None, scale=scaling, enable_gqa=heads > groups
    )


def forward(model: Any, rows: Sequence[KVRow], new: Sequence[Sequence[int]], keep: Sequence[int]) -> torch.Tensor:
    """Append new tokens to every row and return logits.

    Args:
        model: a causal language model that was loaded with the attention function `ATTENTION`.
        rows: B distinct rows; grown in place.
        new: B non-empty token sequences to append.
        keep: for each row, of how many of its last tokens the logits are wanted.

    Returns:
        (sum(keep), V) float32 logits, row after row.
    """
    counts = [len(tokens) for tokens in new]
    positions: list[int] = []
    kept: list[int] = []
    for row, count, wanted in zip(rows, counts, keep, strict=True):
        past = len(row.tokens)
        row.reserve(past + count)
        positions.extend(range(past, past + count))
        kept.extend(range(len(positions) - wanted, len(positions)))
    device = rows[0].buffer.device
    output = model(
        input_ids=torch.tensor([[token for tokens in new for token in tokens]], device=device),
        position_ids=torch.tensor([positions], device=device),
        use_cache=False,
        logits_to_keep=torch.tensor(kept, device=device),
        ragged=Batch(rows, counts),
    )
    for row, tokens in zip(rows, new, strict=True):
        row.tokens.extend(tokens)
    logits: torch.Tensor = output.logits[0].float()
    return logits


def common_prefix(first: Sequence[int], second: Sequence[int]) -> int:
    """Return how many leading tokens two sequences share."""
    length = min(len(first), len(second))
    if first[:length] == second[:length]:
        return length
    return next(i for i in range(length) if first[i] != second[i])


class PrefixCache:
    """Rows of finished calls, the least recently used dropped first, found by the longest common token prefix.

    Args:
        max_bytes: memory for buffers; 0 keeps nothing.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._rows: list[KVRow] = []  # the most recently used last

    def __len__(self) -> int:
        return len(self._rows)

    def match(self, tokens: list[int]) -> tuple[KVRow | None, int]:
        """Return the row that shares the longest prefix with ``tokens``, and how long that is."""
        best, length = None, 0
        for row in reversed(self._rows):
            if len(row.tokens) <= length or len(tokens) <= length or row.tokens[length] != tokens[length]:
                continue
            shared = common_prefix(row.tokens, tokens)
            if shared > length:
                best, length = row, shared
        return best, length

    def take(self, row: KVRow) -> bool:
        """Remove a row, so that its new owner may extend it; False if another owner was faster."""
        for index, candidate in enumerate(self._rows):
            if candidate is row:
                del self._rows[index]
                return True
        return False

    def put(self, row: KVRow) -> None:
        """Keep a row; drop those it contains, and the oldest ones beyond the memory limit."""
        self._rows = [kept for kept in self._rows if row.tokens[: len(kept.tokens)] != kept.tokens]
        self._rows.append(row)
        used = sum(kept.nbytes for kept in self._rows)
        while self._rows and used > self._max_bytes:
            used -= self._rows.pop(0).nbytes

    def clear(self) -> None:
        """Forget every row."""
        self._rows.clear()


def register_attention() -> None:
    """Make `ragged_attention` known to transformers; without a mask function, models build no masks for it."""
    from transformers import AttentionInterface

    AttentionInterface.register(ATTENTION, ragged_attention)


def check_architecture(model: Any, name: str) -> None:
    """Refuse models whose layers are not all plain attention.

    Raises:
        BackendError: the architecture cannot take an attention function, or has recurrent or other layers.
    """
    kinds = set(getattr(model.config, "layer_types", None) or ["full_attention"])
    if not getattr(model, "_supports_attention_backend", False) or not kinds <= {"full_attention", "sliding_attention"}:
        raise BackendError(
            f"checkpoint {name}: LocalBackend runs decoder models with plain attention (Qwen3, Llama, Mistral, ...), "
            f"not {type(model).__name__}; serve this one over HTTP instead"
        )


def _suffix_mask(past: int, count: int, like: torch.Tensor) -> torch.Tensor | None:
    if past == 0 or count == 1:
        return None
    return like.new_full((count, past + count), -torch.inf).triu(past + 1)


def _round_up(capacity: int) -> int:
    return -(-capacity // CAPACITY_STEP) * CAPACITY_STEP
