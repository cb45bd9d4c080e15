"""Each limit of the gRPC server, crossed: gRPC ignores an option that it does not know without a word."""

from __future__ import annotations

import asyncio
import struct
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any, cast

import grpc
import psutil
import pytest
from carillon.v1 import (
    registry_service_pb2,
    registry_service_pb2_grpc,
    run_service_pb2,
    run_service_pb2_grpc,
    work_pb2,
    worker_service_pb2,
    worker_service_pb2_grpc,
)
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from prometheus_client import CollectorRegistry

from operations.tls_files import TlsFiles
from scheduler_service.domain.access import Kind, Principal
from scheduler_service.domain.errors import RateLimited
from scheduler_service.rpc.calls import Calls
from scheduler_service.rpc.health import Health
from scheduler_service.rpc.metrics import CallMetrics
from scheduler_service.rpc.open_calls import CallCaps, OpenCalls
from scheduler_service.rpc.server import ConnectionLimits, build_server, listen
from scheduler_service.rpc.tls import server_credentials
from tests.conftest import DatabaseUrls
from tests.credentials import accepting
from tests.security.authority import Authority
from tests.security.http2 import (
    ACK,
    CANCEL,
    CONTINUATION,
    ENHANCE_YOUR_CALM,
    GOAWAY,
    HEADERS,
    MAX_CONCURRENT_STREAMS,
    MAX_HEADER_LIST_SIZE,
    PING,
    PREFACE,
    RST_STREAM,
    SETTINGS,
    Frame,
    Http2,
    block,
    connected,
    grpc_call,
)
from tests.security.schedulers import EMAIL_TOKEN, WORKER_TOKEN, admin, scheduler

PATIENCE = 20.0
CHECK = "/grpc.health.v1.Health/Check"
WATCH = "/grpc.health.v1.Health/Watch"
LIST_JOBS = "/carillon.v1.JobService/ListJobs"
MIB = 1024 * 1024
REFUSED_STREAM = 7
REGISTRY = "carillon.v1.RegistryService"
EMAIL = ("x-service-token", EMAIL_TOKEN)


@asynccontextmanager
async def serving(
    limits: ConnectionLimits | None = None, tls: TlsFiles | None = None, caps: CallCaps | None = None
) -> AsyncIterator[int]:
    """The port of a server with health and reflection, which anybody may call, and nothing behind `RegisterJobs`."""
    token = f"email-service={EMAIL_TOKEN}"
    calls = Calls(accepting(token), CallMetrics(CollectorRegistry()), None, OpenCalls(caps or CallCaps()))
    health = Health(())
    server = build_server(calls, {REGISTRY: _add_nothing}, health, reflect=True, limits=limits)
    port = listen(server, "127.0.0.1", 0, server_credentials(tls) if tls else None)
    await server.start()
    await health.set(None)
    try:
        yield port
    finally:
        await server.stop(None)


def _add_nothing(server: grpc.aio.Server) -> None:
    nothing = cast("Any", registry_service_pb2_grpc.RegistryServiceServicer)()
    registry_service_pb2_grpc.add_RegistryServiceServicer_to_server(nothing, server)


@asynccontextmanager
async def channel_to(port: int, **options: int) -> AsyncIterator[grpc.aio.Channel]:
    """A connection of its own."""
    given = [("grpc.use_local_subchannel_pool", 1), *((f"grpc.{name}", value) for name, value in options.items())]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=given) as channel:
        yield channel


async def check(port: int, *metadata: tuple[str, str], service: str = "") -> tuple[str, str]:
    """How a small call ends: its status and sentence."""
    async with channel_to(port) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        try:
            await stub.Check(health_pb2.HealthCheckRequest(service=service), metadata=metadata, timeout=PATIENCE)
        except grpc.aio.AioRpcError as error:
            return error.code().name, error.details() or ""
        return "OK", ""


async def hung_up(connection: Http2, within: float = PATIENCE) -> list[Frame]:
    """What still comes until the server hangs up. Errors: TimeoutError if it does not."""
    frames = []
    async with asyncio.timeout(within):
        while (frame := await connection.read()) is not None:
            frames.append(frame)
    return frames


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
        between = {(await check(port, ("k", "x" * 3000)))[0] for _ in range(40)}
        assert "RESOURCE_EXHAUSTED" in between  # by chance, the more often the larger it is


