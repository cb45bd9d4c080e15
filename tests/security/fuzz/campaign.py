"""A scheduler process under malformed calls: whether it goes on, what it said, and what it has grown by."""

from __future__ import annotations

import asyncio
import random
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import psutil
from carillon.v1 import job_pb2, job_service_pb2, registry_service_pb2, schedule_pb2, schedule_service_pb2

from local_stack.ports import LOCALHOST
from tests.conftest import DatabaseUrls
from tests.e2e.cluster import Cluster, fetch
from tests.security.calling import Answer, ask
from tests.security.fuzz.wire import TELLS_TOO_MUCH, Metadata, OddCalls, OddConnections
from tests.security.world import bearer

_JOB = "services/email-service/jobs/weekly-digest"
_SCHEDULE = f"{_JOB}/tenants/tenant-a/schedules/daily"
_TEXTS = (_JOB, _SCHEDULE, "services/email-service", "tenants/tenant-a", "tenant-a", "email-service", "weekly-digest")
_MORE_TEXTS = (
    "0 9 * * *",
    "Europe/Berlin",
    "daily",
    "http",
    "runs/01a1fd54-4f97-70f0-b23e-ac42df4d7188",
    "*",
    "timing",
)
_AT_ONCE = 24
_CALLS_A_CONNECTION = 10
_WARM_UP = 0.1  # of all calls: connections, pools and caches are there after that
_MEGABYTE = 1 << 20
# Tracebacks of the library itself, about calls that were gone already, are none.
_FAULT = re.compile(rb'"call failed"|Segmentation|Fatal Python|ASSERTION FAILED|Check failed')
_ENDED_BADLY = re.compile(r'carillon_rpc_seconds_count\{.*code="(INTERNAL|UNKNOWN)"')
_SETTINGS: dict[str, Any] = {
    "registrations_per_minute": 1_000_000,
    "triggers_per_second": 1_000_000,
    "changes_per_second": 1_000_000,
    "log_level": "warning",
}


@dataclass
class Report:
    """What came of it. `faults`: sentences about answers and log lines that should not be; `grown`: resident memory,
    in MB, after the warm-up."""

    requests: int = 0
    codes: Counter[str] = field(default_factory=Counter)
    internal: int = 0
    tracebacks: int = 0
    crashes: int = 0
    grown: float = 0.0
    faults: list[str] = field(default_factory=list)

    def take(self, asked: str, answer: Answer) -> None:
        """Looks at one answer."""
        self.codes[answer.code.name] += 1
        if answer.code in (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN):
            self.internal += 1
            self.faults.append(f"{asked}: {answer.code.name} {answer.details[:200]}")
        self.look_for_traceback(asked, answer.said())

    def look_for_traceback(self, asked: str, said: bytes) -> None:
        if (found := TELLS_TOO_MUCH.search(said)) is not None:
            self.tracebacks += 1
            self.faults.append(f"{asked}: it says {said[max(0, found.start() - 80) : found.end() + 80]!r}")


