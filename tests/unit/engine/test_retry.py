"""Failures are tried again until the policy's attempts are used up."""

from __future__ import annotations

from datetime import timedelta

import pytest

from scheduler_service.domain.retry import End, Retry, RetryPolicy, decide

POLICY = RetryPolicy(max_attempts=3, delay=timedelta(minutes=10))


@pytest.mark.parametrize("attempt", [1, 2])
def test_a_failure_is_tried_again_after_the_delay(attempt: int) -> None:
    assert decide(POLICY, attempt, "HTTP_STATUS") == Retry(timedelta(minutes=10))


@pytest.mark.parametrize("attempt", [3, 4])
def test_the_last_attempt_ends_the_run(attempt: int) -> None:
    assert decide(POLICY, attempt, "HTTP_STATUS") == End()


@pytest.mark.parametrize(
    "code", ["BAD_PAYLOAD", "BAD_RESULT", "GRPC_REFUSED", "TARGET_NOT_ALLOWED", "SIGNING_KEY_MISSING"]
)
def test_what_will_not_be_otherwise_is_not_tried_again(code: str) -> None:
    assert decide(POLICY, 1, code) == End()
