"""The port on which every client shows a certificate: what a certificate is worth, alone and beside a token."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import grpc
import pytest
from carillon import Client, Completed, NotAuthenticated, Run, SchedulerUnavailable, Tls
from carillon.execution import Assignment
from carillon.session import WorkerSession
from carillon.v1 import work_pb2, worker_service_pb2, worker_service_pb2_grpc
from cryptography import x509

from scheduler_service.app import App
from scheduler_service.domain.access import Kind, Principal, Scope
from scheduler_service.domain.errors import Unauthenticated
from scheduler_service.identity.certificates import WorkerCertificates, parse_worker_certificates
from scheduler_service.settings import SettingsError, read_settings
from tests.conftest import DatabaseUrls
from tests.security.authority import Authority, Pair
from tests.security.calling import work_stream
from tests.security.schedulers import EMAIL_TOKEN, WORKER_TOKEN, admin, scheduler, tls

PATIENCE = 60.0
SERVICES = "worker-1.internal=*,email.internal=email-service,spiffe://cluster/kpi=kpi-service"
EMAIL_ROUTE = "handler/email-service/digest"


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@asynccontextmanager
async def demanding(urls: DatabaseUrls, authority: Authority, **settings: Any) -> AsyncIterator[App]:
    """A scheduler with an mTLS port."""
    given = {"mtls_port": 0, "tls_client_ca_file": authority.file, "worker_certificates": SERVICES}
    async with scheduler(urls, **tls(authority.signs("scheduler")), **(given | settings)) as app:
        yield app


async def answer(
    port: int | None, authority: Authority, pair: Pair | None, token: str = "", route: str = "http"
) -> tuple[str, str]:
    """What a work stream of these credentials comes to: WELCOME, or its status and sentence."""
    credentials = grpc.ssl_channel_credentials(
        authority.file.read_bytes(),
        pair.key.read_bytes() if pair else None,
        pair.certificate.read_bytes() if pair else None,
    )
    hello = work_pb2.Hello(session_id=uuid4().bytes, worker="w", routes=[route], client="raw")
    async with grpc.aio.secure_channel(f"localhost:{port}", credentials) as channel:
        return await work_stream(channel, hello, (("x-service-token", token),) if token else ())


async def test_a_certificate_alone_is_a_worker(database_urls: DatabaseUrls, authority: Authority) -> None:
    every = authority.signs("worker", x509.DNSName("worker-1.internal"))
    email = authority.signs("email", x509.DNSName("email.internal"))
    kpi = authority.signs("kpi", x509.UniformResourceIdentifier("spiffe://cluster/kpi"))
    async with demanding(database_urls, authority) as app:
        port = app.mtls_port
        assert await answer(port, authority, every) == ("WELCOME", "")
        assert await answer(port, authority, email, route=EMAIL_ROUTE) == ("WELCOME", "")
        assert await answer(port, authority, kpi, route="handler/kpi-service/count") == ("WELCOME", "")
        code, sentence = await answer(port, authority, email)
        assert (code, "may not serve route http" in sentence) == ("PERMISSION_DENIED", True)
        assert (await answer(port, authority, kpi, route=EMAIL_ROUTE))[0] == "PERMISSION_DENIED"
        async with Client(f"localhost:{port}", tls=Tls(authority.file, every.certificate, every.key)) as client:
            with pytest.raises(Exception, match="PERMISSION_DENIED"):
                await client.get_job("email-service/digest")


async def test_the_client_and_its_variables_carry_it(
    database_urls: DatabaseUrls, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = authority.signs("worker", x509.DNSName("worker-1.internal"))
    monkeypatch.setenv("CARILLON_TLS_CA_FILE", str(authority.file))
    monkeypatch.setenv("CARILLON_TLS_CERTIFICATE_FILE", str(pair.certificate))
    monkeypatch.setenv("CARILLON_TLS_KEY_FILE", str(pair.key))
    async with demanding(database_urls, authority, require_mtls=True) as app:
        session = WorkerSession(target=f"localhost:{app.mtls_port}", executors=[Idle()], name="worker")
        running = asyncio.create_task(session.run())
        assert await session.wait_until(lambda state: state.connected, PATIENCE), session.state()
        await session.drain(0)
        await running


class Idle:
    """Serves a route on which nothing comes."""

    routes = ("http",)

    async def execute(self, assignment: Assignment, run: Run) -> Completed:
        raise AssertionError("there is no run")


async def test_a_token_beside_it_is_bound_to_no_more(database_urls: DatabaseUrls, authority: Authority) -> None:
    every = authority.signs("worker", x509.DNSName("worker-1.internal"))
    email = authority.signs("email", x509.DNSName("email.internal"))
    kpi = authority.signs("kpi", x509.UniformResourceIdentifier("spiffe://cluster/kpi"))
    async with demanding(database_urls, authority) as app:
        port = app.mtls_port
        assert await answer(port, authority, every, WORKER_TOKEN) == ("WELCOME", "")
        assert await answer(port, authority, every, EMAIL_TOKEN, EMAIL_ROUTE) == ("WELCOME", "")
        assert await answer(port, authority, email, EMAIL_TOKEN, EMAIL_ROUTE) == ("WELCOME", "")
        for pair, token in ((email, WORKER_TOKEN), (kpi, EMAIL_TOKEN), (kpi, WORKER_TOKEN)):
            code, sentence = await answer(port, authority, pair, token, EMAIL_ROUTE)
            assert code == "UNAUTHENTICATED"
            assert "the token beside it is bound to" in sentence
        assert (await answer(port, authority, every, "worker.some-other-secret-of-16"))[0] == "UNAUTHENTICATED"


async def test_a_certificate_that_stands_for_nobody_is_refused_with_its_names(
    database_urls: DatabaseUrls, authority: Authority
) -> None:
    unknown = authority.signs("unknown", x509.DNSName("worker-2.internal"), x509.UniformResourceIdentifier("a://b"))
    by_common_name = authority.signs("worker-1.internal", x509.RFC822Name("worker-1.internal@example.com"))
    shouting = authority.signs("wild", x509.DNSName("*.internal"))
    both = authority.signs("both", x509.DNSName("worker-1.internal"), x509.DNSName("email.internal"))
    async with demanding(database_urls, authority) as app:
        port = app.mtls_port
        code, sentence = await answer(port, authority, unknown)
        assert (code, sentence) == (
            "UNAUTHENTICATED",
            "CARILLON_WORKER_CERTIFICATES has none of this certificate's names: worker-2.internal, a://b",
        )
        assert "none (it needs a DNS or URI name)" in (await answer(port, authority, by_common_name))[1]
        assert "names: *.internal" in (await answer(port, authority, shouting))[1]
        assert "stand for several services" in (await answer(port, authority, both))[1]
        assert (await answer(port, authority, unknown, WORKER_TOKEN))[0] == "UNAUTHENTICATED"
        trusting = Tls(authority.file, unknown.certificate, unknown.key)
        async with Client(f"localhost:{port}", token=admin(), tls=trusting) as client:
            with pytest.raises(NotAuthenticated, match=r"worker-2\.internal"):
                await client.get_job("email-service/digest")


async def test_nobody_connects_there_without_a_good_certificate(
    database_urls: DatabaseUrls, authority: Authority, tmp_path: Path
) -> None:
    name = x509.DNSName("worker-1.internal")
    pairs = [None, Authority(tmp_path, "stranger").signs("w1", name), authority.signs("w2", name, expired=True)]
    async with demanding(database_urls, authority) as app:
        for pair in pairs:
            code, _ = await answer(app.mtls_port, authority, pair, WORKER_TOKEN)
            assert code == "UNAVAILABLE"
        async with Client(f"127.0.0.1:{app.mtls_port}", token=admin(), tls=Tls(authority.file)) as client:
            with pytest.raises(SchedulerUnavailable, match="if it wants a client certificate, set one that is valid"):
                await client.get_job("email-service/digest")


async def test_work_without_a_certificate_is_refused_where_one_is_required(
    database_urls: DatabaseUrls, authority: Authority
) -> None:
    pair = authority.signs("worker", x509.DNSName("worker-1.internal"))
    async with demanding(database_urls, authority, require_mtls=True) as app:
        for shown in (None, pair):  # the first port asks for none, so that it sees none
            code, sentence = await answer(app.port, authority, shown, WORKER_TOKEN)
            assert (code, "work needs a client certificate here" in sentence) == ("UNAUTHENTICATED", True)
        assert await answer(app.mtls_port, authority, pair, WORKER_TOKEN) == ("WELCOME", "")
        async with Client(f"localhost:{app.port}", token=admin(), tls=Tls(authority.file)) as client:
            assert [job async for job in client.list_jobs()] == []
    async with demanding(database_urls, authority) as app:
        assert await answer(app.port, authority, None, WORKER_TOKEN) == ("WELCOME", "")


async def test_another_authority_counts_without_a_restart(
    database_urls: DatabaseUrls, authority: Authority, tmp_path: Path
) -> None:
    successor = Authority(tmp_path, "successor")
    trusted = tmp_path / "trusted.pem"
    trusted.write_bytes(authority.file.read_bytes())
    name = x509.DNSName("worker-1.internal")
    old, new = authority.signs("old", name), successor.signs("new", name)
    async with demanding(database_urls, authority, tls_client_ca_file=trusted) as app:
        assert (await answer(app.mtls_port, authority, new))[0] == "UNAVAILABLE"
        trusted.write_bytes(successor.file.read_bytes())
        assert await answer(app.mtls_port, authority, new) == ("WELCOME", "")
        assert (await answer(app.mtls_port, authority, old))[0] == "UNAVAILABLE"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("worker-1.internal", "entry 1 is not of the form"),
        ("a.b=*,=email-service", "entry 2 is not of the form"),
        ("a.b=", "entry 1 is not of the form"),
        ("a.b=Email Service", "entry 1 is not of the form"),
        ("*.internal=*", "entry 1 has a wildcard"),
        ("worker=*", "entry 1: worker is no full name"),
        ("a.b=*,a.b=email-service", "entry 2 names a.b again"),
    ],
)
def test_a_wrong_map_is_refused(text: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence.replace("*", r"\*")):
        parse_worker_certificates(text)


def test_a_map_may_have_lines_and_uris_with_equals_signs() -> None:
    read = parse_worker_certificates("a.b=*\nspiffe://x/a=b=email-service ,")
    assert read == {"a.b": "*", "spiffe://x/a=b": "email-service"}


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"mtls_port": 0}, "CARILLON_MTLS_PORT needs CARILLON_TLS_CERTIFICATE_FILE"),
        ({"require_mtls": True}, "CARILLON_REQUIRE_MTLS needs CARILLON_MTLS_PORT"),
        ({"worker_certificates": "a.b=*"}, "CARILLON_WORKER_CERTIFICATES needs CARILLON_MTLS_PORT"),
        ({"tls_client_ca_file": "/ca.pem"}, "CARILLON_TLS_CLIENT_CA_FILE needs CARILLON_MTLS_PORT"),
    ],
)
def test_half_of_the_settings_are_refused(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(SettingsError, match=sentence):
        read_settings(database_url="postgresql://a@h/x", engine_url="postgresql://b@h/x", **settings)


def test_an_mtls_port_needs_authorities_and_names(authority: Authority) -> None:
    pair = authority.signs("scheduler")
    given = {"database_url": "postgresql://a@h/x", "engine_url": "postgresql://b@h/x", "mtls_port": 0, **tls(pair)}
    with pytest.raises(SettingsError, match="or nobody could use it"):
        read_settings(**given, tls_client_ca_file=authority.file)
    with pytest.raises(SettingsError, match="holds no certificate in PEM form"):
        read_settings(**given, tls_client_ca_file=pair.key, worker_certificates="a.b=*")


def test_a_stream_by_certificate_holds_while_its_name_does_and_no_token_is_taken_for_one() -> None:
    certificates = WorkerCertificates({"a.b": "email-service"})
    worker = certificates.principal(("a.b",))
    assert worker == Principal(Kind.SERVICE, "a.b", "email-service", scopes=frozenset({Scope.WORK}))
    assert certificates.holds(worker)
    assert not WorkerCertificates({"a.b": "kpi-service"}).holds(worker)
    assert not WorkerCertificates({}).holds(worker)
    token = Principal(Kind.SERVICE, "a.b", "email-service", scopes=frozenset(Scope))
    assert not certificates.holds(token)
    assert not certificates.holds(replace(worker, token_id="a.b"))
    with pytest.raises(Unauthenticated):
        certificates.principal(())


async def test_a_stream_ends_with_the_certificate_that_opened_it(
    database_urls: DatabaseUrls, authority: Authority
) -> None:
    async with demanding(database_urls, authority) as app, AsyncExitStack() as stack:
        async with asyncio.timeout(PATIENCE):
            call = await welcomed_briefly(app, authority, stack)
            assert await call.code() is grpc.StatusCode.UNAUTHENTICATED
        assert "expired" in await call.details()


async def welcomed_briefly(app: App, authority: Authority, stack: AsyncExitStack) -> Any:
    """A work stream by a certificate that lasts some seconds more: as few as it takes here to be welcomed with it."""
    for seconds in (4, 8, 16, 32):
        brief = authority.signs(
            f"worker-{seconds}", x509.DNSName("worker-1.internal"), lasts=timedelta(seconds=seconds)
        )
        credentials = grpc.ssl_channel_credentials(
            authority.file.read_bytes(), brief.key.read_bytes(), brief.certificate.read_bytes()
        )
        channel = grpc.aio.secure_channel(f"localhost:{app.mtls_port}", credentials)
        stack.push_async_callback(channel.close)
        call: Any = worker_service_pb2_grpc.WorkerServiceStub(channel).Work()
        hello = work_pb2.Hello(session_id=uuid4().bytes, worker="w", routes=["http"], client="raw")
        with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):  # it had expired
            await call.write(worker_service_pb2.WorkRequest(hello=hello))
            first = await call.read()
            assert first.WhichOneof("message") == "welcome"
            return call
    raise AssertionError("no certificate lasted until its stream was welcomed")
