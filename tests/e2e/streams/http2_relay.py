"""A peer that is not ours between clients and a scheduler: it passes HTTP/2 frames on (RFC 9113), and says GOAWAY when
a test wants it to, as proxies and load balancers do."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType

from local_stack.ports import LOCALHOST
from tests.security.http2 import DATA, ENHANCE_YOUR_CALM, GOAWAY, HEADERS, PREFACE
from tests.serving import close_server

NO_ERROR, INTERNAL_ERROR = 0, 2
_HEAD = 9
_TORN = b"\0\0\xff" + bytes([DATA, 0, 0, 0, 0, 1]) + b"a part"


@dataclass(frozen=True)
class Farewell:
    """A GOAWAY. `spares`: whether the calls that are under way may go on. `hangs_up`: at once. `torn`: in the middle of
    a frame."""

    spares: bool = True
    error: int = NO_ERROR
    hangs_up: bool = False
    torn: bool = False


CALMING = ENHANCE_YOUR_CALM


@dataclass(eq=False)
class _Link:
    """One client's connection, and ours to the scheduler. `newest`: of its calls, the last that was passed on. `left`:
    GOAWAY was said; what belongs to later calls is dropped."""

    client: asyncio.StreamWriter
    server: asyncio.StreamWriter
    newest: int = 0
    left: bool = False

    def close(self) -> None:
        self.client.close()
        self.server.close()


class Http2Relay:
    """Listens on a free port of the loopback, and passes on to `port` of it. `accepted`: connections that were made
    through it. `calls`: that were passed on."""

    def __init__(self, port: int) -> None:
        self.accepted = 0
        self.calls = 0
        self._behind = port
        self._links: set[_Link] = set()
        self._clients: list[asyncio.StreamWriter] = []
        self._serving: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._refusing = False

    @property
    def address(self) -> str:
        assert self._server is not None
        return f"{LOCALHOST}:{self._server.sockets[0].getsockname()[1]}"

    @property
    def refuses(self) -> bool:
        """Whether no call came since `refuse_next_call`."""
        return self._refusing

    def refuse_next_call(self) -> None:
        """The next call meets a GOAWAY: it is not passed on, those before it go on."""
        self._refusing = True

    def say(self, farewell: Farewell) -> None:
        """To every client."""
        for link in list(self._links):
            self._say(link, farewell)

    async def __aenter__(self) -> Http2Relay:
        self._server = await asyncio.start_server(self._accept, LOCALHOST, 0)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        await close_server(self._server)
        for task in self._serving:
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)
        for writer in self._clients:
            writer.close()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._clients.append(writer)  # before anything can be cancelled, so that each is closed
        task = asyncio.create_task(self._serve(reader, writer))
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            server_reader, server_writer = await asyncio.open_connection(LOCALHOST, self._behind)
        except (OSError, asyncio.CancelledError):
            writer.close()
            return
        self.accepted += 1
        link = _Link(writer, server_writer)
        self._links.add(link)
        parts = [
            asyncio.create_task(_passing(reader, server_writer, lambda head: self._may_go_up(link, head), PREFACE)),
            asyncio.create_task(_passing(server_reader, writer, lambda _: True)),
        ]
        try:
            await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._links.discard(link)
            link.close()
            for part in parts:
                part.cancel()
            await asyncio.gather(*parts, return_exceptions=True)

    def _may_go_up(self, link: _Link, head: bytes) -> bool:
        kind, stream = head[3], int.from_bytes(head[5:])
        if kind == HEADERS and stream > link.newest and not link.left:
            if self._refusing:
                self._refusing = False
                self._say(link, Farewell())
            else:
                link.newest = stream
                self.calls += 1
        return stream <= link.newest

    def _say(self, link: _Link, farewell: Farewell) -> None:
        link.left = True
        last = link.newest if farewell.spares else 0
        link.client.write(_frame(GOAWAY, struct.pack(">II", last, farewell.error)))
        if farewell.torn:
            link.client.write(_TORN)
        if farewell.hangs_up:
            link.close()


async def _passing(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, may: Callable[[bytes], bool], greeting: bytes = b""
) -> None:
    """Whole frames, so that one of ours may stand between any two of them."""
    with suppress(asyncio.IncompleteReadError, ConnectionError):
        writer.write(await reader.readexactly(len(greeting)))
        while True:
            head = await reader.readexactly(_HEAD)
            body = await reader.readexactly(int.from_bytes(head[:3]))
            if may(head):
                writer.write(head + body)
                await writer.drain()


def _frame(kind: int, body: bytes) -> bytes:
    return len(body).to_bytes(3) + bytes([kind, 0, 0, 0, 0, 0]) + body
