"""An HTTP/2 client of bare frames (RFC 9113), to send what no gRPC library would."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, CONTINUATION = 0, 1, 3, 4, 6, 7, 9
END_STREAM = ACK = 1
END_HEADERS = 4
CANCEL = 8
ENHANCE_YOUR_CALM = 11
MAX_CONCURRENT_STREAMS, MAX_HEADER_LIST_SIZE = 3, 6
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
PATIENCE = 60.0

Header = tuple[bytes, bytes]


@dataclass(frozen=True)
class Frame:
    kind: int
    flags: int
    stream: int
    body: bytes

    @property
    def error(self) -> int:
        """Of a GOAWAY or RST_STREAM."""
        return int(struct.unpack_from(">I", self.body, 4 if self.kind == GOAWAY else 0)[0])

    @property
    def settings(self) -> dict[int, int]:
        return dict(struct.iter_unpack(">HI", self.body))


def block(headers: Iterable[Header]) -> bytes:
    """Headers in HPACK's plainest form (RFC 7541, 6.2.2): literal, not indexed, not compressed."""
    return b"".join(b"\0" + _text(name) + _text(value) for name, value in headers)


def _text(text: bytes) -> bytes:
    length, octets = len(text), bytearray()
    if length < 127:
        return bytes([length]) + text
    length -= 127
    while length >= 128:
        octets.append(length % 128 + 128)
        length //= 128
    return b"\x7f" + bytes([*octets, length]) + text


def grpc_call(path: str, *more: Header) -> list[Header]:
    return [
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":path", path.encode()),
        (b":authority", b"localhost"),
        (b"content-type", b"application/grpc"),
        (b"te", b"trailers"),
        *more,
    ]


class Http2:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self.seen: set[int] = set()
        """The kinds of frames that came."""

    async def greet(self) -> dict[int, int]:
        """Begins as a client does; answers the server's settings. Errors: ConnectionError if the server hangs up."""
        self._writer.write(PREFACE)
        await self.send(SETTINGS)
        if (settings := await self.until(SETTINGS)) is None:
            raise ConnectionResetError("the server hung up before it said its settings")
        await self.send(SETTINGS, ACK)
        return settings.settings

    async def write(self, octets: bytes) -> None:
        """Whatever it is."""
        self._writer.write(octets)
        await self._writer.drain()

    async def send(self, kind: int, flags: int = 0, stream: int = 0, body: bytes = b"") -> None:
        """Errors: ConnectionError once the server has hung up."""
        self._writer.write(struct.pack(">I", len(body))[1:] + struct.pack(">BBI", kind, flags, stream) + body)
        await self._writer.drain()

    async def call(self, stream: int, path: str, *more: Header, flags: int = END_HEADERS) -> None:
        await self.send(HEADERS, flags, stream, block(grpc_call(path, *more)))

    async def read(self) -> Frame | None:
        """None once the server has hung up."""
        async with asyncio.timeout(PATIENCE):
            try:
                head = await self._reader.readexactly(9)
                body = await self._reader.readexactly(int.from_bytes(head[:3]))
            except (asyncio.IncompleteReadError, ConnectionError):
                return None
        self.seen.add(head[3])
        return Frame(head[3], head[4], struct.unpack(">I", head[5:])[0], body)

    async def until(self, *kinds: int) -> Frame | None:
        """The next frame of one of these kinds; None if the server hangs up before."""
        while (frame := await self.read()) is not None:
            if frame.kind in kinds:
                return frame
        return None


@asynccontextmanager
async def connected(port: int) -> AsyncIterator[Http2]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield Http2(reader, writer)
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()
