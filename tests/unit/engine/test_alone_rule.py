"""Which runs are next claimed alone, because neighbours of theirs may have killed their workers, or they those of
their neighbours."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler_service.domain.retry import MAX_ATTEMPTS, RetryPolicy
from scheduler_service.domain.returns import (
    Charged,
    Ended,
    Freed,
    HeldRun,
    Return,
    after_goodbye,
    after_loss,
    after_never_arriving,
    after_timeout,
)

RUN = UUID(int=1)
NOW = datetime(2030, 1, 1, tzinfo=UTC)
AT_ONCE = timedelta(0)
Happens = Callable[[HeldRun, datetime], Return]
CHARGING: Sequence[Happens] = (after_loss, after_never_arriving, after_goodbye, after_timeout)
LOSING = (after_loss, after_never_arriving)


def first_attempt(max_attempts: int) -> HeldRun:
    return HeldRun(
        run_id=RUN,
        session_id=RUN,
        claim_id=1,
        attempt=1,
        started_at=None,
        run_deadline=None,
        unstarted_returns=0,
        cancel_requested_at=None,
        cancel_reason=None,
        retry=RetryPolicy(max_attempts, AT_ONCE),
    )


def suffers(run: HeldRun, happens: Happens, *, started: bool) -> HeldRun | Ended:
    """The run as the store would hold it in its next claim, or its end."""
    what = happens(replace(run, started_at=NOW if started else None), NOW)
    if isinstance(what, Ended):
        return what
    if isinstance(what, Freed):
        return replace(run, unstarted_returns=run.unstarted_returns + what.lost, alone=run.alone or what.alone)
    return replace(
        run,
        attempt=run.attempt + 1,
        losses=run.losses + (what.error.code == "WORKER_LOST"),
        alone=run.alone or what.alone,
    )


@pytest.mark.parametrize("max_attempts", range(2, 12))
def test_a_run_is_alone_after_its_second_loss_or_in_its_last_attempt(max_attempts: int) -> None:
    run: HeldRun | Ended = first_attempt(max_attempts)
    alone = []
    while isinstance(run, HeldRun):
        alone.append(run.alone)
        run = suffers(run, after_loss, started=True)
    assert alone == ([False, True] if max_attempts == 2 else [False, False] + [True] * (max_attempts - 2))


def test_the_only_attempt_is_an_ordinary_one() -> None:
    assert isinstance(suffers(first_attempt(1), after_loss, started=True), Ended)


@given(st.integers(2, MAX_ATTEMPTS), st.data())
def test_a_run_that_is_only_ever_lost_is_alone_in_its_last_attempt(max_attempts: int, data: st.DataObject) -> None:
    run: HeldRun | Ended = first_attempt(max_attempts)
    while isinstance(run, HeldRun):
        last = run
        run = suffers(run, data.draw(st.sampled_from(LOSING)), started=data.draw(st.booleans()))
    assert last.attempt == max_attempts
    assert last.alone


@given(st.integers(2, MAX_ATTEMPTS), st.data())
def test_whatever_else_happens_the_last_attempt_of_a_run_that_was_lost_is_alone(
    max_attempts: int, data: st.DataObject
) -> None:
    run: HeldRun | Ended = first_attempt(max_attempts)
    was_lost = False
    while isinstance(run, HeldRun):
        last, lost_before = run, was_lost
        happens = data.draw(st.sampled_from(CHARGING))
        run = suffers(run, happens, started=True)
        was_lost = was_lost or happens in LOSING
    assert last.alone or not lost_before


@given(st.integers(2, MAX_ATTEMPTS), st.lists(st.booleans(), min_size=1, max_size=5))
def test_one_loss_makes_no_run_alone_that_has_attempts_left(max_attempts: int, before: list[bool]) -> None:
    """`before`: attempts that ended otherwise, by their timeouts."""
    run: HeldRun | Ended = first_attempt(max_attempts + len(before) + 1)
    for _ in before:
        assert isinstance(run, HeldRun)
        run = suffers(run, after_timeout, started=True)
    assert isinstance(run, HeldRun)
    run = suffers(run, after_loss, started=True)
    assert isinstance(run, HeldRun)
    assert not run.alone


def test_goodbye_makes_no_run_alone() -> None:
    run = suffers(first_attempt(2), after_goodbye, started=True)
    assert isinstance(run, HeldRun)
    assert (run.attempt, run.alone) == (2, False)


def test_what_did_not_arrive_is_alone_from_the_second_time_on() -> None:
    run: HeldRun | Ended = first_attempt(3)
    alone = []
    for _ in range(3):
        assert isinstance(run, HeldRun)
        alone.append(run.alone)
        run = suffers(run, after_never_arriving, started=False)
    assert alone == [False, False, True]


def test_a_loss_before_the_start_is_free_and_counts_as_the_first() -> None:
    run = suffers(first_attempt(9), after_loss, started=False)
    assert isinstance(run, HeldRun)
    assert (run.attempt, run.alone) == (1, False)
    run = suffers(run, after_loss, started=True)
    assert isinstance(run, HeldRun)
    assert (run.attempt, run.alone) == (2, True)


def test_alone_is_said_of_what_is_charged() -> None:
    what = after_loss(replace(first_attempt(2), started_at=NOW), NOW)
    assert isinstance(what, Charged)
    assert what.alone
