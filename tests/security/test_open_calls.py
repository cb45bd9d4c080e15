"""How many calls and streams may be open at a time: of a principal, of an address, and in all."""

from __future__ import annotations

import asyncio
import struct
import time
from collections.abc import Iterable
from contextlib import AsyncExitStack, ExitStack
from typing import Any, cast

import grpc
import pytest
from carillon.v1 import (
    run_service_pb2,
    run_service_pb2_grpc,
    work_pb2,
)
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from scheduler_service.domain.access import Kind, Principal
from scheduler_service.domain.errors import RateLimited
from scheduler_service.rpc.open_calls import CallCaps, OpenCalls
from tests.conftest import DatabaseUrls
from tests.security.calling import work_stream
from tests.security.http2 import (
    CANCEL,
    RST_STREAM,
    connected,
)
from tests.security.limits_case import (
    EMAIL,
    LIST_JOBS,
    PATIENCE,
    WATCH,
    channel_to,
    check,
    serving,
)
from tests.security.schedulers import EMAIL_TOKEN, WORKER_TOKEN, admin, scheduler

# Streams of ours.


async def begun(address: int, token: str, route: str) -> tuple[str, grpc.aio.Channel]:
    """What a work stream comes to; it stays open as long as its channel."""
    channel = grpc.aio.insecure_channel(f"127.0.0.1:{address}", options=[("grpc.use_local_subchannel_pool", 1)])
    hello = work_pb2.Hello(session_id=time.time_ns().to_bytes(16), worker="w", routes=[route], client="raw")
    code, details = await work_stream(channel, hello, (("x-service-token", token),))
    return f"{code}: {details}" if details else code, channel


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
