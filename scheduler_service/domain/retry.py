"""What follows a failed attempt: another one after a delay, or the end of the run."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """At most `max_attempts` attempts, `delay` apart."""

    max_attempts: int
    delay: timedelta


@dataclass(frozen=True, slots=True)
class Retry:
    """The run is tried again, `after` from now."""

    after: timedelta


@dataclass(frozen=True, slots=True)
class End:
    """The run ends with this attempt."""


# Trying again changes nothing: the payload stays what it is, a result that cannot be recorded was not the fault of the
# moment, a gRPC service that finds the request invalid, or has no such method, means it, and what a worker may call
# and signs changes with its settings only.
_FINAL_CODES = frozenset({"BAD_PAYLOAD", "BAD_RESULT", "GRPC_REFUSED", "TARGET_NOT_ALLOWED", "SIGNING_KEY_MISSING"})


def decide(policy: RetryPolicy, attempt: int, error_code: str) -> Retry | End:
    """What follows when attempt number `attempt` (the first is 1) failed with this code."""
    if attempt >= policy.max_attempts or error_code in _FINAL_CODES:
        return End()
    return Retry(policy.delay)
