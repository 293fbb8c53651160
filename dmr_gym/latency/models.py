"""The cost models: pure functions from one call to seconds, dollars or joules."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar

from dmr_gym.config import check_amount, check_count
from dmr_gym.errors import ConfigError
from dmr_gym.types import LatencyModel, LLMCall


@dataclass(frozen=True, slots=True)
class TokenLinearLatency:
    """Eq. 9: a price per completion token and precision, and one per routing decision.

    Attributes:
        ms_per_token: ms per completion token of each precision.
        router_ms: ms per routing decision; 0 for a policy that asks no router.

    Raises:
        ConfigError: if a coefficient is negative or not finite.
    """

    ms_per_token: Mapping[str, float]
    router_ms: float
    unit: ClassVar[str] = "s"

    def __post_init__(self) -> None:
        """Check the coefficients."""
        named = {"router_ms": self.router_ms} | {f"ms_per_token.{key}": ms for key, ms in self.ms_per_token.items()}
        for name, value in named.items():
            check_amount(name, value, "ms")

    def llm_seconds(self, call: LLMCall) -> float:
        """Time of the LLM call: completion tokens times the precision's price."""
        return call.completion_tokens * self.ms_per_token[call.precision] / 1000

    def router_seconds(self, call: LLMCall) -> float:
        """Time of the routing decision; 0 when the router was not asked."""
        return self.router_ms / 1000 if call.router_called else 0.0


@dataclass(frozen=True, slots=True)
class TokenPrices:
    """What one precision costs, in the unit of its model.

    Attributes:
        prompt: a prompt token that its server has to compute.
        cached: a prompt token whose keys and values its server has.
        completion: a token that it generates.
        call: any call, whatever its length.
    """

    prompt: float = 0.0
    cached: float = 0.0
    completion: float = 0.0
    call: float = 0.0


@dataclass(frozen=True, slots=True)
class CachedPrefixCost:
    """A price for each kind of token, where each precision's server caches the prefixes that it has seen.

    The servers share nothing: a precision that was not asked for some steps has to compute what was said in them, so
    that switching pays for the cold prefix. The kinds "prefill-decode", "money" and "energy" are this formula with
    prices in seconds, dollars and joules.

    Attributes:
        prices: of each precision.
        router: price of a routing decision.
        unit: of all prices: "s", "$" or "J".
        block_tokens: a server keeps whole blocks of so many tokens; 16 in vLLM.
        warm_tokens: leading tokens of every prompt that a server has from other episodes, such as worked examples.

    Raises:
        ConfigError: if a price is negative or not finite, or a count is no whole number.
    """

    prices: Mapping[str, TokenPrices]
    router: float = 0.0
    unit: str = "s"
    block_tokens: int = 1
    warm_tokens: int = 0

    def __post_init__(self) -> None:
        """Check prices and counts."""
        check_amount("the router's price", self.router, self.unit)
        for name, price in self.prices.items():
            for kind in ("prompt", "cached", "completion", "call"):
                check_amount(f"the {kind} price of {name}", getattr(price, kind), self.unit)
        check_count("block_tokens", self.block_tokens)
        if type(self.warm_tokens) is not int or self.warm_tokens < 0:
            raise ConfigError(f"warm_tokens must be a whole number of at least 0, got {self.warm_tokens!r}")

    def cached_tokens(self, call: LLMCall) -> int:
        """Prompt tokens that need no computing: whole blocks, and never the last token, whose logits are needed."""
        known = min(max(call.cached_tokens, self.warm_tokens), max(call.prompt_tokens - 1, 0))
        return known // self.block_tokens * self.block_tokens

    def llm_seconds(self, call: LLMCall) -> float:
        """Price of the LLM call, in `unit`."""
        price, cached = self.prices[call.precision], self.cached_tokens(call)
        prompt = price.prompt * (call.prompt_tokens - cached) + price.cached * cached
        return prompt + price.completion * call.completion_tokens + price.call

    def router_seconds(self, call: LLMCall) -> float:
        """Price of the routing decision, in `unit`; 0 when the router was not asked."""
        return self.router if call.router_called else 0.0


@dataclass(frozen=True, slots=True)
class WallClockLatency:
    """The seconds that the backend measured, in place of a model; an answer from a cache has those it was stored with.

    Attributes:
        router_ms: ms per routing decision, which the environment cannot measure: the router runs outside of it.
    """

    router_ms: float = 0.0
    unit: ClassVar[str] = "s"

    def __post_init__(self) -> None:
        """Check the coefficient."""
        check_amount("router_ms", self.router_ms, "ms")

    def llm_seconds(self, call: LLMCall) -> float:
        """Measured time of the LLM call."""
        return call.seconds

    def router_seconds(self, call: LLMCall) -> float:
        """Time of the routing decision; 0 when the router was not asked."""
        return self.router_ms / 1000 if call.router_called else 0.0


def trajectory_seconds(model: LatencyModel, calls: Iterable[LLMCall]) -> float:
    """T of Eq. 9, in seconds: the LLM calls and the routing decisions of one trajectory."""
    return sum(model.llm_seconds(call) + model.router_seconds(call) for call in calls)
