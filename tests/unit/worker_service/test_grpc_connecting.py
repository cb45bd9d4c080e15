"""Where gRPC calls connect to: the addresses that were checked, whatever names and proxies say."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import grpc
import pytest
from carillon.execution import Completed

from tests.unit.worker_service.certificates import certificate_of
from tests.unit.worker_service.conftest import ANYWHERE, LOOPBACK
from tests.unit.worker_service.test_grpc import Caller, Service, caller, say_ok, service
from worker_service.targets.addresses import parse_grpc
from worker_service.targets.allowed import Gate
from worker_service.targets.hosts import Address
from worker_service.targets.networks import Networks
from worker_service.targets.resolving import Names

__all__ = ["caller", "service"]

# Only the fixture below knows it.
NAME = "service.example"
ZONE = {
    NAME: ["127.0.0.1"],
    "several.example": ["::1", "127.0.0.9", "127.0.0.1"],
    "mixed.example": ["127.0.0.1", "10.0.0.1"],
    "metadata.example": ["169.254.169.254"],
}


def ask_zone(name: str) -> Sequence[Address]:
    if name not in ZONE:
        raise OSError("no such name")
    return [ipaddress.ip_address(text) for text in ZONE[name]]


@pytest.fixture
async def gate() -> AsyncIterator[Gate]:
    async with Names(ask_zone) as names:
        yield Gate(ANYWHERE, LOOPBACK, names)


def port_of(service: Service) -> str:
    return service.address.rpartition(":")[2]


@pytest.mark.parametrize("name", [NAME, "several.example"])
async def test_a_name_is_called_at_the_addresses_that_were_checked(service: Service, caller: Caller, name: str) -> None:
    await service.start(say_ok)
    assert await caller.execute(f"{name}:{port_of(service)}") == Completed()


@pytest.mark.parametrize("address", ["mixed.example:1", "metadata.example:1", "10.0.0.1:1", "[::ffff:10.0.0.1]:1"])
async def test_an_address_that_is_not_public_is_refused_without_a_call(caller: Caller, address: str) -> None:
    failed = await caller.failure(address)
    assert failed.code == "TARGET_NOT_ALLOWED"
    assert failed.message.startswith("carillon.v1.JobHandlerService/Execute at ")
    assert caller.calls == []


@pytest.mark.parametrize(
    "address",
    ["unix:/run/x", "dns://8.8.8.8/a:1", "127.1:1", "2130706433:1", "[fe80::1%eth0]:1", "a:0", "", "a"],
)
async def test_an_unclear_address_is_refused_without_a_call(caller: Caller, address: str) -> None:
    failed = await caller.failure(address)
    assert (failed.code, failed.message.split()[:3]) == ("TARGET_NOT_ALLOWED", ["the", "job's", "address"])
    assert caller.calls == []


async def test_a_name_that_is_not_known_is_said_in_words(caller: Caller) -> None:
    failed = await caller.failure("nobody.example:50051")
    assert (failed.code, failed.message) == (
        "GRPC_UNAVAILABLE",
        "carillon.v1.JobHandlerService/Execute at nobody.example:50051 got no answer: the host name is not known",
    )


async def test_tls_wants_a_certificate_of_the_name(
    service: Service, caller: Caller, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cert, key = certificate_of(NAME, tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(cert))
    await service.start(say_ok, grpc.ssl_server_credentials([(key.read_bytes(), cert.read_bytes())]))
    assert await caller.execute(f"{NAME}:{port_of(service)}", "grpcs") == Completed()
    failed = await caller.failure(f"several.example:{port_of(service)}", "grpcs")
    assert "UNAVAILABLE" in failed.message


async def test_a_proxy_of_the_environment_is_not_used(
    service: Service, caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = asyncio.Event()

    async def proxy(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.set()
        writer.close()

    await service.start(say_ok)
    async with await asyncio.start_server(proxy, "127.0.0.1", 0) as server:
        for variable in ("grpc_proxy", "http_proxy", "https_proxy", "HTTP_PROXY"):
            monkeypatch.setenv(variable, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        assert await caller.execute(f"{NAME}:{port_of(service)}") == Completed()
    assert not asked.is_set()


async def test_a_base_url_replaces_the_address(service: Service, caller: Caller) -> None:
    await service.start(say_ok)
    caller.base_urls["email-service"] = parse_grpc(f"grpc://{NAME}:{port_of(service)}")
    assert await caller.execute("nobody.example:1", "grpcs") == Completed()


class TestAClosedGate:
    @pytest.fixture
    async def gate(self) -> AsyncIterator[Gate]:
        async with Names(ask_zone) as names:
            yield Gate([], Networks(), names)

    async def test_lets_through_what_the_operator_named(self, service: Service, caller: Caller) -> None:
        await service.start(say_ok)
        caller.base_urls["email-service"] = parse_grpc(f"grpc://{service.address}")
        assert await caller.execute("nobody.example:1") == Completed()
        failed = await caller.failure(service.address, service="kpi-service")
        assert failed.message.endswith(f"{service.address} is not among CARILLON_ALLOWED_TARGETS of the worker service")
