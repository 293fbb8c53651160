"""What every backend must do, and tiny checkpoints to do it with.

A test class inherits `BackendContract` and provides the fixture ``backend``: at least two precisions, answers that can
be stopped by STOP, and a chat template.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from dmr_gym.errors import BackendError
from dmr_gym.types import Backend, Completion, DistributionRequest, Message, Request, SamplingParams

PROMPT = "You are in the middle of a room. You see a bed 1, and a desk 1.\n>"
PROMPTS = (PROMPT, PROMPT + " go to desk 1\nOn the desk 1, you see a book 2.\n>", "You see a shelf 1.\n>", "x")
CHAT_TEMPLATE = (
    "{% for turn in messages %}<{{ turn.role }}>{{ turn.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
TOKENIZER_TEXTS = [text + " go to desk 1 look take book" for text in PROMPTS] * 5
SAMPLING = SamplingParams(max_tokens=12)


class BackendContract:
    """Properties of `dmr_gym.types.Backend`, checked on the fixture ``backend``."""

    def test_it_is_a_backend(self, backend: Backend) -> None:
        """The protocol's members are there, and precisions are distinct names."""
        assert isinstance(backend, Backend)
        assert len(set(backend.precisions)) == len(backend.precisions) >= 2

    def test_digests_are_stable_and_tell_precisions_apart(self, backend: Backend) -> None:
        """A digest names one copy for good."""
        digests = [backend.digest(name) for name in backend.precisions]
        assert digests == [backend.digest(name) for name in backend.precisions]
        assert len(set(digests)) == len(digests)

    def test_an_unknown_precision_is_refused_by_name(self, backend: Backend) -> None:
        """The message says what was asked for and what there is."""
        for call in (
            lambda: backend.digest("w0"),
            lambda: backend.generate([Request(PROMPT, "w0")]),
            lambda: backend.token_distributions([DistributionRequest(PROMPT, "a", "w0")]),
        ):
            with pytest.raises(BackendError, match=r"'w0'.*" + backend.precisions[0]):
                call()

    def test_no_requests_give_no_answers(self, backend: Backend) -> None:
        """An empty batch is a batch."""
        assert backend.generate([]) == []
        assert backend.token_distributions([]) == []

    @pytest.mark.parametrize("temperature", [0.0, 0.8])
    def test_a_batch_answers_as_single_calls_do(self, backend: Backend, temperature: float) -> None:
        """Order, precision, sampling and sample index of each request are its own, whatever stands beside it."""
        sampling = replace(SAMPLING, temperature=temperature)
        requests = [
            Request(prompt, precision, replace(sampling, max_tokens=5 + 3 * (i % 3)), sample_index=i)
            for precision in backend.precisions
            for i, prompt in enumerate(PROMPTS)
        ]
        requests = requests[::2] + requests[1::2] + requests[:2]
        together = backend.generate(requests)
        alone = [backend.generate([request])[0] for request in requests]
        assert [_content(c) for c in together] == [_content(c) for c in alone]

    def test_counts_and_reasons_agree_with_the_limits(self, backend: Backend) -> None:
        """Tokens are counted, the text has no stop string, and "length" means that the limit was reached."""
        for limit in (1, 12):
            sampling = replace(SAMPLING, max_tokens=limit)
            for found in backend.generate([Request(prompt, backend.precisions[0], sampling) for prompt in PROMPTS]):
                assert found.prompt_tokens >= 1
                assert 1 <= found.completion_tokens <= limit
                assert found.finish_reason in ("stop", "length")
                assert found.finish_reason == "stop" or found.completion_tokens == limit
                assert "\n" not in found.text
                assert found.seconds > 0
                assert found.cached is False

    def test_sampling_repeats_for_equal_seeds_only(self, backend: Backend) -> None:
        """Seed and sample index fix a draw."""
        sampling = SamplingParams(temperature=1.5, max_tokens=8, stop=())
        draws = [Request(PROMPT, backend.precisions[-1], sampling, sample_index=i) for i in range(6)]
        first = [c.text for c in backend.generate(draws)]
        assert first == [c.text for c in backend.generate(draws)]

    def test_chat_turns_are_a_prompt(self, backend: Backend) -> None:
        """Messages are rendered; other turns are another prompt."""
        turns = (Message("system", "Play."), Message("user", "You see a bed 1."))
        short, long = backend.generate(
            [Request(turns[1:], backend.precisions[0], SAMPLING), Request(turns, backend.precisions[0], SAMPLING)]
        )
        assert 1 < short.prompt_tokens < long.prompt_tokens

    def test_distributions_are_normalised_along_the_completion(self, backend: Backend) -> None:
        """One row a token, each row a distribution over the whole vocabulary."""
        for name in backend.precisions:
            [found] = backend.token_distributions([DistributionRequest(PROMPT, " go to desk 1\n", name)])
            steps = len(found.token_ids)
            assert steps == len(found.tokens) == len(found.logprobs) >= 1
            assert found.indices is None
            assert found.logprobs.dtype == np.float32
            assert found.token_ids.dtype == np.int64
            assert found.token_ids.max() < found.logprobs.shape[1]
            assert "".join(found.tokens) == " go to desk 1\n"
            np.testing.assert_allclose(np.exp(found.logprobs.astype(np.float64)).sum(axis=-1), 1, atol=1e-5)

    def test_top_k_keeps_the_most_probable_tokens(self, backend: Backend) -> None:
        """The truncated rows are the head of the whole ones, in falling order, with their vocabulary ids."""
        name = backend.precisions[0]
        whole, top = backend.token_distributions(
            [DistributionRequest(PROMPT, " look\n", name), DistributionRequest(PROMPT, " look\n", name, top_k=5)]
        )
        assert top.indices is not None
        assert top.indices.shape == top.logprobs.shape == (len(whole.token_ids), 5)
        assert np.all(np.diff(top.logprobs, axis=-1) <= 0)
        np.testing.assert_allclose(np.take_along_axis(whole.logprobs, top.indices, axis=-1), top.logprobs, atol=1e-4)
        np.testing.assert_allclose(np.sort(whole.logprobs, axis=-1)[:, :-6:-1], top.logprobs, atol=1e-4)

    def test_distributions_do_not_depend_on_the_batch(self, backend: Backend) -> None:
        """Batched scores equal single ones up to the last bits, in request order."""
        requests = [
            DistributionRequest(prompt, completion, name)
            for name in backend.precisions
            for prompt, completion in zip(PROMPTS, (" a\n", "", " go to bed 1\n", " look"), strict=True)
        ]
        for request, found in zip(requests, backend.token_distributions(requests), strict=True):
            [alone] = backend.token_distributions([request])
            assert found.tokens == alone.tokens
            np.testing.assert_allclose(found.logprobs, alone.logprobs, atol=1e-4)

    def test_precisions_disagree(self, backend: Backend) -> None:
        """Copies of different precision are different models."""
        rows = [
            backend.token_distributions([DistributionRequest(PROMPT, " look\n", name)])[0].logprobs
            for name in backend.precisions
        ]
        assert all(np.abs(first - second).max() > 1e-3 for first, second in pairwise(rows))


def _content(completion: Completion) -> Completion:
    return replace(completion, seconds=0.0, cached=False)


def write_tokenizer(
    folder: Path,
    texts: Iterable[str] = TOKENIZER_TEXTS,
    vocab_size: int = 300,
    end: str = "<end>",
    chat_template: str | None = CHAT_TEMPLATE,
) -> int:
    """Train a byte-level BPE tokenizer, whose token 0 ends and pads, save it, and return its vocabulary size."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[end], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=end, pad_token=end)
    fast.chat_template = chat_template
    fast.save_pretrained(folder)
    return len(fast)


def write_checkpoint(folder: Path, seed: int = 0, max_length: int = 256) -> Path:
    """Save a random Qwen3 checkpoint: hidden 64, 2 layers, 4 heads over 2 key-value heads."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        vocab_size=write_tokenizer(folder),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=max_length,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=0,
        initializer_range=0.3,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        Qwen3ForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    return folder
