"""Run a command, and end it with everything it started when asked to, or when whoever started the guard is gone.

    python guard.py GRACE_S COMMAND...

The guard's standard input is a pipe whose other end its starter holds: it closes when the starter ends in whatever way,
a kill included. Then, and at SIGTERM, SIGINT or SIGHUP, the command's process group gets SIGTERM, and SIGKILL after
GRACE_S seconds. A file of its own that imports nothing else, so that it starts at once.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable

LEFTOVER_S = 2.0
"""Seconds that other processes of the group get once the command itself has ended."""


def main(grace_s: float, command: list[str]) -> int:
    """Guard one command; returns its exit status, negative for a signal."""
    wake, wake_writer = os.pipe()
    os.set_blocking(wake_writer, False)
    signal.set_wakeup_fd(wake_writer)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
        signal.signal(number, lambda *_: None)
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    while child.poll() is None:
        ready, _, _ = select.select([0, wake], [], [])
        asked = wake in ready and bool(set(os.read(wake, 64)) - {signal.SIGCHLD})
        if asked or (0 in ready and not os.read(0, 1)):
            break
    _signal_group(child.pid, signal.SIGTERM)
    _wait(lambda: child.poll() is not None, grace_s)
    # vLLM's engine and workers are processes of their own.
    _wait(lambda: not _signal_group(child.pid, 0), LEFTOVER_S if child.poll() is not None else 0.0)
    _signal_group(child.pid, signal.SIGKILL)
    return child.wait()


def _signal_group(group: int, number: int) -> bool:
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def _wait(is_done: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not is_done() and time.monotonic() < end:
        time.sleep(0.05)


if __name__ == "__main__":
    status = main(float(sys.argv[1]), sys.argv[2:])
    sys.exit(status if status >= 0 else 128 - status)
