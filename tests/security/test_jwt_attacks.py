"""The attacks on JWTs that are publicly known, each with the key that it would need to succeed elsewhere.

Sources: RFC 8725, and the reports on alg confusion (CVE-2015-9235), embedded keys (CVE-2018-0114), the all-zero ECDSA
signature (CVE-2022-21449) and unknown critical headers (CVE-2025-59420).
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import AsyncIterator, Mapping
from functools import partial
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from hypothesis import given
from hypothesis import strategies as st

from scheduler_service.domain.credentials import JwtRules
from scheduler_service.domain.errors import Unauthenticated
from scheduler_service.identity.jwts import JwtVerifier
from tests.jwts import SECRET, FixedKeys, base64url, claims, forged, jwk, private_key, signed
from tests.security.key_server import KeyServer, key_server

RSA, EC, ED = (private_key(algorithm) for algorithm in ("RS256", "ES256", "EdDSA"))
ATTACKERS = private_key("RS256", 66)
P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
VERIFIER = JwtVerifier(JwtRules(), FixedKeys(jwk(RSA, "rsa"), jwk(EC, "ec"), jwk(ED, "ed")))
ADMIN = {"role": "admin"}


async def is_refused(token: str, verifier: JwtVerifier = VERIFIER) -> str:
    """The refusal, which repeats nothing of the token."""
    with pytest.raises(Unauthenticated) as refused:
        await verifier.principal(token)
    assert refused.value.reason == "CREDENTIALS_INVALID"
    assert len(token) < 20 or token not in refused.value.message
    assert len(refused.value.message) < 400
    return refused.value.message


def admin(header: Mapping[str, Any] | bytes, signature: bytes = b"", **said: Any) -> str:
    return forged(header, claims(**ADMIN, **said), lambda _: signature)


def by_attacker(header: Mapping[str, Any]) -> str:
    """Signed with a key of the attacker's own."""
    assert isinstance(ATTACKERS, rsa.RSAPrivateKey)
    key = ATTACKERS
    return forged(header, claims(**ADMIN), lambda content: key.sign(content, padding.PKCS1v15(), hashes.SHA256()))


def pem(key: Any, form: serialization.PublicFormat = serialization.PublicFormat.SubjectPublicKeyInfo) -> bytes:
    made: bytes = key.public_key().public_bytes(serialization.Encoding.PEM, form)
    return made


async def test_what_the_attacks_start_from_is_good() -> None:
    for key, algorithm, kid in ((RSA, "RS256", "rsa"), (EC, "ES256", "ec"), (ED, "EdDSA", "ed")):
        assert (await VERIFIER.principal(signed(key, algorithm, kid, **ADMIN))).is_admin
    assert (await VERIFIER.principal(GOOD)).is_admin


@pytest.mark.parametrize(
    "algorithm", ["none", "None", "NONE", "nOnE", "", None, " none", "none\0", ["none"], {}, 0, False]
)
@pytest.mark.parametrize("kid", ["rsa", None])
async def test_no_algorithm(algorithm: object, kid: str | None) -> None:
    for signature in (b"", b"\0"):
        await is_refused(admin({"alg": algorithm} | ({"kid": kid} if kid else {}), signature))
    content = f"{base64url(json.dumps({'alg': algorithm}).encode())}.{base64url(json.dumps(claims(**ADMIN)).encode())}"
    for token in (content, f"{content}.", f"{content}..", f".{content}."):
        await is_refused(token)


@pytest.mark.parametrize("algorithm", ["HS256", "HS384", "HS512"])
async def test_the_public_key_as_a_shared_secret(algorithm: str) -> None:
    spellings = [
        pem(RSA),
        pem(RSA).strip(),
        pem(RSA, serialization.PublicFormat.PKCS1),
        json.dumps(jwk(RSA, "rsa")).encode(),
        str(jwk(RSA)["n"]).encode(),
        pem(EC),
        pem(ED),
    ]
    digest = {"HS256": hashlib.sha256, "HS384": hashlib.sha384, "HS512": hashlib.sha512}[algorithm]
    for secret in spellings:
        for kid in ("rsa", "ec", "ed"):
            header = {"alg": algorithm, "typ": "JWT", "kid": kid}
            token = forged(header, claims(**ADMIN), partial(hmac.digest, secret, digest=digest))
            await is_refused(token)


