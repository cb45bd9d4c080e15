"""Rows for tests, with defaults, written as the superuser: past every policy, as the engine would have left them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import psycopg
from psycopg import sql
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from scheduler_service.domain.access import Kind, Principal, Scope
from scheduler_service.domain.run import RunState, new_run_id

ADMIN = Principal(Kind.ADMIN, name="alice")
NOBODY = Principal(Kind.USER, name="nobody")
SCOPES = frozenset({Scope.READ, Scope.TRIGGER, Scope.REGISTER})


def service(name: str, *, scopes: frozenset[Scope] = SCOPES) -> Principal:
    return Principal(Kind.SERVICE, name=f"{name}-token", service=name, scopes=scopes)


def user(tenant: str) -> Principal:
    return Principal(Kind.USER, name=f"user-of-{tenant}", tenant=tenant)


def connect(admin_url: str) -> psycopg.Connection[tuple[Any, ...]]:
    """A superuser's connection that commits each statement."""
    return psycopg.connect(admin_url, autocommit=True)


@contextmanager
def rewriting_records(admin: psycopg.Connection[Any], *names: str) -> Iterator[None]:
    """Lets a superuser's connection change what is append-only (all of it, or these tables), as nobody else can: in one
    transaction, in which the tables have no triggers, nor the checks of foreign keys."""
    with admin.transaction():
        kept = admin.execute("select tgrelid::regclass::text from pg_trigger where tgname = 'never_change'").fetchall()
        tables = [table for (table,) in kept if not names or table.removeprefix("carillon.") in names]
        for table in tables:
            admin.execute(f"alter table {table} disable trigger all".encode())
        yield
        for table in tables:
            admin.execute(f"alter table {table} enable trigger all".encode())
            admin.execute(f"alter table {table} enable always trigger never_change".encode())
        admin.execute("alter table carillon.audit_events enable always trigger audit_events_are_queued")


def cut_off_the_api(admin: psycopg.Connection[Any]) -> None:
    """Ends the connections of the API's role to this database, and lets it make no others."""
    # Superusers, such as this connection's, are not bound by the limit.
    admin.execute("do $$ begin execute format('alter database %I connection limit 0', current_database()); end $$")
    admin.execute(
        "select pg_terminate_backend(pid) from pg_stat_activity"
        " where usename = 'carillon_api' and datname = current_database()"
    )


@dataclass(frozen=True)
class MadeJob:
    """A job that is there. `name` is its resource name."""

    job_id: int
    service: str
    job: str

    @property
    def name(self) -> str:
        return f"services/{self.service}/jobs/{self.job}"


_KEPT = (
    *(
        "run_id",
        "schedule_id",
        "revision",
        "job_id",
        "tenant_id",
        "trigger",
        "scheduled_for",
        "scheduled_local",
        "fold",
    ),
    *("time_zone", "tzdata", "run_after", "created_at", "started_at", "triggered_by", "origin", "labels", "payload"),
    *("attempt", "max_attempts", "cancel_requested_at", "claim_id"),
)


def now() -> datetime:
    return datetime.now(UTC)


def days_ago(days: float) -> datetime:
    return now() - timedelta(days=days)


def make_job(
    admin: psycopg.Connection[Any], service: str = "email-service", job: str = "weekly-digest", **columns: Any
) -> MadeJob:
    """A job that tenants may schedule; its service is made if it is missing."""
    admin.execute(
        "insert into carillon.services (service, registered_at, registered_by) values (%s, now(), 'test')"
        " on conflict do nothing",
        [service],
    )
    row = {
        "service": service,
        "job": job,
        "declared": {},
        "route": "http",
        "endpoint": "/run",
        "overlap": "SKIP",
        "attempt_timeout": timedelta(hours=1),
        "run_timeout": timedelta(hours=24),
        "cancel_grace": timedelta(seconds=30),
        "max_attempts": 3,
        "retry_delay": timedelta(minutes=10),
        "tenant_schedules": True,
        "labels": {},
        "config": {},
        "generation": 1,
        "owed_from": now(),
        "created_at": now(),
        "updated_at": now(),
    }
    made = _insert(admin, "jobs", row | columns, returning="job_id")
    return MadeJob(made, service, job)


def make_schedule(
    admin: psycopg.Connection[Any], job: MadeJob, schedule: str = "default", tenant: str = "-", **columns: Any
) -> int:
    """A daily schedule that is not armed. Answers its schedule_id."""
    row = {
        "job_id": job.job_id,
        "tenant_id": tenant,
        "schedule": schedule,
        "timing": {},
        "enabled": True,
        "cron": "0 9 * * *",
        "time_zone": "UTC",
        "gap": "SHIFT",
        "repeat": "FIRST",
        "phase": timedelta(0),
        "jitter": timedelta(0),
        "settled_to": now(),
        "created_at": now(),
        "created_by": "test",
        "updated_at": now(),
        "updated_by": "test",
    }
    made: int = _insert(admin, "schedules", row | columns, returning="schedule_id")
    return made


