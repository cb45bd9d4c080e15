"""The guardian's own process. It runs in Python's isolated mode, so it imports only the standard library."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterable
from contextlib import suppress

_GRACE = 10.0
_POLL = 0.05


def _guard(orders: Iterable[str]) -> None:
    """The guardian's life: take orders until the pipe ends, then end what is still watched."""
    watched: dict[int, int] = {}
    for order in orders:
        verb, *numbers = order.split()
        if verb == "watch":
            watched[int(numbers[0])] = int(numbers[1])
        else:
            watched.pop(int(numbers[0]), None)
    for pid in reversed(watched):
        with suppress(ProcessLookupError):
            os.kill(pid, watched[pid])
    deadline = time.monotonic() + _GRACE
    while any(map(_exists, watched)) and time.monotonic() < deadline:
        time.sleep(_POLL)
    for pid in watched:
        _kill_group(pid)


def _kill_group(leader: int) -> None:
    with suppress(ProcessLookupError, PermissionError):  # macOS answers EPERM for a group of zombies
        os.killpg(leader, signal.SIGKILL)


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


if __name__ == "__main__":
    _guard(sys.stdin)
