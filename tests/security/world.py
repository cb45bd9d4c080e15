"""A whole scheduler in this process, two services and two tenants with data, and every sort of caller."""

from __future__ import annotations

import itertools
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any
from uuid import UUID

import grpc
import jwt
import psycopg
from carillon.v1 import job_pb2, registry_service_pb2, registry_service_pb2_grpc

from scheduler_service.app import App
from scheduler_service.domain.access import Scope
from scheduler_service.domain.credentials import JwtRules, ServiceToken, secret_hash
from scheduler_service.domain.run import RunState, new_run_id
from scheduler_service.identity.credentials import Credentials
from scheduler_service.identity.jwts import JwtVerifier
from scheduler_service.identity.service_tokens import ServiceTokens
from scheduler_service.settings import read_settings
from tests.builders import MadeJob, connect, make_attempt, make_ended_run, make_item, make_live_run, make_schedule, now
from tests.conftest import DatabaseUrls

EMAIL, KPI = "email-service", "kpi-service"
A, B = "tenant-a", "tenant-b"
Metadata = tuple[tuple[str, str], ...]
_JWT_SECRET = "only-for-tests-only-for-tests-only-for-tests"
_RULES = JwtRules(secret=_JWT_SECRET)
_SECRET = "only-for-tests-only-for-tests"


def _token(token_id: str, service: str, *scopes: Scope) -> ServiceToken:
    return ServiceToken(token_id, service, secret_hash(_SECRET), frozenset(scopes))


_TOKENS = (
    _token(EMAIL, EMAIL, *Scope),
    _token(KPI, KPI, *Scope),
    _token("worker", "*", Scope.WORK),
    _token("no-scope", EMAIL),
    *(_token(scope.value, EMAIL, scope) for scope in Scope),
)


class _App(App):
    """Whose service tokens have single scopes, which CARILLON_SERVICE_TOKENS cannot say."""

    def _credentials(self) -> Credentials:
        return Credentials(ServiceTokens(_TOKENS), JwtVerifier(_RULES))


def bearer(secret: str = _JWT_SECRET, **claims: object) -> Metadata:
    fixed = {"iss": "carillon", "aud": "carillon", "iat": int(time.time()), "exp": int(time.time()) + 43_200}
    return (("authorization", f"Bearer {jwt.encode(fixed | claims, secret, 'HS256')}"),)


def token(name: str) -> Metadata:
    return (("x-service-token", f"{name}.{_SECRET}"),)


ADMIN = bearer(sub="alice", role="admin")
USER_A = bearer(sub="ann", tenant=A)
USER_B = bearer(sub="bob", tenant=B)
NOBODY = bearer(sub="nora")
_FORGED: dict[str, Any] = {"kind": "operator", "scopes": ["register"], "service": EMAIL, "tenants": A, "ROLE": "admin"}
CALLERS: Mapping[str, Metadata] = {
    "anonymous": (),
    "false-token": (("x-service-token", f"{EMAIL}.made-up-made-up-made-up"),),
    "false-jwt": bearer("another-secret-of-at-least-32-characters", sub="alice", role="admin"),
    "no-tenant": bearer(sub="sam", tenant="-"),
    "service": token(EMAIL),
    **{scope.value: token(scope) for scope in Scope},
    "no-scope": token("no-scope"),
    "other": token(KPI),
    "worker": token("worker"),
    "user-a": USER_A,
    "user-b": USER_B,
    "nobody": NOBODY,
    "forger": (
        *bearer(sub="operator:root", **_FORGED),
        *(("x-kind", "operator"), ("carillon.kind", "admin"), ("x-tenant", A), ("x-forwarded-user", "alice")),
    ),
    "admin": ADMIN,
}


@dataclass(frozen=True)
class Things:
    """What a request can be about: a job of the email-service, tenant A's schedule of it and what ran for it."""

    job: MadeJob
    schedule: str
    run: UUID
    live_run: UUID
    backfill: str


