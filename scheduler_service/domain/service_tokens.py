"""The life of a service token: made, rotated, revoked. Its secret is told once and kept nowhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from scheduler_service.domain.access import ANY_SERVICE, Scope
from scheduler_service.domain.errors import Conflict, InvalidInput, Violation
from scheduler_service.domain.fields import Violations, quoted
from scheduler_service.domain.names import check_id

MOST_DESCRIPTION = 200
LONGEST_OVERLAP = timedelta(days=30)
LONGEST_LIFETIME = timedelta(days=3_650)
_MAX_ID_STEM = 40


@dataclass(frozen=True, slots=True)
class TokenRecord:
    """A service token as operators see it. `replaces`: the token that it was rotated from, empty for one that was
    created. `expires_at`: set at its making, or by its rotation."""

    token_id: str
    service: str
    scopes: frozenset[Scope]
    created_at: datetime
    created_by: str
    description: str = ""
    replaces: str = ""
    expires_at: datetime | None = None
    revoked_at: datetime | None = None
    revoked_by: str = ""
    last_used_at: datetime | None = None

    def is_revoked(self) -> bool:
        return self.revoked_at is not None

    def has_expired(self, now: datetime) -> bool:
        return self.expires_at is not None and self.expires_at <= now

    def counts(self, now: datetime) -> bool:
        """Whether it is accepted."""
        return not self.is_revoked() and not self.has_expired(now)

    def document(self) -> Mapping[str, Any]:
        """What the audit trail keeps of it."""
        return {
            "service": self.service,
            "scopes": sorted(self.scopes),
            "description": self.description,
            "replaces": self.replaces,
            "expires_at": self.expires_at.isoformat() if self.expires_at else None,
            "revoked_at": self.revoked_at.isoformat() if self.revoked_at else None,
        }


@dataclass(frozen=True, slots=True)
class Rotation:
    """When the rotated token stops to count, and when the one in its place does (None: not by itself)."""

    old_expires_at: datetime
    new_expires_at: datetime | None


def new_id(service: str, suffix: str) -> str:
    """A token's id, which logs and lists show: its service's name and something random."""
    stem = "worker" if service == ANY_SERVICE else service.replace(".", "-")[:_MAX_ID_STEM]
    return f"{stem}-{suffix}"


def check_new(service: str, scopes: frozenset[Scope], description: str, lifetime: timedelta | None) -> None:
    """Refuses (InvalidInput) what no token can be."""
    wrong = Violations()
    if service != ANY_SERVICE:
        check_id(service, "service", wrong, what="the service")
    if not scopes:
        wrong.add("scopes", f"is empty; write some of {', '.join(Scope)}")
    if service == ANY_SERVICE and scopes != {Scope.WORK}:
        wrong.add("scopes", "a token for every service (`*`) may only work; write `--scopes work`")
    if len(description) > MOST_DESCRIPTION or not description.isprintable():
        wrong.add("description", f"must be one line of at most {MOST_DESCRIPTION} characters")
    if lifetime is not None and not timedelta() < lifetime <= LONGEST_LIFETIME:
        wrong.add(
            "expires", f"must be more than 0 and at most {LONGEST_LIFETIME.days}d, ten years; write one such as 90d"
        )
    wrong.refuse_if_any()


def rotate(
    token: TokenRecord, before: TokenRecord | None, after: TokenRecord | None, overlap: timedelta, now: datetime
) -> Rotation:
    """How a token is rotated whose chain has the token `before` and the token `after` it. The new one lives as long as
    the old was made to. Refuses (Conflict) what would leave three of a chain that count, or a token that no longer
    does."""
    if not timedelta() <= overlap <= LONGEST_OVERLAP:
        raise InvalidInput(Violation("overlap", f"must be between 0 and {LONGEST_OVERLAP.days} days"))
    if token.is_revoked() or token.has_expired(now):
        how = "was revoked" if token.is_revoked() else "has expired"
        raise Conflict(f"{token.token_id} {how}; create another token for {token.service}")
    if after is not None:
        raise Conflict(
            f"{token.token_id} was rotated already and expires at {_said(token.expires_at)}; rotate"
            f" {after.token_id}, which took its place"
        )
    if before is not None and before.counts(now):
        raise Conflict(
            f"{token.token_id} replaces {before.token_id}, which counts until {_said(before.expires_at)}, and at most"
            f" two of a chain count at once; wait, or revoke {before.token_id}"
        )
    ends = now + overlap
    lifetime = token.expires_at - token.created_at if token.expires_at else None
    return Rotation(
        old_expires_at=min(ends, token.expires_at) if token.expires_at else ends,
        new_expires_at=now + lifetime if lifetime else None,
    )


def parse_scopes(text: str) -> frozenset[Scope]:
    """Reads `register,trigger,...`. Errors: InvalidInput."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in list(Scope):
            raise InvalidInput(Violation("scopes", f"{quoted(name)} is none; write some of {', '.join(Scope)}"))
    return frozenset(Scope(name) for name in names)


def _said(instant: datetime | None) -> str:
    return f"{instant:%Y-%m-%d %H:%M} UTC" if instant else "it is revoked"
