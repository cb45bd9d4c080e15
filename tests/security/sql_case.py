"""Every kind of login that a database of Carillon's meets, and rows of two services and two tenants in every table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import psycopg
from psycopg import sql

from tests import builders

Connection = psycopg.Connection[Any]

API = "carillon_api"
STRANGER = "carillon_test_stranger"
"""A login that was granted nothing: what PUBLIC may do."""
AUDITOR = "carillon_test_auditor"
BACKUP = "carillon_test_backup"


@dataclass(frozen=True)
class Caller:
    """A login, and what it says of itself. People and the engine have nothing to say that counts."""

    login: str
    says: Mapping[str, str] = field(default_factory=dict)


def on_behalf_of(kind: str, *, name: str = "", service: str = "", tenant: str = "") -> Caller:
    says = {"kind": kind, "service": service, "tenant": tenant, "principal": f"{kind}:{service or name}"}
    return Caller(API, {f"carillon.{setting}": value for setting, value in says.items()})


ALL_POWERFUL = on_behalf_of("admin", name="alice").says
CALLERS = {
    "owner": Caller("carillon_owner", ALL_POWERFUL),
    "engine": Caller("carillon_engine"),
    "admin": on_behalf_of("admin", name="alice"),
    "service": on_behalf_of("service", service="email"),
    "user": on_behalf_of("user", name="bob", tenant="acme"),
    "operator": on_behalf_of("operator", name="root"),
    "auditor": Caller(AUDITOR),
    "backup": Caller("carillon_backup"),
    "retention": Caller("carillon_retention", ALL_POWERFUL),
}
POWERLESS = {
    "unset": Caller(API),
    "anonymous": on_behalf_of("anonymous"),
    "worker": on_behalf_of("worker", name="worker-1", service="*"),
    "user of no tenant": on_behalf_of("user", name="carol"),
    "user who says the system's tenant": on_behalf_of("user", name="carol", tenant="-"),
    "service that is a user": on_behalf_of("user", name="carol", service="email"),
    "tenant that is a service": on_behalf_of("service", tenant="acme"),
    "kind in capitals": on_behalf_of("ADMIN", name="carol"),
}
"""Callers of the API's role who may do nothing, whatever else they say."""
FORGERS = {
    "stranger": Caller(STRANGER, ALL_POWERFUL),
    "auditor who says admin": Caller(AUDITOR, ALL_POWERFUL),
}


@contextmanager
def logins(admin: Connection) -> Iterator[None]:
    """The people's logins, which belong to the whole server."""
    for login, group in ((STRANGER, None), (AUDITOR, "carillon_auditor"), (BACKUP, "carillon_backup")):
        admin.execute(f"drop role if exists {login}".encode())
        admin.execute(f"create role {login} login password 'people'".encode())
        if group:
            admin.execute(f"grant {group} to {login}".encode())
    try:
        yield
    finally:
        for login in (STRANGER, AUDITOR, BACKUP):
            admin.execute(f"drop role {login}".encode())


@contextmanager
def acting(admin: Connection, caller: Caller) -> Iterator[None]:
    """One transaction as somebody; undone at the end."""
    with admin.transaction(force_rollback=True):
        admin.execute(sql.SQL("set local session authorization {}").format(sql.Identifier(caller.login)))
        for setting, value in caller.says.items():
            admin.execute("select set_config(%s, %s, true)", [setting, value])
        yield


def fill(admin: Connection) -> None:
    """At least a row in every table, of `email` and `kpi`, of `acme`, `zeta` and the system."""
    now = datetime.now(UTC)
    session = builders.make_session(admin)
    for service, tenant in (("email", "acme"), ("kpi", "zeta"), ("kpi", "-")):
        job = f"of-{tenant.strip('-') or 'system'}"
        made = builders.make_job(admin, service, job, tenant_schedules=tenant != "-")
        schedule = builders.make_schedule(admin, made, tenant=tenant)
        run = builders.make_ended_run(admin, made, tenant=tenant, payload={"secret": tenant})
        builders.make_ended_run(admin, made, tenant=tenant, at=now.replace(day=1) - timedelta(days=1))
        builders.make_attempt(admin, run, made, 1, tenant=tenant)
        builders.make_item(admin, run, made, "k", tenant=tenant)
        live = builders.make_live_run(admin, made, tenant=tenant)
        for statement, values in _rows_beside(made.job_id, tenant, schedule, run):
            admin.execute(statement.encode(), values)
        if tenant == "acme":
            builders.claim(admin, live, session)
    builders.make_session(admin, "idle")
    for tenant in ("acme", "zeta"):
        admin.execute("insert into carillon.tenants values (%s, 'UTC', now(), now(), 'test')", [tenant])
    for principal in ("admin:alice", "service:email", "user:bob", "operator:root", "user:zoe"):
        admin.execute("insert into carillon.requests values (%s, 'r', '', '', now())", [principal])
        admin.execute(
            "insert into carillon.audit_events (event_at, principal, action, resource, request_id, address)"
            " values (now(), %s, 'Test', 'test', 'r', '')",
            [principal],
        )
    admin.execute(
        "insert into carillon.audit_seals select event_id, event_id, sha256('x'), now() from carillon.audit_events"
    )
    admin.execute("insert into carillon.users values ('subject', 'admin', null, now(), now(), 'test')")
    admin.execute("insert into carillon.pulses values ('replica-1', 'reaper', now())")
    admin.execute("insert into carillon.time_zone_rules values (true, '2025b', now())")
    admin.execute(
        "insert into carillon.service_tokens (token_id, service, scopes, secret_hash, created_at, created_by)"
        " values ('t', 'email', '{read}', sha256('x'), now(), 'test')"
    )
    admin.execute("insert into carillon.alembic_version values ('test') on conflict do nothing")


def _rows_beside(job_id: int, tenant: str, schedule_id: int, run_id: UUID) -> Iterator[tuple[str, list[Any]]]:
    """What else there is of a job with a schedule and a run."""
    yield (
        "insert into carillon.job_changes (job_id, in_force_from, halted, recorded_at, changed_by)"
        " values (%s, now(), false, now(), 'test')",
        [job_id],
    )
    yield (
        "insert into carillon.schedule_revisions select schedule_id, revision, enabled, cron, time_zone, gap, repeat,"
        " phase, jitter, now(), 'test' from carillon.schedules where schedule_id = %s",
        [schedule_id],
    )
    yield "insert into carillon.gaps values (%s, now(), now(), 1, 'CATCH_UP_NONE', 1, now())", [schedule_id]
    yield "insert into carillon.remedies values (%s, %s, now(), null, now())", [run_id, schedule_id]
    yield (
        "insert into carillon.retries values (gen_random_uuid(), %s, %s, %s, now())",
        [run_id, job_id, tenant],
    )
    yield "insert into carillon.run_keys values (%s, %s, 'key', %s, now())", [job_id, tenant, run_id]
    yield (
        "insert into carillon.backfills values (%s, %s, now(), now() + interval '1 day', '*', '', 1, 1, now(), 'test')",
        [run_id, job_id],
    )
