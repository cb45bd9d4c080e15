"""The audit trail's chain under random tampering, many writers and sealers, and sealers that are killed."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Callable
from typing import Any

import psycopg

from scheduler_service.domain.audit_chain import Head
from scheduler_service.store.audit_seals import standing
from scheduler_service.store.database import Database
from scheduler_service.usecases.audit import get_audit_head
from tests.builders import ADMIN, connect
from tests.conftest import DatabaseUrls
from tests.store.audit_case import broken, record_many, seal, seal_all, tampering, verify

Hot = psycopg.AsyncConnection[Any]
Admin = psycopg.Connection[Any]
EVENTS = "carillon.audit_events"
SEALS = "carillon.audit_seals"


def _pick(chance: random.Random, admin: Admin) -> int:
    """A position that is not the last: what is done to the last alone, only a head tells."""
    (last,) = admin.execute(f"select max(position) from {SEALS}").fetchone() or (0,)
    return chance.randrange(1, last)


def _change(chance: random.Random, admin: Admin) -> None:
    column = chance.choice(["principal", "action", "resource", "tenant_id", "request_id", "address"])
    admin.execute(
        f"update {EVENTS} set {column} = overlay({column} || 'xyz' placing 'q' from %s for %s)"
        f" where event_id = (select event_id from {SEALS} where position = %s)".encode(),
        [chance.randrange(1, 4), chance.randrange(2), _pick(chance, admin)],
    )


def _remove(chance: random.Random, admin: Admin) -> None:
    table = chance.choice([EVENTS, SEALS])
    admin.execute(
        f"delete from {table} where event_id = (select event_id from {SEALS} where position = %s)".encode(),
        [_pick(chance, admin)],
    )


def _swap(chance: random.Random, admin: Admin) -> None:
    first = _pick(chance, admin)
    admin.execute(
        f"update {SEALS} a set event_id = -b.event_id from {SEALS} b"
        " where (a.position, b.position) in ((%(first)s, %(next)s), (%(next)s, %(first)s))",
        {"first": first, "next": first + 1},
    )
    admin.execute(f"update {SEALS} set event_id = -event_id where event_id < 0")


def _slip_in(chance: random.Random, admin: Admin) -> None:
    admin.execute(
        f"insert into {EVENTS} (event_id, event_at, principal, action, resource, request_id, address)"
        " overriding system value values (%s, now(), 'admin:alice', 'PauseJob', 'x', '', '')",
        [chance.choice([-1, 1]) * chance.randrange(10**6, 10**12)],
    )


def _change_a_hash(chance: random.Random, admin: Admin) -> None:
    admin.execute(
        f"update {SEALS} set hash = set_bit(hash, %(bit)s, 1 - get_bit(hash, %(bit)s)) where position = %(position)s",
        {"bit": chance.randrange(256), "position": _pick(chance, admin)},
    )


TAMPERING: tuple[Callable[[random.Random, Admin], None], ...] = (_change, _remove, _swap, _slip_in, _change_a_hash)


async def test_random_tampering_is_always_found(database: Database, hot: Hot, database_urls: DatabaseUrls) -> None:
    await record_many(database, 40)
    await seal_all(hot)
    head = await get_audit_head(database, ADMIN)
    with connect(database_urls.admin) as keeping:
        keeping.execute(f"create table kept_events as table {EVENTS}")
        keeping.execute(f"create table kept_seals as table {SEALS}")
        for seed, (tamper, limit) in enumerate(2 * [*itertools.product(TAMPERING, (1, 7, 50_000))]):
            chance = random.Random(seed)
            with tampering(keeping):
                tamper(chance, keeping)
            assert await broken(database, (head,), limit=limit) != (), f"seed {seed}: {tamper.__name__}"
            with tampering(keeping):
                keeping.execute(f"delete from {SEALS}")
                keeping.execute(f"delete from {EVENTS}")
                keeping.execute(f"insert into {EVENTS} overriding system value table kept_events")
                keeping.execute(f"insert into {SEALS} table kept_seals")
            assert await broken(database, (head,)) == (), f"seed {seed}"


async def test_no_false_alarm_while_events_are_written_and_sealed(database: Database, hot: Hot, other: Hot) -> None:
    writing, written, looks = True, 0, 0

    async def write() -> None:
        nonlocal writing, written
        while written < 600 or looks < 4:
            await asyncio.gather(*(record_many(database, 5) for _ in range(3)))
            written += 15
        writing = False

    async def seal_on(connection: Hot) -> None:
        while writing:
            await seal(connection, limit=50)

    async def look() -> None:
        nonlocal looks
        heads: list[Head] = []
        while writing:
            assert await broken(database, tuple(heads), limit=64) == ()
            heads = [*heads[-50:], await get_audit_head(database, ADMIN)]
            looks += 1

    async with asyncio.TaskGroup() as everybody:
        for doing in (write(), seal_on(hot), seal_on(other), look()):
            everybody.create_task(doing)
    await seal_all(hot)
    verdict = await verify(database)
    assert (verdict.broken, verdict.verified.position, verdict.unsealed) == (None, written, 0)


async def test_sealers_that_are_killed_at_any_point_lose_and_repeat_nothing(
    database: Database, admin: Admin, hot: Hot
) -> None:
    chance, recorded, killed = random.Random(4711), 0, 0
    while killed < 8:
        # As much as one seals, so that each has something to be killed at, however many are done before.
        await record_many(database, 50)
        recorded += 50
        async with await database.hot_connection() as doomed:
            sealing = asyncio.create_task(seal(doomed, limit=50))
            await asyncio.wait({sealing}, timeout=chance.uniform(0, 0.01))
            admin.execute("select pg_terminate_backend(%s, 5000)", [doomed.info.backend_pid])
            try:
                await sealing
            except psycopg.OperationalError:
                killed += 1
        assert (await standing(hot)).position % 50 == 0
        assert await broken(database) == ()
    await seal_all(hot)
    verdict = await verify(database)
    assert (verdict.broken, verdict.verified.position, verdict.unsealed) == (None, recorded, 0)


async def test_thousands_of_events_are_sealed_a_batch_at_a_time(database: Database, hot: Hot) -> None:
    await record_many(database, 7_000)
    assert [await seal(hot) for _ in range(3)] == [5_000, 2_000, 0]
    assert (await verify(database)).verified.position == 7_000
