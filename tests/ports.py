"""Ports for servers that tests end and start again where they were, and one where nobody listens."""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from local_stack.ports import LOCALHOST, port_in_use

_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
_FIRST = 10_000
# Of xdist's processes, which may ask at the same moment, each has ports of its own.
_PROCESS = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
_PROCESSES = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
_given: set[int] = set()


def lasting_port() -> int:
    """A free one, below those of which the kernel gives each outgoing connection one: it stays free while its server is
    away. This process gets each once."""
    while True:
        port = _FIRST + secrets.randbelow(_first_of_connections() - _FIRST)
        if port % _PROCESSES == _PROCESS and port not in _given and not port_in_use(LOCALHOST, port):
            _given.add(port)
            return port


@contextmanager
def silent_port() -> Iterator[int]:
    """One of this machine where nobody listens, nor will: it is taken meanwhile."""
    with socket.socket() as taken:
        taken.bind((LOCALHOST, 0))
        yield taken.getsockname()[1]


def _first_of_connections() -> int:
    """On Linux as it says, elsewhere as is usual there or lower."""
    return max(2 * _FIRST, int(_RANGE.read_text().split()[0])) if _RANGE.exists() else 32_768
