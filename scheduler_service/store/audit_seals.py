"""The chain over the audit trail: sealing what is committed, and reading it back for whoever verifies it.

Events take their ids when they are made and can be seen when they are committed, so that an id may turn up after a
later one is sealed. Hence a queue of what has no seal yet, written with the event; the order of the chain is that of
sealing.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, LiteralString

import psycopg
from psycopg.rows import TupleRow
from sqlalchemy import text

from scheduler_service.domain import audit_chain
from scheduler_service.domain.audit_chain import EMPTY, LONGEST_UNSEALED, Head, Link
from scheduler_service.store import arrays
from scheduler_service.store.connection import Connection
from scheduler_service.store.database import Transaction

BATCH = 5_000
"""Events that one transaction seals."""
CAP = 100_000
"""How many unsealed events are counted for operators. The figure then means: so many or more."""

_ROWS_AT_A_TIME = 500
# Not as a bigint: PostgreSQL has times, `infinity` among them, that are beyond it.
_TIME: LiteralString = "trunc(extract(epoch from {}) * 1000000)::text"
_TEXTS: LiteralString = (
    f"e.event_id::text, {_TIME.format('e.event_at')}, e.principal, e.action, e.resource, e.tenant_id,"
    " e.before::text, e.after::text, e.request_id, e.address"
)

_ALONE: LiteralString = "select pg_try_advisory_xact_lock(hashtextextended('carillon.audit_seals', 0))"
_LAST: LiteralString = "select position, hash, sealed_at from carillon.audit_seals order by position desc limit 1"
_NOW: LiteralString = f"select n, {_TIME.format('n')} from clock_timestamp() n"
# A row in the queue whose event has its seal already must not stop the chain.
_WAITING: LiteralString = """
select q.event_id, s.event_id is not null
from carillon.audit_unsealed q join carillon.audit_events e using (event_id)
  left join carillon.audit_seals s using (event_id)
where q.event_id <> all (%(without)s::bigint[])
order by q.event_id limit %(limit)s"""
_READ: LiteralString = f"""
select e.event_id, {_TEXTS} from carillon.audit_events e where e.event_id = any (%(event_ids)s::bigint[])
order by e.event_id"""
_SEAL: LiteralString = """
insert into carillon.audit_seals (position, event_id, hash, sealed_at)
select %(after)s + place, event_id, hash, %(now)s
from unnest(%(event_ids)s::bigint[], %(hashes)s::bytea[]) with ordinality as sealed (event_id, hash, place)"""
_FORGET: LiteralString = "delete from carillon.audit_unsealed where event_id = any (%(event_ids)s::bigint[])"
# What lies in one row, whoever reads it and whenever: data exceptions and broken constraints, out of memory, beyond a
# limit (a document's text may be longer than the longest text), damaged data.
_OF_ONE_ROW = ("22", "23", "53200", "54", "XX")


@dataclass(frozen=True, slots=True)
class Batch:
    """What one transaction did. `set_aside`: events that cannot be sealed, and the kind of error that reading each
    meets. `more`: others may wait."""

    sealed: int
    set_aside: Mapping[int, str]
    more: bool


async def seal(connection: Connection, *, without: Collection[int] = (), limit: int = BATCH) -> Batch | None:
    """Seals the first events that wait for it, but those in `without`, in one transaction. None while another replica
    is at it."""
    async with connection.transaction():
        if await (await connection.execute(_ALONE)).fetchone() != (True,):
            return None
        # From here on each statement sees what the one before us committed.
        last = await (await connection.execute(_LAST)).fetchone()
        now, sealing_time = await _one(connection, _NOW)
        values = {"without": arrays.plain(without), "limit": limit}
        rows = await (await connection.execute(_WAITING, values)).fetchall()
        chain = _Chain(connection, last[0] if last else 0, last[1] if last else b"", sealing_time)
        if waiting := [event_id for event_id, has_seal in rows if not has_seal]:
            await chain.take(waiting)
            await chain.write(now)
        done = [event_id for event_id, has_seal in rows if has_seal] + [event_id for event_id, _ in chain.sealed]
        if done:
            await connection.execute(_FORGET, {"event_ids": arrays.plain(done)})
    return Batch(len(chain.sealed), chain.set_aside, more=len(rows) == limit)


class _Chain:
    """The seals that one transaction adds, after the one at `position` whose hash is `hashed`."""

    def __init__(self, connection: Connection, position: int, hashed: bytes, sealing_time: str) -> None:
        self._connection = connection
        self._after = position
        self._hash = hashed
        self._sealing_time = sealing_time
        self.sealed: list[tuple[int, bytes]] = []
        self.set_aside: dict[int, str] = {}

    async def take(self, event_ids: Sequence[int]) -> None:
        """Makes the seals of events, in their order. Those that cannot be read together are read in halves, and so on,
        until the one that stops them stands alone and is set aside."""
        there = len(self.sealed)
        try:
            async with self._connection.transaction():
                await self._read(event_ids)
        except psycopg.Error as error:
            if not (error.sqlstate or "").startswith(_OF_ONE_ROW):
                raise
            del self.sealed[there:]
            # Its kind only: the message may have what stands in the row.
            kind = type(error).__name__
        else:
            return
        if len(event_ids) == 1:
            self.set_aside[event_ids[0]] = kind
            return
        middle = len(event_ids) // 2
        await self.take(event_ids[:middle])
        await self.take(event_ids[middle:])

    async def _read(self, event_ids: Sequence[int]) -> None:
        # Row by row: the documents of a batch may be large together.
        async with self._connection.cursor() as reading:
            async for event_id, *texts in reading.stream(_READ, {"event_ids": arrays.plain(event_ids)}):
                position = self._after + len(self.sealed) + 1
                previous = self.sealed[-1][1] if self.sealed else self._hash
                self.sealed.append((event_id, audit_chain.seal(previous, position, self._sealing_time, texts)))

    async def write(self, now: datetime) -> None:
        if not self.sealed:
            return
        event_ids = arrays.plain(event_id for event_id, _ in self.sealed)
        hashes = [each for _, each in self.sealed]
        values = {"after": self._after, "event_ids": event_ids, "hashes": hashes, "now": now}
        await self._connection.execute(_SEAL, values)


async def _one(connection: Connection, query: LiteralString) -> TupleRow:
    row = await (await connection.execute(query)).fetchone()
    assert row is not None
    return row


@dataclass(frozen=True, slots=True)
class Standing:
    """How far the chain is. `oldest`: for how many seconds the first unsealed event has waited; 0 if none does."""

    position: int
    unsealed: int
    oldest: float


_STANDING: LiteralString = """
select
  coalesce((select position from carillon.audit_seals order by position desc limit 1), 0),
  (select count(*) from (select from carillon.audit_unsealed limit %(cap)s) waiting),
  coalesce((select (extract(epoch from clock_timestamp()) - extract(epoch from e.event_at))::float8
            from carillon.audit_unsealed q join carillon.audit_events e using (event_id)
            order by q.event_id limit 1), 0)"""


async def standing(connection: Connection) -> Standing:
    """How far the chain is at this moment."""
    row = await (await connection.execute(_STANDING, {"cap": CAP})).fetchone()
    assert row is not None
    position, unsealed, oldest = row
    return Standing(position, unsealed, max(0.0, oldest))


_HEAD = text(_LAST)
_HASHES = text("select position, hash from carillon.audit_seals where position = any(:positions)")
_UNSEALED = text("select count(*) from carillon.audit_unsealed")
_LINKS: LiteralString = f"""
select s.position, s.event_id, s.hash, s.sealed_at, {_TIME.format("s.sealed_at")}, e.event_id is not null, {_TEXTS}
from carillon.audit_seals s left join carillon.audit_events e using (event_id)
where s.position > :after order by s.position limit :limit"""
_EVENT_AT = text("select event_id from carillon.audit_seals where position = :position")
_NOT_SEALED = text("""
select e.event_id, q.event_id is not null as queued
from carillon.audit_events e left join carillon.audit_unsealed q using (event_id)
where (cast(:after as bigint) is null or e.event_id > :after) and (cast(:upto as bigint) is null or e.event_id <= :upto)
  and not exists (select from carillon.audit_seals s where s.event_id = e.event_id)
  and (q.event_id is null
       or e.event_at not between :now - cast(:longest as interval) and :now + cast(:longest as interval))
