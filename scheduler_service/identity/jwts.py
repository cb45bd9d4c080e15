"""JSON Web Tokens (RFC 7519, RFC 8725) of admins and users.

A JWT is refused before anything in it is parsed if it is too long or not of the one form; its key is looked for only
if its header is one that can be good. What stands in the header chooses among the keys that are there, and nothing
else: key addresses and keys inside a JWT (`jku`, `x5u`, `jwk`, `x5c`) are never looked at.
"""

from __future__ import annotations

import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from dataclasses import dataclass
from typing import Any, Protocol

import jwt
from jwt import PyJWK, exceptions

from scheduler_service.domain.access import Principal
from scheduler_service.domain.credentials import JwtRules
from scheduler_service.domain.jwts import (
    LEEWAY_SECONDS,
    Claims,
    check_times,
    principal_of,
    refused,
    subject_of,
    user_of,
)
from scheduler_service.domain.user import User
from scheduler_service.identity.credentials import invalid
from scheduler_service.identity.key_sets import MAX_KID_LENGTH
from scheduler_service.identity.strict_json import strict_json

MAX_LENGTH = 8192
_FORM = re.compile(r"([A-Za-z0-9_-]+)\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+", re.ASCII)
_TYPES = ("jwt", "at+jwt")
_REQUIRED = ["exp", "iat", "iss", "aud", "sub"]
# The library's own texts may repeat what a JWT says of itself, at any length.
_SENTENCES: dict[type[exceptions.PyJWTError], str] = {
    exceptions.ExpiredSignatureError: "it has expired; sign in again",
    exceptions.ImmatureSignatureError: "its `iat` or `nbf` lies in the future; look at the clocks",
    exceptions.InvalidIssuerError: "its `iss` is not what CARILLON_JWT_ISSUER says",
    exceptions.InvalidAudienceError: "its `aud` is not what CARILLON_JWT_AUDIENCE says",
    exceptions.MissingRequiredClaimError: "it lacks one of exp, iat, iss, aud and sub",
    exceptions.InvalidSubjectError: "its `sub` must be a text",
    exceptions.InvalidJTIError: "its `jti` must be a text",
    exceptions.InvalidSignatureError: "its signature does not hold",
    exceptions.InvalidAlgorithmError: "its algorithm is not its key's",
    exceptions.InvalidIssuedAtError: "its `iat` must be a number of seconds since 1970",
}


class Keys(Protocol):
    """Keys that verify JWTs. `algorithms`: those that any of them can have."""

    algorithms: frozenset[str]

    async def key(self, algorithm: str, kid: str | None) -> PyJWK:
        """Errors: Unauthenticated for a key that there is not; Unavailable where that cannot be known now."""
        ...


class Users(Protocol):
    """What the deployment itself says of subjects."""

    async def find(self, subject: str) -> User | None:
        """None for nobody. Errors: Unavailable."""
        ...

    def still_is(self, principal: Principal) -> bool:
        """Whether what was said last of the subject is what the principal is."""
        ...


class DevelopmentKey:
    """The one key of CARILLON_DEVELOPMENT_JWT_SECRET: whoever has it is anybody."""

    algorithms = frozenset({"HS256"})

    def __init__(self, secret: str) -> None:
        encoded = urlsafe_b64encode(secret.encode()).rstrip(b"=").decode()
        self._key = PyJWK({"kty": "oct", "k": encoded}, "HS256")

    async def key(self, algorithm: str, kid: str | None) -> PyJWK:  # noqa: ARG002  # it is the only one
        return self._key


class JwtVerifier:
    """Verifies JWTs by the rules of a deployment. `keys`: whose signatures count; those of the rules' secret where none
    are given. With `users`, what a subject may do is what they say, and no claim counts for it."""

    def __init__(self, rules: JwtRules, keys: Keys | None = None, users: Users | None = None) -> None:
        self._rules = rules
        self._keys = keys or (DevelopmentKey(rules.secret) if rules.secret else None)
        self._users = users
        self._jwt = _StrictJwt()

    async def principal(self, token: str) -> Principal:
        """Errors: Unauthenticated (`CREDENTIALS_INVALID`); Unavailable if its key, or its subject's role, cannot be
        had."""
        if self._keys is None:
            raise invalid(
                "this scheduler accepts no JWTs; set CARILLON_JWKS_URL, or CARILLON_DEVELOPMENT_JWT_SECRET for"
                " development"
            )
        header = _header(token, self._keys.algorithms)
        claims = self._verified(token, await self._keys.key(header.algorithm, header.kid))
        expires_at = check_times(claims, self._rules.max_lifetime)
        subject = subject_of(claims)
        user = user_of(claims, self._rules) if self._users is None else await self._users.find(subject)
        return principal_of(subject, user, expires_at)

    def holds(self, principal: Principal) -> bool:
        """Whether who came by a JWT still is what it was then, for streams; what expires says `expires_at`."""
        return self._users is None or self._users.still_is(principal)

    def _verified(self, token: str, key: PyJWK) -> Claims:
        try:
            return self._jwt.decode(
                token,
                key,
                algorithms=[key.algorithm_name],
                issuer=self._rules.issuer,
                audience=self._rules.audience,
                leeway=LEEWAY_SECONDS,
                options={"require": _REQUIRED, "enforce_minimum_key_length": True},
            )
        except exceptions.PyJWTError as error:
            raise refused(_SENTENCES.get(type(error), "it is malformed")) from None


class _StrictJwt(jwt.PyJWT):
    """Reads the payload in one way only."""

    def _decode_payload(self, decoded: dict[str, Any]) -> dict[str, Any]:
        try:
            payload = strict_json(decoded["payload"])
        except ValueError as reason:
            raise refused(f"its payload: {reason}") from None
        if not isinstance(payload, dict):
            raise refused("its payload is no JSON object")
        return payload


@dataclass(frozen=True, slots=True)
class _Header:
    algorithm: str
    kid: str | None


def _header(token: str, algorithms: frozenset[str]) -> _Header:
    """What the header of a JWT that can be good says. Errors: Unauthenticated."""
    if len(token) > MAX_LENGTH:
        raise refused(f"it is longer than {MAX_LENGTH} bytes")
    form = _FORM.fullmatch(token)
    if form is None:
        raise refused("it is not of the form header.payload.signature, each in base64url without padding")
    header = _decoded(form[1])
    algorithm, kid, kind = header.get("alg"), header.get("kid"), header.get("typ", "JWT")
    if not isinstance(algorithm, str) or algorithm not in algorithms:
        raise refused(f"its algorithm is none of {', '.join(sorted(algorithms))}")
    if not isinstance(kind, str) or kind.lower() not in _TYPES:
        raise refused("its `typ` is neither JWT nor at+jwt")
    if "crit" in header or "b64" in header:
        raise refused("its header demands an extension (`crit`, `b64`), and none is known here")
    if "kid" in header and not (isinstance(kid, str) and 0 < len(kid) <= MAX_KID_LENGTH):
        raise refused(f"its `kid` must be a text of 1 to {MAX_KID_LENGTH} characters")
    return _Header(algorithm, kid)


def _decoded(segment: str) -> dict[str, Any]:
    try:
        header = strict_json(urlsafe_b64decode(segment + "=" * (-len(segment) % 4)))
    except ValueError as reason:
        raise refused(f"its header: {reason}") from None
    if not isinstance(header, dict):
        raise refused("its header is no JSON object")
    return header
