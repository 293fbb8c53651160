"""The JSON of OpenAI-compatible servers: calls from our records, and our records from answers."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from dmr_gym.backends.sampling import check_sampling, draw_seed
from dmr_gym.errors import BackendError
from dmr_gym.types import Completion, Prompt, Request, TokenDistributions

NEUTRAL = {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
"""Said in every call, so that the generation_config of a model changes nothing."""

TOKEN_ID = "token_id:"
"""How vLLM begins the name of an entry where it is asked for token ids."""

Redact = Callable[[str], str]
"""Takes secrets out of an answer before a message quotes it."""


def prompt_fields(prompt: Prompt, template_options: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a call that hold its prompt: text as it stands, or turns for the server's chat template.

    Raises:
        BackendError: an empty text.
    """
    if isinstance(prompt, str):
        if not prompt:
            raise BackendError("the prompt has no tokens; give at least one character")
        return {"prompt": prompt}
    turns: dict[str, Any] = {"messages": [{"role": turn.role, "content": turn.content} for turn in prompt]}
    return turns | ({"chat_template_kwargs": dict(template_options)} if template_options else {})


def completion_fields(request: Request, template_options: Mapping[str, Any]) -> dict[str, Any]:
    """The body of a call that completes a prompt.

    Raises:
        BackendError: an empty prompt, or sampling settings out of range.
    """
    sampling, prompt = request.sampling, request.prompt
    check_sampling(sampling)
    body: dict[str, Any] = {
        **prompt_fields(prompt, template_options),
        "max_tokens": sampling.max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        **NEUTRAL,
    }
    stops = [stop for stop in sampling.stop if stop]
    if stops:
        body["stop"] = stops
    if sampling.temperature > 0:
        text = prompt if isinstance(prompt, str) else json.dumps([[turn.role, turn.content] for turn in prompt])
        body["seed"] = draw_seed(sampling.seed, request.sample_index, text)
    return body


def next_token_fields(tokens: str | Sequence[int], top_k: int | None) -> dict[str, Any]:
    """The body of a call for the distribution of the token that follows; None asks for the whole vocabulary."""
    kept = -1 if top_k is None else top_k
    prompt = tokens if isinstance(tokens, str) else list(tokens)
    asked = {"logprobs": kept, "return_tokens_as_token_ids": True}
    return {"prompt": prompt, "max_tokens": 1, "temperature": 0.0, **NEUTRAL, **asked}


def read_completion(data: Any, seconds: float, url: str, redact: Redact = str) -> Completion:
    """Turn an answer of /completions or /chat/completions into our record.

    Raises:
        BackendError: something is missing, or a reasoning parser took a part of the text away.
    """
    try:
        choice, usage = data["choices"][0], data["usage"]
        message = choice.get("message")
        text = choice["text"] if message is None else message["content"]
        prompt_tokens, new_tokens = int(usage["prompt_tokens"]), int(usage["completion_tokens"])
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise _unexpected(url, redact, data, "a choice with its text, and usage with token counts") from error
    if message is not None and any(message.get(name) for name in ("reasoning", "reasoning_content", "tool_calls")):
        raise BackendError(
            f"the server at {url} takes reasoning or tool calls out of its answers, which prompts here need whole: "
            "start it without --reasoning-parser and --tool-call-parser"
        )
    return Completion(
        text=text or "",
        prompt_tokens=prompt_tokens,
        completion_tokens=new_tokens,
        seconds=seconds,
        finish_reason="length" if choice.get("finish_reason") == "length" else "stop",
    )


def read_token_ids(data: Any, url: str, redact: Redact = str) -> list[int]:
    """Read an answer of vLLM's /tokenize."""
    try:
        return [int(token) for token in data["tokens"]]
    except (KeyError, TypeError, ValueError) as error:
        raise _unexpected(url, redact, data, "tokens from /tokenize, as vLLM has it") from error


def read_token_text(data: Any, url: str, redact: Redact = str) -> str:
    """Read an answer of vLLM's /detokenize."""
    try:
        return str(data["prompt"])
    except (KeyError, TypeError) as error:
        raise _unexpected(url, redact, data, "a prompt from /detokenize, as vLLM has it") from error


def read_logprobs(data: Any, url: str, redact: Redact = str) -> dict[int, float]:
    """Read the log-probabilities of the first new token, by token id.

    Raises:
        BackendError: the server gives none, or names tokens by their text, which is not unique.
    """
    try:
        logprobs = data["choices"][0]["logprobs"]
        entries = (logprobs or {}).get("top_logprobs")
        found = dict(entries[0]) if entries else {}
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise _unexpected(url, redact, data, "a choice with top_logprobs") from error
    if not found:
        raise BackendError(
            f"the server at {url} gives no log-probabilities, from which KL is computed: start vLLM with "
            "--max-logprobs -1, or as many as top_k"
        )
    if not all(name.startswith(TOKEN_ID) for name in found):
        raise BackendError(
            f"the server at {url} names tokens by their text, where return_tokens_as_token_ids asked for their ids: "
            "KL needs vLLM, or a server that knows this option"
        )
    return {int(name.removeprefix(TOKEN_ID)): float(value) for name, value in found.items()}


def to_distributions(
    token_ids: Sequence[int], texts: Sequence[str], rows: Sequence[Mapping[int, float]], top_k: int | None, url: str
) -> TokenDistributions:
    """Put the log-probabilities of T positions into arrays.

    Args:
        token_ids: of the T tokens.
        texts: of the T tokens.
        rows: T times logarithm by token id.
        top_k: K, or None for whole vocabularies.
        url: of the server, for messages.

    Raises:
        BackendError: a row has fewer entries than were asked for.
    """
    width = max((len(row) for row in rows), default=0) if top_k is None else top_k
    logprobs = np.zeros((len(rows), width), dtype=np.float32)
    indices = np.zeros((len(rows), width), dtype=np.int64)
    for t, row in enumerate(rows):
        if len(row) < width:
            raise BackendError(
                f"the server at {url} gives {len(row)} log-probabilities a token, {width} were asked for"
            )
        ids = np.fromiter(row.keys(), dtype=np.int64, count=len(row))
        values = np.fromiter(row.values(), dtype=np.float32, count=len(row))
        # By id for a whole vocabulary; else the most probable first, of equals the lower id. A server may add the token
        # that it chose to those asked for.
        order = np.argsort(ids) if top_k is None else np.lexsort((ids, -values))[:width]
        indices[t], logprobs[t] = ids[order], values[order]
    if top_k is None and not np.array_equal(indices, np.broadcast_to(np.arange(width), indices.shape)):
        raise BackendError(f"the server at {url} leaves tokens out of its whole vocabulary: pass top_k")
    kept = indices if top_k is not None else None
    return TokenDistributions(np.asarray(token_ids, dtype=np.int64), tuple(texts), logprobs, kept)


def _unexpected(url: str, redact: Redact, data: Any, expected: str) -> BackendError:
    return BackendError(f"the server at {url} answered {redact(json.dumps(data))[:120]}; expected {expected}")
