"""After an outage: what comes due now goes before what is overdue, and everything overdue is settled."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import psycopg
import pytest

from scheduler_service.engine.dispatch import Dispatcher
from scheduler_service.engine.sessions import Sessions
from scheduler_service.engine.tick import MOST_RUNS, NobodySeated, tick
from scheduler_service.loops.loop import Connect
from scheduler_service.loops.ticker import SecondTicker, Ticker
from scheduler_service.usecases.wakeups import Wakeups
from tests.builders import MadeJob
from tests.store.engine_case import SECOND, START, Connection, every, job_of, rows

Admin = psycopg.Connection[Any]
WEEK = timedelta(days=7)
MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)

_OVERDUE = """
insert into carillon.schedules (job_id, tenant_id, schedule, timing, enabled, cron, time_zone, gap, repeat, phase,
  jitter, settled_to, next_run_at, created_at, created_by, updated_at, updated_by)
select %(job_id)s, '-', 'overdue-' || n, '{}', true, mod(%(minute)s + 30 + mod(n, 25), 60) || ' * * * *', 'UTC',
  'SHIFT', 'FIRST', '0', '0', %(since)s, %(since)s + interval '1 h', now(), 'test', now(), 'test'
from generate_series(1, %(count)s) n"""


def overdue(admin: Admin, job: MadeJob, count: int, since: datetime) -> None:
    """Hourly schedules that stand at `since`, and none of which comes due again within half an hour of that minute."""
    admin.execute(
        _OVERDUE, {"job_id": job.job_id, "count": count, "since": since, "minute": since.astimezone(UTC).minute}
    )


def due_a_second_ago(admin: Admin, job: MadeJob, now: datetime) -> int:
    at = now - SECOND
    phase = timedelta(seconds=at.timestamp() % 3_600)
    return every(admin, job, "@every 1h", schedule="prompt", phase=phase, settled_to=at - HOUR / 2, next_run_at=at)


async def _no_connection() -> Connection:
    raise AssertionError("the loops are stepped, not started")


def tickers(connect: Connect = _no_connection) -> tuple[Ticker, SecondTicker]:
    wakeups = Wakeups()
    dispatcher = Dispatcher(Sessions(on_credit=lambda: None), wakeups)
    second = SecondTicker(connect, dispatcher, wakeups)
    return Ticker(connect, dispatcher, wakeups, second), second


def database_now(admin: Admin) -> datetime:
    ((now,),) = rows(admin, "select clock_timestamp()")
    assert isinstance(now, datetime)
    return now


async def test_what_comes_due_now_does_not_wait_behind_a_week(admin: Admin, hot: Connection, other: Connection) -> None:
    now = database_now(admin)
    job = job_of(admin, catch_up="NONE", owed_from=now - 2 * WEEK)
    overdue(admin, job, 5_000, now - WEEK)
    prompt = due_a_second_ago(admin, job, now)
    ticker, second = tickers()
    assert await ticker.step(hot)
    assert rows(admin, "select schedule_id from carillon.live_runs") == [(prompt,)]
    assert rows(admin, "select count(*) from carillon.schedules where next_run_at < %s", now - MINUTE) == [(5_000,)]
    # The second ticker was asked, and begins with the oldest.
    assert await second.step(other)
    assert rows(admin, "select count(*) from carillon.schedules where next_run_at < %s", now - MINUTE) == [(4_500,)]
    # With nothing else due on time, the first helps.
    assert await ticker.step(hot)
    assert rows(admin, "select count(*) from carillon.schedules where next_run_at < %s", now - MINUTE) == [(4_400,)]
    while await second.step(other):
        pass
    assert rows(admin, "select count(*) from carillon.schedules where next_run_at < %s", now - MINUTE) == [(0,)]
    assert rows(admin, "select count(*), count(distinct schedule_id) from carillon.gaps") == [(5_000, 5_000)]


async def test_a_tick_on_time_is_no_statement_more(admin: Admin, hot: Connection) -> None:
    now = database_now(admin)
    due_a_second_ago(admin, job_of(admin, owed_from=now - WEEK), now)
    ticker, second = tickers()
    said: list[str] = []
    execute = hot.execute

    async def listening(query: Any, *arguments: Any, **options: Any) -> Any:
        said.append(str(query))
        return await execute(query, *arguments, **options)

    hot.execute = listening  # type: ignore[method-assign] # to count what is said
    await ticker.step(hot)
    # Ask, take, settle, ask.
    assert len(said) == 4
    assert not any("on_time" in each for each in said)
    assert not await second.step(hot)


@pytest.mark.parametrize("late", [59 * SECOND, 60 * SECOND])
async def test_recent_is_less_than_a_minute_late(admin: Admin, hot: Connection, late: timedelta) -> None:
    every(admin, job_of(admin))
    ticked = await tick(hot, NobodySeated(), now=START + 10 * SECOND + late, only_recent=True)
    assert ticked.schedules == (1 if late < MINUTE else 0)


async def test_all_of_an_outage_is_caught_up_in_slices(admin: Admin, hot: Connection) -> None:
    job = job_of(admin, catch_up="ALL", overlap="ALLOW_ALL", catch_up_window=2 * DAY)
    greedy = every(admin, job, "@every 1s", schedule="greedy", next_run_at=START + SECOND)
    for number in range(3):
        every(admin, job, "0 * * * *", schedule=f"hourly-{number}", next_run_at=START + HOUR)
    now = START + 3 * HOUR
    ticked = await tick(hot, NobodySeated(), now=now)
    # The slice takes nothing from the others: they are all done.
    assert (ticked.schedules, ticked.made.live, ticked.full) == (4, 100 + 3 * 3, True)
    # It is due still, and no recent one: what is due now goes before it.
    assert rows(admin, "select settled_to, next_run_at from carillon.schedules where schedule_id = %s", greedy) == [
        (START + 100 * SECOND, START + 101 * SECOND)
    ]
    prompt = every(admin, job, "@every 1d", schedule="prompt", phase=now - now.replace(hour=0), next_run_at=now)
    assert (await tick(hot, NobodySeated(), now=now, only_recent=True)).schedules == 1
    assert rows(admin, "select count(*) from carillon.live_runs where schedule_id = %s", prompt) == [(1,)]
    slices = 1
    while (await tick(hot, NobodySeated(), now=now)).schedules:
        slices += 1
    assert slices == 3 * 36
    assert rows(
        admin,
        "select count(distinct scheduled_for), min(scheduled_for), max(scheduled_for) from carillon.live_runs"
        " where schedule_id = %s",
        greedy,
    ) == [(3 * 3_600, START + SECOND, now)]


async def test_a_tick_makes_no_more_runs_than_memory_is_meant_for(admin: Admin, hot: Connection) -> None:
    job = job_of(admin, catch_up="ALL", overlap="ALLOW_ALL")
    for number in range(50):
        every(admin, job, "@every 1s", schedule=f"s{number}", next_run_at=START + SECOND)
    now = START + 200 * SECOND
    ticked = await tick(hot, NobodySeated(), now=now)
    assert (ticked.made.live, ticked.full) == (MOST_RUNS, True)
    while (ticked := await tick(hot, NobodySeated(), now=now)).schedules:
        assert ticked.made.live <= MOST_RUNS
    assert rows(admin, "select count(distinct (schedule_id, scheduled_for)) from carillon.live_runs") == [(50 * 200,)]


def gaps(admin: Admin) -> list[tuple[Any, ...]]:
    return rows(admin, "select first_at, last_at, occurrences, reason from carillon.gaps order by first_at")


def fired(admin: Admin) -> list[datetime]:
    return [at for (at,) in rows(admin, "select scheduled_for from carillon.live_runs order by scheduled_for")]


@pytest.mark.parametrize(
    ("catch_up", "made", "missed"),
    [
        ("NONE", [], [(10, 120, 12, "CATCH_UP_NONE")]),
        ("LATEST", [120], [(10, 60, 6, "OUTSIDE_WINDOW"), (70, 110, 5, "CATCH_UP_LATEST")]),
        ("ALL", [70, 80, 90, 100, 110, 120], [(10, 60, 6, "OUTSIDE_WINDOW")]),
    ],
)
async def test_catch_up_of_an_interval(
    admin: Admin, hot: Connection, catch_up: str, made: list[int], missed: list[Any]
) -> None:
    """At 3 minutes after the last of twelve; the sixth is a second outside the window, which ends at 60 minutes."""
    window = 63 * MINUTE - SECOND
    job = job_of(admin, catch_up=catch_up, catch_up_window=window, overlap="ALLOW_ALL")
    every(admin, job, "@every 10m", next_run_at=START + 10 * MINUTE)
    await tick(hot, NobodySeated(), now=START + 123 * MINUTE)
    assert [(at - START) // MINUTE for at in fired(admin)] == made
    found = [((first - START) // MINUTE, (last - START) // MINUTE, *rest) for first, last, *rest in gaps(admin)]
    assert found == missed


@pytest.mark.parametrize(("past", "missed"), [(timedelta(), 0), (timedelta(microseconds=1), 1)])
async def test_an_occurrence_as_old_as_the_window_is_within_it(
    admin: Admin, hot: Connection, past: timedelta, missed: int
) -> None:
    every(
        admin, job_of(admin, catch_up="ALL", catch_up_window=5 * MINUTE), "@every 10m", next_run_at=START + 10 * MINUTE
    )
    await tick(hot, NobodySeated(), now=START + 15 * MINUTE + past)
    assert (len(fired(admin)), len(gaps(admin))) == (1 - missed, missed)


@pytest.mark.parametrize(("late", "caught_up"), [(MINUTE - SECOND, False), (MINUTE, True)])
async def test_jitter_is_no_lateness_for_catch_up(
    admin: Admin, hot: Connection, late: timedelta, caught_up: bool
) -> None:
    """An occurrence is late by how long after its own start, jitter included, it is settled."""
    job = job_of(admin, catch_up="NONE")
    schedule = every(admin, job, "@every 1h", jitter=30 * MINUTE, next_run_at=START + HOUR)
    await tick(hot, NobodySeated(), now=START + HOUR)
    ((start,),) = rows(admin, "select next_run_at from carillon.schedules where schedule_id = %s", schedule)
    assert START + HOUR < start < START + HOUR + 30 * MINUTE
    await tick(hot, NobodySeated(), now=start + late)
    expected = [(START + HOUR, START + HOUR, 1, "CATCH_UP_NONE")] if caught_up else []
    assert gaps(admin) == expected
    assert len(fired(admin)) == 1 - len(expected)


def autumn() -> tuple[datetime, datetime]:
    """The last time New York set its clocks back that lies behind START: 1:00 comes twice. And noon the day before."""
    new_york = ZoneInfo("America/New_York")
    day = START.replace(hour=6, minute=0)
    while not day.astimezone(new_york).utcoffset() < (day - HOUR).astimezone(new_york).utcoffset():  # type: ignore[operator]
        day -= DAY
    return day, day - timedelta(hours=14)


async def test_gaps_across_a_clock_change_count_what_the_clock_showed(admin: Admin, hot: Connection) -> None:
    change, noon_before = autumn()
    job = job_of(admin, catch_up="NONE", owed_from=noon_before)
    columns = {"time_zone": "America/New_York", "settled_to": noon_before, "next_run_at": noon_before + HOUR}
    # A rule that follows the clock shows 1:30 twice; a fixed time is owed once a day.
    follows = every(admin, job, "30 * * * *", schedule="follows", **columns)
    fixed = every(admin, job, "30 1 * * *", schedule="fixed", **columns)
    await tick(hot, NobodySeated(), now=change + 25 * HOUR)
    found = rows(admin, "select schedule_id, first_at, last_at, occurrences from carillon.gaps order by schedule_id")
    first_show = change - HOUR / 2
    assert found == [
        (follows, noon_before + HOUR / 2, change + 25 * HOUR - HOUR / 2, 39),
        (fixed, first_show, first_show + 25 * HOUR, 2),
    ]
    assert fired(admin) == []


async def test_the_databases_clock_may_be_set_back_and_forward(admin: Admin, hot: Connection) -> None:
    """Set back, it waits until the clock is there again; set forward, it catches up. Nothing comes twice."""
    job = job_of(admin, catch_up="ALL", overlap="ALLOW_ALL")
    for number in range(3):
        every(admin, job, "@every 10s", schedule=f"s{number}")
    stood, latest = START, START
    for moved in (10, 20, -1, 19, -3_600, -3_590, 30, 3_600, 3_610, 20, 40, 3_620):
        now = START + moved * SECOND
        latest = max(latest, now)
        while (await tick(hot, NobodySeated(), now=now)).schedules:
            pass
        ((least, most),) = rows(admin, "select min(settled_to), max(settled_to) from carillon.schedules")
        assert stood <= least == most <= latest
        stood = least
        # Never before the latest that the clock has ever shown, and all of that.
        owed = (latest - START) // (10 * SECOND)
        assert rows(
            admin,
            "select count(*), count(distinct (schedule_id, scheduled_for)), max(scheduled_for) from carillon.live_runs",
        ) == [(3 * owed, 3 * owed, START + owed * 10 * SECOND)]
    assert gaps(admin) == []
