"""The client's channel in the long run: it finds a scheduler that comes back, and is gone when it is closed.

Service config and deadlines: tests/rpc/client/test_client.py. That a whole program leaves nothing: test_installed.py.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import grpc
import grpc.aio
import pytest
from carillon import Client, SchedulerUnavailable, blocking
from carillon.v1 import job_pb2, job_service_pb2, job_service_pb2_grpc

from tests.ports import lasting_port


class _Jobs(job_service_pb2_grpc.JobServiceServicer):
    async def GetJob(self, request: Any, context: Any) -> Any:
        return job_service_pb2.GetJobResponse(job=job_pb2.Job(name=request.name))


async def serve(port: int = 0) -> tuple[grpc.aio.Server, str]:
    server = grpc.aio.server()
    job_service_pb2_grpc.add_JobServiceServicer_to_server(_Jobs(), server)  # type: ignore[abstract]  # all it is asked
    port = server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    return server, f"127.0.0.1:{port}"


async def _as_soon_as_it_answers(client: Client) -> job_pb2.Job:
    while True:  # gRPC itself decides when it tries the address again, and each call waits for that a while
        with suppress(SchedulerUnavailable):
            return await client.get_job("a/b")


async def test_a_client_finds_a_scheduler_that_comes_back_at_the_same_address() -> None:
    port = lasting_port()
    server, target = await serve(port)
    async with Client(target, timeout=20) as client:
        assert (await client.get_job("a/b")).name == "services/a/jobs/b"
        await server.stop(None)
        with pytest.raises(SchedulerUnavailable):
            await client.get_job("a/b")
        server, _ = await serve(port)
        assert (await asyncio.wait_for(_as_soon_as_it_answers(client), 60)).name == "services/a/jobs/b"
    await server.stop(None)


async def test_a_client_that_was_closed_says_so_and_may_be_opened_again() -> None:
    server, target = await serve()
    client = Client(target)
    async with client:
        await client.get_job("a/b")
    with pytest.raises(RuntimeError, match="is not open"):
        await client.get_job("a/b")
    async with client:
        assert (await client.get_job("a/b")).name
    await server.stop(None)


def test_a_blocking_client_that_was_closed_says_so() -> None:
    client = blocking.Client("127.0.0.1:1")
    with client:
        pass
    with pytest.raises(RuntimeError, match="is not open"):
        client.get_job("a/b")
