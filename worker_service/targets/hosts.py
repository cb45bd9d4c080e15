"""A host as the endpoints of jobs and the worker's settings name it: in one spelling, or refused.

Programs read unusual spellings of an address differently: `0177.0.0.1` is 127.0.0.1 to one and 177.0.0.1 to another.
Whoever checks an address must read it as whoever connects does, so there is one spelling of each here.
"""

from __future__ import annotations

import ipaddress
import re
from ipaddress import IPv4Address, IPv6Address

Address = IPv4Address | IPv6Address
# A name in lower case and without a dot at its end, or an address.
Host = str | IPv4Address | IPv6Address

_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
_LONGEST = 253


class HostError(ValueError):
    """What is wrong with a host, as the end of a sentence that began with what names it."""


def read_host(text: str) -> Host:
    """The host of a URL or of `host:port`, without brackets.

    An IPv4 address in IPv6 (`::ffff:10.0.0.1`) is that IPv4 address, as the system would connect to it.
    Errors: HostError, for a zone id and for any IPv4 address that is not four decimal numbers too.
    """
    if ":" in text:
        return _ipv6(text)
    name = text.lower().removesuffix(".")
    labels = name.split(".")
    if _NUMBER.fullmatch(labels[-1]):
        return _ipv4(text)
    if len(name) > _LONGEST or not all(_LABEL.fullmatch(label) for label in labels):
        raise HostError("has a host that is neither a name (letters, digits, '-', '_' and '.') nor an address")
    return name


def shown(host: Host) -> str:
    """The host as it stands before a port: an IPv6 address in brackets."""
    return f"[{host}]" if isinstance(host, IPv6Address) else str(host)


def place(host: Host, port: int) -> str:
    """`host:port`."""
    return f"{shown(host)}:{port}"


def split_port(text: str) -> tuple[str, str] | None:
    """The host without brackets, and the port as text, of `host:port`. None if it is nothing like it."""
    host, colon, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
        return (host, port) if ":" in host else None
    return (host, port) if colon and host and ":" not in host else None


def read_port(text: str) -> int:
    """A port from 1 to 65535. Errors: HostError."""
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and 0 < int(text) < 65_536):
        raise HostError("needs a port from 1 to 65535")
    return int(text)


def _ipv4(text: str) -> IPv4Address:
    try:
        return IPv4Address(text)
    except ValueError:
        raise HostError(
            "has a host that is an address in an unusual spelling; write it as four decimal numbers, such as 10.0.0.1"
        ) from None


def _ipv6(text: str) -> Address:
    if "%" in text:
        raise HostError("has an address with a zone, which only the machine that it was written on knows")
    try:
        address = ipaddress.IPv6Address(text)
    except ValueError:
        raise HostError("has a host that is no IPv6 address, although it has a colon") from None
    return address.ipv4_mapped or address
