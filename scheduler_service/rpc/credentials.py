"""Who calls: service tokens (`x-service-token: id.secret`) and JWTs (`authorization: Bearer ...`, RFC 7519)."""

from __future__ import annotations

import hmac
from collections.abc import Iterable, Mapping
from typing import Any

import jwt

from scheduler_service.domain.access import ANONYMOUS, Kind, Principal
from scheduler_service.domain.credentials import JwtRules, ServiceToken, secret_hash
from scheduler_service.domain.errors import Unauthenticated
from scheduler_service.domain.fields import is_storable

_MAX_TOKEN_BYTES = 8192
_LEEWAY_SECONDS = 10


class Credentials:
    """Turns a call's metadata into its principal."""

    def __init__(self, tokens: Iterable[ServiceToken], jwt_rules: JwtRules) -> None:
        self._tokens = {token.token_id: token for token in tokens}
        self._jwt = jwt_rules

    def principal(self, metadata: Iterable[tuple[str, str | bytes]]) -> Principal:
        """Errors: Unauthenticated (`CREDENTIALS_INVALID`) for anything that was sent and does not hold."""
        sent = {key: str(value) for key, value in metadata if key in ("x-service-token", "authorization")}
        if "x-service-token" in sent:
            return self._by_service_token(sent["x-service-token"])
        if "authorization" in sent:
            return self._by_jwt(sent["authorization"])
        return ANONYMOUS

    def _by_service_token(self, token: str) -> Principal:
        token_id, _, secret = token.partition(".")
        known = self._tokens.get(token_id)
        presented = secret_hash(secret[:_MAX_TOKEN_BYTES])
        # Compared also where there is no such token, so that the time taken says nothing about which ids exist.
        if not hmac.compare_digest(presented, known.secret_hash if known else bytes(32)) or known is None:
            raise _invalid("the service token is not known here; check CARILLON_SERVICE_TOKENS on both sides")
        return known.principal

    def _by_jwt(self, authorization: str) -> Principal:
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise _invalid("`authorization` must be `Bearer <JWT>`")
        if not self._jwt.secret:
            raise _invalid("this scheduler accepts no JWTs; set CARILLON_JWT_SECRET")
        if len(token) > _MAX_TOKEN_BYTES:
            raise _invalid(f"the JWT is longer than {_MAX_TOKEN_BYTES} bytes")
        try:
            claims = jwt.decode(
                token.strip(),
                self._jwt.secret,
                algorithms=["HS256"],
                issuer=self._jwt.issuer,
                audience=self._jwt.audience,
                leeway=_LEEWAY_SECONDS,
                options={"require": ["exp", "iat", "iss", "aud", "sub"]},
            )
        except jwt.InvalidTokenError as error:
            raise _invalid(f"the JWT was refused: {error}") from error
        return self._from_claims(claims)

    def _from_claims(self, claims: Mapping[str, Any]) -> Principal:
        subject = _storable("sub", str(claims["sub"]))
        if _at(claims, self._jwt.role_claim) == self._jwt.admin_role:
            return Principal(Kind.ADMIN, name=subject)
        tenant = _at(claims, self._jwt.tenant_claim)
        return Principal(Kind.USER, name=subject, tenant=_storable("tenant", tenant) if isinstance(tenant, str) else "")


def _storable(claim: str, text: str) -> str:
    if not is_storable(text):
        raise _invalid(f"the JWT's {claim} has a character that cannot be stored, such as NUL")
    return text


def _at(claims: Mapping[str, Any], path: str) -> object:
    value: object = claims
    for key in path.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _invalid(sentence: str) -> Unauthenticated:
    return Unauthenticated(sentence, reason="CREDENTIALS_INVALID")
