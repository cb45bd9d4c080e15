"""`python -m operations.probe`, as HEALTHCHECK runs it, against real servers."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator

import grpc
import pytest
from grpc_health.v1 import health, health_pb2_grpc
from prometheus_client import CollectorRegistry

from local_stack.ports import LOCALHOST
from operations.probes import Probes
from scheduler_service.rpc.health import Health
from tests.deploy.dockerfile import ROOT
from tests.ports import lasting_port


async def probe(*arguments: str, **environment: str) -> tuple[int | None, str]:
    """The exit code, and the one line that it said."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "operations.probe", *arguments),
        cwd=ROOT,
        env=environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await process.communicate()
    return process.returncode, said.decode().strip()


@pytest.fixture
async def served() -> AsyncIterator[tuple[str, Health]]:
    """Where a gRPC server is, and its health."""
    service = Health(["carillon.v1.JobService"])
    server = grpc.aio.server()
    health_pb2_grpc.add_HealthServicer_to_server(service.servicer, server)
    address = f"{LOCALHOST}:{server.add_insecure_port(f'{LOCALHOST}:0')}"
    await server.start()
    yield address, service
    await server.stop(None)


async def test_grpc_health_as_it_is(served: tuple[str, Health]) -> None:
    address, service = served
    job_service = "carillon.v1.JobService"
    await service.set(None)
    assert await probe(address) == (0, f"{address} says SERVING")
    assert await probe(address, job_service) == (0, f"{job_service} at {address} says SERVING")
    await service.set("the database is away")
    assert await probe(address) == (1, f"{address} says NOT_SERVING")
    assert await probe(address, job_service) == (1, f"{job_service} at {address} says NOT_SERVING")
    assert (await probe(address, health.SERVICE_NAME))[0] == 0
    code, said = await probe(address, "no.Such")
    assert code == 1
    assert "NOT_FOUND" in said


async def test_a_proxy_of_the_environment_is_not_asked(served: tuple[str, Health]) -> None:
    address, service = served
    await service.set(None)
    nobody = f"http://{LOCALHOST}:{lasting_port()}"
    assert (await probe(address, http_proxy=nobody, HTTP_PROXY=nobody, grpc_proxy=nobody))[0] == 0


async def test_http_readiness_as_it_is() -> None:
    answer = (True, "connected to scheduler-1")
    probes = Probes(lambda: answer, CollectorRegistry())
    url = f"{await probes.start(LOCALHOST, 0)}/readyz"
    try:
        assert await probe(url) == (0, f"{url} says 200: connected to scheduler-1")
        answer = (False, "draining")
        assert await probe(url) == (1, f"{url} says 503: draining")
    finally:
        await probes.stop()


@pytest.mark.parametrize("scheme", ["", "http://"])
async def test_nobody_there_is_one_sentence(scheme: str) -> None:
    address = f"{scheme}{LOCALHOST}:{lasting_port()}"
    code, said = await probe(address)
    assert code == 1
    assert said.startswith(f"{address} did not answer: ")
    assert "\n" not in said


@pytest.mark.parametrize("arguments", [(), ("localhost",), ("https://localhost/readyz",), ("a:1", "b", "c")])
async def test_a_wrong_call_says_how_to_call(arguments: tuple[str, ...]) -> None:
    code, said = await probe(*arguments)
    assert code == 2
    assert "usage: python -m operations.probe host:port [service]" in said
