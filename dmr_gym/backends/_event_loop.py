"""Coroutines for callers that have no event loop, or run in one, as notebooks do: a loop in a thread of its own."""

from __future__ import annotations

import asyncio
import os
import threading
from collections import defaultdict
from collections.abc import Awaitable, Callable, Coroutine, Hashable, Iterable
from concurrent.futures import CancelledError, Future
from typing import Any, Generic, TypeVar
from weakref import WeakSet

from dmr_gym.errors import BackendError

T = TypeVar("T")
K = TypeVar("K", bound=Hashable)


class EventLoop:
    """A running event loop.

    Args:
        at_end: awaited when the loop is closed.
    """

    def __init__(self, at_end: Callable[[], Awaitable[None]]) -> None:
        self._at_end = at_end
        self._pid = os.getpid()
        self._closed = False
        self._order = threading.RLock()  # the garbage collector may call `close` within `start`
        self._begun: WeakSet[Coroutine[Any, Any, Any]] = WeakSet()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="dmr-gym-servers", daemon=True)
        self._thread.start()

    @property
    def is_usable(self) -> bool:
        """Whether coroutines can run: not after `close`, nor in a forked child, which has no such thread."""
        return not self._closed and self._pid == os.getpid()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Wait for a coroutine; what interrupts the wait cancels it.

        Raises:
            BackendError: the loop was closed meanwhile.
        """
        return result_of(self.start(coroutine))

    def start(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        """Begin a coroutine; cancelling the future cancels it.

        Raises:
            BackendError: the loop was closed, or belongs to the process that this one was forked from.
        """
        if self.is_usable:
            with self._order:  # what begins after `close` would be left standing, and its caller with it
                if not self._closed:
                    self._begun.add(coroutine)
                    return asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        coroutine.close()
        raise BackendError("the backend was closed, or this process was forked, since this was opened: open it anew")

    def close(self) -> None:
        """End what still runs, await ``at_end``, and end the thread."""
        if not self.is_usable:
            return
        with self._order:
            if self._closed:
                return
            self._closed = True
            self._loop.call_soon_threadsafe(self._ask_to_end)
        # The garbage collector may call this from the thread itself.
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _run(self) -> None:
        self._loop.run_forever()
        self._loop.close()

    def _ask_to_end(self) -> None:
        self._ending = self._loop.create_task(self._end())

    async def _end(self) -> None:
        # A caller in another thread would wait for ever for a coroutine that the loop left standing. Tasks within these
        # are theirs to end: one that has not yet run would leave what it was to await unawaited.
        tasks = [task for task in asyncio.all_tasks() if task.get_coro() in self._begun]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        try:
            await self._at_end()
        finally:
            self._loop.stop()


def result_of(future: Future[T]) -> T:
    """Wait for what `EventLoop.start` began; what interrupts the wait cancels it.

    Raises:
        BackendError: the loop was closed meanwhile.
    """
    try:
        return future.result()
    except CancelledError as error:
        raise BackendError("the backend was closed while a call was under way") from error
    except BaseException:
        future.cancel()
        raise


class Once(Generic[K, T]):
    """Answers by key, each asked for once: who comes while it is under way waits for it. After an error the next asks.

    For one event loop.
    """

    def __init__(self) -> None:
        self._answers: dict[K, T] = {}
        self._locks: defaultdict[K, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def get(self, key: K, ask: Callable[[], Awaitable[T]]) -> T:
        """The answer of a key, from ``ask`` where there is none yet."""
        async with self._locks[key]:
            if key not in self._answers:
                self._answers[key] = await ask()
        return self._answers[key]


async def all_of(coroutines: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Run coroutines side by side, in the order in which they come; the first error ends them all.

    Returns:
        Their results in order.
    """
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(coroutine) for coroutine in coroutines]
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from errors.exceptions[0].__cause__
    return [task.result() for task in tasks]
