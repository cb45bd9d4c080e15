"""The server is there, and statements wait, fail, or are never answered: calls are told to wait, and leave nothing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import psycopg
import pytest

from scheduler_service.store.connection import answering_within
from scheduler_service.store.database import Database
from tests.builders import connect
from tests.conftest import DatabaseUrls
from tests.e2e.cluster import eventually
from tests.e2e.database_away.conftest import Links
from tests.e2e.database_away.place import BOUND, Place, is_told_to_wait, placed, refused
from tests.faults.proxy import Direction

# By the administrator: an insert of a run raises this, as often as is left in a sequence, which no rollback undoes.
_PLANTED = """
create sequence public.planted;
grant usage on schema public to carillon_api, carillon_engine;
create function public.raise_planted() returns trigger language plpgsql security definer as $$
begin
  if nextval('public.planted') <= {times} then
    raise exception 'planted' using errcode = '{sqlstate}';
  end if;
  return new;
end $$;
create trigger planted before insert on carillon.live_runs for each row execute function public.raise_planted();
"""
_UPROOTED = "drop trigger planted on carillon.live_runs; drop function public.raise_planted; drop sequence planted"
_ALWAYS = 1_000_000
_TRACES = (
    "select (select count(*) from carillon.live_runs), (select count(*) from carillon.runs),"
    " (select count(*) from carillon.audit_events where action = 'TriggerJob'),"
    " (select count(*) from carillon.run_keys), (select count(*) from carillon.requests)"
)


@pytest.fixture
async def place(links: Links, database_urls: DatabaseUrls) -> AsyncIterator[Place]:
    """Nothing comes due by itself."""
    async with placed(links.urls(database_urls), lambda: database_urls.admin, ticks=False) as place:
        yield place


@pytest.fixture
def admin(database_urls: DatabaseUrls) -> Iterator[psycopg.Connection[Any]]:
    with connect(database_urls.admin) as admin:
        yield admin


@asynccontextmanager
async def planted(admin: psycopg.Connection[Any], sqlstate: str, times: int = _ALWAYS) -> AsyncIterator[None]:
    # Beside the scheduler of this process, whose locks it may have to wait for.
    await asyncio.to_thread(admin.execute, _PLANTED.format(sqlstate=sqlstate, times=times).encode())
    yield
    await asyncio.to_thread(admin.execute, _UPROOTED)


def traces(admin: psycopg.Connection[Any]) -> tuple[int, ...]:
    """Rows that triggering leaves: live runs, records, audit events, run keys and requests."""
    [found] = admin.execute(_TRACES).fetchall()
    return tuple(found)


@pytest.mark.parametrize("sqlstate", ["40001", "40P01"])
async def test_a_call_that_gives_way_to_others_is_carried_out_again(
    place: Place, admin: psycopg.Connection[Any], sqlstate: str
) -> None:
    async with planted(admin, sqlstate, times=2):
        name = await place.trigger(request_id="once", run_key="key")
        assert await place.trigger(request_id="once", run_key="key") == name
        assert admin.execute("select last_value from public.planted").fetchall() == [(3,)]
    await place.goes_on(0 if place.effects else 1)
    assert list(place.effects.values()) == [1]


@pytest.mark.parametrize(
    ("sqlstate", "words"),
    [
        ("40001", "a conflicting change"),
        ("40P01", "a conflicting change"),
        ("55P03", "a conflicting change"),
        ("57014", "ended what took too long"),
        ("25P03", "ended what took too long"),
        ("25006", "the database takes no changes"),
        ("53100", "out of disk or memory"),
        ("53200", "out of disk or memory"),
        ("53300", "too many connections"),
        ("57P01", "cannot be reached"),
        ("57P02", "cannot be reached"),
        ("57P03", "cannot be reached"),
        ("58030", "disk fails"),
        ("08006", "cannot be reached"),
    ],
)
async def test_a_call_that_fails_on_the_database_leaves_nothing_and_may_be_repeated(
    place: Place, admin: psycopg.Connection[Any], sqlstate: str, words: str
) -> None:
    before = traces(admin)
    async with planted(admin, sqlstate):
        await is_told_to_wait(place.trigger(request_id="once", run_key="key"), words)
        assert traces(admin) == before
    await place.trigger(request_id="once", run_key="key")
    await place.goes_on(0 if place.effects else 1)


async def test_calls_that_wait_for_a_lock_do_not_pile_up(place: Place, admin: psycopg.Connection[Any]) -> None:
    before, began = traces(admin), time.monotonic()
    with psycopg.connect(admin.info.dsn, password=admin.info.password) as other:
        await asyncio.to_thread(other.execute, "lock table carillon.jobs in access exclusive mode")
        callers = [refused(place.trigger()) for _ in range(30)]
        found = await asyncio.gather(*callers)
        assert {each.code.name for each in found} == {"UNAVAILABLE"}
        assert all(each.retry_after for each in found)
        said = {each.message for each in found}
        # Ten wait for the lock, and the others for one of their connections.
        assert {"a conflicting change" in each for each in said} == {True, False}
        assert any("every database connection is busy" in each for each in said)
        assert time.monotonic() - began < BOUND
    assert traces(admin) == before
    await place.trigger()
    await place.goes_on(0 if place.effects else 1)


async def test_a_server_that_says_nothing_any_more_is_away(place: Place, links: Links) -> None:
    """Connections stay open, and new ones are accepted; only nothing comes back."""
    links.api.blackhole()
    await is_told_to_wait(place.trigger(), "the database cannot be reached")
    await place.says("the database cannot be reached")
    links.api.heal()
    await eventually(lambda: passes(place))
    await place.is_ready()
    await place.goes_on(0 if place.effects else 1)


async def passes(place: Place) -> bool:
    try:
        await place.trigger()
    except Exception:
        return False
    return True


async def test_a_slow_server_is_worked_with(place: Place, links: Links) -> None:
    for link in (links.api, links.engine):
        link.delay(0.1, Direction.DOWN)
    await place.trigger()
    await place.goes_on(0 if place.effects else 1)
    await place.is_ready()
    assert max(place.loop_failures().values()) == 0


async def test_connections_that_the_server_ended_are_opened_again(place: Place, admin: psycopg.Connection[Any]) -> None:
    ours = "where datname = current_database() and usename in ('carillon_api', 'carillon_engine')"
    for _ in range(3):
        admin.execute(f"select pg_terminate_backend(pid) from pg_stat_activity {ours}".encode())
        await eventually(lambda: passes(place))
    before = len(place.effects)
    await eventually(lambda: passes(place))
    await place.goes_on(0 if len(place.effects) > before else 1)
    await place.is_ready()

    async def open_now() -> int:
        [(count,)] = admin.execute(f"select count(*) from pg_stat_activity {ours}".encode()).fetchall()
        return int(count)

    await eventually(open_now, lambda count: count <= 33)


async def test_a_statement_without_an_answer_ends_with_its_connection(database: Database) -> None:
    connection = await database.hot_connection()
    with answering_within(0.2), pytest.raises(psycopg.OperationalError, match="has not answered"):
        await connection.execute("select pg_sleep(60)")
    assert connection.closed


async def test_connections_that_are_forgotten_are_opened_anew(database: Database) -> None:
    async def backend() -> int:
        async with database.as_engine() as connection:
            raw = (await connection.get_raw_connection()).driver_connection
            assert isinstance(raw, psycopg.AsyncConnection)
            return raw.info.backend_pid

    first = await backend()
    assert await backend() == first
    await database.forget_connections()
    assert await backend() != first
