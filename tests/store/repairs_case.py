"""One replica's reaper, and what it finds."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import psycopg

from scheduler_service.domain.audit import Event
from scheduler_service.engine.leases import Leases
from scheduler_service.engine.reap import Reaped, Reaper
from scheduler_service.engine.sessions import Sessions
from scheduler_service.store.database import Database
from scheduler_service.usecases.wakeups import Wakeups
from tests.builders import MadeJob, claim, make_job, make_live_run, make_session
from tests.store.audit_case import events
from tests.store.engine_case import Connection, rows

Admin = psycopg.Connection[Any]
NOW = datetime.now(UTC).replace(microsecond=0)
HOUR = timedelta(hours=1)


class House:
    """One replica's reaper, whose clocks pass together from NOW on."""

    def __init__(self, database: Database, admin: Admin, hot: Connection, replica: str = "replica-1") -> None:
        self.admin = admin
        self.database = database
        self.connection = hot
        self.job: MadeJob = make_job(admin)
        self.monotonic = 0.0
        sessions, wakeups = Sessions(lambda: None), Wakeups()
        leases = Leases(database, sessions, wakeups, replica=replica)
        self.reaper = Reaper(sessions, leases, wakeups, replica=replica, clock=lambda: self.monotonic)

    async def step(self, at: float = 0.0) -> Reaped:
        self.monotonic = at
        return await self.reaper.step(self.connection, now=NOW + timedelta(seconds=at))

    def pending(self, **columns: Any) -> UUID:
        return make_live_run(self.admin, self.job, at=NOW - HOUR, **columns)

    def held(self, session_id: UUID | None = None, **columns: Any) -> UUID:
        """A started run in the hands of a session (by default of one that lives)."""
        run_id = self.pending(**columns)
        claim(self.admin, run_id, session_id or make_session(self.admin))
        return run_id

    def lose(self, session_id: UUID) -> None:
        self.admin.execute("update carillon.sessions set expires_at = %s where session_id = %s", [NOW, session_id])

    def live(self) -> set[UUID]:
        return {row[0] for row in rows(self.admin, "select run_id from carillon.live_runs")}

    def holders(self) -> list[UUID | None]:
        return [row[0] for row in rows(self.admin, "select session_id from carillon.live_runs")]

    def outcome(self, run_id: UUID) -> tuple[str, str | None] | None:
        found = rows(self.admin, "select state::text, error ->> 'code' from carillon.runs where run_id = %s", run_id)
        return found[0] if found else None

    async def told(self) -> list[Event]:
        return await events(self.database)
