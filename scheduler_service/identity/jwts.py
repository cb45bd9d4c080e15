"""JSON Web Tokens (RFC 7519) of admins and users."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import jwt

from scheduler_service.domain.access import Kind, Principal
from scheduler_service.domain.credentials import JwtRules
from scheduler_service.domain.fields import is_storable
from scheduler_service.identity.credentials import invalid

_MAX_LENGTH = 8192
_LEEWAY_SECONDS = 10
_REQUIRED = ["exp", "iat", "iss", "aud", "sub"]


class JwtVerifier:
    """Verifies JWTs by the rules of a deployment."""

    def __init__(self, rules: JwtRules) -> None:
        self._rules = rules

    async def principal(self, token: str) -> Principal:
        """Errors: Unauthenticated (`CREDENTIALS_INVALID`)."""
        if not self._rules.secret:
            raise invalid("this scheduler accepts no JWTs; set CARILLON_DEVELOPMENT_JWT_SECRET")
        if len(token) > _MAX_LENGTH:
            raise invalid(f"the JWT is longer than {_MAX_LENGTH} bytes")
        try:
            claims = jwt.decode(
                token,
                self._rules.secret,
                algorithms=["HS256"],
                issuer=self._rules.issuer,
                audience=self._rules.audience,
                leeway=_LEEWAY_SECONDS,
                options={"require": _REQUIRED},
            )
        except jwt.InvalidTokenError as error:
            raise invalid(f"the JWT was refused: {error}") from error
        return self._from_claims(claims)

    def _from_claims(self, claims: Mapping[str, Any]) -> Principal:
        subject = _storable("sub", str(claims["sub"]))
        expires_at = datetime.fromtimestamp(int(claims["exp"]) + _LEEWAY_SECONDS, UTC)
        if _at(claims, self._rules.role_claim) == self._rules.admin_role:
            return Principal(Kind.ADMIN, name=subject, expires_at=expires_at)
        tenant = _at(claims, self._rules.tenant_claim)
        named = _storable("tenant", tenant) if isinstance(tenant, str) else ""
        return Principal(Kind.USER, name=subject, tenant=named, expires_at=expires_at)


def _storable(claim: str, text: str) -> str:
    if not is_storable(text):
        raise invalid(f"the JWT's {claim} has a character that cannot be stored, such as NUL")
    return text


def _at(claims: Mapping[str, Any], path: str) -> object:
    value: object = claims
    for key in path.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value
