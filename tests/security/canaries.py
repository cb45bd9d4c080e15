"""Values of tenant A and of the email-service that must not reach anybody else, each with a twin of the same length
that is nowhere: an answer that tells a canary from its twin says that the one is there."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

from carillon.v1 import job_pb2
from psycopg.types.json import Jsonb

from scheduler_service.domain.run import RunState, new_run_id
from tests.builders import make_attempt, make_ended_run, make_item, make_live_run, make_schedule, make_session, now
from tests.security.world import EMAIL, World

TENANT = "acme-canary-tenant"
SCHEDULE = "a-canary-schedule"
OF_TENANT = {
    "tenant": (TENANT, "acme-absent-tenant"),
    "schedule": (SCHEDULE, "a-absent-schedule"),
    "label": ("a-canary-label", "a-absent-label"),
    "config": ("a-canary-config", "a-absent-config"),
    "payload": ("a-canary-payload", "a-absent-payload"),
    "error": ("a-canary-error", "a-absent-error"),
    "detail": ("a-canary-detail", "a-absent-detail"),
    "item": ("a-canary-item", "a-absent-item"),
    "item-error": ("a-canary-wrong-item", "a-absent-wrong-item"),
    "origin": ("a-canary-origin", "a-absent-origin"),
    "metrics": ("a-canary-metric", "a-absent-metric"),
    "metadata": ("a-canary-metadata", "a-absent-metadata"),
    "progress": ("a-canary-progress", "a-absent-progress"),
    "subject": ("a-canary-subject", "a-absent-subject"),
    "run-key": ("a-canary-run-key", "a-absent-run-key"),
    "request-id": ("a-canary-request", "a-absent-request"),
    "time-zone": ("Pacific/Chatham", "Pacific/Fakaofo"),
    "cron": ("17 3 13 * 5", "19 3 11 * 4"),
}
OF_SERVICE = {
    "description": ("a-canary-description", "a-absent-description"),
    "job-config": ("a-canary-default", "a-absent-default"),
    "endpoint": ("a-canary-endpoint", "a-absent-endpoint"),
    "private-job": ("a-canary-job", "a-absent-job"),
}


@dataclass(frozen=True)
class Canaries:
    """What was planted. `ids`: of runs and a backfill, with their twins. `own`: what the email-service keeps from
    other services and may show its tenants."""

    tenants: Mapping[str, str]
    services: Mapping[str, str]
    ids: Mapping[str, str]

    @property
    def twins(self) -> Mapping[str, str]:
        return {**self.tenants, **self.services, **self.ids}

    def hidden_from(self, caller: str) -> Collection[str]:
        """What this caller must never be shown."""
        hidden = {**self.tenants, **self.ids}
        return hidden if caller == "user-b" else {**hidden, **self.services}

    def twin_of(self, body: bytes) -> bytes:
        """The same request about what is not there."""
        for canary, twin in self.twins.items():
            body = body.replace(canary.encode(), twin.encode())
        return body


def a(name: str) -> str:
    """A canary's value."""
    return {**OF_TENANT, **OF_SERVICE}[name][0]


async def plant(world: World) -> Canaries:
    """Gives tenant A and the email-service something of everything."""
    spec = {"description": a("description"), "tenant_schedules": True, "timing": job_pb2.Timing(cron="0 9 * * *")}
    await world.register(EMAIL, "weekly-digest", "only-by-hand", **spec)
    private = {"description": a("description"), "endpoint": a("endpoint")}
    job = world.things.job
    world.admin.execute(
        "update carillon.jobs set job = %s, tenant_schedules = false, endpoint = %s, config = %s where job = %s",
        [a("private-job"), private["endpoint"], Jsonb({"k": a("job-config")}), "only-by-hand"],
    )
    world.admin.execute(
        "insert into carillon.tenants values (%s, %s, now(), now(), %s)", [TENANT, a("time-zone"), a("subject")]
    )
    by = f"user:{a('subject')}"
    labels, long_ago = {"brand": a("label")}, datetime.now(UTC) - timedelta(days=1)
    schedule = make_schedule(
        *(world.admin, job, SCHEDULE, TENANT),
        cron=a("cron"),
        time_zone=a("time-zone"),
        config={"k": a("config")},
        labels=labels,
        created_by=by,
        updated_by=by,
        settled_to=long_ago,
    )
    world.admin.execute(
        "insert into carillon.schedule_revisions (schedule_id, revision, enabled, cron, time_zone, gap, repeat,"
        " phase, jitter, in_force_from, changed_by) values (%s, 1, true, %s, %s, 'SHIFT', 'FIRST', interval '0',"
        " interval '0', %s, %s)",
        [schedule, a("cron"), a("time-zone"), long_ago, by],
    )
    ids = _runs(world, schedule, {"labels": labels, "origin": a("origin"), "payload": {"k": a("payload")}}, by)
    return Canaries(dict(OF_TENANT.values()), dict(OF_SERVICE.values()), {each: str(uuid4()) for each in ids})


def _runs(world: World, schedule: int, columns: dict[str, Any], by: str) -> list[str]:
    admin, job = world.admin, world.things.job
    error = {"code": "E", "message": a("error"), "detail": a("detail")}
    scheduled: dict[str, Any] = {
        "schedule_id": schedule,
        "revision": 1,
        "time_zone": a("time-zone"),
        "triggered_by": by,
    }
    ended = make_ended_run(
        admin,
        job,
        RunState.FAILED,
        tenant=TENANT,
        error=error,
        metrics={a("metrics"): 1},
        metadata={"k": a("metadata")},
        attempt=2,
        **scheduled,
        **columns,
    )
    make_attempt(admin, ended, job, 1, tenant=TENANT, error=error)
    make_item(admin, ended, job, a("item"), tenant=TENANT, attempt=2, succeeded=False, error=a("item-error"))
    live = make_live_run(
        admin,
        job,
        tenant=TENANT,
        progress={"done": 1, "total": 2, "message": a("progress"), "updated_at": now().isoformat()},
        last_error=error,
        run_after=now() + timedelta(days=1),
        **scheduled,
        **columns,
    )
    make_session(admin)
    backfill = new_run_id(now())
    admin.execute(
        "insert into carillon.run_keys values (%s, %s, %s, %s, now())", [job.job_id, TENANT, a("run-key"), ended]
    )
    admin.execute(
        "insert into carillon.requests values (%s, %s, '\\x00', %s, now())",
        [by, a("request-id"), a("payload").encode()],
    )
    admin.execute(
        "insert into carillon.backfills (backfill_id, job_id, since, until, tenant_id, schedule, occurrences, runs,"
        " created_at, created_by) values (%s, %s, now() - interval '1 day', now(), %s, %s, 0, 0, now(), %s)",
        [backfill, job.job_id, TENANT, SCHEDULE, by],
    )
    admin.execute(
        "insert into carillon.audit_events (event_at, principal, action, resource, tenant_id, after, request_id,"
        " address) values (now(), %s, 'schedules.put', %s, %s, %s, %s, '')",
        [by, f"tenants/{TENANT}", TENANT, Jsonb({"k": a("config")}), a("request-id")],
    )
    return [str(ended), str(live), str(backfill)]
