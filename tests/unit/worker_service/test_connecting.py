"""Where HTTP calls connect to: the addresses that were checked, whatever names, proxies and answers say."""

from __future__ import annotations

import asyncio
import gzip
import ipaddress
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from pathlib import Path

import pytest
from aiohttp import web
from yarl import URL

from tests.rpc.client.test_tls import self_signed
from tests.unit.worker_service.conftest import ANYWHERE, LOOPBACK, Caller, Serve
from worker_service.targets.allowed import Gate
from worker_service.targets.hosts import Address
from worker_service.targets.networks import Networks
from worker_service.targets.resolving import KEEP_SECONDS, Names

# Only Dns below knows it: who reaches a server by this name went to an address that was checked.
NAME = "service.example"


class Dns:
    """Says of every name what `answer` is at the time, and `then` from the next time on; counts the questions."""

    def __init__(self) -> None:
        self.answer = self.then = ["127.0.0.1"]
        self.asked = 0
        self.now = 0.0

    def __call__(self, _name: str) -> Sequence[Address]:
        self.asked += 1
        said, self.answer = self.answer, self.then
        return [ipaddress.ip_address(text) for text in said]


@pytest.fixture
def dns() -> Dns:
    return Dns()


@pytest.fixture
async def gate(dns: Dns) -> AsyncIterator[Gate]:
    async with Names(dns, clock=lambda: dns.now) as names:
        yield Gate(ANYWHERE, LOOPBACK, names)


class Service:
    """Keeps the `Host` that each request asked for, and who sent it."""

    def __init__(self) -> None:
        self.hosts: list[str] = []
        self.headers: list[Mapping[str, str]] = []

    async def answer(self, request: web.Request) -> web.Response:
        self.hosts.append(request.host)
        self.headers.append(request.headers)
        return web.Response()


async def test_a_name_is_asked_for_once_and_the_service_is_called_by_it(caller: Caller, serve: Serve, dns: Dns) -> None:
    service = Service()
    port = URL(await serve(service.answer)).port
    await caller.execute(f"http://{NAME}:{port}/")
    await caller.execute(f"http://{NAME}:{port}/")
    assert service.hosts == [f"{NAME}:{port}"] * 2
    assert dns.asked == 1


async def test_a_name_that_leads_elsewhere_later_is_refused_though_a_connection_is_open(
    caller: Caller, serve: Serve, dns: Dns
) -> None:
    service = Service()
    endpoint = f"http://{NAME}:{URL(await serve(service.answer)).port}/"
    await caller.execute(endpoint)
    dns.answer, dns.now = ["127.0.0.1", "169.254.169.254"], KEEP_SECONDS
    failed = await caller.failure(endpoint)
    assert failed.code == "TARGET_NOT_ALLOWED"
    assert (len(service.hosts), dns.asked) == (1, 2)


async def test_a_name_that_means_another_address_a_moment_later_is_not_asked_for_again(
    caller: Caller, serve: Serve, dns: Dns
) -> None:
    service = Service()
    dns.then = ["169.254.169.254"]
    await caller.execute(f"http://{NAME}:{URL(await serve(service.answer)).port}/")
    assert (len(service.hosts), dns.asked, dns.answer) == (1, 1, dns.then)


async def _never(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.close()


async def test_any_of_the_checked_addresses_will_do(caller: Caller, serve: Serve, dns: Dns) -> None:
    service = Service()
    dns.answer = ["127.0.0.9", "::1", "127.0.0.1"]
    await caller.execute(f"http://{NAME}:{URL(await serve(service.answer)).port}/")
    assert len(service.hosts) == 1


async def test_tls_asks_for_the_name_and_wants_its_certificate(caller: Caller, tmp_path: Path, dns: Dns) -> None:
    asked: list[str | None] = []
    cert, key = self_signed(tmp_path, "other")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(cert, key)
    context.sni_callback = lambda _socket, name, _context: asked.append(name)
    server = await asyncio.start_server(_never, "127.0.0.1", 0, ssl=context)
    async with server:
        failed = await caller.failure(f"https://{NAME}:{port_of(server)}/")
    assert asked == [NAME]
    assert "the TLS connection was refused (is the certificate valid for this host?)" in failed.message


async def test_proxies_and_passwords_of_the_environment_are_not_used(
    caller: Caller, serve: Serve, dns: Dns, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service, proxy = Service(), Service()
    proxy_url = await serve(proxy.answer)
    for variable in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(variable, proxy_url)
        monkeypatch.setenv(variable.lower(), proxy_url)
    (tmp_path / "netrc").write_text(f"machine {NAME} login worker password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    await caller.execute(f"http://{NAME}:{URL(await serve(service.answer)).port}/")
    assert (len(service.hosts), len(proxy.hosts)) == (1, 0)
    assert "Authorization" not in service.headers[0]


Write = Callable[[asyncio.StreamWriter], Awaitable[None]]


def port_of(server: asyncio.Server) -> int:
    port: int = server.sockets[0].getsockname()[1]
    return port


async def _raw(write: Write) -> asyncio.Server:
    """A server that reads a request's head and answers as `write` does, as long as there is somebody."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            await write(writer)
        except ConnectionError:
            pass  # the worker has had enough
        finally:
            writer.close()

    return await asyncio.start_server(serve, "127.0.0.1", 0)


async def _endless_headers(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\n")
    while True:
        writer.write(b"X: y\r\n" * 1_000)
        await writer.drain()


async def _endless_header(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nX: ")
    while True:
        writer.write(b"y" * 10_000)
        await writer.drain()


async def _endless_status(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 ")
    while True:
        writer.write(b"y" * 10_000)
        await writer.drain()


@pytest.mark.parametrize("write", [_endless_headers, _endless_header, _endless_status])
async def test_a_head_without_end_is_not_read_to_the_end(caller: Caller, write: Write) -> None:
    async with await _raw(write) as server:
        failed = await caller.failure(f"http://{NAME}:{port_of(server)}/")
    assert failed.code == "HTTP_UNREACHABLE"
    assert "the answer was not understood" in failed.message


async def test_a_packed_answer_is_not_unpacked(caller: Caller, serve: Serve) -> None:
    async def bomb(_request: web.Request) -> web.Response:
        body = gzip.compress(b'{"metadata": "' + b"0" * 50_000_000)
        return web.Response(body=body, headers={"Content-Type": "application/json", "Content-Encoding": "gzip"})

    completed = await caller.execute(await serve(bomb))
    assert completed.metadata == {"answer_problem": "the answer says application/json, but is not valid JSON"}


class TestABaseUrl:
    @pytest.fixture
    def base_urls(self) -> Mapping[str, URL]:
        self.urls: dict[str, URL] = {}
        return self.urls

    @pytest.fixture
    async def gate(self, dns: Dns) -> AsyncIterator[Gate]:
        async with Names(dns) as names:
            yield Gate([], Networks(), names)

    async def test_opens_its_own_address_for_its_own_service(self, caller: Caller, serve: Serve) -> None:
        service = Service()
        url = await serve(service.answer)
        self.urls["email-service"] = URL(url)
        await caller.execute("http://somewhere.example/jobs/x")
        failed = await caller.failure(f"{url}/jobs/x", service="kpi-service")
        assert failed.code == "TARGET_NOT_ALLOWED"
        assert len(service.hosts) == 1

    async def test_that_is_a_name_needs_a_network_all_the_same(self, caller: Caller) -> None:
        self.urls["email-service"] = URL(f"http://{NAME}:8080")
        failed = await caller.failure("http://somewhere.example/jobs/x")
        assert f"{NAME}:8080 has an address that is not public" in failed.message
