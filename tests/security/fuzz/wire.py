"""Malformed calls: messages that are none or are odd, and HTTP/2 that no gRPC library would send."""

from __future__ import annotations

import asyncio
import random
import re
import struct
from collections.abc import Callable, Sequence
from contextlib import suppress

import grpc

from scheduler_service.rpc.methods import ACTIONS
from tests.security.calling import Answer, ask, input_of
from tests.security.http2 import CONTINUATION, DATA, END_HEADERS, END_STREAM, HEADERS, PREFACE, SETTINGS, Header, block
from tests.security.random_requests import Requests

Metadata = tuple[tuple[str, str], ...]
TELLS_TOO_MUCH = re.compile(
    rb"Traceback|File \"|\.py\b|site-packages|psycopg|sqlalchemy|asyncio\.|/home/|/usr/lib|0x7f"
)
_STREAM_PATIENCE = 0.05
_KINDS = tuple(range(12))


class OddCalls:
    """Calls of every method with what is random, mutated, or both. `texts`: what is worth being named in them."""

    def __init__(self, dice: random.Random, callers: Sequence[Metadata], texts: Sequence[str]) -> None:
        self._dice = dice
        self._callers = callers
        self._requests = Requests(dice, {}, texts, wild=0.4)
        self._methods = list(ACTIONS)

    async def call(self, channel: grpc.aio.Channel) -> tuple[str, bytes, Answer]:
        """One call: of which method, with what, and its answer."""
        method = self._dice.choice(self._methods)
        body = self._body(method)
        metadata = (*self._dice.choice(self._callers), *self._more_metadata())
        return method, body, await ask(channel, method, body, metadata, patience=_STREAM_PATIENCE)

    def _body(self, method: str) -> bytes:
        if self._dice.random() < 0.05:
            return self._dice.randbytes(self._dice.choice((0, 1, 9, 300, 5000)))
        likely = self._dice.choice((0.2, 0.6, 0.95))
        body = bytearray(self._requests.fill(input_of(method)(), likely=likely).SerializeToString())
        for _ in range(self._dice.choice((0, 0, 1, 1, 3, 20))):
            self._mutate(body)
        return bytes(body)

    def _mutate(self, body: bytearray) -> None:
        dice = self._dice
        place = dice.randrange(len(body) + 1)
        match dice.randrange(7):
            case 0 if body:
                body[place % len(body)] ^= 1 << dice.randrange(8)
            case 1:
                del body[place:]
            case 2:
                body[place:place] = dice.randbytes(dice.choice((1, 4, 40)))
            case 3:
                body[place:place] = dice.choice((b"\xff" * 10, b"\x80" * 9 + b"\x01", b"\xff\xff\xff\xff\x0f"))
            case 4:  # a field that nobody knows, or one of another wire type
                body += bytes([dice.randrange(1, 128)]) + dice.choice((b"\x00", b"\x02xy", b"\xff\xff\x03", b""))
            case 5:
                body += body[: dice.randrange(200)]
            case _:
                body[place:place] = b"\x0b" * dice.randrange(1, 200)  # groups within groups

    def _more_metadata(self) -> Metadata:
        if self._dice.random() < 0.8:
            return ()
        odd = (
            *(("x-request-id", "r" * 3000), ("x-request-id", " !~"), ("x-service-token", "a.b"), ("a", "b" * 2000)),
            *(("authorization", "Bearer a.b.c"), ("x-request-id", ""), ("accept-language", "x"), ("grpc-trace", "x")),
        )
        return tuple(self._dice.choice(odd) for _ in range(self._dice.choice((1, 2, 10))))


