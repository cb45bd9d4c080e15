"""What a service sends beside its answer: no run sees it, and the worker does not keep it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from tests.unit.worker_service.conftest import Caller

EMPTY = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
FORGED = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 27\r\n\r\n" + b'{"items":{"succeeded":777}}'
)
PATIENCE = 60.0

pytestmark = pytest.mark.usefixtures("patient")

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def read_request(reader: asyncio.StreamReader) -> None:
    head = await reader.readuntil(b"\r\n\r\n")
    length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
    await reader.readexactly(int(length.partition(b":")[2]))


class Service:
    """A server that answers each connection as `serve` does, until somebody hangs up."""

    def __init__(self, serve: Serve) -> None:
        self._serve = serve
        self.url = ""
        self.connections = 0
        self.hung_up = asyncio.Event()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Service]:
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        async with server:
            self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
            yield self

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            await self._serve(reader, writer)
            await reader.read()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self.hung_up.set()
            writer.close()


def _answers(go_on: asyncio.Event, *parts: bytes) -> Serve:
    """Answers each request with the first part, and with the others once it may go on."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await read_request(reader)
            for part in parts:
                writer.write(part)
                await writer.drain()
                await go_on.wait()

    return serve


@pytest.mark.parametrize(
    "parts",
    [
        (EMPTY, FORGED),
        (EMPTY + FORGED,),
        (EMPTY + FORGED[:20], FORGED[20:]),
        (EMPTY, FORGED[:1]),
    ],
    ids=["later", "at once", "in two parts", "a byte of it"],
)
async def test_an_answer_that_nobody_asked_for_is_not_the_next_runs(caller: Caller, parts: tuple[bytes, ...]) -> None:
    go_on = asyncio.Event()
    async with Service(_answers(go_on, *parts)).running() as service:
        first = await caller.execute(service.url)
        go_on.set()
        async with asyncio.timeout(PATIENCE):
            await service.hung_up.wait()
        second = await caller.execute(service.url)
    assert service.connections == 2
    assert (first.items, second.items) == (None, None)


async def test_a_second_answer_that_comes_with_the_end_of_the_first_is_not_the_next_runs(caller: Caller) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}" + FORGED)

    async with Service(serve).running() as service:
        first = asyncio.ensure_future(caller.execute(service.url))
        async with asyncio.timeout(PATIENCE):
            assert (await first).items is None
            await service.hung_up.wait()
        assert (await caller.execute(service.url)).items is None
    assert service.connections == 2


async def test_a_flood_while_nothing_is_asked_is_hung_up_on(caller: Caller) -> None:
    sent = 0
    go_on = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await read_request(reader)
        writer.write(EMPTY)
        await go_on.wait()
        while True:
            writer.write(EMPTY * 1_000)
            await writer.drain()
            sent += 1

    async with Service(serve).running() as service:
        await caller.execute(service.url)
        go_on.set()
        async with asyncio.timeout(PATIENCE):
            await service.hung_up.wait()
    assert sent < 1_000  # 39 MB, which sockets' buffers do not have


async def test_a_connection_that_was_quiet_serves_the_next_run(caller: Caller) -> None:
    go_on = asyncio.Event()
    go_on.set()
    answers = _answers(go_on, b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 103 Hints\r\n\r\n", EMPTY)
    async with Service(answers).running() as service:
        await caller.execute(service.url)
        await caller.execute(service.url)
    assert service.connections == 1


def _without_end(first: bytes, again: bytes) -> Serve:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(first)
        while True:
            writer.write(again)
            await writer.drain()

    return serve


@pytest.mark.parametrize(
    "serve",
    [
        _without_end(b"", b"HTTP/1.1 102 Processing\r\n\r\n" * 100),
        _without_end(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;", b"a" * 10_000),
    ],
    ids=["interim answers", "the extension of a chunk"],
)
async def test_an_answer_that_only_goes_on_ends_the_call(caller: Caller, serve: Serve) -> None:
    async with Service(serve).running() as service:
        async with asyncio.timeout(PATIENCE):
            failed = await caller.failure(service.url)
    assert failed.code == "HTTP_UNREACHABLE"
    assert failed.message.endswith("the answer has over 4 MiB of interim answers or chunks")


async def test_a_refusal_that_breaks_off_keeps_what_came(caller: Caller) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.1 500 No\r\nContent-Length: 100\r\n\r\nno such table")
        await writer.drain()
        writer.close()

    async with Service(serve).running() as service:
        failed = await caller.failure(service.url)
    assert (failed.code, failed.detail) == ("HTTP_500", "no such table")
