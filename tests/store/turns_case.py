"""A schedule whose runs take turns, and a worker that takes them."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any
from uuid import UUID

import psycopg

from scheduler_service.domain.attempt import AttemptRef, Result, Verdict
from scheduler_service.domain.run import scheduled_run_id
from scheduler_service.engine.complete import Completer
from scheduler_service.engine.leases import Leases
from scheduler_service.engine.reap import Reaper
from scheduler_service.engine.sessions import ConnectedSession, Sessions
from scheduler_service.engine.tick import NobodySeated, Ticked, tick
from scheduler_service.store.claim import claim
from scheduler_service.store.database import Database
from scheduler_service.store.turns import arrange
from scheduler_service.usecases.wakeups import Wakeups
from tests.builders import MadeJob, make_live_run
from tests.store.engine_case import SECOND, START, Connection, Received, every, job_of, rows, session_of

Admin = psycopg.Connection[Any]
PATIENCE = 60
SUPERSEDED = "a later occurrence of its schedule came due"


class Case:
    """A schedule that owes a run each 10 s from START on, and a worker that takes them. Instants are counted in
    periods."""

    def __init__(self, admin: Admin, hot: Connection, overlap: str, **columns: Any) -> None:
        self.admin = admin
        self.hot = hot
        self.job: MadeJob = job_of(admin, overlap=overlap, **columns)
        self.schedule = every(admin, self.job)
        self.sessions = Sessions(on_credit=lambda: None)
        self.session: ConnectedSession
        self.received: Received
        self.session, self.received = session_of(admin, self.sessions, credit=100)
        self.wakeups = Wakeups()
        # Who waits here is let go on by the test, and not by itself after half a second.
        self.completer = Completer(self.wakeups, patience=PATIENCE)

    def at(self, period: float) -> datetime:
        return START + period * 10 * SECOND

    def occurrence(self, period: float) -> UUID:
        return scheduled_run_id(self.schedule, self.at(period))

    async def tick(self, period: float, connection: Connection | None = None) -> Ticked:
        return await tick(connection or self.hot, NobodySeated(), now=self.at(period))

    def extra(self, period: float, trigger: str = "MANUAL", *, schedule: int | None = None, **columns: Any) -> UUID:
        """A run that no schedule owes just now, as those leave it who arrange the turns next."""
        row = {"schedule_id": schedule or self.schedule, "revision": 1, "exclusive": True, "blocked": True}
        at = self.at(period)
        return make_live_run(self.admin, self.job, at=at, **(row | {"trigger": trigger} | columns))

    async def arrange(self, *schedules: int) -> int:
        async with self.hot.transaction():
            await self.hot.execute("select from carillon.schedules where schedule_id = %s for update", [self.schedule])
            return await arrange(self.hot, schedules or [self.schedule])

    async def claim(self, period: float = 999, connection: Connection | None = None) -> list[AttemptRef]:
        made = await claim(connection or self.hot, self.session.session_id, ["http"], 500, self.at(period))
        assert made is not None
        return [AttemptRef(run.run_id, run.attempt, made.claim_id) for run in made.runs]

    async def claim_one(self) -> AttemptRef:
        (ref,) = await self.claim()
        return ref

    async def report(
        self, ref: AttemptRef, outcome: Any = "COMPLETED", period: float = 999, connection: Connection | None = None
    ) -> Verdict:
        self.received.verdicts.clear()
        self.completer.submit([Result(ref, self.session.session_id, outcome, 0.5)], self.session)
        assert await self.completer.step(connection or self.hot, now=self.at(period))
        (verdict,) = self.received.answers
        return verdict

    async def carry_out(self) -> float:
        """Claims the one run that may be claimed, and completes it. Answers its period."""
        ref = await self.claim_one()
        ((at,),) = rows(self.admin, "select scheduled_for from carillon.live_runs where run_id = %s", ref.run_id)
        assert await self.report(ref) is Verdict.ACCEPTED
        period: float = (at - START) / (10 * SECOND)
        return period

    async def carry_out_all(self) -> list[float]:
        done = []
        while rows(self.admin, "select from carillon.live_runs"):
            done.append(await self.carry_out())
        return done

    def live(self, *, schedule: int | None = None) -> list[tuple[float, str]]:
        """Periods of live runs, each with where it stands; the one with the turn first."""
        found = rows(
            self.admin,
            "select scheduled_for, case when blocked then 'waits' when claim_id is null then 'pending' else 'held' end"
            " || case when followed then ', followed' else '' end from carillon.live_runs where schedule_id = %s"
            " order by blocked, scheduled_for",
            schedule or self.schedule,
        )
        return [((at - START) / (10 * SECOND), stands) for at, stands in found]

    def ended(self) -> dict[float, tuple[str, str | None]]:
        found = rows(self.admin, "select scheduled_for, state::text, error ->> 'code' from carillon.runs")
        return {(at - START) / (10 * SECOND): (state, code) for at, state, code in found}


Begin = Callable[..., Case]


COMPLETED, SKIPPED, CANCELLED = ("COMPLETED", None), ("SKIPPED", "OVERLAP"), ("CANCELLED", "OVERLAP")
NEXT = [(2, "pending, followed"), (3, "waits")]


def reaper_of(case: Case, database: Database) -> Reaper:
    leases = Leases(database, case.sessions, case.wakeups, replica="replica-1", lease=30.0)
    return Reaper(case.sessions, leases, case.wakeups, clock=lambda: 0.0)
