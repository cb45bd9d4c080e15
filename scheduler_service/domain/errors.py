"""Everything the scheduler refuses, as one small tree.

    Refusal                 has a reason (a name of carillon.v1.ErrorReason), a sentence, and metadata
    ├── InvalidInput        INVALID_ARGUMENT: each wrong field is a Violation
    ├── Unauthenticated     UNAUTHENTICATED: who calls could not be established
    ├── Forbidden           PERMISSION_DENIED: the principal is known and may not
    ├── NotFound            NOT_FOUND: is not there, or is not the caller's
    │   └── NothingToSee    the same, to a caller with neither role nor tenant; lists answer empty instead
    ├── AlreadyExists       ALREADY_EXISTS: metadata names what is there
    ├── Conflict            FAILED_PRECONDITION: the state of the thing does not allow it now
    ├── Replaced            ABORTED: something newer took this one's place
    ├── RateLimited         RESOURCE_EXHAUSTED: too many calls; retry_after says when one is allowed
    └── Unavailable         UNAVAILABLE: ask again; retry_after says when

`rpc/errors.py` turns them into gRPC statuses; nothing else does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Violation:
    """One field of a request that is wrong: its path (`jobs[3].timing.cron`) and a sentence that says
    what is wrong and what to write instead."""

    field: str
    problem: str


class Refusal(Exception):
    """A refusal with a reason from `carillon.v1.ErrorReason` (without its prefix) and a sentence for a person."""

    reason: str = "INTERNAL"

    def __init__(self, message: str, *, reason: str | None = None, **metadata: str) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason or type(self).reason
        self.metadata: Mapping[str, str] = metadata


class InvalidInput(Refusal):
    """The request is wrong in itself; every wrong field is listed, and nothing was changed."""

    reason = "INVALID_FIELDS"

    def __init__(self, *violations: Violation) -> None:
        self.violations = violations
        super().__init__("; ".join(f"{v.field}: {v.problem}" for v in violations))


class Unauthenticated(Refusal):
    reason = "CREDENTIALS_MISSING"


class Forbidden(Refusal):
    reason = "NOT_ALLOWED"


class NotFound(Refusal):
    reason = "NOT_FOUND"


class NothingToSee(NotFound):
    """The caller is known, and nothing at all is its own: whatever it asks for, this is the answer."""


class AlreadyExists(Refusal):
    reason = "ALREADY_EXISTS"


class Conflict(Refusal):
    reason = "CONFLICT"


class Replaced(Refusal):
    reason = "STREAM_REPLACED"


class RateLimited(Refusal):
    """The principal calls faster than it may. `retry_after` is in seconds."""

    reason = "RATE_LIMITED"

    def __init__(self, message: str, *, retry_after: float, **metadata: str) -> None:
        super().__init__(message, **metadata)
        self.retry_after = retry_after


class Unavailable(Refusal):
    """The service cannot answer now. `retry_after` is in seconds."""

    reason = "UNAVAILABLE"

    def __init__(self, message: str, *, retry_after: float = 1.0, **metadata: str) -> None:
        super().__init__(message, **metadata)
        self.retry_after = retry_after