class Campaign:
    """Malformed calls of one scheduler, the same ones for the same seed."""

    def __init__(self, cluster: Cluster, seed: int, progressed: Callable[[int], object] = lambda _: None) -> None:
        self._cluster = cluster
        self._dice = random.Random(seed)
        self._progressed = progressed
        secrets = cluster.secrets
        self._callers: tuple[Metadata, ...] = (
            (("authorization", f"Bearer {secrets.admin_jwt()}"),),
            (("x-service-token", secrets.email_service_token),),
            (("x-service-token", secrets.worker_token),),
            bearer(secrets.jwt_secret, sub="ann", tenant="tenant-a"),
            (),
        )
        self.report = Report()

    async def run(self, calls: int) -> Report:
        """So many calls, one in ten over bare sockets."""
        scheduler = await self._cluster.start_scheduler(**_SETTINGS)
        process = psutil.Process(self._cluster.processes.pid(scheduler.name))
        async with grpc.aio.insecure_channel(scheduler.target) as channel:
            await self._fill(channel)
            await self._some(channel, scheduler.port, int(calls * _WARM_UP))
            before = process.memory_info().rss
            await self._some(channel, scheduler.port, calls - self.report.requests)
            await self._check_that_it_serves(channel)
        await self._count_faults(scheduler.metrics_port)
        try:
            self.report.grown = (process.memory_info().rss - before) / _MEGABYTE
        except psutil.NoSuchProcess:
            self.report.crashes += 1
            self.report.faults.append("the scheduler's process is gone")
        return self.report

    def read_log(self, log: Path) -> None:
        """Looks for faults that no caller was told of."""
        for line in log.read_bytes().splitlines():
            if _FAULT.search(line):
                self.report.faults.append(f"the log: {line[:1500].decode(errors='replace')}")
                self.report.internal += 1

    async def _some(self, channel: grpc.aio.Channel, port: int, calls: int) -> None:
        over_sockets = calls // 10
        left = iter(range(calls - over_sockets))
        connections = iter(range(max(1, over_sockets // _CALLS_A_CONNECTION)))
        async with asyncio.TaskGroup() as group:
            for _ in range(_AT_ONCE):
                group.create_task(self._call_on(channel, left))
            for _ in range(2):
                group.create_task(self._connect_on(port, connections))

    async def _call_on(self, channel: grpc.aio.Channel, left: object) -> None:
        odd = OddCalls(random.Random(self._dice.random()), self._callers, (*_TEXTS, *_MORE_TEXTS))
        for _ in left:  # type: ignore[attr-defined]  # an iterator that all share
            method, body, answer = await odd.call(channel)
            self.report.take(f"{method} {body[:200]!r}", answer)
            self._count(1)

    async def _connect_on(self, port: int, left: object) -> None:
        odd = OddConnections(random.Random(self._dice.random()), self._callers)
        for _ in left:  # type: ignore[attr-defined]  # an iterator that all share
            try:
                self.report.look_for_traceback("a bare connection", await odd.connect(port, _CALLS_A_CONNECTION))
            except ConnectionRefusedError:
                self.report.crashes += 1
            self._count(_CALLS_A_CONNECTION)

    def _count(self, calls: int) -> None:
        self.report.requests += calls
        self._progressed(calls)

    async def _fill(self, channel: grpc.aio.Channel) -> None:
        """A job and a schedule that calls may be about."""
        target = job_pb2.Target(http=job_pb2.HttpTarget(endpoint="http://email-service/run"))
        spec = job_pb2.JobSpec(job="weekly-digest", target=target, tenant_schedules=True)
        timing = job_pb2.Timing(cron="0 9 * * *")
        register = registry_service_pb2.RegisterJobsRequest(service="email-service", jobs=[spec])
        put = schedule_service_pb2.PutScheduleRequest(schedule=schedule_pb2.Schedule(name=_SCHEDULE, timing=timing))
        for method, request, caller in (("Registry", register, 1), ("Schedule", put, 0)):
            verb = "RegisterJobs" if method == "Registry" else "PutSchedule"
            answer = await ask(channel, f"/carillon.v1.{method}Service/{verb}", request, self._callers[caller])
            assert answer.code is grpc.StatusCode.OK, answer.details

    async def _check_that_it_serves(self, channel: grpc.aio.Channel) -> None:
        answer = await ask(
            channel, "/carillon.v1.JobService/ListJobs", job_service_pb2.ListJobsRequest(), self._callers[0]
        )
        if answer.code is not grpc.StatusCode.OK:
            self.report.crashes += 1
            self.report.faults.append(f"afterwards it answers {answer.code.name} {answer.details}")

    async def _count_faults(self, metrics_port: int) -> None:
        """What the scheduler itself says of how its calls ended: the client's library words some of its own troubles
        like a server's."""
        _, metrics = await fetch(f"http://{LOCALHOST}:{metrics_port}/metrics")
        assert "carillon_rpc_seconds_count" in metrics
        for line in metrics.splitlines():
            if _ENDED_BADLY.match(line) and float(line.rpartition(" ")[2]):
                self.report.internal += 1
                self.report.faults.append(f"the metrics: {line}")


async def fuzz(
    urls: DatabaseUrls, home: Path, calls: int, seed: int, progressed: Callable[[int], object] = lambda _: None
) -> Report:
    """A campaign against a scheduler process of its own; `home` gets its log."""
    async with Cluster(home, urls) as cluster:
        campaign = Campaign(cluster, seed, progressed)
        try:
            report = await campaign.run(calls)
        finally:
            await cluster.processes.stop()
        campaign.read_log(home / "logs" / "scheduler.log")
    return report