@pytest.mark.parametrize(
    ("named", "kid"), [("ES256", "rsa"), ("EdDSA", "rsa"), ("RS256", "ec"), ("RS256", "ed"), ("ES256", "ed")]
)
async def test_another_algorithm_than_the_keys(named: str, kid: str) -> None:
    assert "its algorithm is not its key's" in await is_refused(signed(private_key(named), named, kid, **ADMIN))


@pytest.mark.parametrize(
    "algorithm", ["RS384", "RS512", "PS256", "ES384", "ES512", "ES256K", "Ed448", "rs256", "RS256 ", "\uff32S256"]
)
async def test_algorithms_that_are_not_accepted_cost_no_key(algorithm: str) -> None:
    assert "its algorithm is none of" in await is_refused(by_attacker({"alg": algorithm, "kid": "rsa"}))


async def test_the_same_family_with_another_hash() -> None:
    assert isinstance(RSA, rsa.RSAPrivateKey)
    key = RSA
    for named in ("RS256", "RS512"):
        header = {"alg": named, "kid": "rsa"}
        await is_refused(forged(header, claims(**ADMIN), lambda c: key.sign(c, padding.PKCS1v15(), hashes.SHA512())))


@pytest.mark.parametrize(
    "kid",
    [
        "../../../../dev/null",
        "/dev/null",
        "/proc/sys/kernel/randomize_va_space",
        "rsa' OR '1'='1",
        "x' UNION SELECT 'key' --",
        "rsa\0",
        "rsa ",
        "RSA",
        "rsa\n",
        "|whoami",
        "${jndi:ldap://a.example/x}",
        "http://a.example/key",
        "\ud800",
        "rsа",  # noqa: RUF001  # with a Cyrillic letter
        "x" * 5000,
        "",
        None,
        7,
        True,
        ["rsa"],
        {"kid": "rsa"},
    ],
    ids=lambda kid: ascii(kid)[:20],
)
async def test_a_key_id_is_a_name_and_nothing_else(kid: object) -> None:
    header = {"alg": "RS256", "kid": kid}
    await is_refused(by_attacker(header))
    for secret in (b"", b"\0", b"key", b"2"):
        secretly = {**header, "alg": "HS256"}
        token = forged(secretly, claims(**ADMIN), partial(hmac.digest, secret, digest=hashlib.sha256))
        await is_refused(token)


@pytest.fixture
async def attackers_server() -> AsyncIterator[KeyServer]:
    async with key_server() as server:
        server.serve(jwk(ATTACKERS, "rsa"), jwk(ATTACKERS, "attacker"))
        yield server


@pytest.mark.parametrize("kid", ["rsa", "attacker", None])
async def test_keys_and_addresses_of_keys_inside_a_jwt_are_not_looked_at(
    attackers_server: KeyServer, kid: str | None
) -> None:
    own = jwk(ATTACKERS, "attacker")
    for extra in (
        {"jwk": own},
        {"jku": attackers_server.url},
        {"x5u": attackers_server.url},
        {"x5c": ["MIIB"]},
        {"jwks": [own], "jku": attackers_server.url, "x5t": "abc", "jwk": own},
    ):
        await is_refused(by_attacker({"alg": "RS256", **({"kid": kid} if kid else {}), **extra}))
    assert attackers_server.asked == 0


async def test_a_good_jwt_may_name_its_certificate() -> None:
    assert isinstance(RSA, rsa.RSAPrivateKey)
    key = RSA
    header = {"alg": "RS256", "kid": "rsa", "x5t": "abc", "x5u": "http://127.0.0.1:9/", "cty": "JWT"}
    token = forged(header, claims(**ADMIN), lambda content: key.sign(content, padding.PKCS1v15(), hashes.SHA256()))
    assert (await VERIFIER.principal(token)).is_admin


