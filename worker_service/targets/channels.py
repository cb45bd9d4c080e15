"""Channels to services: one for each endpoint, shared by the calls of the moment."""

from __future__ import annotations

import ssl
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import grpc.aio
from carillon.version import __version__

PLAIN = "grpc://"
SECURE = "grpcs://"
IDLE_SECONDS = 300.0
# An answer with 10,000 items, each with the longest key and error, has 52 MiB.
ANSWER_BYTES = 64 * 1024 * 1024
# A failure's message and detail are trailers, encoded at most 40 KiB; gRPC refuses some from four fifths of this on.
TRAILER_BYTES = 64 * 1024


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
        self._channels: OrderedDict[str, Lent] = OrderedDict()

    def __len__(self) -> int:
        return len(self._channels)

    @asynccontextmanager
    async def lend(self, endpoint: str) -> AsyncIterator[Lent]:
        """The channel of `grpc://host:port` or, with TLS, `grpcs://host:port`."""
        lent = self._channels.get(endpoint) or self._open(endpoint)
        self._channels[endpoint] = lent
        self._channels.move_to_end(endpoint)
        lent.borrowers += 1
        try:
            yield lent
        finally:
            lent.borrowers -= 1
            await self._close_unwanted(endpoint, lent)

    async def close(self) -> None:
        """Closes them all, with the calls that are still under way."""
        while self._channels:
            _, lent = self._channels.popitem()
            await lent.channel.close()

    def _open(self, endpoint: str) -> Lent:
        options = [
            ("grpc.primary_user_agent", f"carillon-worker/{__version__}"),
            ("grpc.client_idle_timeout_ms", int(self._idle * 1000)),
            ("grpc.max_receive_message_length", ANSWER_BYTES),
            ("grpc.absolute_max_metadata_size", TRAILER_BYTES),
            # Otherwise a new channel would share the old one's connection, and its wait before it tries again.
            ("grpc.use_local_subchannel_pool", 1),
        ]
        if endpoint.startswith(SECURE):
            target = endpoint.removeprefix(SECURE)
            return Lent(grpc.aio.secure_channel(target, _credentials(), options=options))
        return Lent(grpc.aio.insecure_channel(endpoint.removeprefix(PLAIN), options=options))

    async def _close_unwanted(self, endpoint: str, returned: Lent) -> None:
        if returned.broken and self._channels.get(endpoint) is returned:
            del self._channels[endpoint]
        if returned.broken and not returned.borrowers:
            await returned.channel.close()
        unused = [endpoint for endpoint, lent in self._channels.items() if not lent.borrowers]
        surplus = max(0, len(self._channels) - self._most)
        for lent in [self._channels.pop(endpoint) for endpoint in unused[:surplus]]:
            await lent.channel.close()


def _credentials() -> grpc.ChannelCredentials:
    """The roots that HTTP targets are trusted by as well: the system's, or `SSL_CERT_FILE`; else those gRPC brings."""
    roots = ssl.get_default_verify_paths().cafile
    return grpc.ssl_channel_credentials(Path(roots).read_bytes() if roots else None)