@pytest.mark.parametrize("body", [block([(b"k", b"v" * 1000)]) * 15, b"\0\1k\x7f\xff\xff\xff\x0f" + b"v" * 15_000])
async def test_headers_without_end_take_no_memory(body: bytes) -> None:
    process = psutil.Process()
    async with serving() as port, connected(port) as connection:
        await connection.greet()
        await connection.send(HEADERS, 0, 1, block(grpc_call(CHECK)))
        await connection.send(CONTINUATION, 0, 1, body)
        before = process.memory_info().rss
        try:
            for _ in range(10_000):  # 150 MB
                await connection.send(CONTINUATION, 0, 1, body)
        except ConnectionError:
            pass
        assert process.memory_info().rss - before < 50 * MIB
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
    process = psutil.Process()

    async def flood(connection: Http2) -> None:
        try:
            for number in range(30_000):
                await connection.call(1 + 2 * number, WATCH)
                await connection.send(RST_STREAM, 0, 1 + 2 * number, struct.pack(">I", CANCEL))
        except ConnectionError:
            pass

    async with serving() as port, connected(port) as connection:
        await connection.greet()
        before = process.memory_info().rss
        flooding = asyncio.create_task(flood(connection))
        while not flooding.done():
            assert await check(port) == ("OK", "")
        await flooding
        assert process.memory_info().rss - before < 50 * MIB


# Connections.


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
    async with serving(ConnectionLimits(idle_seconds=0.5)) as port, connected(port) as idle, connected(port) as busy:
        await busy.greet()
        await busy.call(1, WATCH)
        await idle.greet()
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
    async with serving(limits) as port, connected(port) as dead:
        await dead.greet()
        await dead.call(1, WATCH)
        frames = await hung_up(dead, within=10)  # and answers no ping
        assert PING in [frame.kind for frame in frames]
        assert b"ping_timeout" in next(frame.body for frame in frames if frame.kind == GOAWAY)


async def test_a_flood_of_settings_disturbs_nobody() -> None:
    process = psutil.Process()
    async with serving() as port, connected(port) as connection:
        await connection.greet()
        before = process.memory_info().rss
        reading = asyncio.create_task(hung_up(connection, within=60))
        try:
            for _ in range(20_000):
                await connection.send(SETTINGS)
        except ConnectionError:
            pass
        assert await check(port) == ("OK", "")
        assert process.memory_info().rss - before < 50 * MIB
        reading.cancel()


# Streams of ours.


async def begun(address: int, token: str, route: str) -> tuple[str, grpc.aio.Channel]:
    """What a work stream comes to; it stays open as long as its channel."""
    channel = grpc.aio.insecure_channel(f"127.0.0.1:{address}", options=[("grpc.use_local_subchannel_pool", 1)])
    call: Any = worker_service_pb2_grpc.WorkerServiceStub(channel).Work(metadata=(("x-service-token", token),))
    hello = work_pb2.Hello(session_id=time.time_ns().to_bytes(16), worker="w", routes=[route], client="raw")
    async with asyncio.timeout(PATIENCE):
        try:
            await call.write(worker_service_pb2.WorkRequest(hello=hello))
            await call.read()
            return "WELCOME", channel
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            return f"{(await call.code()).name}: {await call.details()}", channel


async def test_open_streams_are_capped_for_each_principal_and_in_all(database_urls: DatabaseUrls) -> None:
    async with scheduler(database_urls, max_streams=3, max_streams_per_principal=2) as app, AsyncExitStack() as stack:

        async def work(token: str, route: str) -> str:
            said, channel = await begun(app.port, token, route)
            stack.push_async_callback(channel.close)
            return said

        assert [await work(WORKER_TOKEN, "http") for _ in range(2)] == ["WELCOME", "WELCOME"]
        assert "CARILLON_MAX_STREAMS_PER_PRINCIPAL" in await work(WORKER_TOKEN, "http")
        assert await work(EMAIL_TOKEN, "handler/email-service/digest") == "WELCOME"
        refused = await work(EMAIL_TOKEN, "handler/email-service/digest")
        assert refused.startswith("RESOURCE_EXHAUSTED: this replica has 3 Work streams open")
        # Who watches takes no place from those who work, nor they from it.
        async with channel_to(app.port) as channel:
            watch: Any = run_service_pb2_grpc.RunServiceStub(channel).WatchRuns
            call = watch(run_service_pb2.WatchRunsRequest(), metadata=(("authorization", f"Bearer {admin()}"),))
            with pytest.raises(grpc.aio.AioRpcError, match="set one of `job`, `schedule` and `run`"):
                await call.read()
        # A place is free again when its stream has ended.
        await stack.aclose()
        async with asyncio.timeout(PATIENCE):
            while await work(WORKER_TOKEN, "http") != "WELCOME":
                pass
        await stack.aclose()


