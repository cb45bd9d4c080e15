"""What a deployment gives out: service tokens, and the rules that JWTs must keep."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from datetime import datetime

from scheduler_service.domain.access import ANY_SERVICE, Kind, Principal, Scope
from scheduler_service.domain.names import ID_RULE, is_id

ALL_SCOPES = frozenset(Scope)
WORK_ONLY = frozenset({Scope.WORK})
_LEAST_DIFFERENT = 6
_TOKEN_ID = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
_TOKEN_ID_RULE = "1 to 63 characters of a-z, 0-9, '-' and '_', beginning with a letter or digit"


@dataclass(frozen=True, slots=True)
class ServiceToken:
    """A token as it is known here: bound to a service (`*`: a worker for all), and the hash of its secret.
    `expires_at`: by the database's clock; None for one that does not expire."""

    token_id: str
    service: str
    secret_hash: bytes = field(repr=False)
    scopes: frozenset[Scope]
    expires_at: datetime | None = None

    @property
    def principal(self) -> Principal:
        kind = Kind.WORKER if self.service == ANY_SERVICE else Kind.SERVICE
        return Principal(kind, name=self.token_id, service=self.service, scopes=self.scopes, token_id=self.token_id)


@dataclass(frozen=True, slots=True)
class JwtRules:
    """What a JWT must be. `secret` is for development: JWTs are verified by a key set otherwise. `issuer`: the one
    `iss` that is accepted, since subjects are told apart by their `sub` alone. `role_claim` and `tenant_claim` are
    paths (domain/jwts.claim_path). `max_lifetime`: from `iat` to `exp`, in seconds."""

    secret: str = field(default="", repr=False)
    issuer: str = "carillon"
    audience: str = "carillon"
    role_claim: str = "role"
    admin_role: str = "admin"
    tenant_claim: str = "tenant"
    max_lifetime: int = 86_400


def parse_service_tokens(text: str) -> list[ServiceToken]:
    """Reads `email-service=id.secret,...` (commas or lines). Errors: ValueError with a sentence, without secrets."""
    entries = [entry.strip() for entry in text.replace("\n", ",").split(",") if entry.strip()]
    tokens: dict[str, ServiceToken] = {}
    for number, entry in enumerate(entries, 1):
        token = _service_token(number, entry)
        if token.token_id in tokens:
            raise ValueError(f"entry {number} has the id of another entry; give each token an id of its own")
        tokens[token.token_id] = token
    return list(tokens.values())


def _service_token(number: int, entry: str) -> ServiceToken:
    service, equals, token = (part.strip() for part in entry.partition("="))
    token_id, dot, secret = token.partition(".")
    if not (service and equals and token_id and dot and secret):
        raise ValueError(f"entry {number} is not of the form `service=id.secret`")
    # What stands in a wrong place may be the secret: nothing of an entry is repeated.
    if service != ANY_SERVICE and not is_id(service):
        raise ValueError(f"entry {number} is for no service; before the `=` write {ID_RULE}, or `*`")
    if not _TOKEN_ID.fullmatch(token_id):
        raise ValueError(f"the id of entry {number} is none; before the dot write {_TOKEN_ID_RULE}")
    if len(secret) < 16 or is_guessable(secret):
        raise ValueError(f"the secret of entry {number} is shorter than 16 characters, or repeats few; make it random")
    scopes = WORK_ONLY if service == ANY_SERVICE else ALL_SCOPES
    return ServiceToken(token_id, service, secret_hash(secret), scopes)


def is_guessable(secret: str) -> bool:
    """Whether it is blanks, or the same few characters again and again. A random one of 16 hexadecimal digits or more
    is not, but for one in ten thousand."""
    return len(set(secret)) < _LEAST_DIFFERENT


def secret_hash(secret: str) -> bytes:
    """What is kept of a token's secret: its SHA-256. The secret is random, so it needs no salt and no slow hash."""
    return hashlib.sha256(secret.encode(errors="surrogatepass")).digest()
