"""Failures are tried again until the policy's attempts are used up, or nothing would be otherwise."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from statistics import mean
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler_service.domain.attempt import AttemptRef, Result
from scheduler_service.domain.record import ItemCounts, RunError
from scheduler_service.domain.retry import LONGEST_DELAY, MAX_ATTEMPTS, End, Following, Retry, RetryPolicy, decide
from scheduler_service.domain.returns import (
    MOST_SENT_IN_VAIN,
    Charged,
    Ended,
    HeldRun,
    Return,
    after_goodbye,
    after_loss,
    after_never_arriving,
    after_timeout,
)
from scheduler_service.domain.run import RunState

RUN = UUID("019a0000-0000-7000-8000-000000000001")
NOW = datetime(2030, 1, 1, tzinfo=UTC)
SECOND = timedelta(seconds=1)
POLICY = RetryPolicy(max_attempts=3, delay=timedelta(minutes=10))
DOUBLING = RetryPolicy(max_attempts=20, delay=10 * SECOND, multiplier=2, max_delay=60 * SECOND)

delays = st.timedeltas(timedelta(0), LONGEST_DELAY)
policies = st.builds(
    RetryPolicy,
    max_attempts=st.integers(1, MAX_ATTEMPTS),
    delay=delays,
    multiplier=st.floats(1, 100),
    max_delay=delays,
    jitter=st.floats(0, 1),
)
attempts = st.integers(1, MAX_ATTEMPTS - 1)


def delay(policy: RetryPolicy, attempt: int, *, run_id: UUID = RUN) -> timedelta:
    decision = decide(replace(policy, max_attempts=MAX_ATTEMPTS + 1), run_id, attempt, "HTTP_500")
    assert isinstance(decision, Retry)
    return decision.after


def held(policy: RetryPolicy, **fields: object) -> HeldRun:
    run = HeldRun(
        run_id=RUN,
        session_id=RUN,
        claim_id=1,
        attempt=1,
        started_at=NOW - SECOND,
        run_deadline=NOW + timedelta(days=1),
        unstarted_returns=0,
        cancel_requested_at=None,
        cancel_reason=None,
        retry=policy,
    )
    return replace(run, **fields)  # type: ignore[arg-type] # the fields of this test's calls


@pytest.mark.parametrize("attempt", [1, 2])
def test_a_failure_is_tried_again_after_the_delay(attempt: int) -> None:
    assert decide(POLICY, RUN, attempt, "HTTP_STATUS") == Retry(timedelta(minutes=10))


@pytest.mark.parametrize("attempt", [3, 4])
def test_the_last_attempt_ends_the_run(attempt: int) -> None:
    assert decide(POLICY, RUN, attempt, "HTTP_STATUS") == End()


@pytest.mark.parametrize(
    "code", ["BAD_PAYLOAD", "BAD_RESULT", "GRPC_REFUSED", "TARGET_NOT_ALLOWED", "SIGNING_KEY_MISSING"]
)
def test_what_will_not_be_otherwise_is_not_tried_again_and_says_why(code: str) -> None:
    assert decide(POLICY, RUN, 1, code) == End(f"not tried again: no retry can mend {code}")


def test_each_delay_is_longer_than_the_one_before_it_up_to_the_longest() -> None:
    assert [delay(DOUBLING, attempt) for attempt in range(1, 6)] == [s * SECOND for s in (10, 20, 40, 60, 60)]


def test_a_small_multiplier_counts_at_every_attempt() -> None:
    policy = RetryPolicy(MAX_ATTEMPTS, 10 * SECOND, multiplier=1.01)
    assert delay(policy, 99).total_seconds() == pytest.approx(10 * 1.01**98)


@pytest.mark.parametrize(
    ("code", "ends_by"),
    [("HTTP_404", "HTTP_4*"), ("HTTP_4", "HTTP_4*"), ("NO_USER", "NO_USER"), ("HTTP_500", None), ("NO_USERS", None)],
)
def test_codes_that_never_retry_names_end_the_run(code: str, ends_by: str | None) -> None:
    decision = decide(replace(POLICY, never_retry=("NO_USER", "HTTP_4*")), RUN, 1, code)
    expected = End(f"not tried again: {ends_by} stands in its job's never_retry") if ends_by else Retry(POLICY.delay)
    assert decision == expected


def test_a_target_may_ask_for_no_retry_or_for_another_delay() -> None:
    assert decide(POLICY, RUN, 1, "BUSY", Following(no_retry=True)) == End("not tried again: the target asked for that")
    assert decide(POLICY, RUN, 1, "BUSY", Following(retry_after=SECOND)) == Retry(SECOND)
    assert decide(POLICY, RUN, 1, "BUSY", Following(retry_after=timedelta(0))) == Retry(timedelta(0))


def test_what_a_target_asks_for_is_bounded_by_the_policy() -> None:
    assert decide(DOUBLING, RUN, 1, "BUSY", Following(retry_after=timedelta(hours=1))) == Retry(60 * SECOND)
    assert decide(POLICY, RUN, 3, "BUSY", Following(retry_after=SECOND)) == End()
    assert isinstance(decide(POLICY, RUN, 1, "BAD_PAYLOAD", Following(retry_after=SECOND)), End)


@given(policies, attempts, st.uuids(), delays)
def test_a_delay_is_within_its_bounds(policy: RetryPolicy, attempt: int, run_id: UUID, asked: timedelta) -> None:
    assert timedelta(0) <= delay(policy, attempt, run_id=run_id) <= policy.max_delay
    wished = decide(replace(policy, max_attempts=101), run_id, attempt, "BUSY", Following(retry_after=asked))
    assert wished == Retry(min(asked, policy.max_delay))


@given(policies, attempts, st.uuids())
def test_delays_never_shrink_without_jitter(policy: RetryPolicy, attempt: int, run_id: UUID) -> None:
    steady = replace(policy, jitter=0.0)
    assert delay(steady, attempt, run_id=run_id) <= delay(steady, attempt + 1, run_id=run_id)


@given(policies, attempts, st.uuids())
def test_jitter_never_lengthens_and_takes_no_more_than_its_share(
    policy: RetryPolicy, attempt: int, run_id: UUID
) -> None:
    full = delay(replace(policy, jitter=0.0), attempt, run_id=run_id)
    less = delay(policy, attempt, run_id=run_id)
    assert full * (1 - policy.jitter) - timedelta(microseconds=1) <= less <= full
    assert less == delay(policy, attempt, run_id=run_id), "the same whenever it is asked"


@given(st.integers(0, 2**100), attempts)
def test_jitter_spreads_what_failed_together(first: int, attempt: int) -> None:
    policy = RetryPolicy(MAX_ATTEMPTS, 100 * SECOND, jitter=0.5)
    found = [delay(policy, attempt, run_id=UUID(int=first + n)).total_seconds() for n in range(200)]
    assert 69 < mean(found) < 81  # evenly from 50 to 100: 75, by six times its deviation
    assert {int(seconds // 10) for seconds in found} == {5, 6, 7, 8, 9}
    again = [delay(policy, attempt + 1, run_id=UUID(int=first + n)).total_seconds() for n in range(200)]
    assert found != again, "each attempt has a measure of its own"


def test_a_run_whose_worker_was_lost_is_free_at_once_whatever_its_delay() -> None:
    charged = after_loss(held(DOUBLING, attempt=2), NOW)
    assert isinstance(charged, Charged)
    assert (charged.error.code, charged.run_after) == ("WORKER_LOST", NOW)


def said(what: Return) -> str:
    assert isinstance(what, Charged | Ended)
    assert what.error.code in ("WORKER_LOST", "WORKER_LEFT")
    return what.error.message


def test_a_loss_names_worker_and_attempt() -> None:
    assert said(after_loss(held(POLICY, worker="w-7"), NOW)) == "worker w-7 was lost while it held attempt 1 of 3"
    assert said(after_loss(held(POLICY, attempt=3), NOW)) == "the worker was lost while it held attempt 3 of 3"


def test_a_further_loss_says_how_many_there_were_and_that_the_run_may_be_the_cause() -> None:
    again = held(POLICY, worker="w-7", attempt=3, alone=True, losses=2)
    assert said(after_loss(again, NOW)) == (
        "worker w-7 was lost while it held attempt 3 of 3; the run was lost 3 times in all;"
        " it may itself be the cause, and is kept apart from other runs as far as can be"
    )


def test_a_loss_before_the_start_counts_among_them() -> None:
    assert "lost 2 times in all" in said(after_loss(held(POLICY, started_at=None, unstarted_returns=1), NOW))


def test_what_never_arrived_is_no_worker_s_doing() -> None:
    in_vain = held(POLICY, started_at=None, unstarted_returns=MOST_SENT_IN_VAIN, worker="w-7", alone=True)
    assert said(after_never_arriving(in_vain, NOW)) == (
        "attempt 1 of 3 was sent to workers 6 times, and reached none of them"
    )
    assert said(after_never_arriving(held(POLICY, worker="w-7"), NOW)) == (
        "worker w-7 had started attempt 1 of 3, and lives, but no longer knows of it"
    )


def test_a_worker_that_left_in_order_speaks_against_no_run() -> None:
    charged = after_goodbye(held(POLICY, attempt=2), NOW)
    assert isinstance(charged, Charged)
    assert (charged.error.code, charged.alone) == ("WORKER_LEFT", False)


def test_a_worker_that_left_is_not_called_lost() -> None:
    assert said(after_goodbye(held(POLICY, worker="w-7", alone=True), NOW)) == (
        "worker w-7 stopped before attempt 1 of 3 had ended"
    )


def test_an_overdue_attempt_waits_as_its_policy_says() -> None:
    assert isinstance(charged := after_timeout(held(DOUBLING, attempt=2), NOW), Charged)
    assert (charged.error.code, charged.run_after) == ("ATTEMPT_TIMEOUT", NOW + 20 * SECOND)


def test_a_lost_worker_ends_a_run_whose_job_says_so() -> None:
    ended = after_loss(held(replace(POLICY, never_retry=("WORKER_LOST",))), NOW)
    assert isinstance(ended, Ended)
    assert (ended.state, ended.error.detail) == (
        RunState.FAILED,
        "not tried again: WORKER_LOST stands in its job's never_retry",
    )


def test_results_without_a_wish_have_the_digest_that_earlier_releases_gave_them() -> None:
    error, items = RunError("HTTP_STATUS", "the target answered 500", "oh no"), ItemCounts(3, 2, 1)
    ref = AttemptRef(UUID(int=1), 1, 1)
    failed = Result(ref, UUID(int=1), "FAILED", 2.5, error, items, '{"a": 1}')
    assert failed.digest() == "dfb2af887f2276e160f23113425e8345"
    assert Result(ref, UUID(int=1), "COMPLETED").digest() == "979c51cdca691dc570303f13e5198a9b"


def test_a_wish_is_part_of_a_results_digest() -> None:
    failed = Result(AttemptRef(RUN, 1, 1), RUN, "FAILED")
    wishes = [None, Following(no_retry=True), Following(retry_after=SECOND), Following(retry_after=2 * SECOND)]
    assert len({replace(failed, following=wish).digest() for wish in wishes}) == 4
    assert (
        replace(failed, following=Following(retry_after=SECOND)).digest()
        == replace(failed, following=Following(retry_after=timedelta(milliseconds=1000))).digest()
    )
