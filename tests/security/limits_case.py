"""A server with limits of the test's, and callers for it."""

from __future__ import annotations

import asyncio
import ctypes
import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

import grpc
import psutil
from carillon.v1 import (
    registry_service_pb2_grpc,
)
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client import CollectorRegistry

from operations.tls_files import TlsFiles
from scheduler_service.rpc.calls import Calls
from scheduler_service.rpc.health import Health
from scheduler_service.rpc.metrics import CallMetrics
from scheduler_service.rpc.open_calls import CallCaps, OpenCalls
from scheduler_service.rpc.server import ConnectionLimits, build_server, listen
from scheduler_service.rpc.tls import server_credentials
from tests.credentials import accepting
from tests.security.http2 import (
    Frame,
    Http2,
)
from tests.security.schedulers import EMAIL_TOKEN

PATIENCE = 60.0
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


def memory_held() -> int:
    """Bytes of this process, without what is free again and only kept by its allocator: of what a connection sends
    that is a third, now and then, whatever becomes of it."""
    gc.collect()
    if (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        trim(0)
    return int(psutil.Process().memory_info().rss)


async def hung_up(connection: Http2, within: float = PATIENCE) -> list[Frame]:
    """What still comes until the server hangs up. Errors: TimeoutError if it does not."""
    frames = []
    async with asyncio.timeout(within):
        while (frame := await connection.read()) is not None:
            frames.append(frame)
    return frames
