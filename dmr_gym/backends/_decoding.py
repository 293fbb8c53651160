"""Token choice and the decoding loop of one precision.

**Why answers do not depend on the batch.** The last bits of a matrix product depend on how many rows it has, so logits
differ by about 1e-5 between a batch and a single call, or with and without key-value reuse. In float32 every choice
whose lead is below `MARGIN` is therefore made again from logits of that sequence alone, computed from scratch; where
even those are equal, the lowest token id wins. Noise far below the margin cannot change any other choice, so the same
machine with the same number of threads gives the same tokens whatever else is in the batch or the cache. Half
precisions and quantized activations (W8A8) round so coarsely that the last bits can grow to tenths of a nat: there, a
greedy choice may depend on the batch, and only a completion cache pins it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from dmr_gym.backends._ragged import KVRow, PrefixCache, common_prefix, forward
from dmr_gym.backends.sampling import draw_seed
from dmr_gym.types import SamplingParams

MARGIN = 1e-3
"""Smallest lead, in nats, that is trusted without computing it again (float32)."""

NUCLEUS_SLACK = 1e-4
"""Probability mass by which the nucleus is widened and narrowed to see whether its edge decides."""

SHARED_PREFIX = 32
"""Tokens a prompt must share with another of its batch to wait for it and copy its keys and values."""

MAX_PACKED_TOKENS = 4096
MAX_KEPT_LOGITS = 1 << 26


@dataclass(slots=True)
class Stream:
    """One sequence on its way through the model.

    Attributes:
        tokens: ids that are given: the prompt, and for scoring the completion.
        keep: of how many last given tokens the logits are wanted.
        row: keys and values so far.
        logits: (keep, V) after the prefill.
    """

    tokens: list[int]
    keep: int = 1
    row: KVRow | None = None
    logits: torch.Tensor | None = None


@dataclass(slots=True)
class Generation:
    """A stream that is being continued: what was generated so far, and why it ended ("" while it runs)."""

    stream: Stream
    sampling: SamplingParams
    generator: torch.Generator
    limit: int
    new: list[int] = field(default_factory=list)
    text: str = ""
    finish_reason: str = ""


class Decoder:
    """Model, tokenizer and prefix cache of one precision.

    Args:
        model: causal language model with ragged attention.
        tokenizer: its tokenizer.
        prefix_cache_bytes: memory for keys and values of earlier calls.
    """

    def __init__(self, model: Any, tokenizer: Any, prefix_cache_bytes: int) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.prefixes = PrefixCache(prefix_cache_bytes)
        self.margin = MARGIN if model.dtype == torch.float32 and not _rounds_activations(model) else 0.0
        self.end_ids = _end_ids(model, tokenizer)

    @property
    def max_tokens(self) -> int:
        """Longest sequence the model was made for."""
        return int(getattr(self.model.config, "max_position_embeddings", None) or 1 << 30)

    @torch.inference_mode()
    def generate(self, generations: Sequence[Generation]) -> None:
        """Continue every stream until a stop string, an end token or its limit; results are written into them."""
        self._prefill([generation.stream for generation in generations])
        logits = torch.cat([_filled(generation.stream) for generation in generations])
        running = list(generations)
        while running:
            for generation, token in zip(running, self._choose(running, logits), strict=True):
                self._append(generation, token)
            running = [generation for generation in running if not generation.finish_reason]
            if running:
                rows = [_row(generation.stream) for generation in running]
                logits = forward(self.model, rows, [[g.new[-1]] for g in running], [1] * len(running))
        for generation in generations:
            self.prefixes.put(_row(generation.stream))

    @torch.inference_mode()
    def score(self, streams: Sequence[Stream]) -> list[torch.Tensor]:
        """Return (keep, V) float32 log-probabilities after the last ``keep`` tokens of every stream."""
        self._prefill(streams)
        for stream in streams:
            self.prefixes.put(_row(stream))
        return [torch.log_softmax(_filled(stream), dim=-1) for stream in streams]

    def _prefill(self, streams: Sequence[Stream]) -> None:
        """Give every stream its row and logits, computing only what no earlier sequence has computed."""
        leaders: list[Stream] = []
        followers: list[tuple[Stream, Stream]] = []
        for stream in streams:
            found, length = self.prefixes.match(stream.tokens)
            leader = max(leaders, key=lambda other: common_prefix(other.tokens, stream.tokens), default=None)
            if leader and common_prefix(leader.tokens, stream.tokens) >= length + SHARED_PREFIX:
                followers.append((stream, leader))
            else:
                stream.row = self._start(stream, found, length)
                leaders.append(stream)
        self._fill(leaders)
        for stream, leader in followers:
            stream.row = self._start(stream, _row(leader), common_prefix(leader.tokens, stream.tokens))
        self._fill([stream for stream, _ in followers])

    def _start(self, stream: Stream, found: KVRow | None, shared: int) -> KVRow:
        """Return a row that holds the reusable prefix: the found row itself when all of it is used, else a copy."""
        shared = min(shared, len(stream.tokens) - stream.keep)  # logits that are wanted have to be computed
        capacity = len(stream.tokens) + 128
        if found is None or shared <= 0:
            return KVRow.empty(self.model, capacity)
        if shared == len(found.tokens) and self.prefixes.take(found):
            return found
        return found.copy(shared, capacity)

    def _fill(self, streams: Sequence[Stream]) -> None:
        vocabulary = self.model.config.vocab_size
        for group in _groups(streams, vocabulary):
            rows = [_row(stream) for stream in group]
            new = [stream.tokens[len(row.tokens) :] for stream, row in zip(group, rows, strict=True)]
            keep = [stream.keep for stream in group]
            logits = forward(self.model, rows, new, keep)
            for stream, part in zip(group, torch.split(logits, keep), strict=True):
                stream.logits = part

    def _choose(self, running: Sequence[Generation], logits: torch.Tensor) -> Iterator[int]:
        """Yield the next token of every running stream, (B, V) logits -> B ids."""
        best, ids = logits.topk(min(2, logits.shape[-1]), dim=-1)
        leads = (best[:, 0] - best[:, -1]).tolist()
        for index, generation in enumerate(running):
            if generation.sampling.temperature == 0 and leads[index] > self.margin:
                yield int(ids[index, 0])
                continue
            noise = gumbel_noise(generation, logits)
            token, sure = choose_token(logits[index], generation.sampling, noise, self.margin)
            if not sure and self.margin:
                token, _ = choose_token(self._alone(generation), generation.sampling, noise, 0.0)
            yield token

    def _alone(self, generation: Generation) -> torch.Tensor:
        """Return (V,) next-token logits of one sequence, computed by itself and without reuse."""
        tokens = generation.stream.tokens + generation.new
        return forward(self.model, [KVRow.empty(self.model, len(tokens))], [tokens], [1])[0]

    def _append(self, generation: Generation, token: int) -> None:
        generation.new.append(token)
        ended = token in self.end_ids
        generation.text = self.decode(generation.new[:-1] if ended else generation.new)
        cuts = [generation.text.index(stop) for stop in generation.sampling.stop if stop and stop in generation.text]
        if cuts:
            generation.text = generation.text[: min(cuts)]
        if cuts or ended:
            generation.finish_reason = "stop"
        elif len(generation.new) >= generation.limit:
            generation.finish_reason = "length"

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens, special ones left out."""
        return str(self.tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False))


