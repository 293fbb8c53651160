"""Answers as they come: a server that still works on others loses no time while a caller uses the first ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol, runtime_checkable

from dmr_gym.types import Backend, Completion, Request


@runtime_checkable
class StreamingBackend(Protocol):
    """A backend that hands out the answers of a batch one after the other."""

    def generate_each(self, requests: Sequence[Request]) -> Iterator[list[tuple[int, Completion]]]:
        """Yield groups of answers with the indices of their requests, until each has come once. Raises BackendError."""
        ...


def generate_each(backend: Backend, requests: Sequence[Request]) -> Iterator[list[tuple[int, Completion]]]:
    """Complete every prompt, and yield the answers in groups: one group, where a backend has them all at once.

    Args:
        backend: any; it streams if it is a `StreamingBackend`.
        requests: at least one.
    """
    if isinstance(backend, StreamingBackend):
        yield from backend.generate_each(requests)
    else:
        yield list(enumerate(backend.generate(requests)))
