"""A backend without weights: answers come from a script, token distributions from a hash.

Everything it returns is a pure function of the request, the same on every machine. A token is a byte of UTF-8, or the
end of the answer (id 256), so the vocabulary has V = 257 entries.
"""

from __future__ import annotations

import functools
import hashlib
import json
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from dmr_gym.errors import BackendError, ConfigError
from dmr_gym.types import Backend, Completion, DistributionRequest, FloatArray, Prompt, Request, TokenDistributions

VOCABULARY = 257
END = 256
POLICIES = ("echo", "hash")


class ScriptedBackend:
    """Answers with whatever a function of the request says.

    The answer is cut before the first stop string and after ``max_tokens`` bytes; the end of the answer counts as one
    token, as an end-of-sequence token would. Distributions favour the bytes of the precision's own answer, and of the
    given completion once that has left it; the lower the precision, the more they are disturbed. So KL(high || low) is
    small where the answers of two precisions agree, and large where they part.

    Args:
        answer: request -> text. It must depend on nothing else.
        precisions: names in ascending precision.
        ms_per_token: milliseconds reported for each completion token.
        name: content address of ``answer``. Without it every instance has its own, so that a cache file never answers
            for another script.
    """

    def __init__(
        self,
        answer: Callable[[Request], str],
        precisions: Sequence[str] = ("low", "high"),
        *,
        ms_per_token: float = 1.0,
        name: str | None = None,
    ) -> None:
        self._answer = answer
        self._precisions = tuple(precisions)
        self._ms_per_token = float(ms_per_token)
        self._name = uuid.uuid4().hex if name is None else name

    @property
    def precisions(self) -> tuple[str, ...]:
        """Names in ascending precision."""
        return self._precisions

    def digest(self, precision: str) -> str:
        """Content address of one copy: the script's name and the precision's rank."""
        rank = self._rank(precision)
        return _sha256("scripted", self._name, precision, str(rank), str(len(self._precisions)))

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        """Answer every request.

        Raises:
            BackendError: an unknown precision.
        """
        return [self._complete(request) for request in requests]

    def token_distributions(self, requests: Sequence[DistributionRequest]) -> list[TokenDistributions]:
        """Score completions: T bytes each, (T, 257) log-probabilities or (T, K).

        Raises:
            BackendError: an unknown precision, or ``top_k`` below 1.
        """
        return [self._score(request) for request in requests]

    def _rank(self, precision: str) -> int:
        if precision not in self._precisions:
            raise BackendError(f"no precision {precision!r}; this backend has {list(self._precisions)}")
        return self._precisions.index(precision)

    def _complete(self, request: Request) -> Completion:
        self._rank(request.precision)
        sampling = request.sampling
        text = self._answer(request)
        cuts = [text.index(stop) for stop in sampling.stop if stop and stop in text]
        data = text[: min(cuts)].encode() if cuts else text.encode()
        stopped = len(data) < sampling.max_tokens
        data = data[: sampling.max_tokens]
        tokens = len(data) + stopped
        return Completion(
            text=data.decode(errors="ignore"),
            prompt_tokens=len(render(request.prompt).encode()),
            completion_tokens=tokens,
            seconds=tokens * self._ms_per_token / 1000,
            finish_reason="stop" if stopped else "length",
        )

    def _score(self, request: DistributionRequest) -> TokenDistributions:
        if request.top_k is not None and request.top_k < 1:
            raise BackendError(f"top_k must be at least 1 or None, got {request.top_k}")
        disturbance = float(len(self._precisions) - 1 - self._rank(request.precision))
        data = request.completion.encode()
        own = self._own(request)
        favoured = [own[i] if i < len(own) and own[:i] == data[:i] else data[i] for i in range(len(data))]
        prompt = _sha256("prompt", self._name, render(request.prompt))
        rows = [_logits(prompt, data[:i], favoured[i], request.precision, disturbance) for i in range(len(data))]
        logits = np.stack(rows) if rows else np.zeros((0, VOCABULARY))
        logprobs = (logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))).astype(np.float32)
        return truncate_distributions(
            token_ids=np.frombuffer(data, dtype=np.uint8).astype(np.int64),
            tokens=tuple(chr(byte) if byte < 128 else "\ufffd" for byte in data),
            logprobs=logprobs,
            top_k=request.top_k,
        )

    def _own(self, request: DistributionRequest) -> bytes:
        """The bytes this precision would have answered, with the line end that the scored completion has."""
        text = self._answer(Request(request.prompt, request.precision))
        return text.encode() + (b"\n" if request.completion.endswith("\n") and not text.endswith("\n") else b"")


def render(prompt: Prompt) -> str:
    """Return the text of a prompt; chat turns become "role: content" lines and an open assistant turn."""
    if isinstance(prompt, str):
        return prompt
    return "".join(f"{message.role}: {message.content}\n" for message in prompt) + "assistant:"


