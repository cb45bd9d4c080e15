"""The scheduler's composition root: the only file that knows every concrete part."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import AsyncExitStack
from functools import partial

import structlog
from carillon.v1 import (
    audit_service_pb2_grpc,
    job_service_pb2_grpc,
    registry_service_pb2_grpc,
    run_service_pb2_grpc,
    schedule_service_pb2_grpc,
    worker_service_pb2_grpc,
)
from prometheus_client import CollectorRegistry

from operations.probes import Probes
from scheduler_service.engine.clock_watch import ClockWatch
from scheduler_service.engine.leases import Leases
from scheduler_service.engine.readiness import Readiness
from scheduler_service.engine.reap import Cancels, Reaper
from scheduler_service.engine.report import Reports
from scheduler_service.engine.sessions import Sessions
from scheduler_service.identity.certificates import WorkerCertificates
from scheduler_service.identity.credentials import Credentials
from scheduler_service.identity.jwks import Jwks
from scheduler_service.identity.jwts import JwtVerifier
from scheduler_service.identity.service_tokens import ServiceTokens, StoredTokens
from scheduler_service.identity.users import UserDirectory
from scheduler_service.loops.engine import Engine
from scheduler_service.loops.loop import Loop
from scheduler_service.loops.pulse import Pulse
from scheduler_service.loops.readiness import ReadinessLoop
from scheduler_service.loops.reaper import ReaperLoop
from scheduler_service.loops.sealer import Sealer
from scheduler_service.loops.service_tokens import ServiceTokenLoop
from scheduler_service.loops.worker_streams import LeaseLoop, ReportLoop
from scheduler_service.metrics import KeySetMetrics, ReplicaMetrics
from scheduler_service.rpc.audit import AuditService
from scheduler_service.rpc.calls import Calls, caller
from scheduler_service.rpc.health import Health
from scheduler_service.rpc.jobs import JobService
from scheduler_service.rpc.limits import Limits
from scheduler_service.rpc.metrics import CallMetrics
from scheduler_service.rpc.open_calls import CallCaps, OpenCalls
from scheduler_service.rpc.registry import RegistryService
from scheduler_service.rpc.runs import RunService
from scheduler_service.rpc.schedules import ScheduleService
from scheduler_service.rpc.server import ConnectionLimits, Registration, build_server, listen
from scheduler_service.rpc.tls import server_credentials
from scheduler_service.rpc.work import WorkerService, openings
from scheduler_service.settings import Settings
from scheduler_service.store.database import Database
from scheduler_service.store.migrations import migrate
from scheduler_service.usecases.wakeups import Topic, Wakeups

log = structlog.get_logger()

_LOOK_ENDS_SECONDS = 0.1
# Of the drain's time: for a tick or claim that is under way, and for workers to go elsewhere.
_TICKS_SHARE = 0.1
_STREAMS_SHARE = 0.25
# After the drain's time: to commit what was reported, and to let go. Orchestrators kill after 10 s.
_COMMIT_SECONDS = 8.0


class App:
    """One scheduler process. `port` and `metrics_port` are what was bound, once it listens.

    `registry`: its metrics.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        listen_url = settings.listen_url.get_secret_value()
        self.database = Database(
            settings.database_url.get_secret_value(),
            settings.engine_url.get_secret_value(),
            through_pgbouncer=bool(listen_url),
        )
        self._wakeups = Wakeups()
        self._sessions = Sessions(on_credit=lambda: None)
        self._engine = Engine(
            self.database, self._sessions, self._wakeups, settings.replica, listen_url, settings.retention()
        )
        self._leases = Leases(
            self.database,
            self._sessions,
            self._wakeups,
            replica=settings.replica,
            lease=settings.lease_seconds,
            watch=ClockWatch(settings.lease_seconds, settle=2 * settings.heartbeat_seconds),
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
            openings=openings(settings.max_streams_per_principal),
            stream_age=settings.stream_age_seconds,
        )
        self._stored_tokens = StoredTokens()
        self._reaper = self._build_reaper()
        self._sealer = Sealer(self.database.hot_connection)
        self._pulse = Pulse(self.database.hot_connection, settings.replica, self._all_loops)
        self._readiness = Readiness(self.database, self._migration())
        self._looking = ReadinessLoop(self._look, lambda: self._readiness.period)
        self._loops = self._session_loops()
        self._problem = self._readiness.problem
        self._draining = False

        self._jwks = self._build_jwks()
        self.registry = CollectorRegistry()
        ReplicaMetrics(
            self._sessions,
            self._engine,
            self._reaper,
            self._all_loops(),
            lambda: self._problem is None,
            self._sealer.sealing,
            self._pulse.pulses,
        ).register(self.registry)
        KeySetMetrics(self._jwks).register(self.registry)
        self._probes = Probes(self._answer_readyz, self.registry)
        limits = Limits(self.registry, settings.rate_limits())
        caps = CallCaps(settings.max_streams, settings.max_streams_per_principal, settings.max_calls_per_principal)
        calls = Calls(self._credentials(), CallMetrics(self.registry), limits, OpenCalls(caps))
        services = self._services()
        self._health = Health(tuple(services))
        self._server = build_server(
            calls,
            services,
            self._health,
            reflect=settings.reflection,
            limits=ConnectionLimits(connections=settings.max_connections, age_seconds=settings.connection_age_seconds),
        )
        self.port = settings.port
        self.mtls_port = settings.mtls_port
        self.metrics_port = settings.metrics_port

    async def run(self, stopping: asyncio.Event) -> bool:
        """Serves until `stopping` is set, then drains. Answers whether everything came to its end; otherwise something
        still waits for the database, and the process is to end without waiting for that. Errors: PortTaken before
        anything was begun."""
        async with AsyncExitStack() as stack:
            stack.push_async_callback(self.database.close)
            stack.push_async_callback(self._probes.stop)
            has_started = await self._start_unless(stopping)
            await stopping.wait()
            return await self.drain() and has_started

    async def _start_unless(self, stopping: asyncio.Event) -> bool:
        """Starts, or gives that up once `stopping` is set: migrating may wait for minutes. Answers whether it has."""
        starting = asyncio.create_task(self.start(), name="start")
        asked = asyncio.create_task(stopping.wait(), name="stopping")
        try:
            await asyncio.wait({starting, asked}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            asked.cancel()
            starting.cancel()
            await asyncio.wait({starting})
        if starting.cancelled():
            return False
        starting.result()
        return True

    async def start(self) -> None:
        """Listens and starts the loops, whether or not the database is there. Errors: PortTaken, TlsFilesError."""
        url = await self._probes.start(self._settings.host, self._settings.metrics_port)
        self.metrics_port = int(url.rpartition(":")[2])
        self._listen()
        if self._jwks is not None:
            self._jwks.start()
        await self._look()
        await self._engine.start()
        for loop in self._loops:
            loop.start()
        await self._server.start()
        self._looking.start()
        log.info(
            "listening",
            grpc=f"{self._settings.host}:{self.port}",
            mtls=f"{self._settings.host}:{self.mtls_port}" if self.mtls_port is not None else "none",
            http=url,
            replica=self._settings.replica,
        )

    def _listen(self) -> None:
        settings, transport = self._settings, self._settings.transport()
        credentials = server_credentials(transport.files) if transport.files else None
        self.port = listen(self._server, settings.host, settings.port, credentials)
        if transport.mtls_files and settings.mtls_port is not None:
            demanding = server_credentials(transport.mtls_files, demand_certificate=True)
            self.mtls_port = listen(self._server, settings.host, settings.mtls_port, demanding)

    async def drain(self) -> bool:
        """Begins nothing more, sends workers to other replicas, lets calls end, and commits what was reported. Answers
        whether all of it was done in its time; what was not goes on."""
        seconds = self._settings.drain_seconds
        log.info("draining", seconds=seconds)
        self._draining = True
        draining = asyncio.create_task(self._drain(seconds), name="drain")
        await asyncio.wait({draining}, timeout=seconds + _COMMIT_SECONDS)
        if not draining.done():
            log.warning("drained in part: workers send again what is not committed, to another replica")
            return False
        draining.result()
        log.info("drained")
        return True

    async def _drain(self, seconds: float) -> None:
        await self._health.drain()
        self._wakeups.end()
        await self._looking.stop(within=_LOOK_ENDS_SECONDS)
        stopping = asyncio.create_task(self._engine.stop_handing_out(), name="stop handing out")
        await asyncio.wait({stopping}, timeout=seconds * _TICKS_SHARE)
        await self._workers.drain(seconds * _STREAMS_SHARE)
        await self._server.stop(seconds * (1 - _STREAMS_SHARE - _TICKS_SHARE))
        await asyncio.gather(stopping, *(loop.stop() for loop in self._loops))
        await self._engine.drain()
        if self._jwks is not None:
            await self._jwks.stop()

    async def close(self) -> None:
        """Lets go of what was built, for an app that is not run."""
        await self._probes.stop()
        await self._server.stop(None)
        await self.database.close()

    def _credentials(self) -> Credentials:
        services = self._settings.transport().services_of_certificates()
        certificates = WorkerCertificates(services, required=self._settings.require_mtls)
        return Credentials(ServiceTokens(self._settings.tokens(), self._stored_tokens), self._jwts(), certificates)

    def _jwts(self) -> JwtVerifier:
        settings = self._settings
        if settings.development_jwt_secret.get_secret_value():
            log.warning("JWTs are signed with CARILLON_DEVELOPMENT_JWT_SECRET: whoever has it is anybody")
        users = UserDirectory.of(self.database) if settings.jwt_roles_from == "users" else None
        return JwtVerifier(settings.jwt_rules(), self._jwks, users)

    def _build_jwks(self) -> Jwks | None:
        settings = self._settings
        if not settings.jwks_url:
            return None
        return Jwks(settings.jwks_url, refresh=settings.jwks_refresh_seconds, max_age=settings.jwks_max_age_seconds)

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
            "carillon.v1.AuditService": partial(
                audit_service_pb2_grpc.add_AuditServiceServicer_to_server, AuditService(self.database)
            ),
        }

    def _session_loops(self) -> tuple[Loop, ...]:
        connect = self.database.hot_connection
        return (
            LeaseLoop(connect, self._leases),
            ReportLoop(connect, self._reports),
            ServiceTokenLoop(connect, self._stored_tokens),
            self._reaper,
            self._sealer,
            self._pulse,
        )

    def _all_loops(self) -> tuple[Loop, ...]:
        return (*self._engine.loops, *self._loops, self._looking)

    def _build_reaper(self) -> ReaperLoop:
        reaper = Reaper(
            self._sessions,
            self._leases,
            self._wakeups,
            replica=self._settings.replica,
        )
        return ReaperLoop(self.database.hot_connection, reaper, Cancels(self._sessions), self._wakeups)

    def _migration(self) -> partial[int] | None:
        url = self._settings.migration_url.get_secret_value()
        return partial(migrate, url, self._settings.logins()) if url else None

    async def _look(self) -> None:
        await self._readiness.look()
        problem = self._readiness.problem or self._pulse.pulses.problem()
        if problem == self._problem:
            return
        self._problem = problem
        await self._health.set(problem)
        if problem:
            log.warning("not serving", why=problem)
        else:
            log.info("serving")
            for loop in self._all_loops():
                loop.hurry()
            self._wakeups.wake_here(Topic.SCHEDULES)
            for statement in self._readiness.advice:
                log.warning("a login lacks settings; run the statement as a role that may alter it", sql=statement)

    def _answer_readyz(self) -> tuple[bool, str]:
        if self._draining:
            return False, "draining"
        # Who does not look any more does not know of a problem either.
        if problem := self._problem or self._pulse.pulses.dead(self._looking.name):
            return False, problem
        warning = self._pulse.pulses.warning()
        return True, "serving" if warning is None else f"serving, but {warning}"
