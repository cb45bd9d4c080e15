"""A replica goes on sealing whatever one event is like, and says how far it is whatever happens."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import psycopg
import pytest
from structlog.testing import capture_logs

from scheduler_service.domain.access import Principal
from scheduler_service.domain.audit import made
from scheduler_service.domain.audit_chain import Problem
from scheduler_service.engine.sealing import Sealing
from scheduler_service.store.audit_seals import Standing, standing
from scheduler_service.store.database import Database, Transaction
from scheduler_service.usecases.audit import verify_audit_trail
from tests.builders import ADMIN, connect
from tests.conftest import DatabaseUrls
from tests.rpc.work.rig import Clock
from tests.store.audit_case import JOB, broken, record, record_many, seal_all, tampering

Hot = psycopg.AsyncConnection[Any]
Admin = psycopg.Connection[Any]
EVENTS = "carillon.audit_events"
UNREADABLE = "this cannot be read"
BEFORE_LONG = "now() - interval '2 minutes'"
# What a document does whose text is longer than the longest text, or whose page is damaged.
_FAILING = f"""
create function public.failing_text(document jsonb) returns text language plpgsql as $$
begin
  if document ? '{UNREADABLE}' then
    raise exception 'out of memory' using errcode = 'program_limit_exceeded';
  end if;
  return document #>> array[]::text[];
