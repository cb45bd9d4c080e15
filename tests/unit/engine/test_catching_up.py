"""What resuming catches up, against the tick's own settlement and against a look at each occurrence."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler_service.domain.catching_up import CatchUpPlan, CaughtUp, catch_up, passed_over
from scheduler_service.domain.run import TriggerSource
from scheduler_service.domain.timing import CatchUp, Timing, occurrences, settle

START = datetime(2026, 3, 1, tzinfo=UTC)
SECOND = timedelta(seconds=1)
MINUTE = timedelta(minutes=1)
TIMINGS = [Timing.of("@every 7s"), Timing.of("@every 10m"), Timing.of("*/3 * * * *"), Timing.of("0 9 * * *")]
policies = st.sampled_from([CatchUp.LATEST, CatchUp.ALL])
timings = st.sampled_from(TIMINGS)
minutes = st.integers(0, 60)


def instants(caught_up: CaughtUp) -> list[datetime]:
    return [run.occurrence.instant for run in caught_up.runs(1, timedelta(), START)]


@given(timing=timings, policy=policies, since=minutes, seconds=st.integers(0, 3600), window=minutes)
def test_one_stretch_up_to_now_is_settled_as_the_tick_would(
    timing: Timing, policy: CatchUp, since: int, seconds: int, window: int
) -> None:
    after = START + since * MINUTE
    now = after + seconds * SECOND
    found = catch_up(timing, ((after, now),), now, policy, window * MINUTE)
    expected = settle(timing, after, now, catch_up=policy, window=window * MINUTE, limit=10_000)
    assert instants(found) == [due.occurrence.instant for due in expected.due]
    assert found.missed == expected.missed
    late = [run.trigger is TriggerSource.CATCH_UP for run in found.runs(1, timedelta(), now)]
    assert late == [due.late for due in expected.due]


@given(timing=timings, policy=policies, cuts=st.lists(minutes, max_size=6), window=minutes, seconds=st.integers(0, 90))
def test_each_owed_occurrence_is_run_or_missed_and_nothing_else_is(
    timing: Timing, policy: CatchUp, cuts: list[int], window: int, seconds: int
) -> None:
    bounds = [START + cut * MINUTE for cut in sorted(set(cuts))]
    owing = tuple(zip(bounds[::2], bounds[1::2], strict=False))
    now = START + 60 * MINUTE + seconds * SECOND
    found = catch_up(timing, owing, now, policy, window * MINUTE)
    owed = [each.instant for span in owing for each in occurrences(timing, *span)]
    run = instants(found)
    missed = [each for each in owed if any(gap.first <= each <= gap.last for gap in found.missed)]
    assert sorted(run + missed) == owed
    assert sum(gap.count for gap in found.missed) == len(missed)
    within = [each for each in owed if now - each <= window * MINUTE or now - each < MINUTE]
    on_time = [each for each in owed if now - each < MINUTE]
    assert run == (within if policy is CatchUp.ALL else on_time or within[-1:])
    assert found.plan() == CatchUpPlan(len(run), len(missed), *([run[0], run[-1]] if run else []))


@given(timing=timings, policy=policies, cuts=st.lists(minutes, max_size=6), data=st.data())
def test_what_was_remedied_is_missed_and_all_else_as_it_was(
    timing: Timing, policy: CatchUp, cuts: list[int], data: st.DataObject
) -> None:
    bounds = [START + cut * MINUTE for cut in sorted(set(cuts))]
    owing = tuple(zip(bounds[::2], bounds[1::2], strict=False))
    found = catch_up(timing, owing, START + 61 * MINUTE, policy, 60 * MINUTE)
    run = instants(found)
    remedied = data.draw(st.sets(st.sampled_from([*run, START, START + SECOND])))
    left = found.without(remedied)
    assert instants(left) == [each for each in run if each not in remedied]
    assert [gap.first for gap in left.missed[len(found.missed) :]] == sorted(remedied & set(run))
    assert left.missed[: len(found.missed)] == found.missed
    plan, ran = left.plan(), instants(left)
    assert plan == CatchUpPlan(len(ran), found.plan().missed + len(run) - len(ran), *([ran[0], ran[-1]] if ran else []))


def test_what_an_earlier_revision_owed_is_not_run_even_on_time() -> None:
    span = (START, START + 3 * MINUTE)
    found = passed_over(TIMINGS[2], span)
    assert instants(found) == []
    assert [(gap.first, gap.count, gap.reason) for gap in found.missed] == [(START + 3 * MINUTE, 1, "catch_up_none")]


def test_a_run_waits_for_its_jitter_which_does_not_make_it_late() -> None:
    now = START + 20 * MINUTE
    found = catch_up(TIMINGS[1], ((START, now),), now, CatchUp.ALL, timedelta(days=1))
    first, second = found.runs(7, 5 * MINUTE, now)
    assert START + 10 * MINUTE <= first.run_after < START + 15 * MINUTE
    assert now <= second.run_after < now + 5 * MINUTE
    assert second.trigger is TriggerSource.SCHEDULE
    assert first.run_id != next(found.runs(8, 5 * MINUTE, now)).run_id


@pytest.mark.parametrize("schedules", [0, 1, 3])
def test_plans_add_up(schedules: int) -> None:
    one = CatchUpPlan(2, 1, START, START + MINUTE)
    other = CatchUpPlan(1, 0, START - MINUTE, START - MINUTE)
    added = one.times(schedules) + other
    assert (added.runs, added.missed, added.first) == (2 * schedules + 1, schedules, START - MINUTE)
    assert one + CatchUpPlan() == one
