"""Who calls, from a call's metadata."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import jwt
import pytest

from scheduler_service.domain.access import ANONYMOUS, Action, Kind, Principal, Resource, Scope, may, require
from scheduler_service.domain.credentials import JwtRules, parse_service_tokens
from scheduler_service.domain.errors import Forbidden, NotFound, NothingToSee, Unauthenticated
from scheduler_service.identity.credentials import Credentials
from tests import canary
from tests.credentials import accepting

SECRET = canary.secret("jwt")
TOKENS = "email-service=t1.0123456789abcdef0123456789abcdef, *=w1.fedcba9876543210fedcba9876543210"


@pytest.fixture
def credentials() -> Credentials:
    return accepting(TOKENS, JwtRules(secret=SECRET))


def bearer(*, secret: str = SECRET, algorithm: str = "HS256", drop: str = "", **claims: object) -> tuple[str, str]:
    now = datetime.now(UTC)
    body: dict[str, object] = {
        "sub": "alice",
        "iss": "carillon",
        "aud": "carillon",
        "iat": now,
        "exp": now + timedelta(hours=12),  # some are made when tests are collected
        **claims,
    }
    body.pop(drop, None)
    return ("authorization", f"Bearer {jwt.encode(body, secret, algorithm=algorithm)}")


async def test_nothing_sent_is_anonymous(credentials: Credentials) -> None:
    assert await credentials.principal([("user-agent", "grpcurl")]) == ANONYMOUS


async def test_a_service_token_names_its_service_with_all_scopes(credentials: Credentials) -> None:
    principal = await credentials.principal([("x-service-token", "t1.0123456789abcdef0123456789abcdef")])
    assert (principal.kind, principal.service, principal.scopes) == (Kind.SERVICE, "email-service", frozenset(Scope))


async def test_a_token_for_every_service_may_only_work(credentials: Credentials) -> None:
    principal = await credentials.principal([("x-service-token", "w1.fedcba9876543210fedcba9876543210")])
    assert may(principal, Action.WORK, Resource(service="any"))
    assert not may(principal, Action.REGISTER, Resource(service="any"))
    assert not may(principal, Action.READ, Resource(service="*"))


@pytest.mark.parametrize(
    "token",
    ["t1.wrong", "t1", "", "nobody.0123456789abcdef0123456789abcdef", "t1.0123456789abcdef0123456789abcdef0", "." * 99],
)
async def test_a_wrong_service_token_is_refused_and_not_repeated(credentials: Credentials, token: str) -> None:
    with pytest.raises(Unauthenticated) as refused:
        await credentials.principal([("x-service-token", token)])
    assert refused.value.reason == "CREDENTIALS_INVALID"
    assert not token.strip(".") or token not in refused.value.message


async def test_a_jwt_with_the_role_is_an_admin(credentials: Credentials) -> None:
    assert await credentials.principal([bearer(role="admin")]) == Principal(Kind.ADMIN, name="alice")


async def test_a_jwt_with_a_tenant_is_a_user(credentials: Credentials) -> None:
    assert await credentials.principal([bearer(tenant="acme")]) == Principal(Kind.USER, name="alice", tenant="acme")


async def test_a_jwt_with_neither_is_a_user_of_no_tenant(credentials: Credentials) -> None:
    nobody = await credentials.principal([bearer()])
    assert (nobody.kind, nobody.tenant) == (Kind.USER, "")
    for action in Action:
        with pytest.raises(NothingToSee):
            require(nobody, action)


@pytest.mark.parametrize("text", ["a\0b", "\ud800"])
@pytest.mark.parametrize("claims", [("sub",), ("sub", "role"), ("tenant",)])
async def test_a_jwt_that_names_nobody_who_can_be_stored_is_refused(
    credentials: Credentials, claims: tuple[str, ...], text: str
) -> None:
    said = {claim: "admin" if claim == "role" else text for claim in claims}
    with pytest.raises(Unauthenticated, match=r"cannot be (stored|seen)") as refused:
        await credentials.principal([bearer(**said)])
    assert refused.value.reason == "CREDENTIALS_INVALID"


async def test_claims_are_found_by_path() -> None:
    rules = JwtRules(secret=SECRET, role_claim="metadata.role", tenant_claim="org.id")
    credentials = accepting("", rules)
    assert (await credentials.principal([bearer(metadata={"role": "admin"})])).is_admin
    assert (await credentials.principal([bearer(org={"id": "acme"}, metadata="admin")])).tenant == "acme"


@pytest.mark.parametrize(
    "sent",
    [
        bearer(secret="another-secret-of-at-least-32-characters"),
        bearer(exp=datetime.now(UTC) - timedelta(minutes=1)),
        bearer(iss="somebody"),
        bearer(aud="something"),
        bearer(iat=datetime.now(UTC) + timedelta(hours=6)),
        *(bearer(drop=claim, role="admin") for claim in ("exp", "iat", "iss", "aud", "sub")),
        bearer(algorithm="HS512", secret=SECRET * 2),
        ("authorization", "Bearer " + "x" * 9000),
        ("authorization", "Basic YTpi"),
        ("authorization", "Bearer eyJhbGciOiJub25lIn0.eyJzdWIiOiJhIn0."),
    ],
)
async def test_a_wrong_jwt_is_refused(credentials: Credentials, sent: tuple[str, str]) -> None:
    with pytest.raises(Unauthenticated):
        await credentials.principal([sent])


@pytest.mark.parametrize("spelt", ["Bearer {}", "bearer {}", "BEARER {}"])
async def test_the_scheme_is_bearer_and_one_space(credentials: Credentials, spelt: str) -> None:
    _, sent = bearer(role="admin")
    token = sent.removeprefix("Bearer ")
    assert (await credentials.principal([("authorization", spelt.format(token))])).is_admin
    for wrong in (f"Bearer  {token}", f"Bearer {token} ", f" Bearer {token}", f"Bearer\t{token}", token, "Bearer "):
        with pytest.raises(Unauthenticated, match="must be `Bearer <JWT>`"):
            await credentials.principal([("authorization", wrong)])


async def test_without_a_secret_no_jwt_is_accepted() -> None:
    with pytest.raises(Unauthenticated, match="CARILLON_DEVELOPMENT_JWT_SECRET"):
        await accepting("").principal([bearer(role="admin")])


GOOD = "0secretsecret1234"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        *((text, "not of the form") for text in ("email-service", "email-service=t1", f"=t1.{GOOD}", f"t1.{GOOD}=a")),
        *((f"{service}=t1.{GOOD}", "is for no service") for service in ("Email", "a b", f"T1.{GOOD}", "**", "a/b")),
        *(
            (f"a={token_id}.{GOOD}", "the id of entry 1")
            for token_id in ("T1", "spiffe://x", "é", "x" * 64, "a b", "-")
        ),
        *(
            (f"a=t1.{secret}", "the secret of entry 1")
            for secret in ("short", "secretsecretsec", "secretsecretsecret", "ab" * 10)
        ),
        (f"{GOOD}=a.b", "the secret of entry 1"),
    ],
)
def test_a_token_setting_that_can_be_none_is_a_sentence_without_the_secret(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says) as refused:
        parse_service_tokens(text)
    assert "secretsecret" not in str(refused.value)


def test_an_admin_may_not_register_and_a_service_only_its_own() -> None:
    admin = Principal(Kind.ADMIN, name="alice")
    service = Principal(Kind.SERVICE, name="t1", service="email-service", scopes=frozenset(Scope))
    require(service, Action.REGISTER, Resource(service="email-service"))
    for principal, name in ((admin, "email-service"), (service, "kpi-service")):
        with pytest.raises(Forbidden, match="registration needs a service token"):
            require(principal, Action.REGISTER, Resource(service=name))


def test_a_user_learns_nothing_of_another_tenant() -> None:
    user = Principal(Kind.USER, name="u", tenant="acme")
    require(user, Action.SET_SCHEDULE, Resource(tenant="acme"))
    for tenant in ("globex", "-"):
        with pytest.raises(NotFound):
            require(user, Action.SET_SCHEDULE, Resource(tenant=tenant))
    with pytest.raises(Unauthenticated):
        require(ANONYMOUS, Action.READ)
