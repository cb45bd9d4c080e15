"""Keeping house, part by part: what fails does so alone."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest
from structlog.testing import capture_logs

from scheduler_service.engine.backlog import Backlog
from scheduler_service.engine.housekeeping import AGAIN, Housekeeping
from scheduler_service.loops.housekeeper import Housekeeper
from scheduler_service.store.database import Database
from tests.store.engine_case import Connection, every, job_of, rows

Admin = psycopg.Connection[Any]


class Chores:
    """Two chores, of which the first asks for what the test makes impossible."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.housekeeping = Housekeeping(chores=[("first", self._first, 3_600.0), ("second", self._second, 10.0)])

    async def _first(self, connection: Connection) -> None:
        await connection.execute("select from not_there_yet")
        self.done.append("first")

    async def _second(self, _connection: Connection) -> None:
        self.done.append("second")

    async def all_due(self, connection: Connection, now: float) -> list[str]:
        self.done.clear()
        while await self.housekeeping.step(connection, now):
            pass
        return self.done


async def test_a_chore_that_fails_keeps_no_other_waiting_and_is_tried_again(admin: Admin, hot: Connection) -> None:
    chores = Chores()
    with capture_logs() as logs:
        assert await chores.all_due(hot, 0.0) == ["second"]
        assert chores.housekeeping.next_at() == AGAIN
        assert await chores.all_due(hot, AGAIN - 0.1) == []
        assert await chores.all_due(hot, AGAIN) == ["second"]
        admin.execute("create table public.not_there_yet (); grant select on public.not_there_yet to public")
        assert await chores.all_due(hot, 2 * AGAIN) == ["first", "second"]
    assert chores.housekeeping.failures == 2
    assert [(line["log_level"], line["part"]) for line in logs] == [("error", "first"), ("info", "first")]
    assert await chores.all_due(hot, 3 * AGAIN) == ["second"], "an hour later again"


async def test_a_connection_that_is_lost_is_for_the_loop_to_get_over(database: Database) -> None:
    lost = await database.hot_connection()
    await lost.close()
    chores = Chores()
    with pytest.raises(psycopg.OperationalError):
        await chores.housekeeping.step(lost, 0.0)
    async with await database.hot_connection() as connection:
        assert await chores.all_due(connection, 0.0) == ["second"]


async def test_while_a_table_is_locked_the_rest_of_the_house_is_kept(
    admin: Admin, hot: Connection, database: Database
) -> None:
    schedule = every(admin, job_of(admin), next_run_at=None)
    ((partition,),) = rows(
        admin, "select max(relname) from pg_class where relname ~ '^runs_[0-9]{4}_[0-9]{2}$' and relkind = 'r'"
    )
    admin.execute(f"drop table carillon.{partition}".encode())
    housekeeper = Housekeeper(database.hot_connection, Backlog())
    with admin.transaction(force_rollback=True):
        admin.execute("lock table carillon.runs in share mode")
        await housekeeper.step(hot)
        armed = rows(admin, "select next_run_at is not null from carillon.schedules where schedule_id = %s", schedule)
        assert armed == [(True,)]
        assert housekeeper.failures == 1
        assert rows(admin, "select to_regclass(%s)", f"carillon.{partition}") == [(None,)]