def make_session(admin: psycopg.Connection[Any], worker: str = "worker-1") -> UUID:
    """A worker session with a long lease."""
    row = {
        "session_id": new_run_id(now()),
        "worker": worker,
        "client": "test",
        "principal": "service:test",
        "routes": ["http"],
        "replica": "replica-1",
        "created_at": now(),
        "heartbeat_at": now(),
        "expires_at": now() + timedelta(hours=1),
    }
    made: UUID = _insert(admin, "sessions", row, returning="session_id")
    return made


def make_live_run(
    admin: psycopg.Connection[Any], job: MadeJob, *, tenant: str = "-", at: datetime | None = None, **columns: Any
) -> UUID:
    """A pending run of a job, made by hand at `at` (default: now)."""
    at = at or now()
    row = {
        "run_id": new_run_id(at),
        "job_id": job.job_id,
        "tenant_id": tenant,
        "route": "http",
        "trigger": "MANUAL",
        "exclusive": False,
        "scheduled_for": at,
        "run_after": at,
        "created_at": at,
        "max_attempts": 3,
        "attempt_timeout": timedelta(hours=1),
        "run_timeout": timedelta(hours=24),
        "cancel_grace": timedelta(seconds=30),
    }
    made: UUID = _insert(admin, "live_runs", row | columns, returning="run_id")
    return made


def claim(admin: psycopg.Connection[Any], run_id: UUID, session_id: UUID) -> None:
    """Hands a pending run to a session, started."""
    admin.execute(
        "update carillon.live_runs set session_id = %s, claim_id = nextval('carillon.claim_ids'), claimed_at = now(),"
        " started_at = now(), first_started_at = now(), deadline = now() + attempt_timeout where run_id = %s",
        [session_id, run_id],
    )


def finish(admin: psycopg.Connection[Any], run_id: UUID, state: RunState = RunState.COMPLETED, **columns: Any) -> None:
    """Ends a live run in one transaction, as the engine would."""
    with admin.transaction(), admin.cursor(row_factory=dict_row) as cursor:
        live = cursor.execute("delete from carillon.live_runs where run_id = %s returning *", [run_id]).fetchone()
        assert live is not None
        row = {name: live[name] for name in _KEPT}
        row |= {"state": state.value, "finished_at": now(), "worker": "worker-1" if live["session_id"] else ""}
        _insert(admin, "runs", row | columns, returning="run_id")


def make_ended_run(
    admin: psycopg.Connection[Any],
    job: MadeJob,
    state: RunState = RunState.COMPLETED,
    *,
    tenant: str = "-",
    at: datetime | None = None,
    **columns: Any,
) -> UUID:
    """The record of a run that was made by hand at `at` (default: now) and ended a second later."""
    at = at or now()
    started = state is not RunState.SKIPPED
    row = {
        "run_id": new_run_id(at),
        "job_id": job.job_id,
        "tenant_id": tenant,
        "state": state.value,
        "trigger": "MANUAL",
        "scheduled_for": at,
        "run_after": at,
        "created_at": at,
        "started_at": at if started else None,
        "finished_at": at + timedelta(seconds=1),
        "duration": timedelta(seconds=1) if started else None,
        "triggered_by": "admin:alice",
        "origin": "",
        "labels": {},
        "payload": {},
        "attempt": 1,
        "max_attempts": 3,
        "worker": "worker-1" if started else "",
    }
    made: UUID = _insert(admin, "runs", row | columns, returning="run_id")
    return made


def make_attempt(
    admin: psycopg.Connection[Any], run_id: UUID, job: MadeJob, attempt: int, *, tenant: str = "-", **columns: Any
) -> None:
    """An attempt that failed and did not end its run."""
    row = {
        "run_id": run_id,
        "attempt": attempt,
        "job_id": job.job_id,
        "tenant_id": tenant,
        "started_at": now(),
        "finished_at": now(),
        "duration": timedelta(seconds=1),
        "worker": "worker-1",
        "error": {"code": "HANDLER_ERROR", "message": f"attempt {attempt} failed", "detail": ""},
    }
    _insert(admin, "attempts", row | columns, returning="run_id")


def make_item(
    admin: psycopg.Connection[Any], run_id: UUID, job: MadeJob, key: str, *, tenant: str = "-", **columns: Any
) -> None:
    """An item of a run's first attempt that succeeded."""
    row = {
        "run_id": run_id,
        "attempt": 1,
        "key": key,
        "job_id": job.job_id,
        "tenant_id": tenant,
        "succeeded": True,
        "finished_at": now(),
    }
    _insert(admin, "items", row | columns, returning="run_id")


def _insert(admin: psycopg.Connection[Any], table: str, row: Mapping[str, Any], *, returning: str) -> Any:
    statement = sql.SQL("insert into carillon.{table} ({names}) values ({places}) returning {returning}").format(
        table=sql.Identifier(table),
        names=sql.SQL(", ").join(sql.Identifier(name) for name in row),
        places=sql.SQL(", ").join(sql.Placeholder(name) for name in row),
        returning=sql.Identifier(returning),
    )
    values = {name: Jsonb(value) if isinstance(value, dict) else value for name, value in row.items()}
    made = admin.execute(statement, values).fetchone()
    assert made is not None
    return made[0]
