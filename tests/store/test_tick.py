"""Due schedules become runs, exactly one for each occurrence."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import psycopg
import pytest

from scheduler_service.domain.run import scheduled_run_id
from scheduler_service.engine.dispatch import Dispatcher
from scheduler_service.engine.sessions import Sessions
from scheduler_service.engine.tick import NobodySeated, tick
from scheduler_service.store.database import Database
from scheduler_service.usecases.settling import settle_now
from scheduler_service.usecases.wakeups import Wakeups
from tests.builders import ADMIN
from tests.store.engine_case import SECOND, START, Connection, every, job_of, oldest_month, rows, session_of

Admin = psycopg.Connection[Any]


def live(admin: Admin) -> list[tuple[Any, ...]]:
    return rows(admin, "select scheduled_for, trigger::text from carillon.live_runs order by scheduled_for")


async def test_an_occurrence_becomes_one_run_with_what_its_job_and_schedule_say(admin: Admin, hot: Connection) -> None:
    job = job_of(admin, config={"a": 1, "b": 1}, labels={"job_type": "mail"}, max_attempts=5, route="http")
    schedule = every(
        admin, job, "* * * * *", time_zone="Asia/Kolkata", config={"b": 2}, labels={"brand": "x"}, tenant="brand-x"
    )
    at = START + timedelta(minutes=1)
    admin.execute("update carillon.schedules set next_run_at = %s", [at])
    assert (await tick(hot, NobodySeated(), now=at - SECOND)).schedules == 0
    assert (await tick(hot, NobodySeated(), now=at)).pending == 1
    assert (await tick(hot, NobodySeated(), now=at)).schedules == 0
    (row,) = rows(
        admin,
        "select run_id, revision, tenant_id, payload, labels, max_attempts, scheduled_for, run_after, created_at,"
        " scheduled_local, time_zone, exclusive, claim_id from carillon.live_runs",
    )
    local = (at + timedelta(hours=5, minutes=30)).replace(tzinfo=None)
    assert row == (
        *(scheduled_run_id(schedule, at), 1, "brand-x", {"a": 1, "b": 2}, {"job_type": "mail", "brand": "x"}),
        *(5, at, at, at, local, "Asia/Kolkata", True, None),
    )
    assert rows(admin, "select settled_to, next_run_at from carillon.schedules") == [(at, at + timedelta(minutes=1))]


async def test_two_tickers_make_one_run_of_each_occurrence(admin: Admin, hot: Connection, other: Connection) -> None:
    job = job_of(admin, overlap="ALLOW_ALL")
    for number in range(40):
        every(admin, job, schedule=f"s{number}")
    for step in range(1, 6):
        now = START + step * 10 * SECOND
        found = True
        while found:
            ticks = (tick(connection, NobodySeated(), now=now, limit=7) for connection in (hot, other))
            found = any(each.schedules for each in await asyncio.gather(*ticks))
    assert rows(admin, "select count(*), count(distinct (schedule_id, scheduled_for)) from carillon.live_runs") == [
        (200, 200)
    ]
    assert rows(admin, "select count(*) from carillon.schedules where next_run_at = %s", START + 60 * SECOND) == [(40,)]


async def test_a_locked_schedule_keeps_nobody_waiting(admin: Admin, hot: Connection, other: Connection) -> None:
    job = job_of(admin)
    first, _ = every(admin, job, schedule="first"), every(admin, job, schedule="second")
    async with other.transaction():
        await other.execute("select from carillon.schedules where schedule_id = %s for update", [first])
        assert (await tick(hot, NobodySeated(), now=START + 10 * SECOND)).schedules == 1
    assert (await tick(hot, NobodySeated(), now=START + 10 * SECOND)).schedules == 1


@pytest.mark.parametrize(
    ("catch_up", "made", "missed"),
    [
        ("NONE", [], [(1, 5, 5, "CATCH_UP_NONE")]),
        ("LATEST", [(5, "CATCH_UP")], [(1, 1, 1, "OUTSIDE_WINDOW"), (2, 4, 3, "CATCH_UP_LATEST")]),
        ("ALL", [(n, "CATCH_UP") for n in (2, 3, 4, 5)], [(1, 1, 1, "OUTSIDE_WINDOW")]),
    ],
)
async def test_after_an_outage_catch_up_decides(
    admin: Admin, hot: Connection, catch_up: str, made: list[Any], missed: list[Any]
) -> None:
    job = job_of(admin, catch_up=catch_up, catch_up_window=timedelta(hours=4), overlap="ALLOW_ALL")
    every(admin, job, "0 * * * *", next_run_at=START + timedelta(hours=1))
    await tick(hot, NobodySeated(), now=START + timedelta(hours=5, minutes=30))

    def hour(at: Any) -> int:
        return int((at - START) // timedelta(hours=1))

    assert [(hour(at), trigger) for at, trigger in live(admin)] == made
    gaps = rows(admin, "select first_at, last_at, occurrences, reason from carillon.gaps order by first_at")
    assert [(hour(first), hour(last), count, reason) for first, last, count, reason in gaps] == missed
    following = START + timedelta(hours=6)
    assert rows(admin, "select next_run_at from carillon.schedules") == [(following,)]


async def test_nothing_is_caught_up_from_before_the_oldest_partition(admin: Admin, hot: Connection) -> None:
    job = job_of(admin, catch_up="ALL", catch_up_window=timedelta(days=365), overlap="ALLOW_ALL")
    every(admin, job, "0 0 * * *", settled_to=START - timedelta(days=120))
    while (await tick(hot, NobodySeated(), now=START + 10 * SECOND)).schedules:
        pass
    oldest = oldest_month(admin)
    assert rows(admin, "select min(scheduled_for) from carillon.live_runs") == [(oldest,)]
    assert rows(admin, "select last_at, reason from carillon.gaps") == [(oldest - timedelta(days=1), "OUTSIDE_WINDOW")]


async def test_jitter_delays_the_start_and_is_no_lateness(admin: Admin, hot: Connection) -> None:
    job = job_of(admin, catch_up="NONE")
    schedule = every(admin, job, "0 * * * *", jitter=timedelta(minutes=40), next_run_at=START + timedelta(hours=1))
    await tick(hot, NobodySeated(), now=START + timedelta(hours=1))
    assert live(admin) == []
    ((due,),) = rows(admin, "select next_run_at from carillon.schedules where schedule_id = %s", schedule)
    assert START + timedelta(hours=1) < due < START + timedelta(hours=1, minutes=40)
    await tick(hot, NobodySeated(), now=due)
    assert live(admin) == [(START + timedelta(hours=1), "SCHEDULE")]
    assert rows(admin, "select run_after from carillon.live_runs") == [(due,)]


async def test_skip_records_the_occurrence_that_found_a_live_run(admin: Admin, hot: Connection) -> None:
    every(admin, job_of(admin, overlap="SKIP", config={"a": 1}))
    await tick(hot, NobodySeated(), now=START + 10 * SECOND)
    ticked = await tick(hot, NobodySeated(), now=START + 20 * SECOND)
    assert (ticked.made.live, ticked.made.skipped) == (0, 1)
    assert live(admin) == [(START + 10 * SECOND, "SCHEDULE")]
    ((at, state, code, payload, started),) = rows(
        admin, "select scheduled_for, state::text, error ->> 'code', payload, started_at from carillon.runs"
    )
    assert (at, state, code, payload, started) == (START + 20 * SECOND, "SKIPPED", "OVERLAP", {"a": 1}, None)


async def test_allow_all_makes_a_run_beside_a_live_one(admin: Admin, hot: Connection) -> None:
    every(admin, job_of(admin, overlap="ALLOW_ALL"))
    for step in (1, 2):
        await tick(hot, NobodySeated(), now=START + step * 10 * SECOND)
    assert len(live(admin)) == 2


@pytest.mark.parametrize("halt", [{"paused_at": START}, {"archived_at": START}])
async def test_a_halted_job_owes_nothing_and_its_schedules_move_on(
    admin: Admin, hot: Connection, halt: dict[str, Any]
) -> None:
    every(admin, job_of(admin, **halt))
    now = START + 15 * SECOND
    await tick(hot, NobodySeated(), now=now)
    assert live(admin) == []
    assert rows(admin, "select settled_to, next_run_at from carillon.schedules") == [(now, START + 20 * SECOND)]


async def test_what_a_resumed_job_did_not_owe_is_not_made_up_for(admin: Admin, hot: Connection) -> None:
    every(admin, job_of(admin, owed_from=START + 15 * SECOND, overlap="ALLOW_ALL", catch_up="ALL"))
    await tick(hot, NobodySeated(), now=START + 25 * SECOND)
    assert live(admin) == [(START + 20 * SECOND, "SCHEDULE")]


async def test_a_job_changed_since_it_was_read_is_decided_again(
    admin: Admin, hot: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    from scheduler_service.store import due as store

    every(admin, job_of(admin))
    take_due = store.take_due

    async def pause_after_reading(*arguments: Any) -> Any:
        due = await take_due(*arguments)
        admin.execute("update carillon.jobs set paused_at = %s", [START])
        return due

    with monkeypatch.context() as patched:
        patched.setattr(store, "take_due", pause_after_reading)
        await tick(hot, NobodySeated(), now=START + 10 * SECOND)
    assert rows(admin, "select settled_to from carillon.schedules") == [(START,)]
    await tick(hot, NobodySeated(), now=START + 10 * SECOND)
    assert live(admin) == []


async def test_a_schedule_that_cannot_be_evaluated_is_set_aside(admin: Admin, hot: Connection) -> None:
    job = job_of(admin)
    broken = every(admin, job, time_zone="Mars/Olympus", schedule="broken")
    every(admin, job, schedule="sound")
    await tick(hot, NobodySeated(), now=START + 10 * SECOND)
    assert len(live(admin)) == 1
    ((next_run_at, reason),) = rows(
        admin, "select next_run_at, set_aside_reason from carillon.schedules where schedule_id = %s", broken
    )
    assert next_run_at is None
    assert "Mars/Olympus" in reason


async def test_a_schedule_that_cannot_be_written_is_set_aside_alone(admin: Admin, hot: Connection) -> None:
    job = job_of(admin, overlap="ALLOW_ALL")
    schedules = [every(admin, job, schedule=f"s{number}") for number in range(7)]
    every(admin, job, schedule="clash")
    clash = scheduled_run_id(schedules[3], START + 10 * SECOND)
    await tick(hot, NobodySeated(), now=START + 10 * SECOND)
    admin.execute("update carillon.live_runs set run_id = gen_random_uuid() where schedule_id = %s", [schedules[4]])
    taken = scheduled_run_id(schedules[3], START + 20 * SECOND)
    admin.execute("update carillon.live_runs set run_id = %s where run_id = %s", [taken, clash])
    await tick(hot, NobodySeated(), now=START + 20 * SECOND)
    assert rows(admin, "select schedule_id from carillon.schedules where next_run_at is null") == [(schedules[3],)]
    assert rows(admin, "select count(*) from carillon.live_runs") == [(8 + 7,)]


async def test_a_tick_that_is_not_committed_leaves_nothing(admin: Admin, hot: Connection, other: Connection) -> None:
    every(admin, job_of(admin))

    class Cut:
        """Loses the connection between deciding and writing."""

        def seat(self, route: str) -> None:
            admin.execute("select pg_terminate_backend(%s)", [hot.info.backend_pid])

    with pytest.raises(psycopg.OperationalError):
        await tick(hot, Cut(), now=START + 10 * SECOND)
    assert live(admin) == []
    assert (await tick(other, NobodySeated(), now=START + 10 * SECOND)).pending == 1


async def test_a_run_made_for_a_seat_is_claimed_at_once(admin: Admin, hot: Connection) -> None:
    sessions = Sessions(on_credit=lambda: None)
    dispatcher = Dispatcher(sessions, Wakeups())
    job = job_of(admin, overlap="ALLOW_ALL", endpoint="http://mail/run", attempt_timeout=timedelta(seconds=90))
    for number in range(5):
        every(admin, job, schedule=f"s{number}", config={"n": number})
    session, received = session_of(admin, sessions, credit=2)
    second, also_received = session_of(admin, sessions, credit=1, worker="v")
    await dispatcher.dispatch(hot, now=START)
    seats = dispatcher.seats()
    ticked = await tick(hot, seats, now=START + 10 * SECOND)
    dispatcher.hand_over(seats, ticked.made.claimed)
    assert ticked.pending == 2
    assert (session.credit, second.credit) == (0, 0)
    assert (len(received.runs), len(also_received.runs)) == (2, 1)
    run = received.runs[0]
    assert (run.attempt, run.endpoint, run.attempt_timeout, run.service) == (1, "http://mail/run", 90, "email-service")
    held = rows(admin, "select run_id, 1, claim_id from carillon.live_runs where session_id = %s", session.session_id)
    assert {(ref.run_id, ref.attempt, ref.claim_id) for ref in received.refs} == set(held)
    assert rows(admin, "select distinct deadline, claimed_at from carillon.live_runs where claim_id is not null") == [
        (START + 100 * SECOND, START + 10 * SECOND)
    ]


async def test_a_seat_in_a_session_that_has_gone_leaves_the_run_pending(admin: Admin, hot: Connection) -> None:
    sessions = Sessions(on_credit=lambda: None)
    dispatcher = Dispatcher(sessions, Wakeups())
    every(admin, job_of(admin))
    session, received = session_of(admin, sessions, credit=1)
    await dispatcher.dispatch(hot, now=START)
    admin.execute("delete from carillon.sessions")
    seats = dispatcher.seats()
    ticked = await tick(hot, seats, now=START + 10 * SECOND)
    dispatcher.hand_over(seats, ticked.made.claimed)
    assert (ticked.pending, received.runs, session.credit) == (1, [], 1)
    assert rows(admin, "select session_id, claim_id from carillon.live_runs") == [(None, None)]


async def test_an_edit_settles_first_through_the_callers_own_connection(
    admin: Admin, database: Database, hot: Connection
) -> None:
    job = job_of(admin, overlap="ALLOW_ALL", catch_up="ALL")
    schedule = every(admin, job, "@every 1s", settled_to=START)
    waiting = every(admin, job, "4 * * * *", jitter=timedelta(hours=1), schedule="w")
    now = START + 250 * SECOND
    async with database.acting_for(ADMIN) as tx:
        pooled = await tx.connection.get_raw_connection()
        connection: Any = pooled.driver_connection
        assert await settle_now(connection, [schedule, waiting], now) == 251
    assert rows(admin, "select count(*) from carillon.live_runs where schedule_id = %s", schedule) == [(250,)]
    ((at, run_after),) = rows(
        admin, "select scheduled_for, run_after from carillon.live_runs where schedule_id = %s", waiting
    )
    assert at == START + 240 * SECOND < now < run_after
    assert rows(admin, "select settled_to from carillon.schedules order by schedule_id") == [
        (now,),
        (START + 240 * SECOND,),
    ]
    assert (await tick(hot, NobodySeated(), now=now)).schedules == 0


async def test_a_run_with_a_large_payload_is_not_made_claimed(admin: Admin, hot: Connection) -> None:
    sessions = Sessions(on_credit=lambda: None)
    dispatcher = Dispatcher(sessions, Wakeups())
    job = job_of(admin, overlap="ALLOW_ALL", config={"text": "x" * 100_000})
    every(admin, job, schedule="compressed")
    other = job_of(admin, "small", overlap="ALLOW_ALL", config={"text": "x" * 5_000})
    small = every(admin, other, schedule="small")
    session, received = session_of(admin, sessions, credit=9)
    await dispatcher.dispatch(hot, now=START)
    seats = dispatcher.seats()
    ticked = await tick(hot, seats, now=START + 10 * SECOND)
    dispatcher.hand_over(seats, ticked.made.claimed)
    assert (ticked.made.live, ticked.pending, session.credit) == (2, 1, 8)
    assert [run.run_id for run in received.runs] == [scheduled_run_id(small, START + 10 * SECOND)]
