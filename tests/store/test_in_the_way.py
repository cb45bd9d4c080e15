"""Somebody has locked what the reaper needs: that is no error, and keeps nothing else waiting."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from structlog.testing import capture_logs

from scheduler_service.engine.mending import TRIES
from scheduler_service.engine.reap import LOOK_THROUGH_SECONDS, Reaped
from scheduler_service.engine.set_aside import FIRST_PAUSE, LONGEST_PUT_OFF, PUT_OFF, SetAside
from scheduler_service.store.database import Database
from tests.builders import finish, make_schedule, make_session
from tests.conftest import DatabaseUrls
from tests.store.engine_case import Connection, rows
from tests.store.repairs_case import NOW, House

Admin = psycopg.Connection[Any]


@pytest.fixture
async def house(database: Database, admin: Admin, hot: Connection) -> House:
    return House(database, admin, hot)


@contextmanager
def trigger(admin: Admin, on: str, body: str, condition: str = "true") -> Iterator[None]:
    """Something that happens before rows are written or deleted, `on` a table."""
    admin.execute(
        (
            "create sequence carillon.times_in_the_way; grant usage on carillon.times_in_the_way to public;"
            f" create function carillon.in_the_way() returns trigger language plpgsql as $$ begin {body};"
            " return coalesce(new, old); end $$;"
            f" create trigger in_the_way before {on} for each row when ({condition})"
            " execute function carillon.in_the_way()"
        ).encode()
    )
    yield
    table = on.rpartition(" ")[2]
    admin.execute(
        f"drop trigger in_the_way on {table}; drop function carillon.in_the_way();"
        " drop sequence carillon.times_in_the_way".encode()
    )


@contextmanager
def locked(urls: DatabaseUrls, admin: Admin, on: str, condition: str = "true") -> Iterator[Admin]:
    """Who writes such rows waits for somebody, who lets go when the connection that is given commits."""
    with (
        trigger(admin, on, "perform pg_advisory_xact_lock(7)", condition),
        psycopg.connect(urls.admin) as somebody,
    ):
        somebody.execute("select pg_advisory_lock(7)")
        yield somebody


def let_go(somebody: Admin) -> None:
    somebody.execute("select pg_advisory_unlock(7)")
    somebody.commit()


def failing(times: int, how: str) -> str:
    return f"if nextval('carillon.times_in_the_way') <= {times} then raise exception using errcode = '{how}'; end if"


@pytest.mark.parametrize("how", ["deadlock_detected", "serialization_failure", "lock_not_available"])
@pytest.mark.parametrize("what", ["runs", "sessions", "turns", "recorded"])
async def test_a_step_tries_again(house: House, what: str, how: str) -> None:
    with capture_logs() as logs:
        if what == "runs":
            house.held(uuid4())
            with trigger(house.admin, "update on carillon.live_runs", failing(2, how)):
                assert await house.step() == Reaped(charged=1)
        elif what == "sessions":
            house.lose(make_session(house.admin))
            with trigger(house.admin, "delete on carillon.sessions", failing(2, how)):
                assert await house.step() == Reaped(sessions=1)
        elif what == "turns":
            schedule = make_schedule(house.admin, house.job)
            house.pending(schedule_id=schedule, revision=1, exclusive=True, blocked=True)
            with trigger(house.admin, "update on carillon.live_runs", failing(2, how)):
                assert await house.step() == Reaped(released=1)
        else:
            run_id = house.pending()
            finish(house.admin, run_id)
            house.pending(run_id=run_id)
            with trigger(house.admin, "delete on carillon.live_runs", failing(2, how)):
                assert await house.step() == Reaped(removed=1)
    assert {line["log_level"] for line in logs} <= {"warning"}
    assert house.reaper.set_aside == 0


async def test_a_run_that_somebody_locks_for_a_while_is_put_off_and_no_other_waits(
    house: House, database_urls: DatabaseUrls
) -> None:
    stays, *others = [house.held(uuid4()) for _ in range(9)]
    condition = f"new.run_id = '{stays}'"
    with locked(database_urls, house.admin, "update on carillon.live_runs", condition) as somebody:
        with capture_logs() as logs:
            assert await house.step() == Reaped(charged=len(others))
            assert await house.step(at=PUT_OFF / 2) == Reaped()
            assert house.reaper.set_aside == 0
            assert {line["log_level"] for line in logs} == {"warning"}
            assert {line["event"] for line in logs} == {"repaired"}
        let_go(somebody)
        assert await house.step(at=LOOK_THROUGH_SECONDS + 1) == Reaped(charged=1)
    assert rows(house.admin, "select distinct attempt, session_id from carillon.live_runs") == [(2, None)]


async def test_sessions_that_somebody_locks_are_put_off_and_the_rest_of_the_step_goes_on(
    house: House, database_urls: DatabaseUrls
) -> None:
    house.lose(make_session(house.admin))
    house.pending(run_deadline=NOW)
    with locked(database_urls, house.admin, "delete on carillon.sessions") as somebody:
        assert await house.step() == Reaped(failed=1)
        assert rows(house.admin, "select count(*) from carillon.sessions") == [(1,)]
        let_go(somebody)
        assert await house.step(at=1) == Reaped(sessions=1)


def test_what_is_put_off_comes_back_each_second_and_counts_after_a_minute() -> None:
    aside: SetAside[int] = SetAside()
    at = 0.0
    while at < LONGEST_PUT_OFF:
        assert aside.put_off(1, at)
        assert aside.resting(at) == [1]
        at += PUT_OFF
        assert aside.resting(at) == []
    assert not aside.put_off(1, at)
    assert len(aside) == 0
    assert aside.add(1, at), "it is news"
    assert (len(aside), aside.all()) == (1, [1])
    assert not aside.put_off(1, at + FIRST_PAUSE), "what was set aside stays so until it is mended"
    aside.forget([1])
    assert aside.put_off(1, at + FIRST_PAUSE)


def test_another_lock_much_later_has_a_minute_of_its_own() -> None:
    aside: SetAside[int] = SetAside()
    assert aside.put_off(1, 0.0)
    later = LONGEST_PUT_OFF * 2
    assert aside.put_off(1, later)
    at = later
    while at < later + LONGEST_PUT_OFF:
        assert aside.put_off(1, at)
        at += LOOK_THROUGH_SECONDS + TRIES  # a look through all of them, and the waits in it
    assert not aside.put_off(1, at)