class OddConnections:
    """Connections that begin like HTTP/2, or not even that, and go on with odd calls."""

    def __init__(self, dice: random.Random, callers: Sequence[Metadata]) -> None:
        self._dice = dice
        self._callers = callers
        self._methods = list(ACTIONS)

    async def connect(self, port: int, calls: int) -> bytes:
        """So many odd calls on one connection, or what the server takes of them; what it said, undecoded."""
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        said = b""
        try:
            with suppress(OSError, TimeoutError):
                writer.write(self._beginning())
                for number in range(calls):
                    if writer.transport.is_closing():
                        break
                    writer.write(self._call(2 * number + 1))
                await writer.drain()
                writer.write_eof()
                async with asyncio.timeout(0.5):
                    while piece := await reader.read(65_536):
                        said += piece
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()
        return said

    def _beginning(self) -> bytes:
        good = PREFACE + frame(SETTINGS)
        return self._dice.choice(
            (
                *(
                    good,
                    good,
                    good,
                    good,
                    PREFACE + frame(SETTINGS, body=self._dice.randbytes(self._dice.choice((6, 5, 60)))),
                ),
                *(
                    PREFACE,
                    b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
                    b"\x16\x03\x01\x02\x00\x01\x00\x01",
                    self._dice.randbytes(50),
                ),
            )
        )

    def _call(self, stream: int) -> bytes:
        dice = self._dice
        headers = block(self._headers())
        body = self._message()
        match dice.choice(_KINDS):
            case 0:
                return frame(dice.randrange(256), dice.randrange(256), stream, dice.randbytes(dice.randrange(40)))
            case 1:
                return frame(HEADERS, END_HEADERS, stream, dice.randbytes(dice.randrange(1, 60)))
            case 2:
                return frame(HEADERS, 0, stream, headers) + frame(CONTINUATION, 0, stream + 2, headers)
            case 3:
                return frame(DATA, END_STREAM, stream, body)
            case 4:
                return frame(HEADERS, END_HEADERS | END_STREAM, stream, headers)
            case 5:
                return frame(HEADERS, END_HEADERS, stream, headers)[: dice.randrange(5, 40)]
            case _:
                return frame(HEADERS, END_HEADERS, stream, headers) + frame(DATA, END_STREAM, stream, body)

    def _headers(self) -> list[Header]:
        dice = self._dice
        headers: list[Header] = [
            *((b":method", b"POST"), (b":scheme", b"http"), (b":path", dice.choice(self._methods).encode())),
            *((b":authority", b"localhost"), (b"content-type", b"application/grpc"), (b"te", b"trailers")),
            *((name.encode(), value.encode()) for name, value in dice.choice(self._callers)),
        ]
        for _ in range(dice.choice((0, 1, 1, 2))):
            match dice.randrange(4):
                case 0:
                    del headers[dice.randrange(len(headers))]
                case 1:
                    headers.append(dice.choice(headers))
                case 2:
                    place = dice.randrange(len(headers))
                    headers[place] = (headers[place][0], dice.choice(_ODD_HEADER_VALUES))
                case _:
                    headers.append(dice.choice(_ODD_HEADERS))
        return headers

    def _message(self) -> bytes:
        """A length-prefixed message of gRPC, with the wrong flag, length or end."""
        dice = self._dice
        body = dice.randbytes(dice.choice((0, 1, 20, 200)))
        length = dice.choice((len(body), len(body), len(body), len(body) + 1, 0, 2**32 - 1, 9 * 1024 * 1024))
        return struct.pack(">BI", dice.choice((0, 0, 0, 1, 2, 255)), length) + body


_ODD_HEADER_VALUES = (
    b"",
    b"/",
    b"//",
    b"/a/b/c",
    b"/carillon.v1.JobService/\xff",
    b"\x00",
    b"PUT",
    b"x" * 7000,
    b"text/html",
)
_ODD_HEADERS: tuple[Header, ...] = (
    *((b"grpc-encoding", b"gzip"), (b"grpc-encoding", b"snappy"), (b"grpc-timeout", b"1n"), (b"grpc-timeout", b"-1S")),
    *(
        (b"grpc-timeout", b"99999999999H"),
        (b"x-bin", b"!!!"),
        (b"authorization", b"Bearer \xff\xfe"),
        (b"X-Upper", b"x"),
    ),
    *(
        (b"authorization-bin", b"AAAA"),
        (b"x-service-token", b"\x00"),
        (b"x-service-token", b"a.b"),
        (b":path", b"/x/y"),
    ),
    *((b"connection", b"close"), (b"transfer-encoding", b"chunked"), (b"x", b"y" * 9000), (b"", b"y"), (b":odd", b"y")),
    *(
        (b"grpc-accept-encoding", b"\xff"),
        (b"content-length", b"-5"),
        (b"grpc-status", b"0"),
        (b"x-request-id", b"\xff"),
    ),
)


def frame(kind: int, flags: int = 0, stream: int = 0, body: bytes = b"") -> bytes:
    """A frame's octets."""
    return struct.pack(">I", len(body))[1:] + struct.pack(">BBI", kind, flags, stream) + body


Progressed = Callable[[int], object]
