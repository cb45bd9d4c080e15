"""What the state machine steps: two replicas on one database, whose clock and whose own pass together, by steps."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, TypeVar

import psycopg

from scheduler_service.engine.complete import Completer
from scheduler_service.engine.dispatch import Dispatcher
from scheduler_service.engine.leases import Leases
from scheduler_service.engine.reap import Reaper
from scheduler_service.engine.report import Reports
from scheduler_service.engine.sessions import Sessions
from scheduler_service.engine.tick import tick
from scheduler_service.usecases.wakeups import Wakeups
from tests.builders import connect
from tests.conftest import DatabaseUrls
from tests.simulation.diary import Diary
from tests.store.definitions_case import SteppedDatabase
from tests.store.model_owed import MONTHS_AHEAD, STARTS

T = TypeVar("T")
LEASE = 30.0
SECOND = timedelta(seconds=1)
_TABLES = """
select c.oid::regclass::text from pg_class c join pg_namespace n on n.oid = c.relnamespace
where n.nspname = 'carillon' and c.relkind in ('r', 'p') and not c.relispartition"""
_TRUNCATE_TRIGGERS = """
select tgrelid::regclass::text, quote_ident(tgname) from pg_trigger
where not tgisinternal and tgtype & 32 > 0 and tgrelid::regclass::text like 'carillon.%'"""


@dataclass
class Replica:
    """One scheduler's engine. Its steps are called, not looped."""

    connection: psycopg.AsyncConnection[Any]
    sessions: Sessions
    leases: Leases
    dispatcher: Dispatcher
    completer: Completer
    reports: Reports
    reaper: Reaper


class World:
    """One database for a whole test, emptied for each example. `run` carries out what is asynchronous."""

    def __init__(self, urls: DatabaseUrls) -> None:
        self.urls = urls
        self.wakeups = Wakeups()
        self.diary = Diary()
        self.start = STARTS[0]
        self.replicas: list[Replica] = []
        self._runner = asyncio.Runner()
        self.admin = connect(urls.admin)
        self.admin.execute("set time zone 'UTC'")
        self.admin.execute("select carillon.create_partitions(%s)", [MONTHS_AHEAD])
        self.database = self.run(self._connect())
        self._emptying = self._how_to_empty()

    async def _connect(self) -> SteppedDatabase:
        database = SteppedDatabase(self.urls.api, self.urls.engine, pool_size=4)
        self._connections = [await database.hot_connection() for _ in range(2)]
        return database

    def close(self) -> None:
        async def disconnect() -> None:
            for connection in self._connections:
                await connection.close()
            await self.database.close()

        self.run(disconnect())
        self._runner.close()
        self.admin.close()

    def run(self, doing: Coroutine[Any, Any, T]) -> T:
        return self._runner.run(doing)

    @property
    def now(self) -> datetime:
        return self.database.now

    def pass_time(self, step: timedelta) -> None:
        self.database.now += step

    def begin(self) -> None:
        """Everything anew; when, is said by `begin_at`, before anything is done."""
        self.admin.execute(self._emptying)
        self.diary = Diary()
        self.begin_at(STARTS[0])
        self.replicas = [self._replica(f"replica-{number}", each) for number, each in enumerate(self._connections, 1)]

    def begin_at(self, start: datetime) -> None:
        self.start = self.database.now = start

    def _replica(self, name: str, connection: psycopg.AsyncConnection[Any]) -> Replica:
        sessions = Sessions(on_credit=lambda: None)
        leases = Leases(self.database, sessions, self.wakeups, replica=name, lease=LEASE, clock=self._clock)
        return Replica(
            connection=connection,
            sessions=sessions,
            leases=leases,
            dispatcher=Dispatcher(sessions, self.wakeups, self._clock),
            completer=Completer(self.wakeups),
            reports=Reports(self.wakeups, clock=self._clock),
            reaper=Reaper(sessions, leases, self.wakeups, replica=name, clock=self._clock),
        )

    def _clock(self) -> float:
        return (self.now - self.start).total_seconds()

    async def tick(self, replica: Replica, *, limit: int = 500, sends: bool = True) -> int:
        """Answers how many schedules were due. Not `sends`: it dies once the runs that it made in workers' hands are
        committed."""
        seats = replica.dispatcher.seats()
        ticked = await tick(replica.connection, seats, now=self.now, limit=limit)
        if sends:
            replica.dispatcher.hand_over(seats, ticked.made.claimed)
        else:
            seats.give_back(ticked.made.claimed)
        return ticked.schedules

    async def both(self, do: Callable[[Replica], Coroutine[Any, Any, T]]) -> list[T]:
        """At once, by both replicas."""
        return list(await asyncio.gather(*map(do, self.replicas)))

    async def at_once(self, one: Coroutine[Any, Any, object], other: Coroutine[Any, Any, object]) -> None:
        await asyncio.gather(one, other)

    def _how_to_empty(self) -> bytes:
        """What the migrations wrote stays. What is append-only can be emptied by nobody but a superuser who takes its
        triggers away for that."""
        triggers = self.admin.execute(_TRUNCATE_TRIGGERS).fetchall()
        tables = [name for (name,) in self.admin.execute(_TABLES).fetchall() if self._is_empty(name)]
        off = [f"alter table {table} disable trigger {name};" for table, name in triggers]
        on = [f"alter table {table} enable always trigger {name};" for table, name in triggers]
        return " ".join(["begin;", *off, f"truncate {', '.join(tables)} restart identity;", *on, "commit"]).encode()

    def _is_empty(self, table: str) -> bool:
        return self.admin.execute(f"select from {table} limit 1".encode()).fetchone() is None
