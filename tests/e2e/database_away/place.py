"""A scheduler in the test's process whose database is behind proxies, a worker of its, and a caller of its API."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import grpc
import psycopg
import pytest
from carillon import Client, Jobs, Run, SchedulerUnavailable, Worker
from carillon.declaration import JobOptions
from carillon.v1 import job_pb2, job_service_pb2, job_service_pb2_grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from local_stack.ports import LOCALHOST
from scheduler_service.app import App
from tests.conftest import DatabaseUrls
from tests.e2e.cluster import eventually, fetch
from tests.faults.proxy import FaultProxy
from tests.faults.verdict import Records, count_records
from tests.security.schedulers import EMAIL_TOKEN, admin, scheduler

SERVICE = "email-service"
JOB = f"services/{SERVICE}/jobs/count"
MARK = "what-a-claim-carries"
"""In the payload of each run."""
BOUND = 25.0
"""Seconds within which a call has its answer, whatever is wrong with the database."""

_CONNECTIONS = "select count(*) from pg_stat_activity where usename in ('carillon_api', 'carillon_engine')"
_MOST_CONNECTIONS = 33


def through(url: str, proxy: FaultProxy) -> str:
    """The same login and database, through the proxy."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=f"{parts.username}:{parts.password}@{proxy.address}"))


@dataclass(frozen=True)
class Refused:
    """How a call ended. `retry_after`: seconds, of google.rpc.RetryInfo; None without one."""

    code: grpc.StatusCode
    message: str
    retry_after: float | None


async def refused(call: Awaitable[Any]) -> Refused:
    """The call's refusal, within the bound."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async with asyncio.timeout(BOUND):
            await call
    status = rpc_status.from_call(caught.value)  # type: ignore[arg-type]  # it has what is asked for
    retry_after = None
    for detail in status.details if status is not None else ():
        retry = error_details_pb2.RetryInfo()
        if detail.Unpack(retry):
            retry_after = retry.retry_delay.ToMilliseconds() / 1000
    return Refused(caught.value.code(), caught.value.details() or "", retry_after)


async def is_told_to_wait(call: Awaitable[Any], *words: str) -> None:
    """The call is refused with UNAVAILABLE, a hint when to try again, and these words."""
    found = await refused(call)
    assert found.code is grpc.StatusCode.UNAVAILABLE, found
    assert found.retry_after, found
    for word in words:
        assert word in found.message, found


class Place:
    """`effects`: how often each run was carried out by the worker."""

    def __init__(self, app: App, channel: grpc.aio.Channel, client: Client, admin_url: Callable[[], str]) -> None:
        self.app = app
        self.effects: Counter[str] = Counter()
        self.client = client
        self._admin_url = admin_url
        self._jobs = job_service_pb2_grpc.JobServiceStub(channel)

    @property
    def target(self) -> str:
        return f"{LOCALHOST}:{self.app.port}"

    async def trigger(
        self, *, request_id: str = "", run_key: str = "", payload: Mapping[str, str] | None = None
    ) -> str:
        """The name of the run that it made."""
        request = job_service_pb2.TriggerJobRequest(name=JOB, request_id=request_id, run_key=run_key)
        request.payload.update(payload or {})
        answer = await self._jobs.TriggerJob(request, metadata=_as_admin(), timeout=BOUND)
        return str(answer.runs[0].name)

    async def get_job(self) -> job_pb2.Job:
        request = job_service_pb2.GetJobRequest(name=JOB)
        answer: job_service_pb2.GetJobResponse = await self._jobs.GetJob(request, metadata=_as_admin(), timeout=BOUND)
        return answer.job

    async def readyz(self) -> tuple[int, str]:
        return await fetch(f"http://{LOCALHOST}:{self.app.metrics_port}/readyz")

    async def says(self, *words: str) -> None:
        """Returns once it says that it is not ready, in these words."""
        await eventually(self.readyz, lambda told: told[0] == 503 and all(word in told[1] for word in words))

    async def is_ready(self) -> None:
        await eventually(self.readyz, lambda told: told[0] == 200)

    async def goes_on(self, runs: int = 2) -> None:
        """Returns once so many runs more have been carried out."""
        before = len(self.effects)
        await eventually(self.carried_out, lambda count: count >= before + runs)

    async def carried_out(self) -> int:
        return len(self.effects)

    def loop_failures(self) -> dict[str, int]:
        """Of each loop, how many of its steps failed."""
        found = [sample for metric in self.app.registry.collect() for sample in metric.samples]
        failures = [each for each in found if each.name == "carillon_loop_failures_total"]
        return {each.labels["loop"]: int(each.value) for each in failures}

    async def is_whole(self) -> None:
        """Each occurrence that was owed is one completed run with one effect, nothing is left live, and no connection
        more is open than there should be."""
        await _patiently(lambda: self.client.pause_job(f"{SERVICE}/count"))
        with psycopg.connect(self._admin_url(), autocommit=True) as admin:

            async def counted() -> Records:
                return count_records(admin)

            found = await eventually(counted, lambda each: each.live == 0)
            assert (found.missing, found.twice, found.surplus, found.gaps) == (0, 0, 0, 0), found
            assert found.completed >= found.runs == found.occurrences, found
            completed = {str(run) for (run,) in admin.execute("select run_id from carillon.runs")}
            carried_out = Counter(completed)
            assert (self.effects - carried_out, carried_out - self.effects) == (Counter(), Counter())

            async def connections() -> int:
                [(count,)] = admin.execute(_CONNECTIONS).fetchall()
                return int(count)

            await eventually(connections, lambda count: count <= _MOST_CONNECTIONS)


def _as_admin() -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {admin()}"),)


async def _patiently(call: Callable[[], Awaitable[Any]]) -> None:
    async def answered() -> bool:
        try:
            await call()
        except SchedulerUnavailable:
            return False
        return True

    await eventually(answered)


@asynccontextmanager
async def placed(
    urls: DatabaseUrls, admin_url: Callable[[], str], *, ticks: bool = True, **settings: Any
) -> AsyncIterator[Place]:
    """A scheduler on `urls`, with a job that a worker carries out: each second, if it `ticks`. `admin_url`: where the
    database is itself, at any time."""
    async with AsyncExitStack() as stack:
        app = await stack.enter_async_context(scheduler(urls, **settings))
        target = f"{LOCALHOST}:{app.port}"
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(target))
        client = await stack.enter_async_context(Client(target, token=admin()))
        place = Place(app, channel, client, admin_url)
        jobs = Jobs(SERVICE, target=target, token=EMAIL_TOKEN)

        # All is caught up: on a slow machine the database may be away for longer than what counts as on time.
        options: JobOptions = {"overlap": "allow_all", "catch_up": "all", "config": {"mark": MARK}}
        if ticks:
            options["cron"] = "@every 1s"

        @jobs.handler("count", **options)
        async def count(run: Run) -> None:
            place.effects[str(run.run_id)] += 1

        await jobs.register()
        await stack.enter_async_context(Worker(jobs, 20))
        if ticks:
            await place.goes_on(1)
        yield place