async def test_whoever_makes_too_many_calls_at_a_time_is_told_and_others_go_on(database_urls: DatabaseUrls) -> None:
    async with scheduler(database_urls, max_calls_per_principal=2) as app, connected(app.port) as greedy:
        await greedy.greet()
        for number in range(2):  # without their requests, for which the scheduler waits
            await greedy.call(1 + 2 * number, LIST_JOBS, (b"x-service-token", EMAIL_TOKEN.encode()))

        async def listed(*metadata: tuple[str, str]) -> tuple[str, str]:
            async with channel_to(app.port) as channel:
                call = cast("Any", channel).unary_unary(LIST_JOBS)(b"", metadata=metadata, timeout=PATIENCE)
                return (await call.code()).name, await call.details()

        async with asyncio.timeout(PATIENCE):
            while (refused := await listed(EMAIL))[0] == "OK":
                pass
        assert refused[0] == "RESOURCE_EXHAUSTED"
        assert refused[1].startswith("service:email-service makes 2 calls at a time on this replica")
        assert "CARILLON_MAX_CALLS_PER_PRINCIPAL" in refused[1]
        assert await listed(("authorization", f"Bearer {admin()}")) == ("OK", "")
        await greedy.send(RST_STREAM, 0, 1, struct.pack(">I", CANCEL))
        async with asyncio.timeout(PATIENCE):
            while (await listed(EMAIL))[0] != "OK":
                pass


# What anybody may call.


async def watched(channel: grpc.aio.Channel, service: str = "") -> tuple[str, Any]:
    call = cast("Any", channel).unary_stream(WATCH)(health_pb2.HealthCheckRequest(service=service).SerializeToString())
    async with asyncio.timeout(PATIENCE):
        try:
            await call.read()
        except grpc.aio.AioRpcError as error:
            return error.code().name, call
        return "OK", call


async def test_an_address_has_ten_health_streams_and_gets_its_places_back() -> None:
    async with serving() as port:
        async with channel_to(port) as channel:
            assert [(await watched(channel))[0] for _ in range(10)] == ["OK"] * 10
            code, call = await watched(channel)
            assert (code, await call.details()) == (
                "RESOURCE_EXHAUSTED",
                "127.0.0.1 has 10 Watch calls open; close some",
            )
            assert await check(port) == ("OK", "")  # which is counted for itself
        async with channel_to(port) as channel, asyncio.timeout(PATIENCE):
            while (await watched(channel))[0] != "OK":
                pass


async def test_all_addresses_together_have_so_many() -> None:
    async with serving(caps=CallCaps(public=1)) as port, channel_to(port) as channel:
        assert (await watched(channel))[0] == "OK"
        code, call = await watched(channel)
        assert code == "RESOURCE_EXHAUSTED"
        assert "this replica has 1 Watch calls open" in await call.details()


async def test_nobody_watches_a_name_that_is_no_service() -> None:
    async with serving() as port, channel_to(port) as channel:
        assert (await watched(channel, "carillon.v1.Nothing"))[0] == "NOT_FOUND"


async def test_reflection_is_counted_too() -> None:
    async with serving(caps=CallCaps(public_of_one=1)) as port, channel_to(port) as channel:
        stub: Any = reflection_pb2_grpc.ServerReflectionStub(cast("Any", channel))
        first = stub.ServerReflectionInfo()
        await first.write(reflection_pb2.ServerReflectionRequest(list_services=""))
        await first.read()
        async with asyncio.timeout(PATIENCE):
            assert (await stub.ServerReflectionInfo().code()).name == "RESOURCE_EXHAUSTED"


# Places.


def user(name: str, tenant: str = "acme") -> Principal:
    return Principal(Kind.USER, name, tenant=tenant)


def test_a_refused_stream_takes_no_place_and_an_ended_one_gives_it_back() -> None:
    calls = OpenCalls(CallCaps(streams=2, streams_of_one=1))
    ann, bob, cid = (Principal(Kind.ADMIN, name) for name in ("ann", "bob", "cid"))
    with calls.stream("/s/Watch", ann):
        for _ in range(3):
            with pytest.raises(RateLimited, match="admin:ann has 1 Watch streams open"), calls.stream("/s/Watch", ann):
                pass
        full = pytest.raises(RateLimited, match="this replica has 2 Watch streams")
        with calls.stream("/s/Watch", bob), full, calls.stream("/s/Watch", cid):
            pass
        with calls.stream("/s/Work", ann):
            pass
    with calls.stream("/s/Watch", ann), calls.stream("/s/Watch", cid):
        pass


def taken(calls: OpenCalls, held: ExitStack, principals: Iterable[Principal]) -> str:
    """Takes places until one is refused; answers why."""
    for principal in principals:
        try:
            held.enter_context(calls.stream("/s/Watch", principal))
        except RateLimited as refused:
            return refused.message
    return ""


def test_users_leave_places_to_other_users_other_tenants_and_those_who_run_it() -> None:
    calls = OpenCalls(CallCaps(streams=400))
    with ExitStack() as held:
        assert "user:ann has 20 Watch streams" in taken(calls, held, [user("ann")] * 21)
        assert "your tenant has 150 Watch" in taken(calls, held, (user(f"a{n}") for n in range(131)))
        assert taken(calls, held, (user(f"b{n}", "other") for n in range(150))) == ""
        assert "users have 300 Watch" in taken(calls, held, [user("c", "third")])
        assert taken(calls, held, [Principal(Kind.ADMIN, "root")] * 100) == ""
