"""What follows a failed attempt: another one after a delay, or the end of the run."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from datetime import timedelta
from uuid import UUID

LONGEST_DELAY = timedelta(days=7)
MAX_ATTEMPTS = 100


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """At most `max_attempts` attempts. The first delay is `delay`, each further one `multiplier` times the one before,
    none longer than `max_delay`, less up to the share `jitter` of it. `never_retry`: codes of errors that end the run;
    one that ends in `*` is a prefix."""

    max_attempts: int
    delay: timedelta
    multiplier: float = 1.0
    max_delay: timedelta = LONGEST_DELAY
    jitter: float = 0.0
    never_retry: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Following:
    """What a target asks to follow its failure: no further attempt, or one after a time of its choice (None: the
    policy's). `because`: of what did not come from a target, why."""

    no_retry: bool = False
    retry_after: timedelta | None = None
    # No target says it, and the digest of a result is made of this text: see domain/attempt.py.
    because: str = field(default="", repr=False)


AS_THE_POLICY_SAYS = Following()


@dataclass(frozen=True, slots=True)
class Retry:
    """The run is tried again, `after` from now. `because` says, for the record, why then."""

    after: timedelta
    because: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class End:
    """The run ends with this attempt. `because` says, for the record, why before its attempts are used up."""

    because: str = ""


# Trying again changes nothing: the payload stays what it is, a result that cannot be recorded was not the fault of the
# moment, a gRPC service that finds the request invalid, or has no such method, means it, and what a worker may call
# and signs changes with its settings only.
_FINAL_CODES = frozenset({"BAD_PAYLOAD", "BAD_RESULT", "GRPC_REFUSED", "TARGET_NOT_ALLOWED", "SIGNING_KEY_MISSING"})


def decide(
    policy: RetryPolicy, run_id: UUID, attempt: int, error_code: str, asked: Following = AS_THE_POLICY_SAYS
) -> Retry | End:
    """What follows when attempt number `attempt` (the first is 1) of a run failed with this code."""
    if attempt >= policy.max_attempts:
        return End()
    if (because := _against_a_retry(policy, error_code, asked)) is not None:
        return End(f"not tried again: {because}")
    if asked.retry_after is not None:
        return _as_asked(policy, asked.retry_after, attempt, asked.because)
    delay = _delay(policy, run_id, attempt)
    return Retry(delay, f"{_seconds(delay)} after attempt {attempt}, by the job's retry policy")


def _as_asked(policy: RetryPolicy, wanted: timedelta, attempt: int, because: str) -> Retry:
    after = min(wanted, policy.max_delay)
    if because:
        return Retry(after, because)
    cut = f": it asked for {_seconds(wanted)}, and the job's max_delay allows no more" if after < wanted else ""
    return Retry(after, f"{_seconds(after)} after attempt {attempt}, as the target asked{cut}")


def _seconds(delay: timedelta) -> str:
    return f"{round(delay.total_seconds(), 1):.10g} s"


def _against_a_retry(policy: RetryPolicy, code: str, asked: Following) -> str | None:
    if asked.no_retry:
        return "the target asked for that"
    if code in _FINAL_CODES:
        return f"no retry can mend {code}"
    named = next((pattern for pattern in policy.never_retry if _matches(code, pattern)), None)
    return None if named is None else f"{named} stands in its job's never_retry"


def _matches(code: str, pattern: str) -> bool:
    return code.startswith(pattern[:-1]) if pattern.endswith("*") else code == pattern


def _delay(policy: RetryPolicy, run_id: UUID, attempt: int) -> timedelta:
    longest = policy.max_delay.total_seconds()
    grown = policy.delay.total_seconds() * policy.multiplier ** min(attempt - 1, MAX_ATTEMPTS)
    return timedelta(seconds=min(grown, longest) * (1 - policy.jitter * _measure(run_id, attempt)))


def _measure(run_id: UUID, attempt: int) -> float:
    """A number from 0 to 1, evenly spread over runs and attempts, and always the same for one."""
    digest = hashlib.blake2b(run_id.bytes + attempt.to_bytes(4, "big"), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64
