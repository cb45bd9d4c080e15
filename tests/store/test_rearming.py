"""What was set aside comes back, and next times follow tzdata."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import psycopg
import pytest
from structlog.testing import capture_logs

from scheduler_service.domain.job import Policies
from scheduler_service.domain.overlap import Overlap
from scheduler_service.domain.schedule import NO_EXPRESSION, ScheduleSpec
from scheduler_service.domain.timing import CatchUp, tzdata_version
from scheduler_service.domain.timing.release import is_newer_release
from scheduler_service.engine.rearming import BATCH, Rearming
from scheduler_service.engine.tick import NobodySeated, tick
from tests.store.definitions_case import HOUR, MINUTE, Scheduler, digest, for_tenant
from tests.store.definitions_case import every as interval
from tests.store.engine_case import START, Connection, every, job_of, rows

Admin = psycopg.Connection[Any]
OLDER = "2001a"
NEWER = "9999z"
NEW_YORK: dict[str, Any] = {"cron": "0 9 * * *", "time_zone": "America/New_York", "settled_to": START}


def computed_by(admin: Admin, version: str, ago: timedelta = timedelta(days=30)) -> None:
    admin.execute("insert into carillon.time_zone_rules values (true, %s, now() - %s)", [version, ago])


def recorded(admin: Admin) -> list[str]:
    return [version for (version,) in rows(admin, "select version from carillon.time_zone_rules")]


def armed_for(admin: Admin, schedule: int) -> datetime | None:
    ((at,),) = rows(admin, "select next_run_at from carillon.schedules where schedule_id = %s", schedule)
    assert at is None or isinstance(at, datetime)
    return at


async def look(connection: Connection, rearming: Rearming | None = None, now: float = 0.0) -> None:
    rearming = rearming or Rearming()
    while await rearming.step(connection, now):
        pass


@pytest.mark.parametrize(
    ("release", "than"),
    [("2026b", "2026a"), ("2027a", "2026g"), ("2026za", "2026z"), ("2026a", ""), ("2026a", "unknown")],
)
def test_releases_have_an_order(release: str, than: str) -> None:
    assert is_newer_release(release, than)
    assert not is_newer_release(than, release)
    assert not is_newer_release(release, release)


def nine_in_new_york() -> datetime:
    """The first 9:00 after START, by the rules in use: 9:00 there is 13:00 or 14:00 in UTC."""
    noon = START.replace(hour=12)
    summer = (noon + timedelta(hours=1), noon + timedelta(hours=2))
    return next(at for at in summer if at.astimezone(ZoneInfo("America/New_York")).hour == 9)


async def test_a_newer_release_has_next_times_computed_from_where_schedules_stand(
    admin: Admin, hot: Connection
) -> None:
    job = job_of(admin)
    wrong = nine_in_new_york() + timedelta(minutes=30)
    moved = every(admin, job, schedule="moved", **(NEW_YORK | {"next_run_at": wrong}))
    jitter = {"jitter": timedelta(minutes=20), "next_run_at": wrong}
    delayed = every(admin, job, schedule="delayed", **(NEW_YORK | jitter))
    elapsed = every(admin, job, "@every 1h", schedule="elapsed", time_zone="America/New_York", next_run_at=wrong)
    utc = every(admin, job, "0 9 * * *", schedule="utc", next_run_at=wrong)
    off = every(admin, job, schedule="off", enabled=False, **(NEW_YORK | {"next_run_at": None}))
    computed_by(admin, OLDER)
    await look(hot)
    assert armed_for(admin, moved) == nine_in_new_york()
    at = armed_for(admin, delayed)
    assert at is not None
    assert nine_in_new_york() < at < nine_in_new_york() + timedelta(minutes=20)
    assert [armed_for(admin, each) for each in (elapsed, utc, off)] == [wrong, wrong, None]
    assert recorded(admin) == [tzdata_version()]
    assert rows(admin, "select distinct settled_to from carillon.schedules") == [(START,)]


async def test_what_an_older_release_armed_too_late_is_owed_at_once(admin: Admin, hot: Connection) -> None:
    every(admin, job_of(admin), **(NEW_YORK | {"next_run_at": nine_in_new_york() + 3 * HOUR}))
    await look(hot)
    await tick(hot, NobodySeated(), now=nine_in_new_york() + MINUTE / 2)
    assert rows(admin, "select scheduled_for, trigger::text from carillon.live_runs") == [
        (nine_in_new_york(), "SCHEDULE")
    ]


async def test_what_was_armed_before_anybody_said_by_what_is_computed_again(admin: Admin, hot: Connection) -> None:
    schedule = every(admin, job_of(admin), **(NEW_YORK | {"next_run_at": START + HOUR / 2}))
    await look(hot)
    assert armed_for(admin, schedule) == nine_in_new_york()
    assert recorded(admin) == [tzdata_version()]


async def test_an_older_replica_changes_nothing_and_says_so(admin: Admin, hot: Connection) -> None:
    wrong = START + HOUR / 2
    schedule = every(admin, job_of(admin), **(NEW_YORK | {"next_run_at": wrong}))
    computed_by(admin, NEWER, ago=timedelta())
    with capture_logs() as logs:
        await look(hot)
    assert armed_for(admin, schedule) == wrong
    assert recorded(admin) == [NEWER]
    assert [(each["log_level"], each["newer"]) for each in logs] == [("warning", NEWER)]


@pytest.mark.parametrize(("age", "again"), [(HOUR, True), (3 * HOUR, False)])
async def test_what_replicas_of_both_releases_armed_is_computed_again_for_a_while(
    admin: Admin, hot: Connection, age: timedelta, again: bool
) -> None:
    wrong = START + HOUR / 2
    schedule = every(admin, job_of(admin), **(NEW_YORK | {"next_run_at": wrong}))
    computed_by(admin, tzdata_version(), ago=age)
    await look(hot)
    assert armed_for(admin, schedule) == (nine_in_new_york() if again else wrong)


async def test_a_schedule_that_somebody_holds_is_come_back_to(admin: Admin, hot: Connection, other: Connection) -> None:
    job = job_of(admin)
    wrong = START + HOUR / 2
    schedules = [
        every(admin, job, schedule=f"s{number}", **(NEW_YORK | {"next_run_at": wrong})) for number in range(BATCH + 3)
    ]
    rearming = Rearming()
    async with other.transaction():
        await other.execute("select from carillon.schedules where schedule_id = any(%s) for update", [schedules[:2]])
        await look(hot, rearming)
        assert rows(admin, "select count(*) from carillon.schedules where next_run_at = %s", wrong) == [(2,)]
        assert recorded(admin) == []
        assert 0 < rearming.next_at() <= 1
    await look(hot, rearming, now=rearming.next_at())
    assert {armed_for(admin, each) for each in schedules} == {nine_in_new_york()}
    assert recorded(admin) == [tzdata_version()]
    assert rearming.next_at() >= 3_600


async def test_a_batch_that_fails_leaves_no_schedule_out(admin: Admin, hot: Connection) -> None:
    schedule = every(admin, job_of(admin), **(NEW_YORK | {"next_run_at": START + HOUR / 2}))
    rearming = Rearming()
    # First come those that were set aside: there are none.
    assert await rearming.step(hot, 0.0)
    admin.execute(
        "create function carillon.refuse() returns trigger language plpgsql as $$ begin raise 'not now'; end $$;"
        " create trigger refuse before update on carillon.schedules for each row execute function carillon.refuse()"
    )
    await look(hot, rearming)
    assert recorded(admin) == [], "what was refused is computed again"
    admin.execute("drop trigger refuse on carillon.schedules")
    await look(hot, rearming, now=rearming.next_at())
    assert armed_for(admin, schedule) == nine_in_new_york()
    assert recorded(admin) == [tzdata_version()]


async def test_a_schedule_set_aside_comes_back_once_its_cause_is_gone(admin: Admin, hot: Connection) -> None:
    job = job_of(admin, catch_up="ALL", overlap="ALLOW_ALL")
    aside = {"settled_to": START, "next_run_at": None}
    mended = every(admin, job, "0 * * * *", schedule="mended", set_aside_reason="a bug", **aside)
    broken = every(
        admin, job, "0 * * * *", schedule="broken", time_zone="Mars/Olympus", set_aside_reason="no zone", **aside
    )
    without = every(admin, job, "0 * * * *", schedule="without", set_aside_reason=NO_EXPRESSION, **aside)
    paused = every(admin, job, "0 * * * *", schedule="paused", set_aside_reason="a bug", paused_at=START, **aside)
    computed_by(admin, tzdata_version())
    await look(hot)
    assert armed_for(admin, mended) == START + HOUR
    assert [armed_for(admin, each) for each in (broken, without, paused)] == [None] * 3
    assert rows(admin, "select schedule_id from carillon.schedules where set_aside_reason is null") == [(mended,)]
    # What it owed meanwhile is caught up as its job says.
    await tick(hot, NobodySeated(), now=START + 3 * HOUR)
    assert rows(admin, "select count(*), max(scheduled_for) from carillon.live_runs") == [(3, START + 3 * HOUR)]


async def test_the_next_look_is_an_hour_later(admin: Admin, hot: Connection) -> None:
    rearming = Rearming()
    await look(hot, rearming, now=100.0)
    schedule = every(admin, job_of(admin), set_aside_reason="a bug", next_run_at=None)
    assert not await rearming.step(hot, 100.0 + 3_599)
    assert armed_for(admin, schedule) is None
    await look(hot, rearming, now=100.0 + 3_600)
    assert armed_for(admin, schedule) is not None


BESIDE = Policies(overlap=Overlap.ALLOW_ALL, catch_up=CatchUp.ALL)


def gaps(scheduler: Scheduler) -> list[tuple[float, float, int, str, int]]:
    """Each gap: first and last in minutes since START, how many, why, and under which revision."""
    found = rows(
        scheduler.admin, "select first_at, last_at, occurrences, reason, revision from carillon.gaps order by 1"
    )
    return [
        ((first.astimezone(UTC) - START) / MINUTE, (last.astimezone(UTC) - START) / MINUTE, *rest)
        for first, last, *rest in found
    ]


async def set_aside(scheduler: Scheduler) -> None:
    """Every schedule, as a tick does whose rows cannot be written."""
    scheduler.admin.execute("update carillon.schedules set next_run_at = null, set_aside_reason = 'the rows clash'")


async def test_an_edit_that_mends_a_schedule_records_what_it_owed_while_set_aside(scheduler: Scheduler) -> None:
    await scheduler.register(digest(tenant_schedules=True, policies=BESIDE))
    name = for_tenant("acme")
    await scheduler.put(name, ScheduleSpec(interval("10m")), "timing")
    await scheduler.tick_until(scheduler.database.now + 10 * MINUTE, step=10 * MINUTE)
    await set_aside(scheduler)
    await scheduler.tick_until(scheduler.database.now + 35 * MINUTE, step=10 * MINUTE)
    await scheduler.put(name, ScheduleSpec(interval("15m")), "timing")
    assert gaps(scheduler) == [(20, 40, 3, "SET_ASIDE", 1)]
    mended = await scheduler.get(name)
    assert (mended.set_aside_reason, mended.revision, mended.settled_to) == ("", 2, START + 45 * MINUTE)
    await scheduler.tick_until(scheduler.database.now + 20 * MINUTE)
    assert [(at - START) / MINUTE for at, _ in scheduler.fired()] == [10, 60]


async def test_a_registration_that_mends_schedules_records_it_too(scheduler: Scheduler) -> None:
    await scheduler.register(digest(timing=interval("10m"), policies=BESIDE))
    await set_aside(scheduler)
    scheduler.database.now += 25 * MINUTE
    await scheduler.register(digest(timing=interval("15m"), policies=BESIDE))
    assert gaps(scheduler) == [(10, 20, 2, "SET_ASIDE", 1)]


async def test_of_a_timing_that_cannot_be_evaluated_nothing_is_counted(scheduler: Scheduler) -> None:
    await scheduler.register(digest(timing=interval("10m"), policies=BESIDE))
    await set_aside(scheduler)
    scheduler.admin.execute("update carillon.schedules set time_zone = 'Mars/Olympus'")
    scheduler.database.now += 25 * MINUTE
    await scheduler.register(digest(timing=interval("15m"), policies=BESIDE))
    assert gaps(scheduler) == []
    ((settled_to,),) = rows(scheduler.admin, "select settled_to from carillon.schedules")
    assert settled_to == START + 25 * MINUTE


async def test_a_paused_job_owes_nothing_while_its_schedule_is_set_aside(scheduler: Scheduler) -> None:
    await scheduler.register(digest(timing=interval("10m"), policies=BESIDE))
    await set_aside(scheduler)
    scheduler.database.now += 25 * MINUTE
    scheduler.admin.execute("update carillon.jobs set paused_at = %s", [START])
    await scheduler.register(digest(timing=interval("15m"), policies=BESIDE))
    assert gaps(scheduler) == []
