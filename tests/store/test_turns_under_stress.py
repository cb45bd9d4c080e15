"""Ticks, claims, results, cancels, lost workers and runs by hand, all at once on few schedules, and then what is left.

`CARILLON_STRESS_SECONDS=60` makes it longer than the few seconds of every day, `CARILLON_STRESS_SEED` another one.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any, get_args
from uuid import UUID

import psycopg
from sqlalchemy import text
from structlog.testing import capture_logs

from scheduler_service.domain.attempt import AttemptOutcome, AttemptRef, ClaimedRun, Result, Verdict
from scheduler_service.domain.errors import Conflict, NotFound
from scheduler_service.domain.overlap import Overlap
from scheduler_service.domain.run import new_run_id
from scheduler_service.engine.complete import Completer
from scheduler_service.engine.leases import Leases
from scheduler_service.engine.reap import Reaped, Reaper
from scheduler_service.engine.sessions import ConnectedSession, Sessions
from scheduler_service.engine.tick import tick
from scheduler_service.store.claim import claim, claim_alone
from scheduler_service.store.database import Database
from scheduler_service.store.turns import arrange
from scheduler_service.usecases.cancel import cancel_run
from scheduler_service.usecases.wakeups import Wakeups
from tests.builders import ADMIN
from tests.store.engine_case import SECOND, START, Connection, Received, every, job_of, rows, session_of

Admin = psycopg.Connection[Any]
SECONDS = float(os.environ.get("CARILLON_STRESS_SECONDS", "3"))
SEED = int(os.environ.get("CARILLON_STRESS_SEED", "4"))
SCHEDULES_EACH = 4
# Enough to have something to do everywhere, and little enough to get to its end.
MOST_LIVE = 150
PERIOD = 10 * SECOND

_LOCK_SCHEDULE = text("select from carillon.schedules where schedule_id = :schedule for update")
_BY_HAND = text("""
insert into carillon.live_runs (run_id, schedule_id, revision, job_id, tenant_id, route, trigger, exclusive, blocked,
  scheduled_for, run_after, created_at, max_attempts, attempt_timeout, run_timeout, cancel_grace)
select :run_id, s.schedule_id, s.revision, s.job_id, s.tenant_id, j.route, 'MANUAL', true, true, :now, :now, :now,
  j.max_attempts, j.attempt_timeout, j.run_timeout, j.cancel_grace
