"""LLM copies in this process, computed with transformers: one checkpoint a precision."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dmr_gym.backends._decoding import Decoder, Generation, Stream, seeded_generator
from dmr_gym.backends._ragged import ATTENTION, check_architecture, register_attention
from dmr_gym.backends.checkpoint import checkpoint_digest, load_checkpoint, resolve_checkpoint
from dmr_gym.backends.sampling import check_sampling
from dmr_gym.device import torch_device
from dmr_gym.errors import BackendError, ConfigError
from dmr_gym.types import Completion, DistributionRequest, Prompt, Request, TokenDistributions

DECODER_VERSION = 1
"""Part of every digest; raised when the decoding rules change results."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class LocalBackend:
    """Runs one checkpoint a precision in this process.

    Checkpoints load on the first call of their precision. Keys and values of earlier calls are kept, so a prompt that
    continues an earlier transcript pays for its new tokens only. In float32, with bf16 or weight-only quantized
    weights, greedy and sampled answers depend neither on the other requests of a batch nor on what was kept (see
    `dmr_gym.backends._decoding`), and log-probabilities agree to about 1e-5. Not thread-safe. Copies and pickles carry
    the settings and load anew.

    Args:
        models: precision -> checkpoint folder, hub id "org/name[@revision]" or "embedded:<name>", the lowest precision
            first. Only safetensors weights are read; no code of a checkpoint is run.
        device: torch device.
        dtype: compute dtype "float32" | "bfloat16" | "float16"; None means bfloat16 on an accelerator and float32 on
            the CPU, where it is faster and keeps answers independent of the batch. A bf16 checkpoint computed in
            float32 has bf16 weights and float32 activations. Part of the digest.
        max_batch_size: most sequences decoded together.
        prefix_cache_mib: memory in MiB for keys and values of earlier calls, for each precision; 0 reuses nothing.
        chat_template_options: variables for the chat template, such as {"enable_thinking": False}. Part of the digest.
        clock: seconds for `Completion.seconds`.

    Raises:
        ConfigError: a setting is out of range.
    """

    def __init__(
        self,
        models: Mapping[str, str],
        device: str = "cpu",
        dtype: str | None = None,
        max_batch_size: int = 16,
        prefix_cache_mib: int = 512,
        chat_template_options: Mapping[str, Any] | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._models = {str(name): str(model) for name, model in models.items()}
        self._device = torch_device(device)
        self._dtype = dtype or ("float32" if self._device.type == "cpu" else "bfloat16")
        if not self._models:
            raise ConfigError("models must map at least one precision to a checkpoint folder or hub id, got {}")
        if self._dtype not in DTYPES:
            raise ConfigError(f"dtype must be one of {sorted(DTYPES)} or None, got {dtype!r}")
        if max_batch_size < 1 or prefix_cache_mib < 0:
            raise ConfigError(
                f"expected max_batch_size >= 1 and prefix_cache_mib >= 0, got {max_batch_size} and {prefix_cache_mib}"
            )
        self._max_batch_size = max_batch_size
        self._prefix_cache_mib = prefix_cache_mib
        self._chat_template_options = dict(chat_template_options or {})
        self._clock = clock
        self._folders: dict[str, Path] = {}
        self._decoders: dict[str, Decoder] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_decoders": {}}

    @property
    def precisions(self) -> tuple[str, ...]:
        """Names in ascending precision."""
        return tuple(self._models)

    def digest(self, precision: str) -> str:
        """Content address of a copy: sha256 over its files, the compute dtype and the chat template options.

        Raises:
            BackendError: an unknown precision, or its checkpoint is not there.
        """
        files = checkpoint_digest(self._folder(precision))
        parts = ["local", DECODER_VERSION, files, self._dtype, self._chat_template_options]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        """Complete every prompt, `max_batch_size` requests of one precision at a time.

        ``seconds`` is the wall clock of that batch, prefill and decoding, for each of its requests; loading a
        checkpoint is not part of it. A sequence that reaches the model's length limit ends with "length".

        Raises:
            BackendError: an unknown precision, an unusable checkpoint, settings out of range, no chat template for a
                chat prompt, or a prompt that is empty or leaves no room for an answer.
        """
        completions: dict[int, Completion] = {}
        for indices in self._batches([request.precision for request in requests]):
            batch = [requests[i] for i in indices]
            decoder = self._decoder(batch[0].precision)
            start = self._clock()
            generations = [self._generation(decoder, request) for request in batch]
            decoder.generate(generations)
            seconds = self._clock() - start
            for index, generation in zip(indices, generations, strict=True):
                completions[index] = Completion(
                    text=generation.text,
                    prompt_tokens=len(generation.stream.tokens),
                    completion_tokens=len(generation.new),
                    seconds=seconds,
                    finish_reason=generation.finish_reason,
                )
        return [completions[i] for i in range(len(requests))]

    def token_distributions(self, requests: Sequence[DistributionRequest]) -> list[TokenDistributions]:
        """Score completions under teacher forcing, in batches as `generate` does.

        Prompt and completion are tokenized apart and joined, which is how generation sees them: prompt tokens, then
        new tokens. An answer that the model spelled in an unusual tokenization is scored in the tokenizer's own.

        Raises:
            BackendError: as `generate`, or ``top_k`` below 1.
        """
        results: dict[int, TokenDistributions] = {}
        for indices in self._batches([request.precision for request in requests]):
            batch = [requests[i] for i in indices]
            decoder = self._decoder(batch[0].precision)
            results.update(zip(indices, self._score(decoder, batch), strict=True))
        return [results[i] for i in range(len(requests))]

    def clear_prefix_cache(self) -> None:
        """Forget the keys and values of earlier calls, for timings that start cold."""
        for decoder in self._decoders.values():
            decoder.prefixes.clear()

    def _batches(self, precisions: Sequence[str]) -> Iterator[list[int]]:
        """Yield request indices of one precision at a time, at most `max_batch_size` of them."""
        for precision in dict.fromkeys(precisions):
            indices = [i for i, name in enumerate(precisions) if name == precision]
            for start in range(0, len(indices), self._max_batch_size):
                yield indices[start : start + self._max_batch_size]

    def _folder(self, precision: str) -> Path:
        if precision not in self._models:
            raise BackendError(f"no precision {precision!r}; this backend has {list(self._models)}")
        if precision not in self._folders:
            self._folders[precision] = resolve_checkpoint(self._models[precision])
        return self._folders[precision]

    def _decoder(self, precision: str) -> Decoder:
        if precision not in self._decoders:
            folder = self._folder(precision)
            register_attention()
            model, tokenizer = load_checkpoint(folder, self._device, DTYPES[self._dtype], ATTENTION)
            check_architecture(model, self._models[precision])
            self._decoders[precision] = Decoder(model, tokenizer, self._prefix_cache_mib << 20)
        return self._decoders[precision]

    def _render(self, decoder: Decoder, prompt: Prompt) -> tuple[str, list[int]]:
        """Return the text of a prompt and its token ids."""
        if isinstance(prompt, str):
            return prompt, list(decoder.tokenizer(prompt)["input_ids"])
        if decoder.tokenizer.chat_template is None:
            raise BackendError("the checkpoint's tokenizer has no chat template: use text prompts or an instruct model")
        turns = [{"role": message.role, "content": message.content} for message in prompt]
        try:
            text = decoder.tokenizer.apply_chat_template(
                turns, tokenize=False, add_generation_prompt=True, **self._chat_template_options
            )
        except Exception as error:  # templates raise whatever they like about roles and their order
            raise BackendError(
                f"the chat template refuses the prompt ({error}); check roles and their order"
            ) from error
        return str(text), list(decoder.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _prompt(self, decoder: Decoder, prompt: Prompt) -> tuple[str, list[int]]:
        text, tokens = self._render(decoder, prompt)
        if not tokens:
            raise BackendError("the prompt has no tokens; give at least one character")
        if len(tokens) >= decoder.max_tokens:
            raise BackendError(
                f"the prompt has {len(tokens)} tokens and the model reads at most {decoder.max_tokens}, its answer "
                "included: lower max_steps, shorten the prompt, or use a model with a longer context"
            )
        return text, tokens

    def _generation(self, decoder: Decoder, request: Request) -> Generation:
        sampling = request.sampling
        check_sampling(sampling)
        text, tokens = self._prompt(decoder, request.prompt)
        return Generation(
            stream=Stream(tokens),
            sampling=sampling,
            generator=seeded_generator(sampling.seed, request.sample_index, text),
            limit=min(sampling.max_tokens, decoder.max_tokens - len(tokens)),
        )

    def _score(self, decoder: Decoder, batch: Sequence[DistributionRequest]) -> list[TokenDistributions]:
        pairs = [self._pair(decoder, request) for request in batch]
        streams = [Stream((prompt + answer)[:-1], keep=len(answer)) for prompt, answer in pairs if answer]
        scored = iter(decoder.score(streams) if streams else ())
        empty = torch.zeros((0, decoder.model.config.vocab_size))
        return [
            _distributions(decoder, answer, next(scored) if answer else empty, request.top_k)
            for (_, answer), request in zip(pairs, batch, strict=True)
        ]

    def _pair(self, decoder: Decoder, request: DistributionRequest) -> tuple[list[int], list[int]]:
        if request.top_k is not None and request.top_k < 1:
            raise BackendError(f"top_k must be at least 1 or None, got {request.top_k}")
        prompt = self._prompt(decoder, request.prompt)[1]
        answer = list(decoder.tokenizer(request.completion, add_special_tokens=False)["input_ids"])
        if len(prompt) + len(answer) > decoder.max_tokens:
            raise BackendError(
                f"prompt and completion have {len(prompt)} + {len(answer)} tokens and the model reads at most "
                f"{decoder.max_tokens}: shorten the prompt, or use a model with a longer context"
            )
        return prompt, answer


def _distributions(
    decoder: Decoder, answer: Sequence[int], logprobs: torch.Tensor, top_k: int | None
) -> TokenDistributions:
    indices = None
    if top_k is not None and top_k < logprobs.shape[1]:
        order = logprobs.argsort(dim=-1, descending=True, stable=True)[:, :top_k]  # equals: the lower id first
        indices, logprobs = order.cpu().numpy(), logprobs.gather(-1, order)
    return TokenDistributions(
        token_ids=np.asarray(answer, dtype=np.int64),
        tokens=tuple(decoder.tokenizer.decode([token]) for token in answer),
        logprobs=logprobs.cpu().numpy(),
        indices=indices,
    )
