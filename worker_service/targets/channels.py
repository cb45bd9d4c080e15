"""Channels to services: one for each server and the addresses it was admitted at, shared by the calls of the moment."""

from __future__ import annotations

import json
import ssl
from collections import OrderedDict
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path

import grpc
import grpc.aio
from carillon.version import __version__

from worker_service.targets import hosts
from worker_service.targets.addresses import GrpcAddress
from worker_service.targets.hosts import Address

IDLE_SECONDS = 300.0
# An answer with 10,000 items, each with the longest key and error, has 52 MiB.
ANSWER_BYTES = 64 * 1024 * 1024
# A failure's message and detail are trailers, encoded at most 40 KiB; gRPC refuses some from four fifths of this on.
TRAILER_BYTES = 64 * 1024
_ANY_OF_THEM = json.dumps({"loadBalancingConfig": [{"pick_first": {"shuffleAddressList": True}}]})

Key = tuple[GrpcAddress, frozenset[Address]]


@dataclass(eq=False)
class Lent:
    """A channel in use. `broken`, set by a borrower, says that later calls had better connect anew."""

    channel: grpc.aio.Channel
    borrowers: int = 0
    broken: bool = False


class Channels:
    """Opens channels when they are needed. gRPC drops the connection of one that was idle for `idle` seconds; beyond
    `most` channels, those that nobody uses are closed, the longest unused first."""

    def __init__(self, most: int = 200, idle: float = IDLE_SECONDS) -> None:
        self._most = most
        self._idle = idle
        self._channels: OrderedDict[Key, Lent] = OrderedDict()

    def __len__(self) -> int:
        return len(self._channels)

    @asynccontextmanager
    async def lend(self, server: GrpcAddress, addresses: Collection[Address]) -> AsyncIterator[Lent]:
        """A channel that connects to one of the addresses only, and there asks for the server by its name."""
        key = (server, frozenset(addresses))
        lent = self._channels.get(key) or self._open(server, addresses)
        self._channels[key] = lent
        self._channels.move_to_end(key)
        lent.borrowers += 1
        try:
            yield lent
        finally:
            lent.borrowers -= 1
            await self._close_unwanted(key, lent)

    async def close(self) -> None:
        """Closes them all, with the calls that are still under way."""
        while self._channels:
            _, lent = self._channels.popitem()
            await lent.channel.close()

    def _open(self, server: GrpcAddress, addresses: Collection[Address]) -> Lent:
        options = [
            ("grpc.primary_user_agent", f"carillon-worker/{__version__}"),
            ("grpc.client_idle_timeout_ms", int(self._idle * 1000)),
            ("grpc.max_receive_message_length", ANSWER_BYTES),
            ("grpc.absolute_max_metadata_size", TRAILER_BYTES),
            # Otherwise a new channel would share the old one's connection, and its wait before it tries again.
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.service_config", _ANY_OF_THEM),
            ("grpc.default_authority", str(server)),
            ("grpc.enable_http_proxy", 0),  # a proxy of the environment would connect to what it likes
        ]
        target = _target(addresses, server.port)
        if not server.tls:
            return Lent(grpc.aio.insecure_channel(target, options=options))
        named = ("grpc.ssl_target_name_override", str(server.host))
        return Lent(grpc.aio.secure_channel(target, _credentials(), options=[*options, named]))

    async def _close_unwanted(self, key: Key, returned: Lent) -> None:
        if returned.broken and self._channels.get(key) is returned:
            del self._channels[key]
        if returned.broken and not returned.borrowers:
            await returned.channel.close()
        unused = [key for key, lent in self._channels.items() if not lent.borrowers]
        surplus = max(0, len(self._channels) - self._most)
        for lent in [self._channels.pop(key) for key in unused[:surplus]]:
            await lent.channel.close()


def _target(addresses: Collection[Address], port: int) -> str:
    """The addresses in gRPC's syntax, which names a resolver that asks nobody.

    It has no list of both kinds, so beside IPv6 addresses those of IPv4 are written as IPv6 ones; the system connects
    over IPv4 all the same.
    """
    if all(isinstance(address, IPv4Address) for address in addresses):
        return "ipv4:" + ",".join(hosts.place(address, port) for address in addresses)
    return "ipv6:" + ",".join(
        f"[::ffff:{address}]:{port}" if isinstance(address, IPv4Address) else hosts.place(address, port)
        for address in addresses
    )


def _credentials() -> grpc.ChannelCredentials:
    """The roots that HTTP targets are trusted by as well: the system's, or `SSL_CERT_FILE`; else those gRPC brings."""
    roots = ssl.get_default_verify_paths().cafile
    return grpc.ssl_channel_credentials(Path(roots).read_bytes() if roots else None)
