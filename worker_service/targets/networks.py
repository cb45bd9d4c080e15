"""Which addresses may be connected to: public ones, and those of the networks that an operator named.

The special ranges are those of the IANA registries for special-purpose addresses (RFC 6890 and its updates), written
out, because Python's own properties have changed their meaning from release to release.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network

from worker_service.targets.hosts import Address

Network = IPv4Network | IPv6Network


class NetworkError(ValueError):
    """What is wrong with a network, as the end of a sentence that began with its name and `that`. Repeats no text."""


def _all(*texts: str) -> tuple[Network, ...]:
    return tuple(ip_network(text) for text in texts)


# Never a service: this host, multicast, reserved, broadcast. Naming their network changes nothing.
_NEVER = _all("0.0.0.0/8", "224.0.0.0/4", "240.0.0.0/4", "::/128", "ff00::/8")
_SPECIAL = _all(
    "10.0.0.0/8",
    "100.64.0.0/10",  # carrier-grade NAT
    "127.0.0.0/8",
    "169.254.0.0/16",  # link-local
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.0.2.0/24",  # documentation, as the two below
    "192.31.196.0/24",
    "192.52.193.0/24",
    "192.88.99.0/24",  # relays of 6to4
    "192.168.0.0/16",
    "192.175.48.0/24",
    "198.18.0.0/15",  # benchmarks
    "198.51.100.0/24",
    "203.0.113.0/24",
    "2001::/23",  # IETF protocols, with Teredo
    "2001:db8::/32",  # documentation
    "2002::/16",  # 6to4
    "2620:4f:8000::/48",
    "3fff::/20",  # documentation
)
# Of IPv6, nothing else is handed out for the internet: all outside it is local, translated or reserved.
_GLOBAL_UNICAST = IPv6Network("2000::/3")

# Where clouds hand out their machines' credentials and settings, and what a network of one's own makes IPv4 addresses
# of (RFC 8215), nobody else knows which. Some are public; a network that holds more than the address opens none.
_NAMED_SINGLY = _all(
    "100.100.100.200",
    "168.63.129.16",
    "169.254.0.23",
    "169.254.42.42",
    "169.254.169.254",
    "169.254.170.2",
    "169.254.170.23",
    "192.0.0.192",
    "64:ff9b:1::/48",
    "fd00:ec2::23",
    "fd00:ec2::254",
    "fd20:ce::254",
)

_COMPATIBLE = IPv6Network("::/96")
_NAT64 = IPv6Network("64:ff9b::/96")
_MAPPED = IPv6Network("::ffff:0:0/96")


def read_network(text: str) -> Network:
    """A network such as `10.0.0.0/8`; an address is a network of one. Errors: NetworkError."""
    try:
        network = ip_network(text)
    except ValueError:
        raise NetworkError(_what_is_wrong(text)) from None
    if isinstance(network, IPv6Network) and (network.subnet_of(_MAPPED) or network.subnet_of(_NAT64)):
        raise NetworkError("stands for IPv4 addresses: write the IPv4 network")
    return network


class Networks:
    """`named`: what an operator added to the public addresses."""

    def __init__(self, named: Collection[Network] = ()) -> None:
        self._named = tuple(named)

    def admit(self, address: Address) -> bool:
        """Whether the address may be connected to: all that it stands for are public or in a named network."""
        return all(self._admits(each) for each in meant_by(address))

    def _admits(self, address: Address) -> bool:
        if _within(address, _NEVER):
            return False
        if _within(address, _NAMED_SINGLY):
            return any(address in network and network.num_addresses == 1 for network in self._named)
        return is_public(address) or _within(address, self._named)


def is_public(address: Address) -> bool:
    """Whether the address is one of the internet. Says nothing of what it may carry: see `meant_by`."""
    if isinstance(address, IPv6Address) and address not in _GLOBAL_UNICAST:
        return False
    return not _within(address, _NEVER) and not _within(address, _SPECIAL)


def meant_by(address: Address) -> Iterator[Address]:
    """All addresses that packets to this one may reach: itself, and the IPv4 addresses inside it.

    What only stands for an IPv4 address (mapped, and NAT64 of RFC 6052) is that address alone.
    """
    if isinstance(address, IPv4Address):
        yield address
        return
    tail = IPv4Address(int(address) & 0xFFFFFFFF)
    if address in _MAPPED or address in _NAT64:
        yield tail
        return
    yield address
    if address in _COMPATIBLE and int(address) > 1:  # `::` and `::1` are addresses of their own
        yield tail
    if address.sixtofour is not None:
        yield address.sixtofour
    if address.teredo is not None:
        yield from address.teredo
    if (int(address) >> 32) & 0xFFFFFFFF in (0x00005EFE, 0x02005EFE):  # ISATAP, RFC 5214
        yield tail


def _within(address: Address, networks: Collection[Network]) -> bool:
    return any(address in network for network in networks)


def _what_is_wrong(text: str) -> str:
    try:
        return f"has bits set beyond its prefix: write {ip_network(text, strict=False)}"
    except ValueError:
        return "is no network, such as 10.0.0.0/8 or fd00::/8"
