"""TLS between clients and the scheduler: what comes about, and what a person reads where it does not."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from carillon import Client, NotFound, SchedulerUnavailable, Tls, blocking
from carillon.address import is_loopback
from carillon.channel import Connection
from cryptography import x509
from structlog.testing import capture_logs

from operations.tls_files import TlsFiles
from scheduler_service.app import App
from scheduler_service.settings import SettingsError, read_settings
from tests.conftest import DatabaseUrls
from tests.security.authority import Authority, Pair
from tests.security.schedulers import admin, scheduler, tls
from worker_service.settings import SettingsError as WorkerSettingsError
from worker_service.settings import load

URLS = {"database_url": "postgresql://a@h/x", "engine_url": "postgresql://b@h/x"}


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@asynccontextmanager
async def secured(urls: DatabaseUrls, pair: Pair) -> AsyncIterator[App]:
    async with scheduler(urls, **tls(pair)) as app:
        yield app


async def ask(port: int, **options: Any) -> None:
    """A call that is answered NOT_FOUND, if it is answered."""
    async with Client(f"localhost:{port}", token=admin(), timeout=20, **options) as client:
        with pytest.raises(NotFound):
            await client.get_job("email-service/digest")


async def serial_served(port: int) -> int:
    """The serial number of the certificate that a new connection gets."""

    def greet() -> int:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        with socket.create_connection(("127.0.0.1", port)) as bare, context.wrap_socket(bare) as speaking:
            shown = speaking.getpeercert(binary_form=True)
        assert shown is not None
        return x509.load_der_x509_certificate(shown).serial_number

    return await asyncio.to_thread(greet)


async def test_calls_go_over_tls(database_urls: DatabaseUrls, authority: Authority) -> None:
    async with secured(database_urls, authority.signs("scheduler")) as app:
        await ask(app.port, tls=Tls(ca=authority.file))

        def ask_blocking() -> None:
            target = f"localhost:{app.port}"
            trusting = Tls(ca=authority.file)
            with blocking.Client(target, token=admin(), tls=trusting, timeout=20) as client, pytest.raises(NotFound):
                client.get_job("email-service/digest")

        await asyncio.to_thread(ask_blocking)


async def test_the_environment_says_whom_to_trust(
    database_urls: DatabaseUrls, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with secured(database_urls, authority.signs("scheduler")) as app:
        monkeypatch.setenv("CARILLON_TLS_CA_FILE", str(authority.file))
        await ask(app.port)


async def test_a_renewed_certificate_is_served_without_a_restart_and_a_broken_one_never(
    database_urls: DatabaseUrls, authority: Authority
) -> None:
    served = authority.signs("scheduler")
    first, second, other = served.serial, authority.signs("second"), authority.signs("other")
    async with secured(database_urls, served) as app:
        assert await serial_served(app.port) == first
        with capture_logs() as said:
            served.certificate.write_bytes(second.certificate.read_bytes())  # and the key is the first one's still
            assert [await serial_served(app.port), await serial_served(app.port)] == [first, first]
        [refusal] = [line for line in said if line["log_level"] == "error"]
        assert refusal["why"] == f"{served.key} is not the key of the first certificate in {served.certificate}"

        with capture_logs() as said:
            served.replace_with(second)
            assert await serial_served(app.port) == second.serial
            served.certificate.write_text("-----BEGIN CERTIFICATE-----\nhalf of it")
            assert await serial_served(app.port) == second.serial
            served.key.unlink()
            assert await serial_served(app.port) == second.serial
        assert [line["event"] for line in said if "certificate" in line["event"]].count("certificate renewed") == 1
        assert [
            line["why"].removeprefix(str(authority.file.parent)) for line in said if line["log_level"] == "error"
        ] == [
            "/scheduler.crt holds no certificate in PEM form",
            "/scheduler.key cannot be read: No such file or directory",
        ]
        served.replace_with(other)
        assert await serial_served(app.port) == other.serial


async def refusal_of(port: int, **options: Any) -> str:
    async with Client(f"127.0.0.1:{port}", token=admin(), timeout=20, **options) as client:
        with pytest.raises(SchedulerUnavailable) as caught:
            await client.get_job("email-service/digest")
    return caught.value.message


async def test_who_cannot_connect_reads_what_to_do(
    database_urls: DatabaseUrls, authority: Authority, tmp_path: Path
) -> None:
    stranger = Authority(tmp_path, "stranger")
    expired = authority.signs("expired", expired=True)
    elsewhere = authority.signs("elsewhere", x509.DNSName("scheduler.example"))
    trusting = Tls(ca=authority.file)
    async with AsyncExitStack() as stack:
        good = await stack.enter_async_context(secured(database_urls, authority.signs("scheduler")))
        plain = await stack.enter_async_context(scheduler(database_urls))
        old = await stack.enter_async_context(secured(database_urls, expired))
        misnamed = await stack.enter_async_context(secured(database_urls, elsewhere))
        assert "name it with Tls(ca=...) or CARILLON_TLS_CA_FILE" in await refusal_of(good.port, tls=Tls(stranger.file))
        assert "name it with Tls(ca=...)" in await refusal_of(good.port, tls=True)
        assert "has expired; renew what its" in await refusal_of(old.port, tls=trusting)
        assert "is not for the host in the target" in await refusal_of(misnamed.port, tls=trusting)
        assert "speaks plain gRPC, not TLS" in await refusal_of(plain.port, tls=trusting)
        assert "if it speaks TLS there, set tls=..." in await refusal_of(good.port)


@pytest.mark.parametrize(
    ("version", "is_served"), [(ssl.TLSVersion.TLSv1_1, False), (ssl.TLSVersion.TLSv1_2, True)], ids=["1.1", "1.2"]
)
@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1 is deprecated")
async def test_old_tls_is_refused(
    database_urls: DatabaseUrls, authority: Authority, version: ssl.TLSVersion, is_served: bool
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_ciphers("ALL:@SECLEVEL=0")  # or this side would refuse it
    context.minimum_version = context.maximum_version = version
    context.set_alpn_protocols(["h2"])

    def greet(port: int) -> bool:
        with socket.create_connection(("127.0.0.1", port)) as bare:
            try:
                context.wrap_socket(bare).close()
            except (ssl.SSLError, ConnectionError):
                return False
            return True

    async with secured(database_urls, authority.signs("scheduler")) as app:
        assert await asyncio.to_thread(greet, app.port) is is_served


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"host": "0.0.0.0"}, "CARILLON_HOST is 0.0.0.0, which others reach, and there is no TLS"),
        ({"host": "::"}, "CARILLON_HOST is ::, which others reach"),
        ({"host": "scheduler.internal"}, "CARILLON_HOST is scheduler.internal, which others reach"),
        ({"tls_certificate_file": "{good}.crt"}, "go together; set both or neither"),
        ({"tls_certificate_file": "{good}.crt", "tls_key_file": "/nowhere"}, "/nowhere cannot be read: No such file"),
        ({"tls_certificate_file": "{good}.crt", "tls_key_file": "{other}.key"}, "is not the key of the first"),
        ({"tls_certificate_file": "{good}.key", "tls_key_file": "{good}.key"}, "holds no certificate in PEM form"),
        ({"tls_certificate_file": "{good}.crt", "tls_key_file": "{good}.crt"}, "holds no private key in PEM form"),
        (
            {"tls_certificate_file": "{good}.crt", "tls_key_file": "{good}.key", "plaintext": True},
            "CARILLON_PLAINTEXT and CARILLON_TLS_CERTIFICATE_FILE are both set",
        ),
    ],
)
def test_settings_that_would_not_protect_are_refused(
    authority: Authority, settings: dict[str, Any], sentence: str
) -> None:
    pairs = {name: authority.signs(name).key.with_suffix("") for name in ("good", "other")}
    named = {key: value.format(**pairs) if isinstance(value, str) else value for key, value in settings.items()}
    with pytest.raises(SettingsError) as caught:
        read_settings(**URLS, **named)
    assert sentence in str(caught.value)


@pytest.mark.parametrize("settings", [{"host": "0.0.0.0", "plaintext": True}, {"host": "::1"}, {"host": "localhost"}])
def test_plain_grpc_is_for_loopback_and_where_it_is_named(settings: dict[str, Any]) -> None:
    read_settings(**URLS, **settings)


HERE = [
    "127.0.0.1:7007",
    "127.8.9.10:7007",
    "localhost:7007",
    "LOCALHOST.:7007",
    "[::1]:7007",
    "ipv4:127.0.0.1:7007,127.0.0.1:7008",
    "ipv6:[::1]:7007",
    "dns:localhost:7007",
    "dns:///localhost:7007",
    "unix:/run/carillon.sock",
    "unix-abstract:carillon",
]
ELSEWHERE = [
    "scheduler:7007",
    "scheduler",
    "localhost.example.com:7007",
    "10.0.0.1:7007",
    "0.0.0.0:7007",
    "127.1:7007",
    "[::]:7007",
    "ipv4:127.0.0.1:7007,10.0.0.1:7007",
    "ipv6:[2001:db8::1]:7007",
    "dns:///scheduler:7007",
    "DNS:///scheduler:7007",
    "xds:///localhost:7007",
    "ipv4:///127.0.0.1:7007",
    "scheduler:7007/localhost:7007",
    "localhost:7007/../x",
    "dns:scheduler:7007/127.0.0.1:7007",
    "dns://127.0.0.1/scheduler:7007",
    "dns://127.0.0.1:53/localhost:7007",
    "dns://[::1]:53/127.0.0.1:7007",
    "dns:///localhost:7007,scheduler:7007",
    "vsock:2:1",
    "127.0.0.1.example.com:7007",
]
# gRPC connects to the scheduler, and a hasty reader sees this machine.
TWO_FACED = [
    "127.0.0.1@scheduler:7007",
    "dns://scheduler:53/localhost:7007",
    "dns:///scheduler:7007?/127.0.0.1:1",
    "dns:///scheduler:7007#/127.0.0.1:1",
    "dns:scheduler:7007?/[::1]:7007",
    "ipv4:10.0.0.1:7007#/localhost:1",
    "dns:///scheduler%3A7007#/localhost",
    "localhost\\scheduler:7007",
]


@pytest.mark.parametrize("target", HERE)
def test_a_token_may_go_plain_to_this_machine(target: str) -> None:
    assert is_loopback(target)
    assert Connection.resolve(target, service_token="id.secret").target == target


@pytest.mark.parametrize("target", ELSEWHERE)
@pytest.mark.parametrize("credential", ["service_token", "jwt"])
def test_a_token_goes_plain_to_no_other_machine_unless_that_is_named(
    target: str, credential: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {credential: "id.secret"}
    with pytest.raises(ValueError, match=r"would go to .* unencrypted; set tls=") as caught:
        Connection.resolve(target, **given)
    assert "id.secret" not in str(caught.value)
    Connection.resolve(target, **given, plaintext=True)
    Connection.resolve(target, **given, tls=True)
    monkeypatch.setenv("CARILLON_PLAINTEXT", "true")
    Connection.resolve(target, **given)
    with pytest.raises(ValueError, match="unencrypted"):
        Connection.resolve(target, **given, plaintext=False)


@pytest.mark.parametrize("target", TWO_FACED)
def test_a_target_that_can_be_read_in_two_ways_is_refused_whatever_protects_it(target: str) -> None:
    protections: list[dict[str, Any]] = [{"plaintext": True}, {"tls": True}]
    for protection in protections:
        with pytest.raises(ValueError, match=r"the target \(CARILLON_TARGET\) cannot be used: write ") as caught:
            Connection.resolve(target, service_token="id.secret", **protection)
        assert target not in str(caught.value)


def test_without_a_token_nothing_is_told() -> None:
    assert Connection.resolve("scheduler:7007").metadata() == ()


def test_public_authorities_are_one_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CARILLON_TLS", "true")
    assert Connection.resolve("scheduler:7007", service_token="id.secret").tls is True
    monkeypatch.setenv("CARILLON_TLS", "sure")
    with pytest.raises(ValueError, match="CARILLON_TLS is 'sure'; write true or false"):
        Connection.resolve("scheduler:7007")


def test_files_that_cannot_be_used_are_named_before_anything_is_sent(authority: Authority, tmp_path: Path) -> None:
    mine, other = authority.signs("mine"), authority.signs("other")
    with pytest.raises(ValueError, match=r"mine.crt and .*other.key must be a certificate and its own key"):
        Tls(cert=mine.certificate, key=other.key).credentials()
    with pytest.raises(ValueError, match=r"mine.key holds no certificate"):
        Tls(ca=mine.key).credentials()
    with pytest.raises(FileNotFoundError):
        Tls(ca=tmp_path / "nothing.crt").credentials()


def test_the_worker_service_asks_for_tls_beyond_loopback(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CARILLON_WORKER_TOKEN", "id.secret")
    monkeypatch.setenv("CARILLON_TARGET", "scheduler:7007")
    with pytest.raises(WorkerSettingsError, match="CARILLON_TARGET is scheduler:7007, another machine, and there is"):
        load()
    monkeypatch.setenv("CARILLON_TLS", "true")
    assert load().tls_to_scheduler is True
    monkeypatch.delenv("CARILLON_TLS")
    monkeypatch.setenv("CARILLON_PLAINTEXT", "true")
    assert load().tls_to_scheduler is False
    monkeypatch.setenv("CARILLON_TLS_CA_FILE", str(authority.signs("mine").key))
    with pytest.raises(WorkerSettingsError, match=r"mine\.key holds no certificate"):
        load()
    monkeypatch.setenv("CARILLON_TLS_CA_FILE", str(authority.file))
    assert load().tls_to_scheduler == Tls(ca=authority.file)


def test_a_key_stands_in_no_repr(authority: Authority) -> None:
    pair = authority.signs("mine")
    pems = TlsFiles(pair.certificate, pair.key).read()
    assert "PRIVATE" in pems.key.decode()
    assert "PRIVATE" not in repr(pems)
