"""What a deployment gives out: service tokens, and the rules that JWTs must keep."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from scheduler_service.domain.access import ANY_SERVICE, Kind, Principal, Scope

_OWN_SERVICE_SCOPES = frozenset(Scope)
_ANY_SERVICE_SCOPES = frozenset({Scope.WORK})


@dataclass(frozen=True, slots=True)
class ServiceToken:
    """A token as it is known here: bound to a service (`*`: a worker for all), and the hash of its secret."""

    token_id: str
    service: str
    secret_hash: bytes

    @property
    def principal(self) -> Principal:
        scopes = _ANY_SERVICE_SCOPES if self.service == ANY_SERVICE else _OWN_SERVICE_SCOPES
        kind = Kind.WORKER if self.service == ANY_SERVICE else Kind.SERVICE
        return Principal(kind, name=self.token_id, service=self.service, scopes=scopes)


@dataclass(frozen=True, slots=True)
class JwtRules:
    """What a JWT must be. `role_claim` and `tenant_claim` are paths such as `metadata.role`."""

    secret: str = ""
    issuer: str = "carillon"
    audience: str = "carillon"
    role_claim: str = "role"
    admin_role: str = "admin"
    tenant_claim: str = "tenant"


def parse_service_tokens(text: str) -> list[ServiceToken]:
    """Reads `email-service=id.secret,...` (commas or lines). Errors: ValueError with a sentence, without secrets."""
    entries = [entry.strip() for entry in text.replace("\n", ",").split(",") if entry.strip()]
    return [_service_token(number, entry) for number, entry in enumerate(entries, 1)]


def _service_token(number: int, entry: str) -> ServiceToken:
    service, equals, token = entry.partition("=")
    token_id, dot, secret = token.partition(".")
    if not (service and equals and token_id and dot and secret):
        raise ValueError(f"entry {number} is not of the form `service=id.secret`")
    if len(secret) < 16:
        raise ValueError(f"the secret of entry {number} ({service}) is shorter than 16 characters; make it random")
    return ServiceToken(token_id, service.strip(), secret_hash(secret))


def secret_hash(secret: str) -> bytes:
    """What is kept of a token's secret: its SHA-256. The secret is random, so it needs no salt and no slow hash."""
    return hashlib.sha256(secret.encode()).digest()