end $$;
create cast (jsonb as text) with function public.failing_text"""


async def record_one_that_cannot_be_read(database: Database, admin: Admin) -> int:
    """Among nine that can."""
    await record_many(database, 4)
    await record(database, made(f"{JOB}-unreadable", {UNREADABLE: True}))
    await record_many(database, 5)
    admin.execute(_FAILING.encode())
    row = admin.execute(f"select event_id from {EVENTS} where resource = '{JOB}-unreadable'").fetchone()
    assert row is not None
    event_id: int = row[0]
    return event_id


async def test_an_event_that_cannot_be_sealed_holds_up_no_other(database: Database, hot: Hot, admin: Admin) -> None:
    event_id = await record_one_that_cannot_be_read(database, admin)
    clock = Clock()
    sealing = Sealing(clock)
    with capture_logs() as log:
        for _ in range(3):
            assert await sealing.step(hot) is False
    said = {"event_id": event_id, "error": "ProgramLimitExceeded", "log_level": "error"}
    assert [said.items() <= line.items() for line in log] == [True]
    assert sealing.set_aside == 1
    seen = await standing(hot)
    assert (seen.position, seen.unsealed) == (9, 1)
    await record_many(database, 1)
    await sealing.step(hot)
    assert (await standing(hot)).position == 10
    assert admin.execute("select event_id from carillon.audit_unsealed").fetchall() == [(event_id,)]


async def test_an_event_that_could_not_be_sealed_is_tried_again(database: Database, hot: Hot, admin: Admin) -> None:
    await record_one_that_cannot_be_read(database, admin)
    clock = Clock()
    sealing = Sealing(clock)
    await sealing.step(hot)
    clock.now += 601
    await sealing.step(hot)
    assert sealing.set_aside == 1
    admin.execute("drop cast (jsonb as text)")
    await sealing.step(hot)
    assert (await standing(hot)).position == 9
    clock.now += 601
    await sealing.step(hot)
    assert sealing.set_aside == 0
    assert (await standing(hot)).position == 10
    assert (await standing(hot)).unsealed == 0


async def test_an_event_that_is_tried_by_another_replica_meanwhile_stays_set_aside(
    database: Database, hot: Hot, other: Hot, admin: Admin
) -> None:
    await record_one_that_cannot_be_read(database, admin)
    clock = Clock()
    sealing = Sealing(clock)
    await sealing.step(hot)
    clock.now += 601
    async with other.transaction():
        await Sealing(clock).step(other)
        await sealing.step(hot)
        assert sealing.set_aside == 1


async def test_verifying_names_an_event_that_cannot_be_sealed(database: Database, hot: Hot, admin: Admin) -> None:
    event_id = await record_one_that_cannot_be_read(database, admin)
    await Sealing(Clock()).step(hot)
    admin.execute("drop cast (jsonb as text)")
    assert await broken(database) == ()
    with tampering(admin):
        admin.execute(f"update {EVENTS} set event_at = {BEFORE_LONG} where event_id = {event_id}".encode())
    assert await broken(database) == (Problem.NOT_SEALED, 0, event_id)


@pytest.mark.parametrize("at", ["infinity", "-infinity", "294270-01-01", "1960-01-01"])
async def test_a_time_out_of_this_world_is_sealed_and_verified(
    database: Database, hot: Hot, admin: Admin, at: str
) -> None:
    await record_many(database, 3)
    with tampering(admin):
        admin.execute(f"alter table {EVENTS} drop constraint audit_events_event_at_check")
        admin.execute(f"update {EVENTS} set event_at = %s where event_id = (select min(event_id) from {EVENTS})", [at])
    assert (await standing(hot)).unsealed == 3
    assert (await broken(database))[0] is Problem.NOT_SEALED
    assert await seal_all(hot) == 3
    assert await broken(database) == ()
    with tampering(admin):
        admin.execute(
            f"update {EVENTS} set event_at = 'infinity'"
            " where event_id = (select event_id from carillon.audit_seals where position = 2)"
        )
    assert (await broken(database))[:2] == (Problem.CHANGED, 2)


async def test_how_far_it_is_is_seen_while_sealing_fails(database: Database, hot: Hot, admin: Admin) -> None:
    await record_many(database, 2)
    admin.execute("revoke insert on carillon.audit_seals from carillon_engine")
    sealing = Sealing(Clock())
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        await sealing.step(hot)
    assert sealing.standing is not None
    assert (sealing.standing.position, sealing.standing.unsealed) == (0, 2)
    admin.execute("grant insert on carillon.audit_seals to carillon_engine")
    await sealing.step(hot)
    assert (await standing(hot)).position == 2


async def test_a_row_that_is_in_the_queue_again_leaves_it(database: Database, hot: Hot, admin: Admin) -> None:
    await record_many(database, 2)
    await seal_all(hot)
    admin.execute(f"insert into carillon.audit_unsealed select event_id from {EVENTS}")
    sealing = Sealing(Clock())
    await sealing.step(hot)
    assert sealing.standing == Standing(position=2, unsealed=0, oldest=0)
    assert await broken(database) == ()


class _SealedBeforeTheThirdLook(Database):
    """The real database; before each transaction but the first two, a sealer seals."""

    hot: Hot
    looks = 0

    @asynccontextmanager
    async def acting_for(self, principal: Principal, *, one_snapshot: bool = False) -> AsyncIterator[Transaction]:
        self.looks += 1
        if self.looks > 2:
            await seal_all(self.hot)
        async with super().acting_for(principal, one_snapshot=one_snapshot) as tx:
            yield tx


async def test_an_event_that_was_committed_long_after_it_was_written_is_no_false_alarm(
    database_urls: DatabaseUrls, database: Database, hot: Hot
) -> None:
    watched = _SealedBeforeTheThirdLook(database_urls.api, database_urls.engine, pool_size=2)
    watched.hot = hot
    with connect(database_urls.admin) as slow:
        slow.execute(
            f"insert into {EVENTS} (event_at, principal, action, resource, request_id, address)"
            f" values ({BEFORE_LONG}, 'admin:bob', 'PauseJob', 'x', 'r', '')"
        )
    try:
        verdict = await verify_audit_trail(watched, ADMIN)
    finally:
        await watched.close()
    assert (verdict.broken, verdict.complete, watched.looks) == (None, True, 3)
    assert (await verify_audit_trail(database, ADMIN)).verified.position == 1


async def test_a_slipped_in_event_is_found_behind_one_that_was_committed_late(
    database_urls: DatabaseUrls, hot: Hot, admin: Admin
) -> None:
    columns = "event_id, event_at, principal, action, resource, request_id, address"
    admin.execute(
        f"insert into {EVENTS} ({columns}) overriding system value"
        f" values (1, {BEFORE_LONG}, 'admin:bob', 'PauseJob', 'x', 'r', '')".encode()
    )
    with tampering(admin):
        admin.execute(
            f"insert into {EVENTS} ({columns}) overriding system value"
            f" values (2, {BEFORE_LONG}, 'admin:bob', 'PauseJob', 'x', 'r', '')".encode()
        )
    watched = _SealedBeforeTheThirdLook(database_urls.api, database_urls.engine, pool_size=2)
    watched.hot = hot
    try:
        found = (await verify_audit_trail(watched, ADMIN)).broken
    finally:
        await watched.close()
    assert found is not None
    assert (found.problem, found.event_id) == (Problem.NOT_SEALED, 2)
    assert "slipped in" in found.description
