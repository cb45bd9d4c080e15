"""Which JWTs are taken, and for whom."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import pytest

from scheduler_service.domain.access import Kind, Principal
from scheduler_service.domain.credentials import JwtRules
from scheduler_service.domain.errors import Unauthenticated
from scheduler_service.domain.jwts import check_jwks_url, claim_path
from scheduler_service.domain.user import Role, User
from scheduler_service.identity.jwts import JwtVerifier
from tests.jwts import SECRET, FixedKeys, claims, forged, jwk, private_key, signed

HEADER = {"alg": "HS256", "typ": "JWT"}


def now() -> int:
    return int(datetime.now(UTC).timestamp())


def at(offsets: Mapping[str, float]) -> dict[str, float]:
    """Claims that are so many seconds from now."""
    moment = now()
    return {claim: moment + seconds for claim, seconds in offsets.items()}


def with_secret(content: bytes) -> bytes:
    return hmac.digest(SECRET.encode(), content, hashlib.sha256)


def token(header: Mapping[str, Any] | bytes = HEADER, /, **said: Any) -> str:
    return forged(header, claims(**said), with_secret)


def with_payload(payload: bytes) -> str:
    return forged(HEADER, payload, with_secret)


async def principal(sent: str, **rules: Any) -> Principal:
    return await JwtVerifier(JwtRules(secret=SECRET, **rules)).principal(sent)


async def refusal(sent: str, **rules: Any) -> str:
    with pytest.raises(Unauthenticated) as refused:
        await principal(sent, **rules)
    assert refused.value.reason == "CREDENTIALS_INVALID"
    assert sent not in refused.value.message
    assert len(refused.value.message) < 400
    return refused.value.message


async def test_a_jwt_with_the_role_is_an_admin() -> None:
    assert await principal(token(role="admin")) == Principal(Kind.ADMIN, name="alice")


async def test_a_jwt_with_a_tenant_is_a_user() -> None:
    assert await principal(token(tenant="acme")) == Principal(Kind.USER, name="alice", tenant="acme")


async def test_a_jwt_counts_until_its_expiry_and_the_leeway() -> None:
    exp = now() + 100.5
    expires_at = (await principal(token(exp=exp))).expires_at
    assert expires_at is not None
    assert expires_at.timestamp() == exp + 10


@pytest.mark.parametrize("algorithm", ["RS256", "ES256", "EdDSA"])
async def test_keys_of_a_set_verify(algorithm: str) -> None:
    key = private_key(algorithm)
    verifier = JwtVerifier(JwtRules(), FixedKeys(jwk(key, "k1")))
    assert (await verifier.principal(signed(key, algorithm, "k1", role="admin"))).is_admin
    with pytest.raises(Unauthenticated, match="signature does not hold"):
        await verifier.principal(signed(private_key(algorithm, 1), algorithm, "k1", role="admin"))


@pytest.mark.parametrize("role", ["admin", ["viewer", "admin"]])
async def test_the_role_may_stand_alone_or_in_a_list(role: object) -> None:
    assert (await principal(token(role=role))).is_admin


@pytest.mark.parametrize(
    "role", ["Admin", "admin ", "xadmin", {"admin": True}, True, 1, [], [["admin"]], "viewer,admin"]
)
async def test_anything_else_is_no_admin(role: object) -> None:
    assert not (await principal(token(role=role, tenant="acme"))).is_admin


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("metadata.role", {"metadata": {"role": "admin"}}),
        ("https://example.com/roles", {"https://example.com/roles": ["admin"]}),
        (r"example\.com/roles", {"example.com/roles": ["admin"]}),
        (r"a\.b.c", {"a.b": {"c": "admin"}}),
        ("realm_access.roles", {"realm_access": {"roles": ["offline", "admin"]}}),
    ],
)
async def test_claims_are_found_by_path(path: str, said: Mapping[str, Any]) -> None:
    assert (await principal(token(**said), role_claim=path)).is_admin


@pytest.mark.parametrize(
    "said", [{"metadata": "admin"}, {"metadata.role": "admin"}, {"metadata": ["role", "admin"]}, {"role": "admin"}]
)
async def test_what_lies_elsewhere_is_no_role(said: Mapping[str, Any]) -> None:
    assert not (await principal(token(**said), role_claim="metadata.role")).is_admin


@pytest.mark.parametrize("path", ["", ".", "a..b", ".a", "a."])
def test_a_path_without_a_name_is_refused(path: str) -> None:
    with pytest.raises(ValueError, match="empty name"):
        claim_path(path)


@pytest.mark.parametrize(
    ("said", "rules"),
    [
        ({"org_id": "org_2abc", "org_role": "org:admin"}, {"tenant_claim": "org_id"}),
        ({"v": 2, "o": {"id": "org_2abc", "rol": "admin", "slg": "acme"}}, {"tenant_claim": "o.id"}),
    ],
)
async def test_an_organizations_admin_is_no_admin_of_the_deployment(
    said: Mapping[str, Any], rules: Mapping[str, str]
) -> None:
    user = await principal(token(**said), role_claim="metadata.role", **rules)
    assert user == Principal(Kind.USER, name="alice", tenant="org_2abc")


@pytest.mark.parametrize("nothing", [None, ""])
async def test_a_jwt_with_neither_role_nor_tenant_is_a_user_of_none(nothing: str | None) -> None:
    assert await principal(token(tenant=nothing)) == Principal(Kind.USER, name="alice")


@pytest.mark.parametrize(
    "tenant", ["-", "*", "a b", "a/b", "../x", "x" * 129, "ä", "a\n", "a\0b", "\ud800", 7, ["a"], {}]
)
async def test_a_tenant_that_cannot_be_one_is_refused(tenant: object) -> None:
    assert "its claim tenant" in await refusal(token(tenant=tenant))


@pytest.mark.parametrize("subject", ["a\0b", "\ud800", "", "x" * 256, 7, ["a"], {"a": 1}, True])
async def test_a_subject_that_cannot_be_kept_is_refused(subject: object) -> None:
    assert "`sub`" in await refusal(token(sub=subject, role="admin"))


@pytest.mark.parametrize(
    "subject",
    [
        "alice\n",
        " alice",
        "alice ",
        " ",
        "a\x1b[2Jb",
        "ali\u202ece",
        "ali\u200bce",
        "a\u00a0b",
        "a\x7f",
        "a\u2028b",
        "\ufeffa",
    ],
)
async def test_a_subject_that_is_not_all_to_be_seen_is_refused(subject: str) -> None:
    assert "cannot be seen" in await refusal(token(sub=subject, role="admin"))


@pytest.mark.parametrize("subject", ["auth0|alice", "alice@example.com", "Ünal Ço", "李", "a b"])
async def test_a_subject_may_be_any_text_that_is_seen(subject: str) -> None:
    assert (await principal(token(sub=subject, role="admin"))).name == subject


@pytest.mark.parametrize("claim", ["exp", "iat", "iss", "aud", "sub"])
async def test_each_claim_that_must_be_there_is_missed(claim: str) -> None:
    assert "it lacks one of" in await refusal(token(role="admin", **{claim: None}))
    null = json.dumps(claims(role="admin") | {claim: None}).encode()
    assert "it lacks one of" in await refusal(with_payload(null))


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        ({"iat": -900, "exp": -60}, "has expired"),
        ({"iat": 60}, "in the future"),
        ({"nbf": 60}, "in the future"),
        ({"exp": 86_500}, "CARILLON_JWT_MAX_LIFETIME_SECONDS"),
        ({"iat": -86_300}, "CARILLON_JWT_MAX_LIFETIME_SECONDS"),
        ({"iat": 5, "exp": 5}, "CARILLON_JWT_MAX_LIFETIME_SECONDS"),
        ({"exp": 5, "iat": 9}, "CARILLON_JWT_MAX_LIFETIME_SECONDS"),
    ],
)
async def test_times_that_a_jwt_may_not_have(said: Mapping[str, float], sentence: str) -> None:
    assert sentence in await refusal(token(role="admin", **at(said)))


@pytest.mark.parametrize("said", [{"iat": -200, "exp": -5}, {"iat": 5}, {"nbf": 5}])
async def test_clocks_may_be_ten_seconds_apart(said: Mapping[str, float]) -> None:
    assert (await principal(token(role="admin", **at(said)))).is_admin


async def test_times_may_have_fractions() -> None:
    assert (await principal(token(role="admin", **at({"iat": -0.25, "nbf": -0.5, "exp": 299.75})))).is_admin


@pytest.mark.parametrize("claim", ["exp", "iat", "nbf"])
@pytest.mark.parametrize(
    "time",
    ["4000000000", True, False, [4_000_000_000], {}, -1, 10**20, 10**400, 253_402_300_800],
    ids=lambda value: str(value)[:20],
)
async def test_a_time_that_is_no_number_of_seconds_is_refused(claim: str, time: object) -> None:
    await refusal(token(role="admin", **{claim: time}))


@pytest.mark.parametrize("claim", ["exp", "iat", "nbf"])
@pytest.mark.parametrize("time", [b"NaN", b"Infinity", b"-Infinity", b"1e999", b"null", b"9" * 5000])
async def test_a_time_that_is_no_json_number_is_refused(claim: str, time: bytes) -> None:
    payload = json.dumps(claims(role="admin") | {claim: 424242}).encode().replace(b"424242", time)
    await refusal(with_payload(payload))


@pytest.mark.parametrize("claim", ["exp", "iat", "nbf"])
@pytest.mark.parametrize("looks", [True, "now"])
async def test_what_only_looks_like_a_time_is_told(claim: str, looks: object) -> None:
    time = str(now() + (300 if claim == "exp" else 0)) if looks == "now" or claim == "exp" else looks
    assert f"its `{claim}` must be a number" in await refusal(token(role="admin", **{claim: time}))


@pytest.mark.parametrize("audience", ["carillon", ["carillon"], ["other", "carillon"]])
async def test_the_audience_may_stand_in_a_list(audience: object) -> None:
    assert (await principal(token(role="admin", aud=audience))).is_admin


@pytest.mark.parametrize(
    "audience", ["other", ["other"], [], "", "carillon2", ["carillon", 7], {"carillon": 1}, 7, True]
)
async def test_another_audience_is_refused(audience: object) -> None:
    await refusal(token(role="admin", aud=audience))


@pytest.mark.parametrize("issuer", ["https://b.example", "carillon/", "CARILLON", "", ["carillon"], {"a": 1}, 7])
async def test_another_issuer_is_refused(issuer: object) -> None:
    await refusal(token(role="admin", iss=issuer))


async def test_the_issuer_is_taken_exactly() -> None:
    assert (await principal(token(role="admin", iss="https://a.example"), issuer="https://a.example")).is_admin
    for issuer in ("https://a.example/", "https://a", "a", ""):
        assert "CARILLON_JWT_ISSUER" in await refusal(token(role="admin", iss=issuer), issuer="https://a.example")


@pytest.mark.parametrize("kind", ["JWT", "jwt", "at+jwt", "AT+JWT"])
async def test_types_of_access_tokens_are_taken(kind: str) -> None:
    assert (await principal(token({"alg": "HS256", "typ": kind}, role="admin"))).is_admin
    assert (await principal(token({"alg": "HS256"}, role="admin"))).is_admin


@pytest.mark.parametrize("kind", ["", "JWE", "logout+jwt", "dpop+jwt", "application/jwt", None, 7, ["JWT"]])
async def test_another_type_is_refused(kind: object) -> None:
    assert "`typ`" in await refusal(token({"alg": "HS256", "typ": kind}, role="admin"))


@pytest.mark.parametrize(
    "extra",
    [{"crit": ["exp"], "exp": 1}, {"crit": []}, {"crit": ["b64"], "b64": True}, {"b64": False}, {"crit": None}],
)
async def test_an_extension_of_the_header_is_refused(extra: Mapping[str, Any]) -> None:
    assert "extension" in await refusal(token({**HEADER, **extra}, role="admin"))


@pytest.mark.parametrize(
    "payload",
    [
        b'"admin"',
        b"[]",
        b"null",
        b"7",
        b"",
        b"{",
        b"{}{}",
        b"\xff\xfe{\x00}\x00",
        b"[" * 5000,
        b'{"a":' * 1000 + b"1" + b"}" * 1000,
    ],
    ids=lambda payload: payload[:12],
)
async def test_a_payload_that_is_no_object_is_refused(payload: bytes) -> None:
    await refusal(with_payload(payload))


async def test_a_claim_that_stands_twice_is_refused() -> None:
    said = json.dumps(claims(role="viewer"))
    for payload in (said[:-1] + ', "role": "admin"}', said[:-1] + ', "x": {"a": 1, "a": 2}}'):
        assert "stands twice" in await refusal(with_payload(payload.encode()))
    assert "stands twice" in await refusal(token(b'{"alg": "none", "alg": "HS256"}', role="admin"))


async def test_what_is_too_long_is_refused_before_it_is_read() -> None:
    assert "longer than 8192 bytes" in await refusal(token(role="admin", padding="x" * 8192))
    assert (await principal(token(role="admin", padding="x" * 5000))).is_admin


async def test_without_keys_no_jwt_is_taken() -> None:
    with pytest.raises(Unauthenticated, match="CARILLON_JWKS_URL, or CARILLON_DEVELOPMENT_JWT_SECRET"):
        await JwtVerifier(JwtRules()).principal(token(role="admin"))


def test_the_secret_is_in_no_repr() -> None:
    rules = JwtRules(secret=SECRET)
    assert SECRET not in repr(rules)
    assert SECRET not in repr(vars(JwtVerifier(rules)))


class Known:
    """What a table would say of one subject."""

    def __init__(self, user: User | None) -> None:
        self.user = user

    async def find(self, subject: str) -> User | None:
        return self.user if self.user and self.user.subject == subject else None

    def still_is(self, principal: Principal) -> bool:
        return self.user is not None


@pytest.mark.parametrize(
    ("user", "expected"),
    [
        (User("alice", Role.ADMIN), Principal(Kind.ADMIN, name="alice")),
        (User("alice", Role.USER, "acme"), Principal(Kind.USER, name="alice", tenant="acme")),
        (User("bob", Role.ADMIN), Principal(Kind.USER, name="alice")),
        (None, Principal(Kind.USER, name="alice")),
    ],
)
async def test_where_the_table_decides_no_claim_counts(user: User | None, expected: Principal) -> None:
    verifier = JwtVerifier(JwtRules(secret=SECRET), users=Known(user))
    assert await verifier.principal(token(role="admin", tenant="globex")) == expected


@pytest.mark.parametrize(
    "url", ["https://a.example/jwks", "https://10.0.0.1:8443/k?x=1", "http://localhost:1/k", "http://[::1]:1/k"]
)
def test_a_key_set_has_an_https_url_or_one_of_this_host(url: str) -> None:
    check_jwks_url(url)


@pytest.mark.parametrize(
    "url",
    [
        "http://a.example/jwks",
        "http://127.0.0.1.example/jwks",
        "http://localhost@a.example/jwks",
        "https://user:s3cret@a.example/jwks",
        "https://a.example/jwks#x",
        "ftp://a.example/jwks",
        "file:///etc/passwd",
        "https:///jwks",
        "a.example",
        "https://a.example/ jwks",
        r"https://a.example\@localhost/",
        "https://a.example:99999/",
        "https://[::1",
    ],
)
def test_any_other_url_of_a_key_set_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="https://") as refused:
        check_jwks_url(url)
    assert "s3cret" not in str(refused.value)
