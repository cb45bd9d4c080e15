"""Where it is measured: a fresh PostgreSQL of the wheel's, and the rows that each scenario begins with."""

from __future__ import annotations

import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg

from local_stack.postgres import EmbeddedPostgres
from scheduler_service.store.logins import API_ROLE, ENGINE_ROLE, Login, give_login

ROUTE = "handler/bench/noop"
# Served by no session: what the floor works on is not the measured stack's to take.
FLOOR_ROUTE = "handler/bench/floor"
_MIGRATIONS = Path(__file__).parent.parent / "migrations"

_JOB = """
insert into carillon.jobs (service, job, declared, route, overlap, attempt_timeout, run_timeout, cancel_grace,
  max_attempts, retry_delay, tenant_schedules, labels, config, generation, owed_from, created_at, updated_at)
values ('bench', 'noop', '{}', 'handler/bench/noop', 'ALLOW_ALL', '1 h', '1 d', '30 s', 3, '10 min', false,
  '{"job_type": "bench"}', '{"size": 10}', 1, '2020-01-01', now(), now())
returning job_id"""

# Each is due once, at its instant, and then not for an hour.
_SCHEDULES = """
insert into carillon.schedules (job_id, tenant_id, schedule, timing, enabled, cron, time_zone, gap, repeat, phase,
  jitter, config, settled_to, next_run_at, created_at, created_by, updated_at, updated_by)
select %(job_id)s, '-', 's' || nextval('bench_names'), '{}', true, '@every 1h', 'UTC', 'SHIFT', 'FIRST',
  make_interval(secs => mod(extract(epoch from at), 3600)::float8), '0', '{"brand": "x"}', at - interval '1 s', at,
  now(), 'bench', now(), 'bench'
from (select %(first)s::timestamptz + n * %(apart)s::interval as at from generate_series(0, %(count)s - 1) n) due
returning schedule_id"""

_PENDING = """
insert into carillon.live_runs (run_id, job_id, tenant_id, route, trigger, exclusive, scheduled_for, run_after,
  created_at, labels, payload, max_attempts, attempt_timeout, run_timeout, cancel_grace)
select overlay(gen_random_uuid()::text placing left(carillon.id_floor(now())::text, 13) from 1)::uuid, %(job_id)s, '-',
  %(route)s, 'MANUAL', false, now(), now() - interval '1 s', now() - interval '1 s',
  '{"job_type": "bench"}', '{"size": 10}', 3, '1 h', '1 d', '30 s'
from generate_series(1, %(count)s)"""

# What is append-only of what hangs on schedules.
_RECORDS = """
alter table carillon.schedule_revisions {0};
alter table carillon.gaps {0};
alter table carillon.remedies {0}"""


@dataclass(frozen=True)
class Place:
    """A migrated database, as its superuser and as the service's roles."""

    api_url: str
    engine_url: str
    admin: psycopg.Connection[Any]
    job_id: int

    def schedules(self, count: int, first: datetime, apart: timedelta = timedelta()) -> list[int]:
        """Makes schedules that are due at `first`, and so far apart. Nobody is told of them."""
        values = {"job_id": self.job_id, "count": count, "first": first, "apart": apart}
        return [row[0] for row in self.admin.execute(_SCHEDULES, values).fetchall()]

    def pending(self, count: int, route: str = ROUTE) -> None:
        """Makes runs that wait for a worker. Nobody is told of them."""
        self.admin.execute(_PENDING, {"job_id": self.job_id, "count": count, "route": route})

    def session(self) -> UUID:
        """A worker session with a lease for hours."""
        row = self.admin.execute(
            "insert into carillon.sessions select gen_random_uuid(), 'bench', 'bench', 'bench', array[%s], 'bench', 1,"
            " now(), now(), now() + interval '6 h' returning session_id",
            [ROUTE],
        ).fetchone()
        assert row is not None
        made: UUID = row[0]
        return made

    def is_drained(self) -> bool:
        row = self.admin.execute("select not exists (select from carillon.live_runs)").fetchone()
        return row is not None and row[0]

    def tell(self, topic: str) -> None:
        self.admin.execute("select pg_notify('carillon', %s)", [topic])

    def tidy(self) -> None:
        """Leaves each measurement the same: no schedules, no dead rows, fresh statistics."""
        # What is append-only goes with them, which takes a superuser or the owner, and no triggers.
        with self.admin.transaction():
            self.admin.execute(_RECORDS.format("disable trigger never_change").encode())
            self.admin.execute("truncate carillon.schedules cascade")
            self.admin.execute(_RECORDS.format("enable always trigger never_change").encode())
        for table in ("schedules", "live_runs", "runs", "job_stats"):
            self.admin.execute(f"vacuum analyze carillon.{table}".encode())
        self.admin.execute("checkpoint")


@contextmanager
def fresh_place() -> Iterator[Place]:
    """A server of its own, removed afterwards."""
    home = Path(tempfile.gettempdir()) / f"carillon-bench-{os.getuid()}-{os.getpid()}"
    with EmbeddedPostgres(home) as server:
        try:
            server.create_database("carillon")
            with psycopg.connect(server.url("carillon_admin"), autocommit=True) as admin:
                yield _migrated(server, admin)
        finally:
            server.remove()


def _migrated(server: EmbeddedPostgres, admin: psycopg.Connection[Any]) -> Place:
    for file in sorted(_MIGRATIONS.glob("*.sql")):
        admin.execute(file.read_bytes())
    password = secrets.token_hex()
    for role in (API_ROLE, ENGINE_ROLE):
        give_login(admin, Login(role, server.url(role, password)))
    admin.execute("create temporary sequence bench_names")
    admin.execute("insert into carillon.services values ('bench', '', 0, now(), 'bench')")
    row = admin.execute(_JOB.encode()).fetchone()
    assert row is not None
    return Place(server.url("carillon_api", password), server.url("carillon_engine", password), admin, row[0])


def now() -> datetime:
    return datetime.now(UTC)
