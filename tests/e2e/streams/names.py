"""A DNS server of a test's own: who asks it for a name gets the addresses that the test says."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from local_stack.ports import LOCALHOST

_A, _IN = 1, 1
_ANSWER, _NO_SUCH_NAME = 0x8580, 0x8583
_NAME_OF_THE_QUESTION = 0xC00C
_KEPT_SECONDS = 5  # as in Kubernetes


class Names(asyncio.DatagramProtocol):
    """Answers questions of RFC 1035 over UDP. `addresses`: of each name, IPv4; a name without any does not exist.
    `asked`: how often it was asked for one."""

    def __init__(self) -> None:
        self.addresses: dict[str, Sequence[str]] = {}
        self.asked = 0
        self._transport: asyncio.DatagramTransport | None = None

    def target(self, name: str, port: int) -> str:
        """In gRPC's syntax: this port of what the name stands for here."""
        assert self._transport is not None
        own = self._transport.get_extra_info("sockname")[1]
        return f"dns://{LOCALHOST}:{own}/{name}:{port}"

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        assert self._transport is not None
        (number,) = struct.unpack_from(">H", data)
        name, end = _name(data)
        (kind,) = struct.unpack_from(">H", data, end)
        known = self.addresses.get(name, ())
        answers = [_record(address) for address in known] if kind == _A else []
        self.asked += kind == _A
        head = struct.pack(">6H", number, _ANSWER if known else _NO_SUCH_NAME, 1, len(answers), 0, 0)
        self._transport.sendto(head + data[12 : end + 4] + b"".join(answers), addr)


def _name(question: bytes) -> tuple[str, int]:
    """The name that is asked for, and where it ends."""
    at, labels = 12, []
    while length := question[at]:
        labels.append(question[at + 1 : at + 1 + length].decode())
        at += 1 + length
    return ".".join(labels), at + 1


def _record(address: str) -> bytes:
    octets = socket.inet_aton(address)
    return struct.pack(">HHHIH", _NAME_OF_THE_QUESTION, _A, _IN, _KEPT_SECONDS, len(octets)) + octets


@asynccontextmanager
async def serving_names() -> AsyncIterator[Names]:
    loop = asyncio.get_running_loop()
    transport, names = await loop.create_datagram_endpoint(Names, local_addr=(LOCALHOST, 0))
    try:
        yield names
    finally:
        transport.close()
