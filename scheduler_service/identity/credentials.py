"""Who calls: from what a call carries to its principal.

A call carries one of: a service token (`x-service-token: id.secret`), a JWT (`authorization: Bearer ...`, RFC 6750),
or nothing on a connection with a client certificate. What was sent and does not hold is refused, never ignored.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Protocol

from scheduler_service.domain.access import ANONYMOUS, Action, Kind, Principal
from scheduler_service.domain.errors import Unauthenticated

_TOKEN = "x-service-token"
_JWT = "authorization"


@dataclass(frozen=True, slots=True)
class Connection:
    """What is known of a call's connection. `certificate_names`: the DNS and URI names of a client certificate that
    was verified, None without one; `certificate_expires_at`: until when it is good."""

    address: str = ""
    certificate_names: tuple[str, ...] | None = None
    certificate_expires_at: datetime | None = None


UNKNOWN = Connection()


class Tokens(Protocol):
    """Service tokens."""

    def principal(self, token: str) -> Principal:
        """Errors: Unauthenticated (`CREDENTIALS_INVALID`); Unavailable if tokens could not be read yet."""
        ...

    def holds(self, principal: Principal) -> bool:
        """Whether the token by which this principal came is still good."""
        ...


class Jwts(Protocol):
    """JSON Web Tokens."""

    async def principal(self, token: str) -> Principal:
        """Errors: Unauthenticated (`CREDENTIALS_INVALID`); Unavailable if its key cannot be had."""
        ...

    def holds(self, principal: Principal) -> bool:
        """Whether who came by a JWT still is what it was then."""
        ...


class Certificates(Protocol):
    """Client certificates of workers."""

    def principal(self, names: tuple[str, ...] | None) -> Principal | None:
        """None where no certificate was shown. Errors: Unauthenticated for one that is nobody's here."""
        ...

    def refuse_mismatch(self, principal: Principal, names: tuple[str, ...] | None) -> None:
        """Refuses (Unauthenticated) a token that is bound to more than the certificate beside it."""
        ...

    def holds(self, principal: Principal) -> bool:
        """Whether this principal came by a certificate, and its name still stands for that."""
        ...

    def refuse_without(self, action: Action, names: tuple[str, ...] | None) -> None:
        """Refuses (Unauthenticated) what a deployment allows only with a certificate."""
        ...


class Credentials:
    """Turns what a call carries into its principal."""

    def __init__(self, tokens: Tokens, jwts: Jwts, certificates: Certificates | None = None) -> None:
        self._tokens = tokens
        self._jwts = jwts
        self._certificates = certificates

    async def principal(
        self,
        metadata: Iterable[tuple[str, str | bytes]],
        connection: Connection = UNKNOWN,
        action: Action | None = None,
    ) -> Principal:
        """Whose `expires_at` is the certificate's where that comes first. Errors: Unauthenticated
        (`CREDENTIALS_INVALID`) for anything that was sent and does not hold; Unavailable where it cannot be checked
        now."""
        principal = await self._shown(metadata, connection, action)
        expiries = [each for each in (principal.expires_at, connection.certificate_expires_at) if each]
        return replace(principal, expires_at=min(expiries, default=None))

    async def _shown(
        self, metadata: Iterable[tuple[str, str | bytes]], connection: Connection, action: Action | None
    ) -> Principal:
        sent = _sent(metadata)
        names = connection.certificate_names
        by_certificate = self._certificates.principal(names) if self._certificates else None
        if self._certificates and action:
            self._certificates.refuse_without(action, names)
        if _TOKEN in sent:
            principal = self._tokens.principal(sent[_TOKEN])
            if self._certificates:
                self._certificates.refuse_mismatch(principal, names)
            return principal
        if _JWT in sent:
            return await self._jwts.principal(_bearer(sent[_JWT]))
        return by_certificate or ANONYMOUS

    def holds(self, principal: Principal) -> bool:
        """Whether a principal's token, or what a JWT's subject may do, was withdrawn meanwhile, for streams; what
        expires says `expires_at`."""
        if principal.kind in (Kind.ADMIN, Kind.USER):
            return self._jwts.holds(principal)
        if self._certificates and self._certificates.holds(principal):
            return True
        return self._tokens.holds(principal)


def invalid(sentence: str) -> Unauthenticated:
    return Unauthenticated(sentence, reason="CREDENTIALS_INVALID")


def _sent(metadata: Iterable[tuple[str, str | bytes]]) -> Mapping[str, str]:
    found = [(key, str(value)) for key, value in metadata if key in (_TOKEN, _JWT)]
    if len(found) > 1:
        raise invalid(f"a call carries one credential, and this one has {len(found)}; send `{_TOKEN}` or `{_JWT}`")
    return dict(found)


def _bearer(authorization: str) -> str:
    scheme, _, token = authorization.partition(" ")
    if scheme.lower() != "bearer" or not token or token != token.strip():
        raise invalid("`authorization` must be `Bearer <JWT>`, with one space between them and none elsewhere")
    return token
