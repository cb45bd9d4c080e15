"""What tests of completion share: a session with claimed runs, and the completer that takes what it reports."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import psycopg

from scheduler_service.domain.attempt import AttemptRef, Result, Verdict
from scheduler_service.domain.record import RunError
from scheduler_service.engine.complete import Completer
from scheduler_service.engine.sessions import ConnectedSession, Sessions
from scheduler_service.store.claim import claim
from scheduler_service.usecases.wakeups import Wakeups
from tests.builders import MadeJob, make_live_run
from tests.store.engine_case import SECOND, START, Connection, Received, completed, job_of, rows, session_of

Admin = psycopg.Connection[Any]
WRONG = RunError("HTTP_STATUS", "the target answered 500", "oh no")
CLAIMED_AT = START + SECOND
NOW = START + 10 * SECOND


class Case:
    """A session with claimed runs, and the completer that takes what it reports."""

    def __init__(self, admin: Admin, hot: Connection) -> None:
        self.admin = admin
        self.hot = hot
        self.sessions = Sessions(on_credit=lambda: None)
        self.job: MadeJob = job_of(admin)
        self.session: ConnectedSession
        self.received: Received
        self.session, self.received = session_of(admin, self.sessions, credit=100)
        self.wakeups = Wakeups()
        self.completer = Completer(self.wakeups)

    async def claimed(self, count: int = 1, **columns: Any) -> list[AttemptRef]:
        for _ in range(count):
            make_live_run(self.admin, self.job, at=START, **columns)
        return await self.claim()

    async def claim(self) -> list[AttemptRef]:
        made = await claim(self.hot, self.session.session_id, ["http"], 500, CLAIMED_AT)
        assert made is not None
        return [AttemptRef(run.run_id, run.attempt, made.claim_id) for run in made.runs]

    async def report(self, *results: Result) -> list[Verdict]:
        self.received.verdicts.clear()
        self.completer.submit(results, self.session)
        assert await self.completer.step(self.hot, now=NOW)
        return self.received.answers

    def result(self, ref: AttemptRef, **fields: Any) -> Result:
        return completed(ref, self.session.session_id, **fields)

    def failure(self, ref: AttemptRef, **fields: Any) -> Result:
        return self.result(ref, **({"outcome": "FAILED", "error": WRONG} | fields))

    def states(self) -> dict[UUID, str]:
        return dict(rows(self.admin, "select run_id, state::text from carillon.runs"))
