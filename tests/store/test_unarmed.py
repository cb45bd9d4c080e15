"""Enabled schedules that nobody would tick are armed again, wherever among the others they stand."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import psycopg
import pytest

from scheduler_service.domain.repairs import Repair
from scheduler_service.engine import unarmed
from scheduler_service.engine.tick import NobodySeated, tick
from scheduler_service.engine.unarmed import Unarmed
from scheduler_service.store.database import Database
from tests.store.audit_case import events
from tests.store.engine_case import SECOND, START, Connection, every, job_of, rows

Admin = psycopg.Connection[Any]
DISARMED: dict[str, Any] = {"next_run_at": None}


def armed_for(admin: Admin, schedule: int) -> datetime | None:
    ((at,),) = rows(admin, "select next_run_at from carillon.schedules where schedule_id = %s", schedule)
    assert at is None or isinstance(at, datetime)
    return at


async def walk(connection: Connection, looks: Unarmed, number: int = 1) -> list[bool]:
    return [await looks.step(connection, looks.next_at()) for _ in range(number)]


async def test_what_somebody_disarmed_by_hand_is_owed_again(admin: Admin, hot: Connection, database: Database) -> None:
    schedule = every(admin, job_of(admin), **DISARMED)
    looks = Unarmed("replica-1")
    assert await walk(hot, looks, 2) == [True, False]
    assert armed_for(admin, schedule) == START + 10 * SECOND
    await tick(hot, NobodySeated(), now=START + 10 * SECOND)
    assert rows(admin, "select scheduled_for from carillon.live_runs") == [(START + 10 * SECOND,)]
    assert looks.repairs == {Repair.SCHEDULE_NOT_ARMED: 1}
    (event,) = await events(database)
    assert (event.principal, event.action) == ("engine:replica-1", "ArmSchedules")
    assert event.resource == "services/email-service/jobs/weekly-digest/tenants/-/schedules/default"


async def test_what_is_meant_to_rest_rests(admin: Admin, hot: Connection) -> None:
    job = job_of(admin)
    resting: list[dict[str, Any]] = [
        {"enabled": False},
        {"paused_at": START},
        {"deleted_at": START, "enabled": False},
        {"set_aside_reason": "no zone"},
    ]
    schedules = [every(admin, job, schedule=f"s{n}", **DISARMED, **each) for n, each in enumerate(resting)]
    assert await walk(hot, Unarmed()) == [False]
    assert [armed_for(admin, schedule) for schedule in schedules] == [None] * 4


async def test_one_that_cannot_be_evaluated_is_set_aside_with_the_reason(
    admin: Admin, hot: Connection, database: Database
) -> None:
    job = job_of(admin)
    broken = every(admin, job, "0 9 * * *", schedule="broken", time_zone="Mars/Olympus", **DISARMED)
    mended = every(admin, job, schedule="mended", **DISARMED)
    assert await walk(hot, Unarmed(), 2) == [True, False]
    assert (armed_for(admin, broken), armed_for(admin, mended)) == (None, START + 10 * SECOND)
    ((reason,),) = rows(admin, "select set_aside_reason from carillon.schedules where schedule_id = %s", broken)
    assert "Mars/Olympus" in reason
    (event,) = await events(database)
    assert event.after is not None
    assert (event.after["count"], event.after["set_aside"]) == (2, 1)


async def test_a_look_goes_on_where_the_last_one_ended_and_then_begins_again(
    admin: Admin, hot: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unarmed, "ROWS", 2)
    job = job_of(admin)
    for number in range(4):
        every(admin, job, schedule=f"s{number}")
    last = every(admin, job, schedule="last", **DISARMED)
    looks = Unarmed()
    assert await walk(hot, looks, 3) == [False, False, True]
    assert not await looks.step(hot, looks.next_at() - 0.5), "a look each second"
    admin.execute("update carillon.schedules set next_run_at = null where schedule_id = %s", [last])
    assert await walk(hot, looks, 3) == [False, False, True]


async def test_one_that_somebody_holds_is_come_back_to(admin: Admin, hot: Connection, other: Connection) -> None:
    schedule = every(admin, job_of(admin), **DISARMED)
    looks = Unarmed()
    async with other.transaction():
        await other.execute("select from carillon.schedules where schedule_id = %s for update", [schedule])
        assert await walk(hot, looks) == [False]
    assert await walk(hot, looks) == [True]
    assert armed_for(admin, schedule) is not None
