"""Each limit of the gRPC server, crossed: gRPC ignores an option that it does not know without a word."""

from __future__ import annotations

import asyncio
import struct
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any, cast

import grpc
import pytest
from carillon.v1 import (
    registry_service_pb2,
)
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from operations.tls_files import TlsFiles
from scheduler_service.rpc.open_calls import CallCaps
from scheduler_service.rpc.server import ConnectionLimits
from tests.security.authority import Authority
from tests.security.http2 import (
    ACK,
    CANCEL,
    CONTINUATION,
    DATA,
    END_STREAM,
    ENHANCE_YOUR_CALM,
    GOAWAY,
    HEADERS,
    MAX_CONCURRENT_STREAMS,
    MAX_HEADER_LIST_SIZE,
    PING,
    PREFACE,
    RST_STREAM,
    SETTINGS,
    Http2,
    block,
    connected,
    grpc_call,
)
from tests.security.limits_case import (
    CHECK,
    EMAIL,
    MIB,
    PATIENCE,
    REFUSED_STREAM,
    REGISTRY,
    WATCH,
    channel_to,
    check,
    hung_up,
    memory_held,
    serving,
)

# Messages.


async def register(port: int, body: bytes, *metadata: tuple[str, str], gzip: bool = False) -> tuple[str, str]:
    """How `RegisterJobs` ends with this body: its status and sentence."""
    packed = grpc.Compression.Gzip if gzip else grpc.Compression.NoCompression
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", compression=packed) as channel:
        call = cast("Any", channel).unary_unary(f"/{REGISTRY}/RegisterJobs")(body, metadata=metadata, timeout=PATIENCE)
        return (await call.code()).name, await call.details()


@pytest.mark.parametrize("gzip", [False, True])
async def test_a_message_of_more_than_8_mib_is_refused_and_a_smaller_one_read(
    gzip: bool, caplog: pytest.LogCaptureFixture
) -> None:
    def of_size(size: int) -> bytes:
        return registry_service_pb2.RegisterJobsRequest(base_url="x" * size).SerializeToString()

    async with serving() as port:
        code, sentence = await register(port, of_size(8 * MIB - 100) + b"\xff", EMAIL, gzip=gzip)
        assert (code, "its bytes are no message" in sentence) == ("INVALID_ARGUMENT", True)
        code, sentence = await register(port, of_size(8 * MIB + 1), EMAIL, gzip=gzip)
        assert (code, "larger than max" in sentence) == ("RESOURCE_EXHAUSTED", True)
    assert caplog.messages == []


async def test_what_anybody_may_call_takes_4_kib() -> None:
    async with serving() as port:
        assert (await check(port, service="x" * 4000))[0] == "NOT_FOUND"
        assert await check(port, service="x" * 4096) == (
            "INVALID_ARGUMENT",
            "request: it has 4,099 bytes; Check takes at most 4,096",
        )


async def test_an_answer_above_the_limit_is_not_sent() -> None:
    async def ask(port: int) -> str:
        async with channel_to(port) as channel:
            stub: Any = reflection_pb2_grpc.ServerReflectionStub(cast("Any", channel))
            request = reflection_pb2.ServerReflectionRequest(file_containing_symbol="grpc.health.v1.Health")
            try:
                async with asyncio.timeout(PATIENCE):
                    answer = await anext(aiter(stub.ServerReflectionInfo(iter([request]))))
                    return str(answer.WhichOneof("message_response"))
            except grpc.aio.AioRpcError as error:
                return error.code().name

    async with serving() as port:
        assert await ask(port) == "file_descriptor_response"
    async with serving(ConnectionLimits(sent_bytes=200)) as port:
        assert await ask(port) == "RESOURCE_EXHAUSTED"


# Metadata.


async def test_metadata_above_8_kib_is_soon_refused_and_large_metadata_below_passes() -> None:
    async with serving() as port:
        for _ in range(20):
            assert await check(port, ("authorization", "Bearer " + "x" * 7000)) == ("OK", "")
        code, sentence = await check(port, ("authorization", "x" * 17_000))
        assert (code, "exceeds hard limit" in sentence) == ("RESOURCE_EXHAUSTED", True)
        many = [(f"k{number}", "v" * 50) for number in range(200)]
        assert (await check(port, *many))[0] == "RESOURCE_EXHAUSTED"
        assert await check(port) == ("OK", "")


