"""Which occurrences of the past a backfill is about, and how many are too many."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import pytest

from scheduler_service.domain.backfill import MAX_RUNS, Wanted, refuse_too_many_runs, wanted_in
from scheduler_service.domain.errors import InvalidInput
from scheduler_service.domain.names import BackfillName, JobName, ScheduleName
from scheduler_service.domain.schedule import InForce
from scheduler_service.domain.timeline import Stretch
from scheduler_service.domain.timing import HORIZON, GapPolicy, RepeatPolicy

DAY = timedelta(days=1)
SINCE = datetime(2026, 3, 1, tzinfo=UTC)
JOB = JobName("email-service", "weekly-digest")


def stretch(cron: str, after: datetime, until: datetime = HORIZON, *, revision: int = 1, owing: bool = True) -> Stretch:
    in_force = InForce(owing, cron, "UTC", GapPolicy.SHIFT, RepeatPolicy.FIRST, timedelta(), timedelta())
    return Stretch(after, until, revision, in_force, owing)


def wanted(stretches: Sequence[Stretch], since: datetime, until: datetime, schedules: int = 1) -> list[Wanted]:
    names = {each: ScheduleName(JOB, f"tenant-{each}", "daily") for each in range(1, schedules + 1)}
    return wanted_in(dict.fromkeys(names, stretches), names, since, until)


def instants(found: Sequence[Wanted]) -> list[tuple[datetime, int]]:
    return [(each.occurrence.instant, each.part.revision) for each in found]


def test_the_beginning_counts_and_the_end_does_not() -> None:
    daily = [stretch("0 0 * * *", SINCE - DAY)]
    assert instants(wanted(daily, SINCE, SINCE + 2 * DAY)) == [(SINCE, 1), (SINCE + DAY, 1)]


def test_before_the_first_revision_its_timing_counts() -> None:
    found = wanted([stretch("0 0 * * *", SINCE + 5 * DAY)], SINCE, SINCE + 2 * DAY)
    assert instants(found) == [(SINCE, 1), (SINCE + DAY, 1)]


def test_each_instant_is_of_the_revision_then_in_force() -> None:
    edited = [
        stretch("0 0 * * *", SINCE - DAY, SINCE + DAY),
        stretch("0 12 * * *", SINCE + DAY, SINCE + 2 * DAY, revision=2),
        stretch("0 0 * * *", SINCE + 2 * DAY, revision=3),
    ]
    expected = [(SINCE, 1), (SINCE + DAY, 1), (SINCE + 1.5 * DAY, 2), (SINCE + 3 * DAY, 3)]
    assert instants(wanted(edited, SINCE, SINCE + 3.5 * DAY)) == expected


def test_what_was_not_owing_counts_as_well() -> None:
    assert len(wanted([stretch("0 0 * * *", SINCE - DAY, owing=False)], SINCE, SINCE + 2 * DAY)) == 2


def test_several_schedules_take_turns_by_time() -> None:
    found = wanted([stretch("0 0 * * *", SINCE - DAY)], SINCE, SINCE + 2 * DAY, schedules=2)
    assert [each.part.schedule_id for each in found] == [1, 2, 1, 2]
    assert len({each.scheduled_run_id for each in found}) == 4


def test_what_is_far_too_much_is_counted_and_never_made() -> None:
    every_second = [stretch("@every 1s", SINCE - DAY)]
    with pytest.raises(InvalidInput) as refused:
        wanted(every_second, SINCE - timedelta(seconds=1_700_000_000), SINCE)
    assert [violation.field for violation in refused.value.violations] == ["until"]
    assert "there are 1,700,000,000 occurrences" in str(refused.value)
    assert "take a shorter range" in str(refused.value)


def test_a_hundred_thousand_occurrences_are_looked_through_and_one_more_is_not() -> None:
    every_second = [stretch("@every 1s", SINCE - DAY)]
    assert len(wanted(every_second, SINCE, SINCE + timedelta(seconds=100_000))) == 100_000
    with pytest.raises(InvalidInput, match="100,001 occurrences"):
        wanted(every_second, SINCE, SINCE + timedelta(seconds=100_001))


def test_counting_is_bounded_where_each_schedule_says_something_else() -> None:
    names = {each: ScheduleName(JOB, f"tenant-{each}", "daily") for each in range(1, 101)}
    lines = {each: [stretch(f"{each % 60} {each % 24} 29 2 *", SINCE)] for each in names}
    with pytest.raises(InvalidInput, match="days to be counted; take a shorter range"):
        wanted_in(lines, names, datetime(1970, 1, 1, tzinfo=UTC), SINCE)


def test_a_timing_that_cannot_be_evaluated_is_named() -> None:
    broken = [stretch("0 0 * * *", SINCE - DAY, SINCE + DAY), stretch("nonsense", SINCE + DAY, revision=2)]
    with pytest.raises(InvalidInput, match="revision 2 of services/email-service/jobs/weekly-digest/tenants/tenant-1"):
        wanted(broken, SINCE, SINCE + 2 * DAY)
    assert len(wanted(broken, SINCE, SINCE + DAY)) == 1


def test_ten_thousand_runs_are_not_too_many() -> None:
    refuse_too_many_runs(MAX_RUNS)
    with pytest.raises(InvalidInput, match="10,001 runs"):
        refuse_too_many_runs(MAX_RUNS + 1)


def test_a_backfills_name_is_read_as_it_is_written() -> None:
    text = f"{JOB}/backfills/019a0000-0000-7000-8000-000000000001"
    name = BackfillName.parse(text)
    assert (str(name), name.job) == (text, JOB)
    for wrong in (f"{JOB}/backfills/1", f"{JOB}", text.replace("-", ""), f"services/-/jobs/x/{text.split('/', 4)[4]}"):
        with pytest.raises(InvalidInput):
            BackfillName.parse(wrong)
