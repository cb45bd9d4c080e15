"""What rolling deploys are tried under: schedules that are due each second, workers that write down what they did, and
callers who note every refusal."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import psycopg
from carillon import Client, NotFound
from carillon.v1 import (
    job_pb2,
    job_service_pb2,
    job_service_pb2_grpc,
    registry_service_pb2,
    registry_service_pb2_grpc,
    schedule_pb2,
    schedule_service_pb2,
    schedule_service_pb2_grpc,
)
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from local_stack.ports import LOCALHOST
from tests.e2e.cluster import Cluster, Scheduler, eventually, fetch
from tests.e2e.effect_worker import JOB
from tests.faults.verdict import Verdict, judge

MANY = {"changes_per_second": 100_000, "registrations_per_minute": 1_000_000}
"""Settings of schedulers whose callers never rest."""
_CHARGED = "select (select count(*) from carillon.attempts) + (select count(*) from carillon.runs where attempt > 1)"
_CAUGHT_UP = "select count(*) from carillon.runs where trigger <> 'SCHEDULE'"
_DIGEST = job_pb2.JobSpec(
    job="weekly-digest",
    target=job_pb2.Target(http=job_pb2.HttpTarget(endpoint="/digest")),
    timing=job_pb2.Timing(cron="0 9 * * 1"),
    tenant_schedules=True,
)


class Load:
    """Of one cluster. `files`: each worker's effects."""

    def __init__(self, cluster: Cluster, home: Path) -> None:
        self._cluster = cluster
        self._home = home
        self.files: dict[str, Path] = {}

    async def start_worker(self, name: str) -> None:
        """Returns once the session is there. Again under its name: with the same file."""
        self.files[name] = self._home / f"{name}.effects"
        environment = {"EFFECT_FILE": str(self.files[name]), "EFFECT_CONCURRENCY": "200"}
        pid = await self._cluster.start_program(name, "tests.e2e.effect_worker", environment)
        await eventually(self.workers, lambda workers: any(worker.endswith(f":{pid}") for worker in workers))

    async def begin(self, schedules: int) -> None:
        """From here on each of so many schedules is due every second."""
        async with self._cluster.client() as client:
            # Workers connect before they have declared their job.
            await eventually(lambda: _paused(client))
            for number in range(schedules):
                await client.put_schedule(JOB, tenant=f"tenant-{number}", cron="@every 1s", time_zone="UTC")
            await client.resume_job(JOB)
        await self.moves_on()

    async def end(self, *killed: str) -> Verdict:
        """Nothing more is due; everything ends. `killed`: the workers that were."""
        async with self._cluster.client() as client:
            await client.pause_job(JOB)
        await eventually(lambda: self.count("select count(*) from carillon.live_runs"), lambda live: live == 0)
        with psycopg.connect(self._cluster.urls.admin) as admin:
            return await asyncio.to_thread(judge, admin, self.files, killed)

    async def moves_on(self, runs: int = 50) -> None:
        """Returns once so many more runs have ended."""
        before = await self.recorded()
        await eventually(self.recorded, lambda recorded: recorded >= before + runs)

    async def recorded(self) -> int:
        return await self.count("select count(*) from carillon.runs")

    async def end_undisturbed(self) -> None:
        """As `end`, where every run was on time, and carried out once. Errors: AssertionError."""
        verdict = await self.end()
        assert verdict.passes, f"{verdict.line(0)}; {verdict.details()}"
        assert verdict.effects.repeats == 0, verdict.details()
        assert await self.count(_CHARGED) == 0, "attempts were charged"
        assert await self.count(_CAUGHT_UP) == 0, "occurrences came too late to be on time"

    async def workers(self) -> dict[str, str]:
        """Which replica each connected worker's stream is with."""
        return dict(await self._rows("select worker, replica from carillon.sessions"))

    async def count(self, query: str) -> int:
        return int((await self._rows(query))[0][0])

    async def _rows(self, query: str) -> list[Any]:
        def ask() -> list[Any]:
            with psycopg.connect(self._cluster.urls.admin) as admin:
                return admin.execute(query.encode()).fetchall()

        return await asyncio.to_thread(ask)