def truncate_distributions(
    token_ids: np.ndarray[Any, np.dtype[np.int64]], tokens: tuple[str, ...], logprobs: FloatArray, top_k: int | None
) -> TokenDistributions:
    """Keep the K most probable entries a position, the most probable first and the lower id first among equals.

    Args:
        token_ids: (T,) int64.
        tokens: T texts.
        logprobs: (T, V) float32.
        top_k: K, or None for the whole vocabulary.
    """
    if top_k is None or top_k >= logprobs.shape[1]:
        return TokenDistributions(token_ids, tokens, logprobs)
    order = np.argsort(-logprobs, axis=-1, kind="stable")[:, :top_k].astype(np.int64)
    return TokenDistributions(token_ids, tokens, np.take_along_axis(logprobs, order, axis=-1), order)


def scripted_from_config(
    precisions: tuple[str, ...],
    *,
    answers: str | Sequence[str] | Mapping[str, Any] | None = None,
    policy: str | None = None,
    choices: Sequence[str] = ("look", "inventory"),
    ms_per_token: float = 1.0,
) -> Backend:
    """Build a `ScriptedBackend` from plain data: exactly one of ``answers`` and ``policy``.

    Args:
        precisions: names in ascending precision.
        answers: a script, or {precision: script} in which "*" stands for every other precision. A script is a text
            (always the answer), a list (its n-th entry answers the n-th turn of the transcript, the last one repeats),
            or {needle: text} (the needle found last in the prompt decides; "" is found everywhere).
        policy: "echo" repeats the prompt's last line; "hash" picks one of ``choices`` by a hash of the request.
        choices: for the policy "hash".
        ms_per_token: milliseconds reported for each completion token.

    Raises:
        ConfigError: neither or both, an unknown policy, or a precision without a script.
    """
    if (answers is None) == (policy is None):
        raise ConfigError(f"a scripted backend needs either answers or a policy (one of {list(POLICIES)})")
    if policy is not None:
        if policy not in POLICIES or not choices or isinstance(choices, str):
            raise ConfigError(f"policy must be one of {list(POLICIES)} and choices a list, got {policy!r}, {choices!r}")
        kept = tuple(choices)
        answer = _echo if policy == "echo" else functools.partial(_pick, choices=kept)
    else:
        answer = functools.partial(_read, scripts=_scripts(answers, precisions))
    name = _sha256("config", json.dumps([answers, policy, list(choices)], sort_keys=True))
    return ScriptedBackend(answer, precisions, ms_per_token=ms_per_token, name=name)


def _scripts(answers: Any, precisions: tuple[str, ...]) -> dict[str, Any]:
    by_precision = isinstance(answers, Mapping) and bool(set(answers) & {"*", *precisions})
    table = dict(answers) if by_precision else {"*": answers}
    scripts = {name: table.get(name, table.get("*")) for name in precisions}
    for name, script in scripts.items():
        texts = (
            list(script.values()) if isinstance(script, Mapping) else [script] if isinstance(script, str) else script
        )
        if not isinstance(texts, Sequence) or not texts or not all(isinstance(text, str) for text in texts):
            raise ConfigError(f"answers must give precision {name!r} a text, a list or a mapping, got {script!r}")
    return scripts


def _read(request: Request, scripts: Mapping[str, Any]) -> str:
    script, prompt = scripts[request.precision], request.prompt
    if isinstance(script, str):
        return script
    text = render(prompt)
    if isinstance(script, Mapping):
        found = [needle for needle in script if needle and needle in text]
        latest = max(found, key=lambda needle: (text.rfind(needle), len(needle)), default="")
        return str(script.get(latest, ""))
    turns = text.count("\n> ") if isinstance(prompt, str) else sum(turn.role == "assistant" for turn in prompt)
    return str(script[min(turns, len(script) - 1)])


def _echo(request: Request) -> str:
    lines = render(request.prompt).strip().splitlines()
    return lines[-1] if lines else ""


def _pick(request: Request, choices: tuple[str, ...]) -> str:
    sampling = request.sampling
    draw = f"{sampling.seed}/{request.sample_index}" if sampling.temperature > 0 else ""
    return choices[int(_sha256("pick", request.precision, render(request.prompt), draw)[:12], 16) % len(choices)]


def _logits(prompt: str, prefix: bytes, target: int, precision: str, disturbance: float) -> np.ndarray[Any, Any]:
    shared = np.random.default_rng(int(_sha256("base", prompt, prefix.hex())[:16], 16))
    logits = shared.normal(size=VOCABULARY)
    logits[target] += 6.0
    if disturbance:
        own = np.random.default_rng(int(_sha256("own", precision, prompt, prefix.hex())[:16], 16))
        logits = logits + 0.5 * disturbance * own.normal(size=VOCABULARY)
    return logits


def _sha256(*parts: str) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
