"""Why the next attempt comes when it does, in a sentence; and what must not change with it."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest

from scheduler_service.domain.attempt import AttemptRef, Result
from scheduler_service.domain.overlap import SKIPPED, skipped
from scheduler_service.domain.record import RunError
from scheduler_service.domain.retry import AS_THE_POLICY_SAYS, Following, Retry, RetryPolicy, decide
from scheduler_service.domain.returns import AT_ONCE, Charged, HeldRun, after_goodbye, after_loss, after_timeout

RUN = UUID("019a0000-0000-7000-8000-000000000001")
NOW = datetime(2030, 1, 1, tzinfo=UTC)
POLICY = RetryPolicy(max_attempts=9, delay=timedelta(minutes=10), multiplier=2, max_delay=timedelta(minutes=30))
WORKERS_FAULT = "at once, since the attempt before it ended with its worker"
FAILED = RunError("HTTP_503", "it is down", "at line 1")


def wishing(seconds: float) -> Following:
    return Following(retry_after=timedelta(seconds=seconds))


@pytest.mark.parametrize(
    ("policy", "attempt", "asked", "reason"),
    [
        (POLICY, 1, AS_THE_POLICY_SAYS, "600 s after attempt 1, by the job's retry policy"),
        (POLICY, 2, AS_THE_POLICY_SAYS, "1200 s after attempt 2, by the job's retry policy"),
        (replace(POLICY, delay=timedelta(days=7), max_delay=timedelta(days=7)), 1, AS_THE_POLICY_SAYS, "604800 s"),
        (replace(POLICY, delay=timedelta(milliseconds=1520)), 1, AS_THE_POLICY_SAYS, "1.5 s after attempt 1, by"),
        (POLICY, 1, wishing(120), "120 s after attempt 1, as the target asked"),
        (POLICY, 1, wishing(0), "0 s after attempt 1, as the target asked"),
        (
            POLICY,
            3,
            wishing(7200),
            "1800 s after attempt 3, as the target asked: it asked for 7200 s, and the job's max_delay allows no more",
        ),
        (POLICY, 1, AT_ONCE, WORKERS_FAULT),
    ],
    ids=["policy", "grown", "longest", "short", "asked", "asked-at-once", "cut", "worker"],
)
def test_a_retry_says_what_decided_its_time(policy: RetryPolicy, attempt: int, asked: Following, reason: str) -> None:
    decision = decide(policy, RUN, attempt, "HTTP_503", asked)
    assert isinstance(decision, Retry)
    assert decision.because.startswith(reason)


def test_what_a_worker_did_not_finish_says_it_too() -> None:
    held = HeldRun(RUN, RUN, 1, 1, NOW, None, 0, None, None, POLICY)
    lost, left, overdue = after_loss(held, NOW), after_goodbye(held, NOW), after_timeout(held, NOW)
    assert isinstance(lost, Charged)
    assert isinstance(left, Charged)
    assert isinstance(overdue, Charged)
    assert lost.error.retry == left.error.retry == WORKERS_FAULT
    assert overdue.error.retry == "600 s after attempt 1, by the job's retry policy"


def test_it_is_in_the_document_beside_the_error() -> None:
    document = FAILED.retried("at once").to_document()
    assert document == {"code": "HTTP_503", "message": "it is down", "detail": "at line 1", "retry": "at once"}
    assert RunError.from_document(document) == FAILED.retried("at once") != FAILED
    assert "retry" not in FAILED.to_document(), "what has no next attempt has no reason for its time"


def test_the_digest_of_a_result_is_what_schedulers_before_computed() -> None:
    """A worker may send again to a new release what an old one has recorded."""
    result = Result(AttemptRef(RUN, 1, 7), RUN, "FAILED", duration=1.5, error=FAILED, following=wishing(30))
    assert result.digest() == "1de3b4ba28863d5a830582eca5066963"
    assert replace(result, following=None).digest() == "03b79817964c3060c890207b82504d78"


@pytest.mark.parametrize("seconds", [-3600.0, 0.0, 1.9])
def test_an_occurrence_skipped_in_time_says_only_why(seconds: float) -> None:
    assert skipped(timedelta(seconds=seconds)) == SKIPPED


def test_one_skipped_late_says_how_late() -> None:
    error = skipped(timedelta(seconds=41.6))
    assert (error.code, error.message) == (
        "OVERLAP",
        f"{SKIPPED.message}; no scheduler came to it until 42 s after it was due",
    )