def is_passing(refusal: Refusal) -> bool:
    """Whether the caller was told that it passes, and when to try again."""
    return refusal.code is grpc.StatusCode.UNAVAILABLE and refusal.hint is not None


async def readiness(scheduler: Scheduler) -> tuple[int, str]:
    """Its answer to `/readyz`."""
    return await fetch(f"http://{LOCALHOST}:{scheduler.metrics_port}/readyz")


async def _paused(client: Client) -> bool:
    with suppress(NotFound):
        await client.pause_job(JOB)
        return True
    return False


@dataclass(frozen=True)
class Refusal:
    """`hint`: when to try again, as the scheduler said; None if it did not."""

    replica: str
    method: str
    code: grpc.StatusCode
    hint: float | None
    message: str


class Callers:
    """Register, change and read at each replica without a pause, and never try again. `answered`: calls that were."""

    def __init__(self, cluster: Cluster) -> None:
        self._admin = (("authorization", f"Bearer {cluster.secrets.admin_jwt()}"),)
        self._service = (("x-service-token", cluster.secrets.email_service_token),)
        self.answered: dict[str, int] = {}
        self.refusals: list[Refusal] = []

    @asynccontextmanager
    async def calling(self, *schedulers: Scheduler) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(self._call_on(each), name=each.name) for each in schedulers]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def answers(self, scheduler: Scheduler, calls: int = 20) -> None:
        """Returns once so many more calls of a replica were answered."""
        before = self.answered.get(scheduler.name, 0)

        async def answered() -> int:
            return self.answered.get(scheduler.name, 0)

        await eventually(answered, lambda count: count >= before + calls)

    async def _call_on(self, scheduler: Scheduler) -> None:
        async with grpc.aio.insecure_channel(scheduler.target, options=[("grpc.enable_retries", 0)]) as channel:
            registry: Any = registry_service_pb2_grpc.RegistryServiceStub(channel)
            schedules: Any = schedule_service_pb2_grpc.ScheduleServiceStub(channel)
            jobs: Any = job_service_pb2_grpc.JobServiceStub(channel)
            while True:
                manifest = registry_service_pb2.RegisterJobsRequest(service="email-service", jobs=[_DIGEST])
                manifest.base_url = "http://127.0.0.1:1"
                await self._try(scheduler, "RegisterJobs", registry.RegisterJobs(manifest, metadata=self._service))
                put = schedule_service_pb2.PutScheduleRequest(schedule=_monday(scheduler.name))
                await self._try(scheduler, "PutSchedule", schedules.PutSchedule(put, metadata=self._admin))
                listing = job_service_pb2.ListJobsRequest()
                await self._try(scheduler, "ListJobs", jobs.ListJobs(listing, metadata=self._admin))

    async def _try(self, scheduler: Scheduler, method: str, call: Any) -> None:
        try:
            await call
        except grpc.aio.AioRpcError as error:
            self.refusals.append(
                Refusal(scheduler.name, method, error.code(), _hint(error), error.details() or "no details")
            )
        else:
            self.answered[scheduler.name] = self.answered.get(scheduler.name, 0) + 1


def _monday(tenant: str) -> schedule_pb2.Schedule:
    return schedule_pb2.Schedule(
        name=f"services/email-service/jobs/weekly-digest/tenants/{tenant}/schedules/monday",
        timing=job_pb2.Timing(cron="0 8 * * 1", time_zone="Europe/Paris"),
        enabled=True,
    )


def _hint(error: grpc.aio.AioRpcError) -> float | None:
    status = rpc_status.from_call(error)  # type: ignore[arg-type]  # an AioRpcError has what it asks for
    retry = error_details_pb2.RetryInfo()
    if status is None or not any(detail.Unpack(retry) for detail in status.details):
        return None
    return float(retry.retry_delay.seconds + retry.retry_delay.nanos / 1e9)
