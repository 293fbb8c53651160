"""The network of all-MiniLM-L6-v2 without padding: a BERT with post-norm blocks (arXiv 1810.04805) on packed texts.

The tokens of all texts lie behind one another in one (N, D) tensor. Everything but attention works token by token;
attention runs text by text. A batch of texts of different lengths then costs what its tokens cost.

Shapes: n texts, N tokens of all texts together, D = 384.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from dmr_gym.linear import PackedLinear

LAYERS = 6
HEADS = 12
WIDTH = 384
NORM_EPSILON = 1e-12


class MiniLM:
    """Token ids in, unit vectors out.

    Args:
        tensors: the published weights by name, float32.
        dtype: "float32" or "bfloat16", in which everything but the means is computed.
        device: torch device.

    Raises:
        KeyError: a weight is missing.
    """

    def __init__(self, tensors: Mapping[str, Tensor], dtype: str, device: str) -> None:
        stored = getattr(torch, dtype)
        self._weights = {name: tensor.to(device, stored) for name, tensor in tensors.items() if "LayerNorm" in name}
        table = "embeddings.{}_embeddings.weight"
        # Every token is of type 0, so its row belongs to the positions.
        positions = tensors[table.format("position")] + tensors[table.format("token_type")][0]
        self._positions = positions.to(device, stored)
        self._words = tensors[table.format("word")].to(device, stored)
        self._layers = [self._linear_layers(tensors, f"encoder.layer.{i}.", dtype, device) for i in range(LAYERS)]
        self._device = device

    def embed(self, texts: Sequence[Sequence[int]]) -> Tensor:
        """Return (n, D) float32: the mean of each text's token states, scaled to length 1.

        Args:
            texts: n non-empty sequences of token ids.
        """
        lengths = [len(ids) for ids in texts]
        ids = torch.tensor([token for ids in texts for token in ids], device=self._device)
        places = torch.tensor([place for length in lengths for place in range(length)], device=self._device)
        x = self._norm(self._words[ids] + self._positions[places], "embeddings")
        for index, (qkv, out, ff_in, ff_out) in enumerate(self._layers):
            prefix = f"encoder.layer.{index}."
            x = self._norm(x + out(_attend(qkv(x), lengths)), f"{prefix}attention.output")
            x = self._norm(x + ff_out(ff_in(x)), f"{prefix}output")
        means = torch.stack([states.mean(dim=0) for states in torch.split(x.float(), lengths)])
        return functional.normalize(means, dim=-1)

    def _norm(self, x: Tensor, name: str) -> Tensor:
        weight, bias = (self._weights[f"{name}.LayerNorm.{part}"] for part in ("weight", "bias"))
        return functional.layer_norm(x, (WIDTH,), weight, bias, NORM_EPSILON)

    @staticmethod
    def _linear_layers(
        tensors: Mapping[str, Tensor], prefix: str, dtype: str, device: str
    ) -> tuple[PackedLinear, PackedLinear, PackedLinear, PackedLinear]:
        """Query, key and value as one layer; attention's output; the two of the feed-forward branch."""

        def layer(*names: str, activation: str = "none") -> PackedLinear:
            weight, bias = (
                torch.cat([tensors[f"{prefix}{name}.{part}"] for name in names]).to(device)
                for part in ("weight", "bias")
            )
            linear = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
            linear.weight, linear.bias = nn.Parameter(weight), nn.Parameter(bias)
            return PackedLinear(linear, dtype, activation)

        return (
            layer(*(f"attention.self.{name}" for name in ("query", "key", "value"))),
            layer("attention.output.dense"),
            layer("intermediate.dense", activation="gelu"),
            layer("output.dense"),
        )


def _attend(qkv: Tensor, lengths: list[int]) -> Tensor:
    """Let the tokens of each text attend to one another: (N, 3 D) queries, keys and values to (N, D)."""
    heads = qkv.view(len(qkv), 3, HEADS, WIDTH // HEADS).permute(1, 2, 0, 3)  # (3, heads, N, head width)
    mixed = [functional.scaled_dot_product_attention(*text[:, None])[0] for text in torch.split(heads, lengths, dim=2)]
    return torch.cat(mixed, dim=1).transpose(0, 1).flatten(1)