from carillon.schedules s join carillon.jobs j using (job_id) where s.schedule_id = :schedule""")
SEEN_IN_EACH = ("buffered", "skipped", "stopped", "superseded", "extras", "cancels", "lost")


class Forgetful(Received):
    """Keeps nothing of what it is sent."""

    def assign(self, claim_id: int, runs: Sequence[ClaimedRun], asked_at: float) -> None:
        pass

    def acknowledge(self, verdicts: Iterable[tuple[AttemptRef, Verdict]]) -> None:
        pass

    def cancel(self, attempts: Iterable[AttemptRef]) -> None:
        pass


class Stress:
    """The schedules, a clock that ticks move on, and who holds what."""

    def __init__(self, admin: Admin, database: Database) -> None:
        self.admin = admin
        self.database = database
        self.random = random.Random(SEED)
        self.now = START
        self.until = time.monotonic() + SECONDS
        self.done: Counter[str] = Counter()
        self.reaped = Reaped()
        self.extras: set[UUID] = set()
        self.held: list[tuple[AttemptRef, UUID]] = []
        self.wakeups = Wakeups()
        self.sessions = Sessions(on_credit=lambda: None)
        self.connected = [self._session() for _ in range(3)]
        # For what was lost with a worker: it gets nothing else.
        self.for_one = self._session()
        self.jobs = [
            job_of(
                admin,
                f"job-{overlap.lower().replace('_', '-')}",
                overlap=overlap.value,
                catch_up="ALL",
                max_attempts=2,
                retry_delay=SECOND,
            )
            for overlap in Overlap
        ]
        self.schedules = {
            every(admin, job, schedule=f"s{number}"): job for job in self.jobs for number in range(SCHEDULES_EACH)
        }
        self.exclusive = [each for each, job in self.schedules.items() if job.job != "job-allow-all"]

    def _session(self) -> ConnectedSession:
        made, _ = session_of(self.admin, self.sessions, credit=1_000)
        made.outbound = Forgetful()
        # Leases by the stepped clock.
        self.admin.execute(
            "update carillon.sessions set expires_at = %s where session_id = %s",
            [START + timedelta(days=10), made.session_id],
        )
        return made

    async def __aenter__(self) -> Stress:
        self.connections = [await self.database.hot_connection() for _ in range(7)]
        return self

    async def __aexit__(self, *_: object) -> None:
        for connection in self.connections:
            await connection.close()

    async def run(self) -> None:
        one, two, three, four, five, six, seven = self.connections
        leases = Leases(self.database, self.sessions, self.wakeups, replica="replica-1", lease=30.0)
        reaper = Reaper(self.sessions, leases, self.wakeups, clock=lambda: (self.now - START).total_seconds())
        completers = [Completer(self.wakeups), Completer(self.wakeups)]
        tasks = (
            self._again("ticks", lambda: self.tick(one)),
            self._again("ticks", lambda: self.tick(two)),
            self._again("claims", lambda: self.claim(three)),
            self._again("claims", lambda: self.claim(four)),
            self._again("results", lambda: self.report(five, completers[0])),
            self._again("results", lambda: self.report(six, completers[1])),
            self._again("reaps", lambda: self.reap(seven, reaper)),
            self._again("cancels", self.cancel),
            self._again("cancels", self.cancel),
            self._again("extras", self.by_hand),
        )
        async with asyncio.TaskGroup() as group:
            for task in tasks:
                group.create_task(task)

    async def _again(self, what: str, step: Callable[[], Awaitable[None]]) -> None:
        while time.monotonic() < self.until or not all(self.done[each] for each in SEEN_IN_EACH):
            await step()
            self.done[what] += 1
            await asyncio.sleep(0)

    def seat(self, route: str) -> UUID | None:
        return self.random.choice([None, *(session.session_id for session in self.connected)])

    async def tick(self, connection: Connection) -> None:
        if rows(self.admin, "select count(*) from carillon.live_runs")[0][0] < MOST_LIVE:
            self.now += self.random.choice([5, 5, 10, 10, 25, 90]) * SECOND
        ticked = await tick(connection, self, now=self.now, limit=self.random.choice([1, 3, 50]))
        kept_out = ticked.made.kept_out
        self.done.update(made=ticked.made.live, buffered=kept_out.buffered, skipped=kept_out.skipped)
        self.done.update(stopped=kept_out.stopped, superseded=kept_out.cancelled)
        for (session_id, claim_id), runs in ticked.made.claimed.items():
            self._take(session_id, claim_id, runs)

    async def claim(self, connection: Connection) -> None:
        session = self.random.choice(self.connected)
        made = await claim(connection, session.session_id, ["http"], self.random.choice([1, 5, 50]), self.now)
        if made is not None:
            self._take(session.session_id, made.claim_id, list(made.runs))
        await self.claim_alone(connection)

    async def claim_alone(self, connection: Connection) -> None:
        session = self.for_one
        made = await claim_alone(connection, session.session_id, session.stream, ["http"], now=self.now)
        assert made is not None
        self._take(session.session_id, made.claim_id, list(made.runs))
        self.done["alone"] += len(made.runs)

    def _take(self, session_id: UUID, claim_id: int, runs: list[ClaimedRun]) -> None:
        self.held += [(AttemptRef(run.run_id, run.attempt, claim_id), session_id) for run in runs]
        claimed_twice = rows(
            self.admin,
            "select schedule_id from carillon.live_runs where exclusive and claim_id is not null"
            " group by schedule_id having count(*) > 1",
        )
        assert claimed_twice == []

    async def report(self, connection: Connection, completer: Completer) -> None:
        self.random.shuffle(self.held)
        taken = [self.held.pop() for _ in range(min(len(self.held), self.random.choice([1, 4, 40])))]
        # Half of the groups are such as complete in one statement.
        outcomes = self.random.choice([("COMPLETED",), get_args(AttemptOutcome)])
        for ref, session_id in taken:
            session = self.sessions.get(session_id) or self.connected[0]
            completer.submit([Result(ref, session_id, self.random.choice(outcomes), 0.1)], session)
        await completer.step(connection, now=self.now)

    async def reap(self, connection: Connection, reaper: Reaper) -> None:
        if self.random.random() < 0.1:
            lost = self.connected.pop(0)
            self.connected.append(self._session())
            self.admin.execute(
                "update carillon.sessions set expires_at = %s where session_id = %s", [self.now, lost.session_id]
            )
        self.reaped += await reaper.step(connection, now=self.now)
        self.done["lost"] = self.reaped.freed + self.reaped.charged + self.reaped.failed

    async def cancel(self) -> None:
        found = rows(self.admin, "select run_id from carillon.live_runs order by random() limit 1")
        for (run_id,) in found:
            try:
                await cancel_run(self.database, self.wakeups, ADMIN, run_id)
            except (Conflict, NotFound):
                self.done["too late"] += 1

    async def by_hand(self) -> None:
        """A run that no schedule owes just now, made as the use cases make it."""
        schedule = self.random.choice(self.exclusive)
        if rows(self.admin, "select count(*) from carillon.live_runs where trigger = 'MANUAL'")[0][0] > 50:
            return
        run_id = new_run_id(self.now)
        values = {"schedule": schedule, "run_id": run_id, "now": self.now}
        async with self.database.acting_for(ADMIN) as tx:
            await tx.connection.execute(_LOCK_SCHEDULE, values)
            await tx.connection.execute(_BY_HAND, values)
            await arrange(await tx.driver_connection(), [schedule])
        self.extras.add(run_id)

    async def drain(self) -> None:
        """Has everything that is live carried out, with nothing new coming due."""
        connection, completer = self.connections[0], Completer(self.wakeups)
        session = self.connected[-1]
        self.admin.execute("update carillon.live_runs set cancel_requested_at = null")
        self.held = rows_held(self.admin)
        # A claim may be of one run alone, a schedule has one run claimed, and an attempt that failed waits for 1 s.
        for _ in range(3 * len(live := rows(self.admin, "select from carillon.live_runs"))):
            if not live:
                return
            self.now += 2 * SECOND
            made = await claim(connection, session.session_id, ["http"], 500, self.now)
            assert made is not None
            self._take(session.session_id, made.claim_id, list(made.runs))
            await self.claim_alone(connection)
            completer.submit([Result(ref, holder, "COMPLETED", 0.1) for ref, holder in self.held], session)
            self.held.clear()
            await completer.step(connection, now=self.now)
            live = rows(self.admin, "select from carillon.live_runs limit 1")


def rows_held(admin: Admin) -> list[tuple[AttemptRef, UUID]]:
    held = "select session_id, run_id, attempt, claim_id from carillon.live_runs where claim_id is not null"
    return [(AttemptRef(*ref), session_id) for session_id, *ref in rows(admin, held)]


def occurrences_of(admin: Admin, schedule: int) -> tuple[list[datetime], datetime]:
    """The instants of a schedule's records, in order, each as often as it is there; and up to when it is settled."""
    recorded = rows(
        admin,
        "select scheduled_for from carillon.runs where schedule_id = %s and trigger in ('SCHEDULE', 'CATCH_UP')"
        " union all select scheduled_for from carillon.live_runs where schedule_id = %s and trigger <> 'MANUAL'"
        " union all select generate_series(first_at, last_at, '10 s') from carillon.gaps where schedule_id = %s"
        " order by 1",
        *[schedule] * 3,
    )
    ((settled_to,),) = rows(admin, "select settled_to from carillon.schedules where schedule_id = %s", schedule)
    return [at for (at,) in recorded], settled_to


async def test_one_at_a_time_nobody_forgotten_and_one_record_each(admin: Admin, database: Database) -> None:
    async with Stress(admin, database) as stress:
        with capture_logs():
            await asyncio.wait_for(stress.run(), SECONDS + 120)
        seen = f"seed {SEED}, {SECONDS:g} s: {dict(stress.done)}, {stress.reaped}"
        sys.stdout.write(f"{seen}\n")
        assert stress.reaped.released == 0, "somebody was forgotten"
        await stress.drain()
    assert rows(admin, "select schedule_id, blocked, claim_id, attempt from carillon.live_runs") == [], seen
    for schedule in stress.schedules:
        occurrences, settled_to = occurrences_of(admin, schedule)
        assert occurrences == [START + n * PERIOD for n in range(1, (settled_to - START) // PERIOD + 1)], seen
    assert {run_id for (run_id,) in rows(admin, "select run_id from carillon.runs where trigger = 'MANUAL'")} == (
        stress.extras
    )