@dataclass
class World:
    """A serving scheduler. `admin` is a superuser's connection to its database."""

    app: App
    channel: grpc.aio.Channel
    port: int
    admin: psycopg.Connection[Any]
    urls: DatabaseUrls
    things: Things = field(init=False)
    _numbers: itertools.count[int] = field(default_factory=itertools.count)

    async def begin(self) -> None:
        await self.register(EMAIL, "weekly-digest", "only-by-hand", tenant_schedules=True)
        await self.register(KPI, "rollup")
        self.admin.execute("update carillon.jobs set tenant_schedules = false where job = 'only-by-hand'")
        self.things = self.new_things()
        self._daily(self.things.job, B, "bobs")
        make_ended_run(self.admin, self.things.job, tenant=B)
        make_ended_run(self.admin, self._job(KPI, "rollup"))

    async def register(self, service: str, *jobs: str, **fields: Any) -> None:
        target = job_pb2.Target(http=job_pb2.HttpTarget(endpoint="/run"))
        specs = [job_pb2.JobSpec(job=job, target=target, **fields) for job in jobs]
        stub = registry_service_pb2_grpc.RegistryServiceStub(self.channel)
        request = registry_service_pb2.RegisterJobsRequest(
            service=service, jobs=specs, base_url="http://somewhere.internal"
        )
        await stub.RegisterJobs(request, metadata=token(service))

    def new_things(self) -> Things:
        """A job of their own, so that a call may change them."""
        number = next(self._numbers)
        job = self._copied_job(f"digest-{number}")
        schedule_id = self._owed_daily(job, A, "daily")
        self._owed_daily(job, "-", "default")
        run = make_ended_run(
            self.admin, job, RunState.FAILED, tenant=A, error={"code": "E", "message": "m", "detail": ""}
        )
        make_attempt(self.admin, run, job, 1, tenant=A)
        make_item(self.admin, run, job, "an-item", tenant=A)
        backfill = new_run_id(now())
        self.admin.execute(
            "insert into carillon.backfills (backfill_id, job_id, since, until, tenant_id, schedule, occurrences, runs,"
            " created_at, created_by) values (%s, %s, now() - interval '1 day', now(), %s, '', 0, 0, now(), 'test')",
            [backfill, job.job_id, A],
        )
        # Not before tomorrow: no worker of a test is to be given it.
        live: dict[str, Any] = {"schedule_id": schedule_id, "revision": 1, "run_after": now() + timedelta(days=1)}
        live_run = make_live_run(self.admin, job, tenant=A, **live)
        make_live_run(self.admin, job, tenant=B, run_after=live["run_after"])
        return Things(job, f"{job.name}/tenants/{A}/schedules/daily", run, live_run, f"{job.name}/backfills/{backfill}")

    async def be_still(self) -> None:
        """Ends the loops that write though nobody asks them to. Calls are answered as before."""
        for loop in (self.app._engine.housekeeper, self.app._reaper, self.app._sealer, self.app._pulse):
            await loop.stop()

    def contents(self) -> dict[str, list[Any]]:
        """Every row of every table with its version: an update that changes no value shows as well."""
        tables = self.admin.execute(
            "select relname from pg_class where relnamespace = 'carillon'::regnamespace and relkind in ('r', 'p')"
            " and not relispartition order by 1"
        ).fetchall()
        return {
            name: self.admin.execute(
                f"select t::text, t.xmin::text from carillon.{name} t order by 1, 2".encode()
            ).fetchall()
            for (name,) in tables
        }

    def _owed_daily(self, job: MadeJob, tenant: str, schedule: str) -> int:
        """A schedule since the day before yesterday, settled up to now."""
        long_ago = now() - timedelta(days=2)
        cron, schedule_id = self._daily(job, tenant, schedule, created_at=long_ago)
        self.admin.execute(
            "insert into carillon.schedule_revisions (schedule_id, revision, enabled, cron, time_zone, gap, repeat,"
            " phase, jitter, in_force_from, changed_by) values (%s, 1, true, %s, 'UTC', 'SHIFT', 'FIRST',"
            " interval '0', interval '0', %s, 'test')",
            [schedule_id, cron, long_ago],
        )
        return schedule_id

    def _daily(self, job: MadeJob, tenant: str, schedule: str, **columns: Any) -> tuple[str, int]:
        """Its cron and id: armed, as the scheduler would find it otherwise, and due in half a day, after the test."""
        due = now().replace(minute=0, second=0, microsecond=0) + timedelta(hours=12)
        cron = f"0 {due.hour} * * *"
        return cron, make_schedule(self.admin, job, schedule, tenant, cron=cron, next_run_at=due, **columns)

    def _job(self, service: str, job: str) -> MadeJob:
        row = self.admin.execute(
            "select job_id from carillon.jobs where (service, job) = (%s, %s)", [service, job]
        ).fetchone()
        assert row is not None
        return MadeJob(row[0], service, job)

    def _copied_job(self, job: str) -> MadeJob:
        """As the service declared it, since long ago."""
        columns = self.admin.execute(
            "select string_agg(attname, ', ') from pg_attribute where attrelid = 'carillon.jobs'::regclass"
            " and attnum > 0 and not attisdropped and attname not in ('job_id', 'job', 'owed_from', 'declared')"
        ).fetchone()
        assert columns is not None
        self.admin.execute(
            f"insert into carillon.jobs (job, owed_from, declared, {columns[0]}) select %s, now() - interval '2 days',"
            f" jsonb_set(declared, '{{job}}', to_jsonb(%s::text)), {columns[0]}"
            " from carillon.jobs where job = 'weekly-digest'".encode(),
            [job, job],
        )
        made = self._job(EMAIL, job)
        self.admin.execute(
            "insert into carillon.job_changes (job_id, in_force_from, halted, recorded_at, changed_by)"
            " values (%s, now() - interval '2 days', false, now(), 'test')",
            [made.job_id],
        )
        return made


@asynccontextmanager
async def a_world(urls: DatabaseUrls) -> AsyncIterator[World]:
    """The scheduler, its database filled, and a connection to it."""
    settings = read_settings(
        database_url=urls.api,
        engine_url=urls.engine,
        port=0,
        metrics_port=0,
        drain_seconds=0,
        # Nobody is to be refused for asking often.
        registrations_per_minute=1_000_000,
        triggers_per_second=1_000_000,
        changes_per_second=1_000_000,
    )
    app = _App(settings)
    await app.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{app.port}") as channel:
            with connect(urls.admin) as admin:
                world = World(app, channel, app.port, admin, urls)
                await world.begin()
                yield world
    finally:
        await app.drain()
        await app._probes.stop()
        await app.database.close()
