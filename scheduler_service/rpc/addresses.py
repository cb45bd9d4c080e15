"""Whom a caller without credentials is counted with."""

from __future__ import annotations

import ipaddress
from urllib.parse import unquote


def address_of(peer: str) -> str:
    """The address of a peer such as `ipv4:192.0.2.1:5000`, or the network of its IPv6 address, of which one host has as
    many as it likes."""
    kind, _, rest = peer.partition(":")
    if kind != "ipv6":
        return rest.rpartition(":")[0] or peer
    host = unquote(rest).rpartition(":")[0].strip("[]").partition("%")[0]
    try:
        return str(ipaddress.IPv6Network((host, 64), strict=False))
    except ValueError:
        return host
