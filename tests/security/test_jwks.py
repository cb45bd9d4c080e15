"""The keys of JWTs against a real key server: rotation, floods, outages, slowness and lies."""

from __future__ import annotations

import asyncio
import datetime
import json
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from structlog.testing import capture_logs

from scheduler_service.domain.credentials import JwtRules
from scheduler_service.domain.errors import Unauthenticated, Unavailable
from scheduler_service.identity import jwks as fetching
from scheduler_service.identity.jwks import Jwks
from scheduler_service.identity.jwts import JwtVerifier
from tests.jwts import jwk, key_set, private_key, signed
from tests.security.key_server import KeyServer, key_server

PATIENCE = 60.0
OLD = private_key("ES256")
NEW = private_key("EdDSA")
STRANGER = private_key("ES256", 9)


@dataclass
class Clock:
    """A monotonic clock, which tests step."""

    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
async def server() -> AsyncIterator[KeyServer]:
    async with key_server() as server:
        server.serve(jwk(OLD, "old"))
        yield server


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def jwks(server: KeyServer, clock: Clock) -> AsyncIterator[Jwks]:
    jwks = Jwks(server.url, patience=PATIENCE, clock=clock)
    yield jwks
    await jwks.stop()


@pytest.fixture
def verifier(jwks: Jwks) -> JwtVerifier:
    return JwtVerifier(JwtRules(), jwks)


def by(key: Any, kid: str | None, algorithm: str = "ES256") -> str:
    return signed(key, algorithm, kid, role="admin")


async def is_taken(verifier: JwtVerifier, token: str) -> bool:
    try:
        return (await verifier.principal(token)).is_admin
    except Unauthenticated:
        return False


async def until(condition: Any) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110  # nothing announces it
            await asyncio.sleep(0.005)


async def test_keys_are_fetched_when_it_starts_and_again_and_again(server: KeyServer) -> None:
    jwks = Jwks(server.url, refresh=0.01)
    jwks.start()
    try:
        await until(lambda: server.asked >= 3)
        assert jwks.age is not None
    finally:
        await jwks.stop()


async def test_a_key_that_is_added_counts_with_the_first_jwt_that_names_it(
    server: KeyServer, verifier: JwtVerifier, clock: Clock
) -> None:
    assert await is_taken(verifier, by(OLD, "old"))
    server.serve(jwk(OLD, "old"), jwk(NEW, "new"))
    clock.now += 10
    assert await is_taken(verifier, by(NEW, "new", "EdDSA"))
    assert await is_taken(verifier, by(OLD, "old"))
    assert server.asked == 2


async def test_a_key_that_is_removed_counts_until_the_next_refresh(
    server: KeyServer, jwks: Jwks, verifier: JwtVerifier
) -> None:
    assert await is_taken(verifier, by(OLD, "old"))
    server.serve(jwk(NEW, "new"))
    assert await is_taken(verifier, by(OLD, "old"))
    await jwks.refresh()
    assert not await is_taken(verifier, by(OLD, "old"))


async def test_a_key_of_the_same_id_takes_the_others_place(
    server: KeyServer, jwks: Jwks, verifier: JwtVerifier
) -> None:
    assert await is_taken(verifier, by(OLD, "old"))
    server.serve(jwk(STRANGER, "old"))
    await jwks.refresh()
    assert not await is_taken(verifier, by(OLD, "old"))
    assert await is_taken(verifier, by(STRANGER, "old"))


async def test_a_flood_of_unknown_keys_costs_one_fetch(server: KeyServer, verifier: JwtVerifier, clock: Clock) -> None:
    assert await is_taken(verifier, by(OLD, "old"))
    for _ in range(3):
        clock.now += 10
        flood = [is_taken(verifier, by(STRANGER, f"unknown-{number}")) for number in range(300)]
        assert not any(await asyncio.gather(*flood))
        clock.now += 9
        assert not any([await is_taken(verifier, by(STRANGER, f"again-{number}")) for number in range(100)])
    assert server.asked == 4