def choose_token(
    logits: torch.Tensor, sampling: SamplingParams, noise: torch.Tensor | None, margin: float
) -> tuple[int, bool]:
    """Choose one token.

    Sampling takes the largest ``logit + temperature * Gumbel noise``, which draws from softmax(logit / temperature);
    so a draw has a lead over the runner-up just as a greedy choice has.

    Args:
        logits: (V,) float32.
        sampling: temperature and top_p.
        noise: (V,) standard Gumbel noise; None for greedy decoding.
        margin: lead in nats below which the choice is unsure; 0 trusts every lead.

    Returns:
        The token, the lowest id among equals, and whether it is sure.
    """
    scores, edge = logits, None
    if noise is not None:
        scores = logits + sampling.temperature * noise
        if sampling.top_p < 1:
            slack = NUCLEUS_SLACK if margin else 0.0
            scores = scores.masked_fill(~_nucleus(logits / sampling.temperature, sampling.top_p + slack), -torch.inf)
            edge = _nucleus(logits / sampling.temperature, sampling.top_p - slack)
    token = int((scores == scores.max()).nonzero()[0])
    best = scores.topk(min(2, scores.shape[-1])).values
    sure = float(best[0] - best[-1]) > margin and (edge is None or bool(edge[token]))
    return token, sure or not margin


def gumbel_noise(generation: Generation, like: torch.Tensor) -> torch.Tensor | None:
    """Return (V,) Gumbel noise from the generation's own generator on the CPU; None for greedy decoding."""
    if generation.sampling.temperature == 0:
        return None
    draws = torch.empty(like.shape[-1]).exponential_(generator=generation.generator)
    return -draws.log().to(like.device)


def seeded_generator(seed: int, sample_index: int, prompt: str) -> torch.Generator:
    """Return the generator of a draw, see `draw_seed`."""
    return torch.Generator().manual_seed(draw_seed(seed, sample_index, prompt))


def _nucleus(logits: torch.Tensor, top_p: float) -> torch.Tensor:
    """Return (V,) bool: the fewest most probable tokens whose mass reaches ``top_p``."""
    ordered, order = torch.softmax(logits, dim=-1).sort(descending=True, stable=True)
    before = ordered.double().cumsum(dim=-1) - ordered
    inside = before < top_p
    inside[0] = True
    return torch.zeros_like(inside).scatter(0, order, inside)


def _groups(streams: Sequence[Stream], vocabulary: int) -> Iterator[list[Stream]]:
    """Split streams so that one forward pass stays within its token and logit budgets."""
    group: list[Stream] = []
    tokens = kept = 0
    for stream in streams:
        new = len(stream.tokens) - len(_row(stream).tokens)
        if group and (tokens + new > MAX_PACKED_TOKENS or (kept + stream.keep) * vocabulary > MAX_KEPT_LOGITS):
            yield group
            group, tokens, kept = [], 0, 0
        group.append(stream)
        tokens, kept = tokens + new, kept + stream.keep
    if group:
        yield group


def _end_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    found: list[Any] = [getattr(model.generation_config, "eos_token_id", None), tokenizer.eos_token_id]
    flat = [token for ids in found for token in (ids if isinstance(ids, list | tuple) else [ids])]
    return frozenset(int(token) for token in flat if token is not None)


def _rounds_activations(model: Any) -> bool:
    schemes = (getattr(module, "quantization_scheme", None) for module in model.modules())
    return any(scheme is not None and scheme.input_activations is not None for scheme in schemes)


def _row(stream: Stream) -> KVRow:
    assert stream.row is not None
    return stream.row


def _filled(stream: Stream) -> torch.Tensor:
    assert stream.logits is not None
    return stream.logits
