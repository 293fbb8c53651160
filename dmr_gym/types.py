"""Frozen records that cross a seam, and the protocols on both sides of it.

Legend of array shapes used throughout the package: B batch, T steps or tokens, L history length,
D embedding width, P precisions, V vocabulary, K kept vocabulary entries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How a completion is decoded.

    Attributes:
        temperature: 0 is greedy decoding.
        top_p: nucleus mass in (0, 1].
        max_tokens: most new tokens a call.
        stop: decoding ends before the first of these strings; it is not part of the text.
        seed: with ``sample_index``, fixes the draw when ``temperature > 0``.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    max_tokens: int = 100
    stop: tuple[str, ...] = ("\n",)
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a chat prompt: ``role`` is "system", "user" or "assistant"."""

    role: str
    content: str


Prompt = str | tuple[Message, ...]
"""Plain text, continued as it stands, or chat turns, rendered with the model's chat template."""


@dataclass(frozen=True, slots=True)
class Request:
    """One LLM call.

    Attributes:
        prompt: text or chat turns.
        precision: the copy that answers.
        sampling: how the answer is decoded.
        sample_index: tells equal calls apart.
        session: calls of one episode share it, so that a backend with several servers can send them to the one that
            has their prefix in its cache. It changes no answer.
    """

    prompt: Prompt
    precision: str
    sampling: SamplingParams = field(default_factory=SamplingParams)
    sample_index: int = 0
    session: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class Completion:
    """The answer to a `Request`.

    Attributes:
        text: the new text, without the stop string.
        prompt_tokens: tokens of the rendered prompt.
        completion_tokens: new tokens generated, the stop token included, as vLLM's ``usage`` counts.
        seconds: wall clock of the call that made it, as its caller waited for it: of the whole batch where it was
            computed in one, network and queue of a server included. One found in a cache has the seconds it was
            stored with.
        finish_reason: "stop" or "length".
        cached: whether it was found rather than computed.
    """

    text: str
    prompt_tokens: int
    completion_tokens: int
    seconds: float
    finish_reason: str = "stop"
    cached: bool = False


@dataclass(frozen=True, slots=True)
class DistributionRequest:
    """Ask one precision for its next-token distributions along a given completion (teacher forcing).

    Attributes:
        prompt: as in `Request`.
        completion: text that some precision generated after the prompt, its stop string appended if it stopped.
        precision: the copy that is asked.
        top_k: keep only the K most probable tokens a position; None keeps the whole vocabulary.
        session: as in `Request`.
    """

    prompt: Prompt
    completion: str
    precision: str
    top_k: int | None = None
    session: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class TokenDistributions:
    """Next-token log-probabilities along a completion of T tokens.

    Attributes:
        token_ids: (T,) int64, the completion's tokens.
        tokens: their T texts, to tell action tokens from thinking tokens.
        logprobs: (T, V) float32 natural logarithms, or (T, K) when truncated.
        indices: (T, K) int64 vocabulary ids of ``logprobs`` when truncated; None for the whole vocabulary.
    """

    token_ids: IntArray
    tokens: tuple[str, ...]
    logprobs: FloatArray
    indices: IntArray | None = None


@dataclass(frozen=True, slots=True)
class TaskStart:
    """What `Task.reset` returns.

    Attributes:
        task_id: the chosen task.
        instruction: what is to be done.
        observation: the first observation.
        next_step_type: type of the next step where the world fixes it beforehand, see `TaskStep`; else "".
    """

    task_id: str
    instruction: str
    observation: str
    next_step_type: str = ""


@dataclass(frozen=True, slots=True)
class TaskStep:
    """What one completion did to the world.

    Attributes:
        action: the command read from the completion; "" when none could be read.
        observation: the world's answer.
        score: task score in [0, 1] so far.
        done: the world has ended the episode (never because of a step cap: the env keeps that).
        success: the task is fulfilled.
        step_type: "action" or "think" in ALFWorld; "search" or "click" in WebShop.
        invalid_reason: why the command was not carried out; None when it was.
        next_step_type: type of the next step where the world fixes it beforehand, as a page of WebShop does; "" where
            it is known only after the answer, as in ALFWorld.
    """

    action: str
    observation: str
    score: float
    done: bool
    success: bool
    step_type: str
    invalid_reason: str | None = None
    next_step_type: str = ""


@dataclass(frozen=True, slots=True)
class LLMCall:
    """What a cost model prices: one step's call of one precision.

    Attributes:
        precision: the copy that answered.
        prompt_tokens: tokens of the rendered prompt.
        completion_tokens: new tokens generated.
        router_called: whether the router was asked.
        cached_tokens: leading prompt tokens whose keys and values the precision's server has from this episode
            (`dmr_gym.latency.cached_prompt_tokens`).
        seconds: measured wall clock of the call, see `Completion`.
    """

    precision: str
    prompt_tokens: int
    completion_tokens: int
    router_called: bool = True
    cached_tokens: int = 0
    seconds: float = 0.0


@runtime_checkable
class Task(Protocol):
    """A world with prompts: text in, text out. It knows nothing of models, precisions or rewards."""

    @property
    def task_ids(self) -> Sequence[str]:
        """Ids of the panel in a fixed order."""
        ...

    def reset(self, task_id: str) -> TaskStart:
        """Begin an episode. Raises TaskError for an id that is not in the panel."""
        ...

    def prompt(self) -> Prompt:
        """The prompt for the next LLM call."""
        ...

    def step(self, completion: str) -> TaskStep:
        """Carry out whatever a completion says. Never raises on a bad completion."""
        ...

    def snapshot(self) -> Any:
        """A cheap immutable copy of the episode's state."""
        ...

    def restore(self, state: Any) -> None:
        """Go back to a state that `snapshot` returned, on this task id or another."""
        ...


@runtime_checkable
class Backend(Protocol):
    """LLM copies of one base model, one a precision. Batch-first; answers come in request order."""

    @property
    def precisions(self) -> tuple[str, ...]:
        """Names in ascending precision."""
        ...

    def digest(self, precision: str) -> str:
        """Content address of the copy: part of every cache key."""
        ...

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        """Complete every prompt. Raises BackendError when it cannot answer."""
        ...

    def token_distributions(self, requests: Sequence[DistributionRequest]) -> list[TokenDistributions]:
        """Score given completions under teacher forcing."""
        ...


@runtime_checkable
class Encoder(Protocol):
    """A frozen text encoder."""

    @property
    def dim(self) -> int:
        """Embedding width D."""
        ...

    @property
    def digest(self) -> str:
        """Content address of the encoder: part of every cache key."""
        ...

    def encode(self, texts: Sequence[str]) -> FloatArray:
        """Unit-norm embeddings, (n, D) float32."""
        ...


@runtime_checkable
class LatencyModel(Protocol):
    """Prices one LLM call and one routing decision in seconds: a pure function of the call.

    A model that prices money or energy answers in dollars or joules instead. Whatever the environment then calls
    seconds, or names with ``_s``, is in that unit, and λ is reward per unit.
    """

    def llm_seconds(self, call: LLMCall) -> float:
        """Time of the LLM call."""
        ...

    def router_seconds(self, call: LLMCall) -> float:
        """Time of the routing decision; 0 when the router was not asked."""
        ...
