"""The router: a causal Transformer from step embeddings to a distribution over precisions (paper section 4.1).

Row t of the input summarises the interaction up to decision t: the embedding of the previous action and of the
observation that answered it (row 0: the task's first observation). The paper's encoder (Eq. 3) states no causal mask;
ours has one, so that

* training scores every decision of a trajectory in one pass, and
* deployment pays for one new row a decision (`PrecisionRouter.step`, with a key-value cache),

and both give the same numbers. Pooling at the last valid step (Eq. 4) then is reading the logits of that step.

Shapes: B batch, T steps, L history length of an environment, D embedding width, P precisions.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, cast

import numpy as np

from dmr_gym import linear
from dmr_gym.device import torch_device
from dmr_gym.errors import ConfigError, MissingDependency
from dmr_gym.runs import write_atomically
from dmr_gym.types import FloatArray

try:
    import torch
    from safetensors import safe_open
    from safetensors.torch import save_file
    from torch import Tensor, nn
    from torch.nn import functional
except ImportError as error:
    raise MissingDependency("torch", "train", "the router") from error

WEIGHTS_FILE = "router.safetensors"
CONFIG_FILE = "router.json"
_VECTOR = 16  # float32 numbers that a CPU adds at once, at most


def _in_vectors(count: int) -> int:
    """A number of rows rounded up to whole vectors."""
    return -(-count // _VECTOR) * _VECTOR


@dataclass(frozen=True, slots=True)
class RouterConfig:
    """Sizes of a `PrecisionRouter`. The defaults give 14.4 million parameters, 2.2 % of Qwen3-1.7B with MiniLM's.

    Attributes:
        embedding_dim: width D of one step embedding (MiniLM: 384).
        n_precisions: P, the number of actions.
        n_layers: Transformer blocks (the paper's default is 8).
        d_model: width of the residual stream.
        n_heads: attention heads; divides ``d_model``.
        d_ff: inner width of the feed-forward layers.
        dropout: probability in [0, 1), used in training mode only.
        max_length: most steps of one history. At least the environment's step cap for a history that never slides.
    """

    embedding_dim: int = 384
    n_precisions: int = 2
    n_layers: int = 8
    d_model: int = 384
    n_heads: int = 6
    d_ff: int = 1536
    dropout: float = 0.1
    max_length: int = 64

    def __post_init__(self) -> None:
        """Refuse sizes that no router can have."""
        for name in ("embedding_dim", "n_layers", "d_model", "n_heads", "d_ff", "max_length"):
            if getattr(self, name) < 1:
                raise ConfigError(f"router: {name} must be at least 1, got {getattr(self, name)}")
        if self.n_precisions < 2:
            raise ConfigError(f"router: n_precisions must be at least 2 to have a choice, got {self.n_precisions}")
        if self.d_model % self.n_heads:
            raise ConfigError(f"router: d_model={self.d_model} must be a multiple of n_heads={self.n_heads}")
        if not 0.0 <= self.dropout < 1.0:
            raise ConfigError(f"router: dropout must lie in [0, 1), got {self.dropout}")


@dataclass(slots=True)
class RouterState:
    """What the router remembers of B running histories: one key-value cache a slot.

    Attributes:
        cache: (n_layers, 2, B, n_heads, max_length in whole vectors of 16, head width), keys and values.
        lengths: (B,) int64, rows seen so far of each slot; setting an entry to 0 starts that slot afresh.
    """

    cache: Tensor
    lengths: Tensor


class _Block(nn.Module):
    """A pre-norm Transformer block."""

    def __init__(self, config: RouterConfig) -> None:
        super().__init__()
        width = config.d_model
        self.n_heads = config.n_heads
        self.dropout = config.dropout
        self.norm_attention = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm_ff = nn.LayerNorm(width)
        self.ff_in = nn.Linear(width, config.d_ff)
        self.ff_out = nn.Linear(config.d_ff, width)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values of (B, T, d_model), each (B, n_heads, T, head width)."""
        batch, steps, width = x.shape
        heads = self.qkv(self.norm_attention(x)).view(batch, steps, 3, self.n_heads, width // self.n_heads)
        q, k, v = heads.permute(2, 0, 3, 1, 4)
        return q, k, v

    def finish(self, x: Tensor, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        """Attend where ``mask`` is True, then add the attention and the feed-forward branch to (B, T, d_model)."""
        rate = self.dropout if self.training else 0.0
        mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=rate)
        x = x + self._drop(self.out(mixed.transpose(1, 2).flatten(2)))
        return x + self._drop(self.ff_out(self._drop(functional.gelu(self.ff_in(self.norm_ff(x))))))

    def _drop(self, x: Tensor) -> Tensor:
        return functional.dropout(x, self.dropout) if self.training else x


class PrecisionRouter(nn.Module):
    """Step embeddings to precision logits; an action is the index of a precision, 0 the lowest.

    Positions count the valid rows of the input from 0, so padding may stand in front of, behind or between them. When
    an environment's history is full its window slides, and positions count from the oldest row still visible; with the
    default ``max_length`` of 64 rows and step caps of 30 and 50 that does not happen.
    """

    def __init__(self, config: RouterConfig | None = None) -> None:
        """Build the network with PyTorch's initial weights; seed with ``torch.manual_seed``.

        ``trained_on`` says what the router learnt from (`dmr_gym.trained_on.record`); `save` keeps it.
        """
        super().__init__()
        self.config = config if config is not None else RouterConfig()
        self.trained_on: dict[str, Any] = {}
        self.project_in = nn.Linear(self.config.embedding_dim, self.config.d_model)
        self.positions = nn.Parameter(torch.randn(self.config.max_length, self.config.d_model) * 0.02)
        self.blocks = nn.ModuleList(_Block(self.config) for _ in range(self.config.n_layers))
        self.norm = nn.LayerNorm(self.config.d_model)
        self.head = nn.Linear(self.config.d_model, self.config.n_precisions)

    def forward(self, rows: Tensor, valid_mask: Tensor) -> Tensor:
        """Score every decision of a batch of histories in one pass.

        Args:
            rows: (B, T, D) float step embeddings; what padding holds is never read.
            valid_mask: (B, T) bool, True where a row is real.

        Returns:
            (B, T, P) logits; those at invalid rows mean nothing.

        Raises:
            ConfigError: a shape or dtype is wrong, or T exceeds ``max_length``.
        """
        logits: Tensor = self.head(self.hidden(rows, valid_mask))
        return logits

    def hidden(self, rows: Tensor, valid_mask: Tensor) -> Tensor:
        """Return what the head reads, (B, T, d_model), for policies with their own head. Arguments as in `forward`."""
        self._check(rows, valid_mask)
        steps = rows.shape[1]
        order = (valid_mask.cumsum(1) - 1).clamp_min(0)  # (B, T): position among the valid rows
        # Zeroed rather than only masked: 0 * NaN in a value row would still poison the sum.
        x = self._embed(rows.masked_fill(~valid_mask.unsqueeze(-1), 0.0), order)
        causal = torch.ones(steps, steps, dtype=torch.bool, device=rows.device).tril()
        # Every row sees itself, so that the softmax of a padding row has something to sum.
        itself = torch.eye(steps, dtype=torch.bool, device=rows.device)
        mask = (causal & valid_mask.unsqueeze(1)) | itself  # (B, T, T)
        for block in self._layers:
            x = block.finish(x, *block.project(x), mask.unsqueeze(1))
        states: Tensor = self.norm(x)
        return states

    def last_logits(self, rows: Tensor, valid_mask: Tensor) -> Tensor:
        """Return the (B, P) logits at each history's last valid row (Eq. 4). Arguments as in `forward`."""
        logits: Tensor = self(rows, valid_mask)
        last = last_valid_index(valid_mask)
        return logits[torch.arange(len(last), device=last.device), last]

    @torch.no_grad()
    def act(self, observations: FloatArray) -> FloatArray:
        """Give the precision probabilities for a batch of environment observations, in evaluation mode.

        Args:
            observations: (B, L, D) float32; all-zero rows are padding, as no unit-norm embedding is zero.

        Returns:
            (B, P) float32 probabilities.
        """
        training = self.training
        self.eval()
        rows = torch.as_tensor(observations, dtype=torch.float32, device=self.device)
        probabilities = self.last_logits(rows, (rows != 0).any(-1)).softmax(-1)
        self.train(training)
        return probabilities.cpu().numpy()

    def initial_state(self, batch_size: int) -> RouterState:
        """Return an empty `RouterState` for B histories, to decode with `step`."""
        config = self.config
        width = config.d_model // config.n_heads
        shape = (config.n_layers, 2, batch_size, config.n_heads, _in_vectors(config.max_length), width)
        return RouterState(
            cache=torch.zeros(shape, device=self.device),
            lengths=torch.zeros(batch_size, dtype=torch.int64, device=self.device),
        )

    @torch.no_grad()
    def step(self, row: Tensor, state: RouterState, active: Tensor | None = None) -> tuple[Tensor, RouterState]:
        """Append one row to each history and score the decision there: `forward` at the price of one row.

        On a CPU with one thread the logits of a slot are, bit by bit, the same whatever the other slots hold and in
        whichever slot a history is, as long as B is the same and ``d_model`` and ``d_ff`` are multiples of 4.

        Args:
            row: (B, D) float, the newest step embedding of each slot.
            state: the histories so far. Its tensors are written in place, so use only the returned state.
            active: (B,) bool, the slots that get their row; the others stay as they are. None means all.

        Returns:
            (B, P) logits, meaningless at inactive slots, and the state with the rows appended.

        Raises:
            ConfigError: a history is longer than ``max_length``; then only `forward` over its newest rows applies.
        """
        active = torch.ones_like(state.lengths, dtype=torch.bool) if active is None else active
        if bool((state.lengths[active] >= self.config.max_length).any()):
            raise ConfigError(
                f"router: a history is longer than max_length={self.config.max_length}; "
                "train with a larger max_length, or score the newest rows with forward()"
            )
        order = state.lengths.clamp_max(self.config.max_length - 1)
        # In whole vectors: what others' longer histories add to this one's sums is zeros that change no bit of them.
        used = _in_vectors(int(order.max()) + 1)
        x = self._embed(row.unsqueeze(1), order.unsqueeze(1))  # (B, 1, d_model)
        seen = torch.arange(used, device=self.device) <= order.unsqueeze(1)  # (B, used)
        mask = torch.zeros(seen.shape, device=self.device).masked_fill_(~seen, -torch.inf)[:, None, None]
        heads = 2 * len(row) * self.config.n_heads
        starts = torch.arange(heads, device=self.device).view(2, len(row), -1) * state.cache.shape[4]
        places = (starts + order.unsqueeze(1)).flatten()  # of the new keys and values among a layer's
        for block, cache in zip(self._layers, state.cache, strict=True):
            q, k, v = block.project(x)
            # An inactive slot's entry lies beyond its length: its own next row overwrites it before it is read.
            cache.flatten(0, 3).index_copy_(0, places, torch.stack((k, v)).flatten(0, 3))
            keys, values = cache[:, :, :, :used]
            x = block.finish(x, q, keys, values, mask)
        state.lengths += active.to(state.lengths.dtype)
        # Not self.head: the last bits of a matrix product with few columns depend on the place of a row.
        logits: Tensor = (self.norm(x) * self.head.weight).sum(2) + self.head.bias
        return logits, state

    def for_inference(self, dtype: str) -> PrecisionRouter:
        """Return a router with the same weights, in evaluation mode, whose blocks multiply faster on a CPU.

        The weights are shared and stay float32: when this router is trained on, the other follows. Everything but the
        products inside the blocks is computed in float32 too. Decisions differ at near-ties only: a probability moves
        by less than 0.001 in float16 and by less than 0.02 in bfloat16.

        Args:
            dtype: "float16" (weights alone; the fastest for up to a dozen histories), "bfloat16" (the fastest for
                more, and for `forward`) or "float32"; see `dmr_gym.linear`. Where this CPU computes a reduced dtype no
                faster than float32, it gets float32.

        Raises:
            ConfigError: another dtype.
        """
        if dtype not in linear.DTYPES:
            raise ConfigError(f"router: dtype must be one of {list(linear.DTYPES)}, got {dtype!r}")
        chosen = dtype if self.device.type != "cpu" or linear.is_fast(dtype) else "float32"
        shared = {id(weight): weight for weight in self.parameters()}
        router = copy.deepcopy(self, shared).eval()
        linear.pack_linear_layers(router.blocks, chosen)
        return router

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.positions.device

    @property
    def n_parameters(self) -> int:
        """Number of trainable weights."""
        return sum(weight.numel() for weight in self.parameters())

    def move_threshold(self, tau: float) -> None:
        """Shift the highest precision's logit so that a score p_high of ``tau`` becomes one half, in place.

        Its odds are multiplied by (1 - τ) / τ, so the router at the threshold 0.5 decides as it did at τ, and scores
        keep their order.

        Args:
            tau: in (0, 1), such as a budget's τ_K (Eq. 7).

        Raises:
            ConfigError: another number.
        """
        if not 0.0 < tau < 1.0:
            raise ConfigError(f"a threshold that becomes one half must lie between 0 and 1, got {tau}")
        with torch.no_grad():
            self.head.bias[-1] += math.log((1.0 - tau) / tau)

    def digest(self) -> str:
        """Content address of sizes and weights, 64 hexadecimal digits; the same on every device."""
        content = hashlib.sha256(json.dumps(asdict(self.config), sort_keys=True).encode())
        for name, weight in sorted(self.state_dict().items()):
            content.update(name.encode())
            content.update(weight.detach().cpu().contiguous().numpy().tobytes())
        return content.hexdigest()

    def save(self, folder: str | Path) -> None:
        """Write ``router.safetensors`` and ``router.json`` into a folder, each whole or not at all."""
        path = Path(folder)
        tensors = {name: weight.detach().cpu().contiguous() for name, weight in self.state_dict().items()}
        record = {"config": asdict(self.config), "digest": self.digest(), "trained_on": self.trained_on}
        metadata = {"router": json.dumps(record, sort_keys=True)}
        # The weights file alone is enough to load from; the JSON beside it is for people.
        write_atomically(path / WEIGHTS_FILE, lambda part: save_file(tensors, part, metadata=metadata))
        write_atomically(path / CONFIG_FILE, lambda part: part.write_text(json.dumps(record, indent=2) + "\n"))

    @classmethod
    def load(cls, folder: str | Path, device: str = "cpu") -> PrecisionRouter:
        """Read a router that `save` wrote, in evaluation mode.

        Raises:
            ConfigError: the folder holds no router, its weights differ from the digest they were saved with, or the
                device is not there.
        """
        path = Path(folder) / WEIGHTS_FILE
        if not path.is_file():
            raise ConfigError(f"no router at {path}: give the folder that agents/train_kl_st.py wrote (--out)")
        with safe_open(path, framework="pt") as file:
            record = json.loads((file.metadata() or {}).get("router", "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        known = {field.name for field in fields(RouterConfig)}
        if not record or set(record["config"]) != known:
            raise ConfigError(f"{path} is not a router of this version: its settings must be {sorted(known)}")
        where = torch_device(device)
        router = cls(RouterConfig(**record["config"]))
        router.trained_on = record.get("trained_on", {})
        router.load_state_dict(tensors)
        if router.digest() != record["digest"]:
            raise ConfigError(f"{path} is damaged: its weights do not match the digest {record['digest'][:12]}...")
        return router.to(where).eval()

    @property
    def _layers(self) -> list[_Block]:
        return cast("list[_Block]", list(self.blocks))

    def _embed(self, rows: Tensor, order: Tensor) -> Tensor:
        weight, bias = self.project_in.weight, self.project_in.bias
        if (lacks := -rows.shape[-1] % _VECTOR) > 0:
            # Where rows lie across vectors, the last bits of a product depend on which row it is on some CPUs.
            rows, weight = functional.pad(rows, (0, lacks)), functional.pad(weight, (0, lacks))
        x: Tensor = functional.linear(rows, weight, bias) + self.positions[order]
        return functional.dropout(x, self.config.dropout, self.training)

    def _check(self, rows: Tensor, valid_mask: Tensor) -> None:
        dim, longest = self.config.embedding_dim, self.config.max_length
        if rows.ndim != 3 or rows.shape[2] != dim or not rows.is_floating_point():
            raise ConfigError(f"router: rows must be (B, T, {dim}) float, got {tuple(rows.shape)} {rows.dtype}")
        if valid_mask.shape != rows.shape[:2] or valid_mask.dtype != torch.bool:
            came = f"{tuple(valid_mask.shape)} {valid_mask.dtype}"
            raise ConfigError(f"router: valid_mask must be {tuple(rows.shape[:2])} bool, got {came}")
        if rows.shape[1] > longest and int(valid_mask.sum(1).max()) > longest:
            raise ConfigError(f"router: histories have up to {longest} rows (max_length), got {rows.shape[1]}")


def last_valid_index(valid_mask: Tensor) -> Tensor:
    """Return the (B,) index of the last True of each (B, T) mask: not the count minus one, since masks may have gaps.

    Raises:
        ConfigError: a row of the mask is empty: there is no decision to read.
    """
    if not bool(valid_mask.any(1).all()):
        empty = (~valid_mask.any(1)).nonzero().flatten().tolist()
        raise ConfigError(f"router: every history needs at least one valid row; those at {empty} have none")
    return valid_mask.shape[1] - 1 - valid_mask.flip(1).int().argmax(1)


def pad_rows(sequences: Sequence[FloatArray]) -> tuple[Tensor, Tensor]:
    """Stack histories of different lengths for `PrecisionRouter.forward`.

    Args:
        sequences: B arrays (T_i, D) float32.

    Returns:
        (B, max T_i, D) float32 rows, zeros behind each end, and the (B, max T_i) bool mask of the real ones.
    """
    lengths = np.array([len(sequence) for sequence in sequences])
    rows = np.zeros((len(sequences), int(lengths.max()), sequences[0].shape[1]), dtype=np.float32)
    for padded, sequence in zip(rows, sequences, strict=True):
        padded[: len(sequence)] = sequence
    return torch.from_numpy(rows), torch.from_numpy(np.arange(rows.shape[1]) < lengths[:, None])
