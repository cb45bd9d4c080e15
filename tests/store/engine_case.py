"""What the engine's tests share: a job and a session in a fresh database, and a clock that the test steps."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import psycopg

from scheduler_service.domain.attempt import AttemptRef, ClaimedRun, Result, Verdict
from scheduler_service.engine.sessions import ConnectedSession, Sessions
from tests.builders import MadeJob, make_job, make_schedule, make_session

Connection = psycopg.AsyncConnection[Any]
SECOND = timedelta(seconds=1)


def this_month() -> datetime:
    """Noon of the 15th: within the partitions that every fresh database has, and the same all through a test."""
    return datetime.now(UTC).replace(day=15, hour=12, minute=0, second=0, microsecond=0)


START = this_month()


@dataclass
class Received:
    """The sending side of a session, kept to be looked at."""

    claims: list[tuple[int, Sequence[ClaimedRun]]] = field(default_factory=list)
    verdicts: list[tuple[AttemptRef, Verdict]] = field(default_factory=list)

    def assign(self, claim_id: int, runs: Sequence[ClaimedRun], asked_at: float) -> None:
        self.claims.append((claim_id, runs))

    def acknowledge(self, verdicts: Iterable[tuple[AttemptRef, Verdict]]) -> None:
        self.verdicts.extend(verdicts)

    def cancel(self, attempts: Iterable[AttemptRef]) -> None:
        raise AssertionError(f"nobody asked to stop {list(attempts)}")

    @property
    def runs(self) -> list[ClaimedRun]:
        return [run for _, runs in self.claims for run in runs]

    @property
    def refs(self) -> list[AttemptRef]:
        return [AttemptRef(run.run_id, run.attempt, claim_id) for claim_id, runs in self.claims for run in runs]

    @property
    def answers(self) -> list[Verdict]:
        return [verdict for _, verdict in self.verdicts]


def every(admin: psycopg.Connection[Any], job: MadeJob, cron: str = "@every 10s", **columns: Any) -> int:
    """A schedule that stands at START and is due at the first occurrence after it (for 10 s: START + 10 s)."""
    row: dict[str, Any] = {"cron": cron, "settled_to": START, "next_run_at": START + 10 * SECOND, "created_at": START}
    name = columns.pop("schedule", "default")
    return make_schedule(admin, job, name, **(row | columns))


def job_of(admin: psycopg.Connection[Any], job: str = "weekly-digest", **columns: Any) -> MadeJob:
    """A job that has owed runs since long ago."""
    row = {"owed_from": START - timedelta(days=400), "created_at": START - timedelta(days=400)}
    return make_job(admin, job=job, **(row | columns))


def session_of(
    admin: psycopg.Connection[Any],
    sessions: Sessions,
    credit: int,
    routes: Iterable[str] = ("http",),
    worker: str = "w",
) -> tuple[ConnectedSession, Received]:
    """A session with a lease, connected, with this credit."""
    received = Received()
    session_id = make_session(admin, worker)
    # Also by the stepped clock, which in the first half of a month is ahead of the real one.
    admin.execute(
        "update carillon.sessions set expires_at = greatest(expires_at, %s) where session_id = %s",
        [START + timedelta(days=1), session_id],
    )
    session = ConnectedSession(session_id, worker, frozenset(routes), 1, received, credit)
    sessions.connect(session)
    return session, received


def completed(ref: AttemptRef, session_id: UUID, **fields: Any) -> Result:
    said: dict[str, Any] = {"outcome": "COMPLETED", "duration": 0.5}
    return Result(ref, session_id, **(said | fields))


def oldest_month(admin: psycopg.Connection[Any]) -> datetime:
    """The first of which records are kept: the one before that in which the database was made."""
    ((name,),) = rows(admin, "select min(relname) from pg_class where relname ~ '^runs_[0-9]{4}_[0-9]{2}$'")
    return datetime.strptime(name, "runs_%Y_%m").replace(tzinfo=UTC)


def rows(admin: psycopg.Connection[Any], query: str, *values: object) -> list[tuple[Any, ...]]:
    return admin.execute(query.encode(), values).fetchall()
