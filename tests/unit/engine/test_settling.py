"""What a schedule owes, jitter and paused jobs included."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from scheduler_service.domain.run import TriggerSource
from scheduler_service.domain.settling import LIMIT, Standing, decide, decide_all, first_start
from scheduler_service.domain.timing import CatchUp, TimingError

NOON = datetime(2026, 3, 10, 12, tzinfo=UTC)
OLDEST = datetime(2026, 2, 1, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
HOURLY = Standing(
    schedule_id=7,
    cron="0 * * * *",
    time_zone="UTC",
    gap="SHIFT",
    repeat="FIRST",
    phase=timedelta(),
    jitter=timedelta(),
    settled_to=NOON - MINUTE,
    owed_from=datetime(2020, 1, 1, tzinfo=UTC),
    halted=False,
    catch_up=CatchUp.LATEST,
    window=timedelta(days=1),
)
JITTERED = replace(HOURLY, jitter=timedelta(minutes=30))


def test_one_that_is_due_is_one_run() -> None:
    decision = decide(HOURLY, NOON, OLDEST)
    assert [(run.occurrence.instant, run.trigger, run.run_after) for run in decision.runs] == [
        (NOON, TriggerSource.SCHEDULE, NOON)
    ]
    assert (decision.settled_to, decision.next_run_at) == (NOON, NOON + 60 * MINUTE)


def test_late_ones_are_catch_up() -> None:
    decision = decide(HOURLY, NOON + 2 * MINUTE, OLDEST)
    assert [run.trigger for run in decision.runs] == [TriggerSource.CATCH_UP]


def test_jitter_is_the_same_each_time_and_never_lateness() -> None:
    start = first_start(JITTERED, JITTERED.settled_to)
    assert start is not None
    assert NOON + 2 * MINUTE < start < NOON + 30 * MINUTE
    assert decide(JITTERED, start - timedelta(microseconds=1), OLDEST).runs == ()
    (run,) = decide(JITTERED, start, OLDEST).runs
    assert (run.trigger, run.run_after) == (TriggerSource.SCHEDULE, start)


def test_a_revision_that_ends_owes_what_only_waits_for_its_jitter() -> None:
    assert decide(JITTERED, NOON + MINUTE, OLDEST).runs == ()
    decision = decide_all(JITTERED, NOON + MINUTE, OLDEST)
    assert [(run.occurrence.instant, run.trigger) for run in decision.runs] == [(NOON, TriggerSource.SCHEDULE)]
    assert decision.settled_to == NOON
    assert decide_all(replace(JITTERED, settled_to=NOON), NOON + MINUTE, OLDEST).runs == ()


def test_more_than_one_settlement_makes_is_due_at_once() -> None:
    busy = replace(HOURLY, cron="@every 1s", settled_to=NOON - MINUTE, catch_up=CatchUp.ALL)
    decision = decide(busy, NOON + 2 * MINUTE, OLDEST)
    assert len(decision.runs) == LIMIT
    assert decision.next_run_at == decision.settled_to + timedelta(seconds=1) <= NOON + 2 * MINUTE


def test_a_halted_job_only_moves_on() -> None:
    decision = decide(replace(HOURLY, halted=True), NOON + MINUTE, OLDEST)
    assert (decision.runs, decision.missed) == ((), ())
    assert (decision.settled_to, decision.next_run_at) == (NOON + MINUTE, NOON + 60 * MINUTE)


def test_nothing_is_owed_from_before_1970() -> None:
    ancient = datetime(1900, 1, 1, tzinfo=UTC)
    decision = decide(replace(HOURLY, settled_to=ancient, owed_from=ancient), NOON, OLDEST)
    assert decision.missed[0].first == datetime(1970, 1, 1, 1, tzinfo=UTC)


def test_what_cannot_be_evaluated_is_refused() -> None:
    with pytest.raises(TimingError):
        decide(replace(HOURLY, cron="61 * * * *"), NOON, OLDEST)
