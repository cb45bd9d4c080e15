"""Ports for servers that tests end and start again where they were."""

from __future__ import annotations

import secrets
from pathlib import Path

from local_stack.ports import LOCALHOST, port_in_use

_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
_FIRST = 10_000
_given: set[int] = set()


def lasting_port() -> int:
    """A free one, below those of which the kernel gives each outgoing connection one: it stays free while its server is
    away. This process gets each once."""
    while True:
        port = _FIRST + secrets.randbelow(_first_of_connections() - _FIRST)
        if port not in _given and not port_in_use(LOCALHOST, port):
            _given.add(port)
            return port


def _first_of_connections() -> int:
    """On Linux as it says, elsewhere as is usual there or lower."""
    return max(2 * _FIRST, int(_RANGE.read_text().split()[0])) if _RANGE.exists() else 32_768