@pytest.mark.parametrize(
    ("r", "s"),
    [(0, 0), (0, 1), (1, 0), (P256_ORDER, P256_ORDER), (P256_ORDER, 0), (2**256 - 1, 2**256 - 1)],
)
async def test_psychic_signatures(r: int, s: int) -> None:
    signature = r.to_bytes(32, "big") + s.to_bytes(32, "big")
    await is_refused(admin({"alg": "ES256", "kid": "ec"}, signature))
    await is_refused(admin({"alg": "ES256", "kid": "ec"}, b"0\x06\x02\x01\0\x02\x01\0"))


@pytest.mark.parametrize("length", [0, 1, 63, 65, 128, 4000])
async def test_signatures_of_another_length(length: int) -> None:
    for algorithm, kid in (("RS256", "rsa"), ("ES256", "ec"), ("EdDSA", "ed")):
        for byte in (b"\0", b"\xff"):
            await is_refused(admin({"alg": algorithm, "kid": kid}, byte * length))


async def test_an_ecdsa_signature_in_another_encoding() -> None:
    assert isinstance(EC, ec.EllipticCurvePrivateKey)
    key = EC
    header = {"alg": "ES256", "kid": "ec"}
    await is_refused(forged(header, claims(**ADMIN), lambda content: key.sign(content, ec.ECDSA(hashes.SHA256()))))

    def padded(content: bytes) -> bytes:
        r, s = decode_dss_signature(key.sign(content, ec.ECDSA(hashes.SHA256())))
        return r.to_bytes(33, "big") + s.to_bytes(33, "big")

    await is_refused(forged(header, claims(**ADMIN), padded))


async def test_an_ed25519_signature_with_a_longer_scalar() -> None:
    """S must be below the group's order (RFC 8032, 5.1.7)."""
    assert isinstance(ED, ed25519.Ed25519PrivateKey)
    key = ED
    order = 2**252 + 27742317777372353535851937790883648493

    def longer(content: bytes) -> bytes:
        signature = key.sign(content)
        return signature[:32] + (int.from_bytes(signature[32:], "little") + order).to_bytes(32, "little")

    await is_refused(forged({"alg": "EdDSA", "kid": "ed"}, claims(**ADMIN), longer))


# Good for as long as a test process may run: were it expired, none of its changes would be tried.
GOOD = signed(ED, "EdDSA", "ed", exp=claims()["iat"] + 80_000, **ADMIN)
HEADER, PAYLOAD, SIGNATURE = GOOD.split(".")


@pytest.mark.parametrize(
    "token",
    [
        f"{GOOD}=",
        f"{GOOD}==",
        f"{HEADER}=.{PAYLOAD}.{SIGNATURE}",
        f"{HEADER}.{PAYLOAD}==.{SIGNATURE}",
        f"{GOOD} ",
        f" {GOOD}",
        f"{GOOD}\n",
        f"{HEADER}.\t{PAYLOAD}.{SIGNATURE}",
        f"{HEADER}..{PAYLOAD}.{SIGNATURE}",
        f"{HEADER}.{PAYLOAD}..{SIGNATURE}",
        f"{GOOD}.",
        f".{GOOD}",
        f"{GOOD}.{SIGNATURE}",
        f"{HEADER}.{PAYLOAD}.{SIGNATURE}.{PAYLOAD}.{SIGNATURE}",
        f"{HEADER}.{PAYLOAD}",
        f"{HEADER}.{PAYLOAD}.",
        f"{HEADER}..{SIGNATURE}",
        f".{PAYLOAD}.{SIGNATURE}",
        f"{HEADER}.{PAYLOAD}.{SIGNATURE[:-1]}",
        f"{HEADER}.{PAYLOAD}.{SIGNATURE}A",
        f"{HEADER}．{PAYLOAD}．{SIGNATURE}",  # noqa: RUF001  # full-width dots
        f"{HEADER}.{PAYLOAD}.{SIGNATURE[:-1]}é",
        f"{HEADER}.{PAYLOAD}.{SIGNATURE}\u200b",
        f"{HEADER}.{PAYLOAD}.{SIGNATURE}\0",
        GOOD.replace(".", "%2e"),
        f"Bearer {GOOD}",
        json.dumps({"protected": HEADER, "payload": PAYLOAD, "signature": SIGNATURE}),
        "",
        ".",
        "..",
        "...",
    ],
)
async def test_there_is_one_spelling_of_a_jwt(token: str) -> None:
    await is_refused(token)