async def test_known_keys_do_not_wait_for_the_fetch_that_a_flood_causes(
    server: KeyServer, verifier: JwtVerifier, clock: Clock
) -> None:
    assert await is_taken(verifier, by(OLD, "old"))
    server.gate.clear()
    clock.now += 10
    flood = asyncio.create_task(is_taken(verifier, by(STRANGER, "unknown")))
    await until(lambda: server.asked == 2)
    assert await is_taken(verifier, by(OLD, "old"))
    assert not flood.done()
    server.gate.set()
    assert not await flood


async def test_calls_do_not_wait_longer_than_their_patience(server: KeyServer, clock: Clock) -> None:
    server.gate.clear()
    jwks = Jwks(server.url, patience=0.05, clock=clock)
    with pytest.raises(Unavailable):
        await JwtVerifier(JwtRules(), jwks).principal(by(OLD, "old"))
    await jwks.stop()


async def test_a_replica_that_never_had_keys_says_that_it_cannot_know(server: KeyServer, verifier: JwtVerifier) -> None:
    server.say(b"", 503)
    with pytest.raises(Unavailable) as refused:
        await verifier.principal(by(OLD, "old"))
    assert refused.value.retry_after > 0
    server.serve(jwk(OLD, "old"))


async def test_it_asks_again_soon_while_it_has_no_keys(server: KeyServer, verifier: JwtVerifier, clock: Clock) -> None:
    server.say(b"", 503)
    for _ in range(3):
        with pytest.raises(Unavailable):
            await verifier.principal(by(OLD, "old"))
    assert server.asked == 1
    server.serve(jwk(OLD, "old"))
    clock.now += 1
    assert await is_taken(verifier, by(OLD, "old"))


async def test_the_last_good_keys_go_on_while_the_server_is_away_until_they_are_too_old(clock: Clock) -> None:
    async with key_server() as server:
        server.serve(jwk(OLD, "old"))
        jwks = Jwks(server.url, max_age=3600, patience=PATIENCE, clock=clock)
        verifier = JwtVerifier(JwtRules(), jwks)
        assert await is_taken(verifier, by(OLD, "old"))
    with capture_logs() as logs:
        await jwks.refresh()
        await jwks.refresh()
    assert [entry["log_level"] for entry in logs] == ["error"]
    assert jwks.failures == 2
    clock.now += 3599
    assert await is_taken(verifier, by(OLD, "old"))
    with pytest.raises(Unavailable):
        await verifier.principal(by(NEW, "new", "EdDSA"))
    clock.now += 1
    with pytest.raises(Unavailable):
        await verifier.principal(by(OLD, "old"))
    await jwks.stop()


async def _truncated(request: web.BaseRequest) -> web.StreamResponse:
    response = web.StreamResponse(headers={"content-length": "5000"})
    await response.prepare(request)
    await response.write(b'{"keys": [')
    assert request.transport is not None
    request.transport.close()
    return response


async def _endless(request: web.BaseRequest) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    try:
        while True:
            await response.write(b" " * 65_536)
    except OSError:
        return response


@pytest.mark.parametrize(
    "lie",
    [
        b"<!doctype html><title>Sign in</title>",
        key_set(jwk(NEW, "new"))[:-10],
        b'{"keys": []}',
        b'{"keys": "old"}',
        b'{"keys": [{"kty": "oct", "k": "c2VjcmV0", "kid": "old"}]}',
        b'{"keys": [{"kty": "EC", "kid": "old"}]}',
        b'{"keys": [NaN]}',
        key_set(*({"kty": "OKP", "kid": str(number)} for number in range(10_000))),
        b" " * (1024 * 1024) + key_set(jwk(NEW, "new")),
        b"\x1f\x8b\x08\x00",
    ],
    ids=lambda lie: str(lie[:9]),
)
async def test_a_lying_answer_takes_no_keys_place(
    server: KeyServer, jwks: Jwks, verifier: JwtVerifier, lie: bytes
) -> None:
    assert await is_taken(verifier, by(OLD, "old"))
    server.say(lie)
    await jwks.refresh()
    assert jwks.failures == 1
    assert await is_taken(verifier, by(OLD, "old"))