async def test_the_limit_of_metadata_is_the_one_that_was_set() -> None:
    async with serving(ConnectionLimits(metadata_bytes=2000)) as port:
        code, sentence = await check(port, ("k", "x" * 4500))
        assert (code, "hard limit (value length 4500 vs. 4000)" in sentence) == ("RESOURCE_EXHAUSTED", True)
        for _ in range(40):  # by chance, the more often the larger it is
            if (await check(port, ("k", "x" * 3000)))[0] == "RESOURCE_EXHAUSTED":
                break
        else:
            pytest.fail("what is between the two limits is never refused")


_ENDLESS = {
    "many headers": block([(b"k", b"v" * 1000)]) * 15,
    "one header": b"\0\1k\x7f\xff\xff\xff\x0f" + b"v" * 15_000,
}


@pytest.mark.parametrize("body", _ENDLESS.values(), ids=_ENDLESS)
async def test_headers_without_end_take_no_memory(body: bytes) -> None:
    async def send(connection: Http2) -> None:
        await connection.greet()
        await connection.send(HEADERS, 0, 1, block(grpc_call(CHECK)))
        with suppress(ConnectionError):
            for _ in range(1000):
                await connection.send(CONTINUATION, 0, 1, body)

    async with serving() as port, AsyncExitStack() as stack:
        connections = [await stack.enter_async_context(connected(port)) for _ in range(8)]
        before = memory_held()
        await asyncio.gather(*map(send, connections))  # 120 MB; where metadata has no limit, the many headers are held
        assert memory_held() - before < 60 * MIB
        assert await check(port) == ("OK", "")


async def test_empty_continuations_without_end_are_hung_up_on() -> None:
    async with serving() as port, connected(port) as connection:
        await connection.greet()
        await connection.send(HEADERS, 0, 1, block(grpc_call(CHECK)))
        sent = 0
        with suppress(ConnectionError):
            for sent in range(100_000):  # noqa: B007  # how far it came is read below
                await connection.send(CONTINUATION, 0, 1)
        assert sent < 99_999
        assert await check(port) == ("OK", "")


# Calls on one connection.


async def test_a_connection_has_at_most_256_calls_at_a_time() -> None:
    async with serving(caps=CallCaps(public_of_one=257, public=257)) as port, connected(port) as connection:
        settings = await connection.greet()
        assert (settings[MAX_CONCURRENT_STREAMS], settings[MAX_HEADER_LIST_SIZE]) == (256, 16_384)
        for number in range(257):
            await connection.call(1 + 2 * number, WATCH)
        refused = await connection.until(RST_STREAM)
        assert refused is not None
        assert (refused.stream, refused.error) == (1 + 2 * 256, REFUSED_STREAM)
        assert await check(port) == ("OK", "")


async def test_calls_that_are_reset_as_soon_as_they_are_made_disturb_nobody() -> None:
    async def flood(connection: Http2) -> None:
        try:
            for number in range(30_000):
                await connection.call(1 + 2 * number, WATCH)
                await connection.send(RST_STREAM, 0, 1 + 2 * number, struct.pack(">I", CANCEL))
        except ConnectionError:
            pass

    async with serving() as port, connected(port) as connection:
        await connection.greet()
        before = memory_held()
        flooding = asyncio.create_task(flood(connection))
        while not flooding.done():
            assert await check(port) == ("OK", "")
        await flooding
        assert memory_held() - before < 50 * MIB


# Connections.


async def calling(stack: AsyncExitStack, port: int) -> Http2:
    """A connection with a call that is being answered. Where a server soon hangs up on who does nothing, a slow machine
    may need more than one."""
    async with asyncio.timeout(PATIENCE):
        while True:
            connection = await stack.enter_async_context(connected(port))
            with suppress(ConnectionError):
                await connection.greet()
                await connection.call(1, WATCH)
                await connection.send(DATA, END_STREAM, 1, bytes(5))  # an empty message
                answer = await connection.until(HEADERS, GOAWAY)
                if answer is not None and answer.kind == HEADERS:
                    return connection


