"""dmr_gym.backends._event_loop: its end, and calls that come meanwhile."""

from __future__ import annotations

import asyncio
import threading

import pytest

from dmr_gym.backends._event_loop import EventLoop
from dmr_gym.errors import BackendError


def test_nothing_begins_in_a_loop_that_was_closed() -> None:
    """A caller that came too late is told so, and does not wait for ever for what nobody runs."""

    async def answer() -> int:
        return 1

    async def nothing() -> None:
        pass

    loop = EventLoop(nothing)
    assert loop.run(answer()) == 1
    loop.close()
    loop.close()
    with pytest.raises(BackendError, match="the backend was closed"):
        loop.run(answer())


def test_what_began_before_the_end_ends() -> None:
    """Threads that call while another one closes the loop get an answer or an error, all of them."""

    async def nothing() -> None:
        await asyncio.sleep(0.01)

    for _ in range(20):
        loop = EventLoop(nothing)
        ended: list[str] = []

        def call(loop: EventLoop = loop, ended: list[str] = ended) -> None:
            try:
                while True:
                    loop.run(nothing())
            except BackendError as error:
                ended.append(str(error))

        threads = [threading.Thread(target=call, daemon=True) for _ in range(8)]
        for thread in threads:
            thread.start()
        loop.close()
        for thread in threads:
            thread.join(5)
        assert len(ended) == 8
