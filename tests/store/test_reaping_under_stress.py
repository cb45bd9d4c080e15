"""Two reapers, completion, heartbeats, cancels and claims at once, each on a connection of its own: nobody waits for
another in a circle, and each run ends once."""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Awaitable, Callable, Iterator
from datetime import timedelta
from typing import Any
from uuid import UUID

import psycopg

from scheduler_service.domain.attempt import AttemptRef, Result
from scheduler_service.engine.complete import Completer
from scheduler_service.engine.leases import Leases
from scheduler_service.engine.reap import Reaped, Reaper
from scheduler_service.engine.sessions import ConnectedSession, Sessions
from scheduler_service.store.claim import claim
from scheduler_service.store.database import Database
from scheduler_service.store.sessions import extend_leases
from scheduler_service.usecases.cancel import cancel_run
from scheduler_service.usecases.wakeups import Wakeups
from tests.builders import ADMIN, make_job, make_live_run, make_schedule, make_session
from tests.store.engine_case import Connection, Received, rows

SECONDS = float(os.environ.get("CARILLON_STRESS_SECONDS", "6"))
PATIENCE = 600
"""Seconds in all for a machine so busy that too little happened in SECONDS."""
ENOUGH = 100
FATES = [
    (fate, starts)
    for fate in ("reports", "reports", "is lost", "reports late", "loses its row", "beats")
    for starts in (False, True)
]
"""Of a session, and whether it says that what it claimed has started."""
Admin = psycopg.Connection[Any]


class Storm:
    """What everybody does, until it is over. Every wrong turn is an exception that ends the test."""

    def __init__(self, database: Database, admin: Admin) -> None:
        self.database = database
        self.admin = admin
        self.random = random.Random(7)
        self.fates = self._fates()
        self.wakeups, self.sessions = Wakeups(), Sessions(lambda: None)
        self.job = make_job(admin, overlap="BUFFER_ALL", retry_delay=timedelta(), max_attempts=3)
        self.schedules = [make_schedule(admin, self.job, f"s{number}") for number in range(8)]
        self.began = time.monotonic()
        self.reaped = Reaped()
        self.completed = 0
        self.made: set[UUID] = set()

    def fill(self) -> None:
        turns: dict[str, Any] = {"revision": 1, "exclusive": True, "trigger": "MANUAL"}
        for schedule in self.schedules:
            for place in range(60):
                self.made.add(
                    make_live_run(
                        self.admin, self.job, schedule_id=schedule, blocked=place > 0, followed=place == 0, **turns
                    )
                )

    async def feed(self, connection: Connection) -> None:
        """Sees to it that there is always something to take, also what was taken back."""
        await connection.execute("update carillon.live_runs set alone = false where alone and claim_id is null")
        ((waiting,),) = rows(
            self.admin, "select count(*) from carillon.live_runs where not blocked and claim_id is null"
        )
        for _ in range(ENOUGH - waiting):
            self.made.add(make_live_run(self.admin, self.job))

    def _fates(self) -> Iterator[tuple[str, bool]]:
        """All of them in any order, and again: little time is enough to see each."""
        while True:
            yield from self.random.sample(FATES, len(FATES))

    def least_seen(self) -> int:
        """Of what the storm is about, what happened least often."""
        return min(self.reaped.sessions, self.reaped.freed, self.reaped.charged, self.completed)

    def goes_on(self) -> bool:
        lasted = time.monotonic() - self.began
        return lasted < SECONDS or (lasted < PATIENCE and self.least_seen() == 0)

    async def again_and_again(self, step: Callable[[Connection], Awaitable[object]]) -> None:
        async with await self.database.hot_connection() as connection:
            while self.goes_on():
                await step(connection)
                await asyncio.sleep(0.001)

    def reap(self, name: str) -> Callable[[Connection], Awaitable[object]]:
        leases = Leases(self.database, self.sessions, self.wakeups, replica=name)
        reaper = Reaper(self.sessions, leases, self.wakeups, replica=name)

        async def step(connection: Connection) -> None:
            self.reaped += await reaper.step(connection)

        return step

    async def work(self, connection: Connection) -> None:
        """A worker takes some, loses its session half of the time, and reports what it may."""
        session_id = make_session(self.admin)
        # Through the loop, like all that may wait for a lock: who holds it could not let go of it meanwhile.
        made = await claim(connection, session_id, ["http"], self.random.randint(1, 40))
        if made is None or not made.runs:
            return
        refs = [AttemptRef(run.run_id, run.attempt, made.claim_id) for run in made.runs]
        fate, starts = next(self.fates)
        if starts:
            started = "update carillon.live_runs set started_at = claimed_at where session_id = %s"
            await connection.execute(started, [session_id])
        if fate in ("is lost", "reports late"):
            await connection.execute(
                "update carillon.sessions set expires_at = now() where session_id = %s", [session_id]
            )
        if fate == "is lost":
            return
        if fate == "loses its row":
            await connection.execute("delete from carillon.sessions where session_id = %s", [session_id])
        if fate == "beats":
            await extend_leases(connection, {session_id: 1}, lease=30.0)
        completer = Completer(self.wakeups)
        session = ConnectedSession(session_id, "w", frozenset({"http"}), 1, Received())
        self.random.shuffle(refs)
        completer.submit(
            [Result(ref, session_id, self.random.choice(["COMPLETED", "COMPLETED", "FAILED"]), 0.1) for ref in refs],
            session,
        )
        while await completer.step(connection):
            pass
        self.completed += completer.ended["COMPLETED"]

    async def cancel(self, _connection: Connection) -> None:
        found = rows(self.admin, "select run_id from carillon.live_runs order by random() limit 1")
        for (run_id,) in found:
            try:
                await cancel_run(self.database, self.wakeups, ADMIN, run_id)
            except Exception as error:
                if (
                    "has ended" not in str(error)
                    and "no such run" not in str(error)
                    and "changes hands" not in str(error)
                ):
                    raise


async def test_nobody_waits_in_a_circle_and_each_run_ends_once(database: Database, admin: Admin) -> None:
    storm = Storm(database, admin)
    storm.fill()
    async with asyncio.TaskGroup() as everybody:
        for step in (storm.reap("one"), storm.reap("two"), *[storm.work] * 3, storm.cancel, storm.feed):
            everybody.create_task(storm.again_and_again(step))
    assert storm.least_seen() > 0
    assert storm.reaped.set_aside == 0
    live = {row[0] for row in rows(admin, "select run_id from carillon.live_runs")}
    ended = [row[0] for row in rows(admin, "select run_id from carillon.runs")]
    assert len(ended) == len(set(ended))
    assert live | set(ended) == storm.made
    assert live & set(ended) == set()
    assert rows(admin, "select run_id from carillon.live_runs where attempt > max_attempts") == []
    # An attempt is charged once, and each before the one under way was.
    assert (
        rows(
            admin,
            "select run_id from (select run_id, attempt from carillon.live_runs"
            " union all select run_id, attempt from carillon.runs) r"
            " where attempt - 1 <> (select count(*) from carillon.attempts a where a.run_id = r.run_id)",
        )
        == []
    )
