"""Answers as they come: a server that still works on others loses no time while a caller uses the first ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol, runtime_checkable

from dmr_gym.errors import BackendError
from dmr_gym.types import Backend, Completion, Request

NOTHING_UNDER_WAY = "no request is under way"


class Stream(Protocol):
    """Requests under way, each by a number of the caller's; more may be added at any time. For one thread.

    After an error, or `close`, nothing is under way, and requests can be sent anew.
    """

    def send(self, requests: Mapping[int, Request]) -> None:
        """Ask, under numbers that no request under way has. Raises BackendError for what no server can answer."""
        ...

    def receive(self) -> list[tuple[int, Completion]]:
        """Wait for an answer, and hand out all that are there, with the numbers of their requests.

        Raises:
            BackendError: a request cannot be answered, which gives up all others, or none is under way.
        """
        ...

    def close(self) -> None:
        """Give up what is under way."""
        ...


@runtime_checkable
class StreamingBackend(Protocol):
    """A backend that hands out answers one after the other."""

    def stream(self) -> Stream:
        """Open a stream."""
        ...


class BatchStream:
    """The stream of a backend that has all its answers at once: what was sent since they were asked for is a batch.

    Args:
        backend: any.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._waiting: dict[int, Request] = {}

    def send(self, requests: Mapping[int, Request]) -> None:
        """Keep requests for the next batch."""
        self._waiting |= requests

    def receive(self) -> list[tuple[int, Completion]]:
        """Compute the batch; see `Stream.receive`."""
        if not self._waiting:
            raise BackendError(NOTHING_UNDER_WAY)
        waiting, self._waiting = self._waiting, {}
        return list(zip(waiting, self._backend.generate(list(waiting.values())), strict=True))

    def close(self) -> None:
        """Forget what waits."""
        self._waiting = {}


def open_stream(backend: Backend) -> Stream:
    """The stream of a backend, whether it streams or has all answers of a batch at once."""
    return backend.stream() if isinstance(backend, StreamingBackend) else BatchStream(backend)


def is_streaming(backend: Backend) -> bool:
    """Whether answers come one after the other: from the backend, or from the one inside a cache."""
    return isinstance(getattr(backend, "backend", backend), StreamingBackend)


def generate_each(backend: Backend, requests: Sequence[Request]) -> Iterator[list[tuple[int, Completion]]]:
    """Complete every prompt, and yield answers with the indices of their requests in groups as they come.

    A backend that has all its answers at once makes one group.

    Args:
        backend: any.
        requests: as many as there are.

    Raises:
        BackendError: as ``generate`` of the backend; what has not come by then does not come.
    """
    stream, left = open_stream(backend), len(requests)
    try:
        stream.send(dict(enumerate(requests)))
        while left:
            group = stream.receive()
            left -= len(group)
            yield group
    finally:
        stream.close()
