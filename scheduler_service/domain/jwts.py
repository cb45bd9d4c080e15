"""What a verified JWT's claims say: for how long it counts, and who its subject is."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from typing import Any
from urllib.parse import urlsplit

from scheduler_service.domain.access import Kind, Principal
from scheduler_service.domain.credentials import JwtRules
from scheduler_service.domain.errors import Unauthenticated
from scheduler_service.domain.fields import Violations, check_url, is_storable
from scheduler_service.domain.names import check_tenant
from scheduler_service.domain.user import Role, User, subject_problem

LEEWAY_SECONDS = 10
"""How far the clocks of this replica and of a JWT's issuer may be apart."""

Claims = Mapping[str, Any]
ClaimPath = tuple[str, ...]

_LATEST = datetime.max.replace(tzinfo=UTC, microsecond=0).timestamp() - LEEWAY_SECONDS
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_UNESCAPED_DOT = re.compile(r"(?<!\\)\.")


def refused(sentence: str) -> Unauthenticated:
    return Unauthenticated(f"the JWT was refused: {sentence}", reason="CREDENTIALS_INVALID")


@cache
def claim_path(text: str) -> ClaimPath:
    r"""Reads `metadata.role`: names from the outside in, with dots between them. A URL such as
    `https://example.com/roles` is one name; elsewhere `\.` is a dot inside a name. Errors: ValueError."""
    if text.startswith(("https://", "http://")):
        return (text,)
    path = tuple(name.replace("\\.", ".") for name in _UNESCAPED_DOT.split(text))
    if not all(path):
        raise ValueError("it has an empty name; write a path such as metadata.role, or one URL")
    return path


def claim_at(claims: Claims, path: ClaimPath) -> Any:
    """The claim's value; None where there is none."""
    value: Any = claims
    for name in path:
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def check_times(claims: Claims, max_lifetime: int) -> datetime:
    """Answers until when the JWT counts, leeway included. Errors: Unauthenticated for times that are no numbers of
    seconds (RFC 7519, NumericDate) or that a JWT may not have; whether it is `now` in time is verified elsewhere."""
    for name in ("exp", "iat", "nbf"):
        if name in claims and not _is_instant(claims[name]):
            raise refused(f"its `{name}` must be a number of seconds since 1970")
    lifetime = claims["exp"] - claims["iat"]
    if not 0 < lifetime <= max_lifetime:
        raise refused(
            f"its `exp` is {lifetime:.0f} s after its `iat`; 1 to {max_lifetime} are allowed"
            " (CARILLON_JWT_MAX_LIFETIME_SECONDS)"
        )
    return datetime.fromtimestamp(claims["exp"] + LEEWAY_SECONDS, UTC)


def subject_of(claims: Claims) -> str:
    """Errors: Unauthenticated for a `sub` that can be nobody's."""
    subject = claims.get("sub")
    if not isinstance(subject, str):
        raise refused("its `sub` must be a text")
    if (problem := subject_problem(subject)) is not None:
        raise refused(f"its `sub` {problem}")
    return subject


def user_of(claims: Claims, rules: JwtRules) -> User | None:
    """What the claims say of their subject; None if neither a role nor a tenant. Errors: Unauthenticated for a tenant
    that cannot be one."""
    subject = subject_of(claims)
    if _is_admin(claim_at(claims, claim_path(rules.role_claim)), rules.admin_role):
        return User(subject, Role.ADMIN)
    tenant = claim_at(claims, claim_path(rules.tenant_claim))
    if tenant is None or tenant == "":
        return None
    if not isinstance(tenant, str):
        raise refused(f"its claim {rules.tenant_claim} must be a text, the tenant's id")
    if not is_storable(tenant):
        raise refused(f"its claim {rules.tenant_claim} has a character that cannot be stored, such as NUL")
    wrong = Violations()
    check_tenant(tenant, rules.tenant_claim, wrong)
    for violation in wrong:
        raise refused(f"its claim {violation.field}: {violation.problem}")
    return User(subject, Role.USER, tenant)


def principal_of(subject: str, user: User | None, expires_at: datetime) -> Principal:
    """Somebody of whom nothing is known is a user of no tenant, who sees nothing."""
    kind = Kind.ADMIN if user is not None and user.role is Role.ADMIN else Kind.USER
    return Principal(kind, name=subject, tenant="" if user is None else user.tenant, expires_at=expires_at)


def check_jwks_url(url: str) -> None:
    """Errors: ValueError with a sentence."""
    wrong = Violations()
    check_url(url, "url", wrong)
    if len(wrong):
        raise ValueError(
            "it is no URL, or one with a user, a password or a fragment; write one such as"
            " https://login.example.com/.well-known/jwks.json"
        )
    parts = urlsplit(url)
    if parts.scheme != "https" and parts.hostname not in _LOOPBACK:
        raise ValueError("it must begin with https://: whoever can change what it answers makes admins")


def _is_instant(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= _LATEST


def _is_admin(role: object, admin_role: str) -> bool:
    return role == admin_role or (isinstance(role, list) and admin_role in role)