@pytest.mark.parametrize("status", [201, 204, 304, 400, 401, 404, 429, 500, 503])
async def test_only_an_ok_counts(server: KeyServer, jwks: Jwks, verifier: JwtVerifier, status: int) -> None:
    assert await is_taken(verifier, by(OLD, "old"))
    server.say(b"" if status in (204, 304) else key_set(jwk(NEW, "new")), status)
    await jwks.refresh()
    assert jwks.failures == 1
    assert await is_taken(verifier, by(OLD, "old"))


@pytest.mark.parametrize("behaviour", [_truncated, _endless])
async def test_an_answer_without_its_end_takes_no_keys_place(
    server: KeyServer, jwks: Jwks, verifier: JwtVerifier, behaviour: Any
) -> None:
    assert await is_taken(verifier, by(OLD, "old"))
    server.behave(behaviour)
    await jwks.refresh()
    assert jwks.failures == 1
    assert await is_taken(verifier, by(OLD, "old"))


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_not_followed(server: KeyServer, jwks: Jwks, status: int) -> None:
    server.say(b"", status, location="/elsewhere")
    await jwks.refresh()
    assert (jwks.failures, server.elsewhere) == (1, 0)


async def test_a_server_that_drips_is_left_in_time(
    server: KeyServer, jwks: Jwks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetching, "_FETCH_SECONDS", 0.1)

    async def drip(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        try:
            while True:
                await response.write(b" ")
                await asyncio.sleep(0.01)
        except OSError:
            return response

    server.behave(drip)
    async with asyncio.timeout(PATIENCE):
        await jwks.refresh()
    assert jwks.failures == 1


async def test_no_proxy_and_no_credentials_of_the_environment_are_used(
    server: KeyServer, jwks: Jwks, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login a password b\n")
    monkeypatch.setenv("NETRC", str(netrc))
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9/")
    await jwks.refresh()
    assert (jwks.failures, server.asked) == (0, 1)
    assert "Authorization" not in server.headers


async def test_keys_that_do_not_count_are_told_once(server: KeyServer, jwks: Jwks) -> None:
    server.serve(jwk(OLD, "old"), {"kty": "oct", "k": "c2VjcmV0", "kid": "shared"})
    with capture_logs() as logs:
        await jwks.refresh()
        await jwks.refresh()
    [warning] = logs
    assert warning["log_level"] == "warning"
    assert "symmetric" in warning["key"]
    assert "c2VjcmV0" not in json.dumps(warning)


async def test_a_jwt_without_a_key_id_needs_a_set_with_one_key_that_fits(
    server: KeyServer, jwks: Jwks, verifier: JwtVerifier
) -> None:
    assert await is_taken(verifier, by(OLD, None))
    server.serve(jwk(OLD, "old"), jwk(STRANGER, "other"))
    await jwks.refresh()
    assert not await is_taken(verifier, by(OLD, None))


def _certificate(folder: Path, *names: x509.GeneralName) -> tuple[Path, Path]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "tests")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    (folder / "tls.crt").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (folder / "tls.key").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return folder / "tls.crt", folder / "tls.key"


@pytest.mark.parametrize(
    ("name", "is_trusted", "failures"),
    [(x509.DNSName("localhost"), True, 0), (x509.DNSName("localhost"), False, 1), (x509.DNSName("b.example"), True, 1)],
    ids=["good", "unknown issuer", "another name"],
)
async def test_the_servers_certificate_is_verified(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: x509.GeneralName, is_trusted: bool, failures: int
) -> None:
    certificate, key = _certificate(tmp_path, name, x509.IPAddress(IPv4Address("127.0.0.2")))
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(certificate, key)
    if is_trusted:
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    async with key_server(tls) as server:
        server.serve(jwk(OLD, "old"))
        jwks = Jwks(server.url)
        await jwks.refresh()
        assert jwks.failures == failures
        await jwks.stop()