async def test_there_are_so_many_connections_and_no_more_until_one_ends() -> None:
    async with serving(ConnectionLimits(connections=3)) as port:
        async with AsyncExitStack() as stack:
            first = [await stack.enter_async_context(connected(port)) for _ in range(3)]
            for connection in first:
                await connection.greet()
            async with connected(port) as one_more:
                assert await hung_up(one_more) == []
            assert (await check(port))[0] == "UNAVAILABLE"
        async with asyncio.timeout(PATIENCE):
            while await check(port) != ("OK", ""):
                pass


@pytest.mark.parametrize("said", [b"", PREFACE], ids=["nothing", "preface"])
async def test_who_connects_and_does_not_go_on_is_hung_up_on(said: bytes) -> None:
    async with serving(ConnectionLimits(handshake_seconds=0.5)) as port, connected(port) as silent:
        await silent.write(said)
        goodbye = (await hung_up(silent))[-1]
        assert (goodbye.kind, b"handshake timeout" in goodbye.body) == (GOAWAY, True)


@pytest.mark.parametrize("said", [b"", b"\x16\x03\x01\x02\x00\x01\x00"], ids=["nothing", "half a hello"])
async def test_who_begins_tls_and_does_not_go_on_is_hung_up_on(said: bytes, tmp_path: Path) -> None:
    pair = Authority(tmp_path).signs("scheduler")
    files = TlsFiles(pair.certificate, pair.key)
    async with serving(ConnectionLimits(handshake_seconds=0.5), files) as port, connected(port) as silent:
        await silent.write(said)
        assert await hung_up(silent) == []


async def test_a_connection_without_calls_ends_and_one_with_a_call_goes_on() -> None:
    async with serving(ConnectionLimits(idle_seconds=0.5)) as port, AsyncExitStack() as stack:
        idle, busy = await calling(stack, port), await calling(stack, port)
        await idle.send(RST_STREAM, 0, 1, struct.pack(">I", CANCEL))
        assert (await hung_up(idle))[-1].kind == GOAWAY
        await busy.send(PING, 0, 0, b"are you?")
        answered = await busy.until(PING, GOAWAY)
        assert answered is not None
        assert (answered.kind, answered.flags, answered.body) == (PING, ACK, b"are you?")


# Pings.


async def test_who_pings_all_the_time_is_told_to_be_calm() -> None:
    async with serving() as port, connected(port) as connection:
        await connection.greet()
        for _ in range(4):
            await connection.send(PING, 0, 0, b"12345678")
        goodbye = await connection.until(GOAWAY)
        assert goodbye is not None
        assert (goodbye.error, goodbye.body[8:]) == (ENHANCE_YOUR_CALM, b"too_many_pings")


async def test_pings_as_our_client_sends_them_are_fine() -> None:
    limits = ConnectionLimits(least_ping_interval_seconds=0.3)
    async with serving(limits) as port, connected(port) as connection:
        await connection.greet()
        for number in range(6):
            await connection.send(PING, 0, 0, struct.pack(">Q", number))
            answered = await connection.until(PING, GOAWAY)
            assert answered is not None
            assert answered.kind == PING
            await asyncio.sleep(0.4)  # how often it pings is what is tested


async def test_a_client_that_is_gone_without_a_word_loses_its_place() -> None:
    limits = ConnectionLimits(ping_seconds=1, pong_seconds=0.5)
    async with serving(limits) as port, AsyncExitStack() as stack:
        dead = await calling(stack, port)
        frames = await hung_up(dead, within=30)  # and answers no ping; gRPC by itself waits a minute
        assert PING in dead.seen
        assert b"ping_timeout" in next(frame.body for frame in frames if frame.kind == GOAWAY)


async def test_a_flood_of_settings_disturbs_nobody() -> None:
    async with serving() as port, connected(port) as connection:
        await connection.greet()
        before = memory_held()
        reading = asyncio.create_task(hung_up(connection, within=60))
        try:
            for _ in range(20_000):
                await connection.send(SETTINGS)
        except ConnectionError:
            pass
        assert await check(port) == ("OK", "")
        assert memory_held() - before < 50 * MIB
        reading.cancel()