order by e.event_id limit 1""")
_GONE = text("""
select min(q.event_id) from carillon.audit_unsealed q
where not exists (select from carillon.audit_events e where e.event_id = q.event_id)
  and not exists (select from carillon.audit_seals s where s.event_id = q.event_id)""")


async def head(tx: Transaction) -> Head:
    """The end of the chain."""
    row = (await tx.connection.execute(_HEAD)).one_or_none()
    return EMPTY if row is None else Head(row.position, bytes(row.hash), row.sealed_at)


async def hashes_at(tx: Transaction, positions: Iterable[int]) -> Mapping[int, bytes]:
    """The hashes of the seals at those of these positions that are there."""
    rows = await tx.connection.execute(_HASHES, {"positions": list(positions)})
    return {row.position: bytes(row.hash) for row in rows}


async def count_unsealed(tx: Transaction) -> int:
    counted: int = (await tx.connection.execute(_UNSEALED)).scalar_one()
    return counted


@asynccontextmanager
async def links(tx: Transaction, after: int, limit: int) -> AsyncIterator[AsyncIterator[Link]]:
    """Up to so many links of the chain after a position, read a few hundred at a time."""
    bit_by_bit = text(_LINKS).execution_options(yield_per=_ROWS_AT_A_TIME)
    async with tx.connection.stream(bit_by_bit, {"after": after, "limit": limit}) as rows:
        yield (_link(*row) async for row in rows)


def _link(position: int, event_id: int, hashed: Any, sealed_at: Any, time: str, is_there: bool, *event: Any) -> Link:
    return Link(position, event_id, bytes(hashed), sealed_at, time, event if is_there else None)


async def first_not_sealed(tx: Transaction, after: int | None, upto: int | None) -> tuple[int, bool] | None:
    """The first event in a range of ids `(after, upto]` (None: without an end) that has no seal and perhaps should:
    it waits and was written over a minute ago (or in the future), or does not even wait. And whether it waits."""
    values = {"after": after, "upto": upto, "now": tx.now, "longest": LONGEST_UNSEALED}
    row = (await tx.connection.execute(_NOT_SEALED, values)).one_or_none()
    return None if row is None else (row.event_id, row.queued)


async def event_at(tx: Transaction, position: int) -> int | None:
    """The event that is sealed at a position."""
    found: int | None = (await tx.connection.execute(_EVENT_AT, {"position": position})).scalar_one_or_none()
    return found


async def first_gone_before_sealing(tx: Transaction) -> int | None:
    """The first that waits for its seal and is no event any more."""
    found: int | None = (await tx.connection.execute(_GONE)).scalar_one()
    return found
