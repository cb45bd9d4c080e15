"""Errors that calls to the scheduler raise, and those of verifying a call by the worker service.

CarillonError
├── InvalidRequest        the request is wrong; `violations` names each wrong field
├── NotAuthenticated      no credentials, or credentials that do not count
├── NotAllowed            the principal is known, and may not do this
├── NotFound              there is no such thing, or it is not the caller's to see
├── AlreadyExists         there is one already, or the key was used before
├── Refused               the state of the thing does not allow this now
├── RateLimited           too many calls; `retry_after` says when one is allowed again
└── SchedulerUnavailable  the scheduler cannot be reached, or cannot answer at the moment
SignatureInvalid          a call is not proven to come from the worker service; answer it 401
SigningKeysMissing        a call cannot be verified, because this service has no keys; a fault of its deployment
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import grpc

from carillon.status_details import decode
from carillon.tls import remedy


@dataclass(frozen=True, slots=True)
class Violation:
    """One wrong field of a request."""

    field: str
    description: str

    def __str__(self) -> str:
        return f"{self.field}: {self.description}" if self.field else self.description


class CarillonError(Exception):
    """A call to the scheduler failed.

    code: the canonical status, such as `INVALID_ARGUMENT`.
    reason: why, from `carillon.v1.ErrorReason` without its prefix, such as `STALE_GENERATION`; may be empty.
    violations: every wrong field. metadata: what belongs to the reason, such as `run`.
    retry_after: seconds after which to try again, if the scheduler said.
    """

    def __init__(
        self,
        message: str,
        *,
        code: str,
        reason: str = "",
        violations: Sequence[Violation] = (),
        metadata: Mapping[str, str] | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.reason = reason
        self.violations = tuple(violations)
        self.metadata = dict(metadata or {})
        self.retry_after = retry_after

    def __str__(self) -> str:
        head = f"{self.code} ({self.reason}): {self.message}" if self.reason else f"{self.code}: {self.message}"
        unsaid = [violation for violation in self.violations if str(violation) not in self.message]
        return "\n".join([head, *(f"  - {violation}" for violation in unsaid)])


class InvalidRequest(CarillonError):
    """The request is wrong; nothing was changed."""


class NotAuthenticated(CarillonError):
    """The call carries no credentials, or credentials that do not count."""


class NotAllowed(CarillonError):
    """The principal is known, and may not do this."""


class NotFound(CarillonError):
    """There is no such thing, or it is not the caller's to see."""


class AlreadyExists(CarillonError):
    """There is one already, or the key was used before."""


class Refused(CarillonError):
    """The state of the thing does not allow this now."""


class RateLimited(CarillonError):
    """The caller calls more often than it may. Nothing was changed; `retry_after` says when to call again."""


class SchedulerUnavailable(CarillonError):
    """The scheduler cannot be reached, or cannot answer at the moment."""


class SignatureInvalid(Exception):
    """A call is not proven to come from the worker service. The sentence may be answered: it repeats no secret."""


class SigningKeysMissing(Exception):
    """A call cannot be verified, because this service was given no keys."""


_KINDS: Mapping[str, type[CarillonError]] = {
    "INVALID_ARGUMENT": InvalidRequest,
    "UNAUTHENTICATED": NotAuthenticated,
    "PERMISSION_DENIED": NotAllowed,
    "NOT_FOUND": NotFound,
    "ALREADY_EXISTS": AlreadyExists,
    "FAILED_PRECONDITION": Refused,
    "ABORTED": Refused,
    "UNAVAILABLE": SchedulerUnavailable,
    "DEADLINE_EXCEEDED": SchedulerUnavailable,
}
# The code alone would not tell: gRPC has the same one for messages that are too large.
_KINDS_BY_REASON: Mapping[str, type[CarillonError]] = {"RATE_LIMITED": RateLimited}


def from_rpc(error: grpc.RpcError) -> CarillonError:
    """The error that a failed call raises, with the details that the scheduler attached."""
    code: str = error.code().name
    trailing: Any = error.trailing_metadata() or ()  # pairs, of another type on each kind of channel
    details = decode(dict(trailing).get("grpc-status-details-bin"))
    message = error.details() or "the scheduler gave no reason"
    todo = remedy(message) if code == "UNAVAILABLE" else ""
    kind = _KINDS_BY_REASON.get(details.reason) or _KINDS.get(code, CarillonError)
    return kind(
        f"{todo} ({message})" if todo else message,
        code=code,
        reason=details.reason,
        violations=[Violation(field, description) for field, description in details.violations],
        metadata=details.metadata,
        retry_after=details.retry_after,
    )
