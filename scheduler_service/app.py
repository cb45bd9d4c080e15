"""The scheduler's composition root: the only file that knows every concrete part."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import AsyncExitStack
from functools import partial

import structlog
from carillon.v1 import (
    job_service_pb2_grpc,
    registry_service_pb2_grpc,
    run_service_pb2_grpc,
    schedule_service_pb2_grpc,
    worker_service_pb2_grpc,
)
from prometheus_client import CollectorRegistry

from operations.probes import Probes
from scheduler_service.identity.credentials import Credentials
from scheduler_service.identity.jwts import JwtVerifier
from scheduler_service.identity.service_tokens import ServiceTokens
from scheduler_service.loops.engine import Engine
from scheduler_service.loops.loop import Loop
from scheduler_service.loops.reaper import ReaperLoop
from scheduler_service.loops.worker_streams import LeaseLoop, ReportLoop
from scheduler_service.metrics import ReplicaMetrics
from scheduler_service.rpc.calls import Calls, caller
from scheduler_service.rpc.health import Health
from scheduler_service.rpc.jobs import JobService
from scheduler_service.rpc.metrics import CallMetrics
from scheduler_service.rpc.registry import RegistryService
from scheduler_service.rpc.runs import RunService
from scheduler_service.rpc.schedules import ScheduleService
from scheduler_service.rpc.server import Registration, build_server, listen
from scheduler_service.rpc.work import WorkerService
from scheduler_service.settings import Settings
from scheduler_service.store.database import Database
from scheduler_service.store.migrations import migrate
from scheduler_service.usecases.leases import Leases
from scheduler_service.usecases.readiness import Readiness
from scheduler_service.usecases.reap import Cancels, Reaper
from scheduler_service.usecases.report import Reports
from scheduler_service.usecases.sessions import Sessions
from scheduler_service.usecases.wakeups import Topic, Wakeups

log = structlog.get_logger()

_LOOK_SECONDS = 1.0
_STREAMS_SHARE = 0.25


class App:
    """One scheduler process. `port` and `metrics_port` are what was bound, once it listens.

    `registry`: its metrics.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.database = Database(settings.database_url.get_secret_value(), settings.engine_url.get_secret_value())
        self._wakeups = Wakeups()
        self._sessions = Sessions(on_credit=lambda: None)
        self._engine = Engine(
            self.database, self._sessions, self._wakeups, settings.replica, settings.listen_url.get_secret_value()
        )
        self._leases = Leases(
            self.database, self._sessions, self._wakeups, replica=settings.replica, lease=settings.lease_seconds
        )
        self._reports = Reports(self._wakeups)
        self._workers = WorkerService(
            self._leases,
            self._sessions,
            self._reports,
            self._engine.completer,
            caller=caller,
            replica=settings.replica,
            lease=settings.lease_seconds,
            heartbeat_interval=settings.heartbeat_seconds,
        )
        self._reaper = self._build_reaper()
        self._loops = self._session_loops()
        self._readiness = Readiness(self.database, self._migration())
        self._looking: asyncio.Task[None] | None = None
        self._draining = False

        self.registry = CollectorRegistry()
        ReplicaMetrics(
            self._sessions,
            self._engine,
            self._reaper,
            (*self._engine.loops, *self._loops),
            lambda: self._readiness.problem is None,
        ).register(self.registry)
        self._probes = Probes(self._answer_readyz, self.registry)
        calls = Calls(self._credentials(), CallMetrics(self.registry))
        services = self._services()
        self._health = Health(tuple(services))
        self._server = build_server(calls, services, self._health, reflect=settings.reflection)
        self.port = settings.port
        self.metrics_port = settings.metrics_port

    async def run(self, stopping: asyncio.Event) -> None:
        """Serves until `stopping` is set, then drains. Errors: PortTaken before anything was begun."""
        async with AsyncExitStack() as stack:
            stack.push_async_callback(self.database.close)
            stack.push_async_callback(self._probes.stop)
            await self.start()
            stack.push_async_callback(self.drain)
            await stopping.wait()

    async def start(self) -> None:
        """Listens and starts the loops, whether or not the database is there. Errors: PortTaken."""
        url = await self._probes.start(self._settings.host, self._settings.metrics_port)
        self.metrics_port = int(url.rpartition(":")[2])
        self.port = listen(self._server, self._settings.host, self._settings.port)
        await self._look()
        await self._engine.start()
        for loop in self._loops:
            loop.start()
        await self._server.start()
        self._looking = asyncio.create_task(self._keep_looking(), name="readiness")
        log.info("listening", grpc=f"{self._settings.host}:{self.port}", http=url, replica=self._settings.replica)

    async def drain(self) -> None:
        """Begins nothing more, sends workers to other replicas, lets calls end, and commits what was reported."""
        log.info("draining", seconds=self._settings.drain_seconds)
        self._draining = True
        await self._health.drain()
        if self._looking is not None:
            self._looking.cancel()
        await self._engine.stop_handing_out()
        await self._workers.drain(self._settings.drain_seconds * _STREAMS_SHARE)
        await self._server.stop(self._settings.drain_seconds * (1 - _STREAMS_SHARE))
        await asyncio.gather(*(loop.stop() for loop in self._loops))
        await self._engine.drain()
        log.info("drained")

    async def close(self) -> None:
        """Lets go of what was built, for an app that is not run."""
        await self._server.stop(None)
        await self.database.close()

    def _credentials(self) -> Credentials:
        return Credentials(ServiceTokens(self._settings.tokens()), JwtVerifier(self._settings.jwt_rules()))

    def _services(self) -> Mapping[str, Registration]:
        zone = self._settings.default_time_zone
        registry = RegistryService(self.database, self._wakeups, default_time_zone=zone)
        jobs = JobService(self.database, self._wakeups, default_time_zone=zone)
        schedules = ScheduleService(self.database, self._wakeups, default_time_zone=zone)
        runs = RunService(self.database, self._wakeups)
        return {
            "carillon.v1.RegistryService": partial(
                registry_service_pb2_grpc.add_RegistryServiceServicer_to_server, registry
            ),
            "carillon.v1.JobService": partial(job_service_pb2_grpc.add_JobServiceServicer_to_server, jobs),
            "carillon.v1.ScheduleService": partial(
                schedule_service_pb2_grpc.add_ScheduleServiceServicer_to_server, schedules
            ),
            "carillon.v1.RunService": partial(run_service_pb2_grpc.add_RunServiceServicer_to_server, runs),
            "carillon.v1.WorkerService": partial(
                worker_service_pb2_grpc.add_WorkerServiceServicer_to_server, self._workers
            ),
        }

    def _session_loops(self) -> tuple[Loop, ...]:
        connect = self.database.hot_connection
        return (
            LeaseLoop(connect, self._leases),
            ReportLoop(connect, self._reports),
            self._reaper,
        )

    def _build_reaper(self) -> ReaperLoop:
        reaper = Reaper(self._sessions, self._leases, self._wakeups, lease=self._settings.lease_seconds)
        return ReaperLoop(self.database.hot_connection, reaper, Cancels(self._sessions), self._wakeups)

    def _migration(self) -> partial[int] | None:
        url = self._settings.migration_url.get_secret_value()
        return partial(migrate, url, self._settings.logins()) if url else None

    async def _keep_looking(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            await self._look()

    async def _look(self) -> None:
        if not await self._readiness.look():
            return
        problem = self._readiness.problem
        await self._health.set(problem)
        if problem:
            log.warning("not serving", why=problem)
        else:
            log.info("serving")
            self._wakeups.wake_here(Topic.SCHEDULES)

    def _answer_readyz(self) -> tuple[bool, str]:
        if self._draining:
            return False, "draining"
        problem = self._readiness.problem
        return problem is None, problem or "serving"