async def test_the_unused_bits_of_base64_say_nothing() -> None:
    """The last character of 64 bytes has four bits that mean nothing; only zeros are taken."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    last = alphabet.index(SIGNATURE[-1])
    for other in range(last + 1, last + 16):
        await is_refused(f"{HEADER}.{PAYLOAD}.{SIGNATURE[:-1]}{alphabet[other]}")


async def test_a_part_of_another_jwt() -> None:
    header, payload, signature = signed(ED, "EdDSA", "ed", sub="bob", role="admin", tenant="acme").split(".")
    for token in (
        f"{HEADER}.{payload}.{SIGNATURE}",
        f"{HEADER}.{PAYLOAD}.{signature}",
        f"{header}.{PAYLOAD}.{signature}",
    ):
        await is_refused(token)


async def test_an_unencoded_payload() -> None:
    """RFC 7797, whose `b64` must be understood."""
    payload = json.dumps(claims(**ADMIN)).encode()
    for header in ({"alg": "HS256", "b64": False, "crit": ["b64"]}, {"alg": "HS256", "b64": False}):
        head = base64url(json.dumps(header).encode())
        signature = base64url(hmac.digest(SECRET.encode(), f"{head}.".encode() + payload, hashlib.sha256))
        verifier = JwtVerifier(JwtRules(secret=SECRET))
        await is_refused(f"{head}..{signature}", verifier)
        await is_refused(f"{head}.{base64url(payload)}.{signature}", verifier)


async def test_a_jwt_inside_a_jwt() -> None:
    assert isinstance(ED, ed25519.Ed25519PrivateKey)
    header = {"alg": "EdDSA", "kid": "ed", "cty": "JWT"}
    for inside in (GOOD.encode(), json.dumps(GOOD).encode()):
        await is_refused(forged(header, inside, ED.sign))


@pytest.mark.parametrize(
    "secret", [b"", b"secret", b"carillon", SECRET[:-1].encode(), SECRET.encode() + b"x", SECRET.upper().encode()]
)
async def test_other_secrets_for_development(secret: bytes) -> None:
    token = forged({"alg": "HS256"}, claims(**ADMIN), partial(hmac.digest, secret, digest=hashlib.sha256))
    await is_refused(token, JwtVerifier(JwtRules(secret=SECRET)))


async def test_with_the_secret_for_development_no_other_algorithm_counts() -> None:
    verifier = JwtVerifier(JwtRules(secret=SECRET))
    for digest, algorithm in ((hashlib.sha384, "HS384"), (hashlib.sha512, "HS512")):
        await is_refused(
            forged({"alg": algorithm}, claims(**ADMIN), partial(hmac.digest, SECRET.encode(), digest=digest)),
            verifier,
        )
    await is_refused(GOOD, verifier)
    await is_refused(admin({"alg": "none"}), verifier)


@given(place=st.integers(0, len(GOOD) - 1), character=st.characters())
async def test_any_changed_character(place: int, character: str) -> None:
    if GOOD[place] != character:
        await is_refused(GOOD[:place] + character + GOOD[place + 1 :])


@given(st.text() | st.from_regex(r"[A-Za-z0-9_-]*\.[A-Za-z0-9_-]*\.[A-Za-z0-9_-]*", fullmatch=True))
async def test_any_text(token: str) -> None:
    await is_refused(token)


@given(
    header=st.dictionaries(
        st.sampled_from(["alg", "kid", "typ", "crit", "b64", "jwk", "jku", "cty", "zip", "enc"]),
        st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.text()),
    ),
    signature=st.binary(max_size=300),
)
async def test_any_header(header: dict[str, Any], signature: bytes) -> None:
    for known in ({}, {"alg": "RS256", "kid": "rsa"}, {"alg": "ES256", "kid": "ec"}, {"alg": "EdDSA", "kid": "ed"}):
        await is_refused(forged({**header, **known}, claims(**ADMIN), lambda _: signature))


async def test_the_attackers_jwt_would_be_good_with_its_key_in_the_set() -> None:
    verifier = JwtVerifier(JwtRules(), FixedKeys(jwk(ATTACKERS, "rsa")))
    assert (await verifier.principal(by_attacker({"alg": "RS256", "kid": "rsa"}))).is_admin
