"""The place of a fault run: real processes on one PostgreSQL, with a fault proxy between each two that talk.

    client-1, client-2, http-service ──► scheduler-1, scheduler-2, scheduler-3 (at times) ──► postgres
    worker-1, worker-2, worker-3     ──►
    worker-3 ──► http-service
    scheduler-2 ──► pgbouncer ──► postgres, and straight there only to LISTEN

Everything is started, ended and asked for whether it is ready by its name.
Where there is no PgBouncer, scheduler-2 is as the others.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import grpc.aio
import psycopg
from grpc_health.v1 import health_pb2, health_pb2_grpc
from sqlalchemy.engine import make_url

from local_stack.errors import LocalStackError
from local_stack.ports import LOCALHOST
from local_stack.postgres import EmbeddedPostgres
from local_stack.processes import Processes
from tests.conftest import DatabaseUrls
from tests.e2e.cluster import Cluster, fetch
from tests.e2e.moved_clock import MovedClock
from tests.faults.journal import Journal
from tests.faults.names import (
    ALWAYS,
    BEHIND,
    CLIENTS,
    HANDLER_WORKERS,
    HTTP_WORKER,
    PGBOUNCER,
    POSTGRES,
    SCHEDULERS,
    SERVICE,
    WORKERS,
)
from tests.faults.plan import Plan
from tests.faults.proxy import FaultProxy
from tests.pgbouncer import PgBouncer, Program
from tests.ports import lasting_port

T = TypeVar("T")

READY_WITHIN = 90.0
ENDED_BY_ITSELF = "PgBouncer ended by itself"
"""A fault that nobody made."""

_POLL = 0.1
_SERVER_CONNECTIONS = 5  # of each login, behind PgBouncer
# By default it asks a server that was away only after 15 s.
_NOT_PATIENT = {"server_login_retry": 1}
_OWN_CONNECTION = (("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0))


class NotReady(Exception):
    """A process did not become ready although it had long enough; the text says which."""


class Site:
    """To be entered; whoever leaves it leaves no process behind. `home` gets logs, effects and secrets. `pgbouncer`:
    the program, where there is one."""

    def __init__(
        self, home: Path, server: EmbeddedPostgres, urls: DatabaseUrls, plan: Plan, pgbouncer: Program | None = None
    ) -> None:
        self.home = home
        self.server = server
        self.urls = urls
        self.journal = Journal()
        self.effects = home / "effects"
        self.effects.mkdir(parents=True, exist_ok=True)
        leases = {"lease_seconds": plan.lease, "heartbeat_seconds": plan.heartbeat, "drain_seconds": 4}
        self.cluster = Cluster(home, urls, changes_per_second=10_000, triggers_per_second=10_000, **leases)
        self.clock = MovedClock(home)
        self.links: dict[str, FaultProxy] = {}
        self.workers_by_pid: dict[int, str] = {}
        self._proxies = ExitStack()
        self._ports = {name: lasting_port() for name in (HTTP_WORKER, SERVICE)}
        self._wanted: set[str] = set()
        self._started: dict[str, float] = {}
        self._pgbouncer_program = pgbouncer
        self._pgbouncer: PgBouncer | None = None
        self._pooling = Processes(home / "logs", grace=5.0)
        self._keeping: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Site:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self._continue_all()
            if self._keeping is not None:
                self._keeping.cancel()
                await asyncio.gather(self._keeping, return_exceptions=True)
            await self._pooling.stop()
            await self.cluster.__aexit__(kind, error, trace)
        finally:
            self._proxies.close()

    async def start_all(self) -> None:
        """Everything that is always there, ready."""
        self._lay_links()
        bouncers = (PGBOUNCER,) if self._pgbouncer is not None else ()
        self._keeping = asyncio.create_task(self._keep_pgbouncer())
        for names in (bouncers, ALWAYS, (SERVICE,), WORKERS):
            for name in names:
                await self.start(name)
            for name in names:
                await self.ready(name)

    # Processes.

    async def start(
        self, name: str, environment: Mapping[str, str] | None = None, *, module: str = "scheduler_service"
    ) -> None:
        """Returns once the process is there; `ready` waits until it works. `module`: what a scheduler runs."""
        self._wanted.add(name)
        self._started[name] = time.monotonic()
        self.cluster.environments[name] = environment or {}
        if name in SCHEDULERS:
            await self.cluster.start_scheduler(name, ready=False, module=module, **self._database_of(name))
        elif name == PGBOUNCER:
            await self._start_pgbouncer()
        elif name == HTTP_WORKER:
            port, target = self._ports[name], self.target_of(name)
            await self.cluster.start_worker_service(name, ready=False, worker_port=port, target=target, drain_seconds=5)
        else:
            await self._start_program(name, environment or {})

    async def ready(self, name: str, within: float = READY_WITHIN) -> None:
        """Waits until it is. Errors: NotReady, so many seconds after it was last started."""
        await self._until(partial(self.is_ready, name), name, f"{name} was not ready", within)

    async def settled(self, name: str, within: float = READY_WITHIN) -> None:
        """Waits until it is ready, or is not meant to run: others may end it meanwhile, and see to its coming back.
        Errors: NotReady."""

        async def is_settled() -> bool:
            return not self.is_there(name) or await self.is_ready(name)

        await self._until(is_settled, name, f"{name} was not ready", within)

    async def is_ready(self, name: str) -> bool:
        if name in HANDLER_WORKERS:
            file = self._connected_file(name)
            return file.exists() and file.read_text() == str(self.cluster.processes.pid(name))
        if name in SCHEDULERS:
            return await _answers(f"{self.cluster.schedulers[name].metrics_port}/readyz")
        if name == PGBOUNCER:
            return self._pgbouncer is not None and await self._pgbouncer.answers()
        return await _answers(f"{self._ports[name]}/readyz" if name == HTTP_WORKER else f"{self._ports[name]}/")

    async def kill(self, name: str) -> None:
        self._wanted.discard(name)
        await self._processes_of(name).end(name, signal.SIGKILL)

    async def terminate(self, name: str) -> int:
        self._wanted.discard(name)
        return await self._processes_of(name).end(name, signal.SIGTERM)

    def is_there(self, name: str) -> bool:
        """Whether it is meant to run now."""
        return name in self._wanted

    def schedulers(self) -> list[str]:
        """Those that are meant to run now."""
        return [name for name in SCHEDULERS if name in self._wanted]

    def signal(self, name: str, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            os.kill(self._processes_of(name).pid(name), number)

    def is_stopped(self, name: str) -> bool:
        """Whether SIGSTOP has its process."""
        try:
            stat = Path(f"/proc/{self.cluster.processes.pid(name)}/stat").read_text()
        except FileNotFoundError:
            return False
        return stat.rpartition(")")[2].split()[0] == "T"

    def environment_of_moved_clock(self) -> Mapping[str, str]:
        return self.clock.environment

    # PostgreSQL.

    async def as_admin(self, do: Callable[[psycopg.Connection[Any]], T]) -> T:
        """Calls it in a thread with a connection of a superuser, past every proxy."""

        def call() -> T:
            with psycopg.connect(self.urls.admin, autocommit=True, connect_timeout=5) as admin:
                return do(admin)

        return await asyncio.to_thread(call)

    async def rows(self, query: Any, values: Any = None) -> list[tuple[Any, ...]]:
        return await self.as_admin(lambda admin: admin.execute(query, values).fetchall())

    async def all_ready(self, within: float = READY_WITHIN) -> None:
        """Every process that is meant to run. Errors: NotReady."""
        for name in sorted(self._wanted):
            await self.settled(name, within)

    # Links.

    def has(self, target: str) -> bool:
        """Whether this process or link is here, or may be."""
        return target in self.links if ">" in target else target != PGBOUNCER or self._pgbouncer is not None

    def target_of(self, name: str) -> str:
        """Every scheduler's address for this worker or client, by its proxies."""
        return "ipv4:" + ",".join(self.links[f"{name}>{scheduler}"].address for scheduler in SCHEDULERS)

    async def passes(self, link: str) -> None:
        """Waits until a call goes through it, where the other end is meant to be there. Errors: NotReady."""
        name, _, scheduler = link.partition(">")
        if scheduler in (POSTGRES, PGBOUNCER):
            await self.settled(BEHIND if name == PGBOUNCER else name)
            return

        async def passes() -> bool:
            return not self.is_there(scheduler) or await _serves(self.links[link].address)

        await self._until(passes, scheduler, f"a call by {link} was not answered")

    def heal_links(self) -> None:
        """Whatever was swallowed is lost for good, so connections begin anew."""
        for proxy in self.links.values():
            proxy.heal()
            proxy.reset()

    def _lay_links(self) -> None:
        for scheduler in SCHEDULERS:
            self.cluster.place_scheduler(scheduler)
            self._lay(f"{scheduler}>{POSTGRES}", self.server.port)
        for name, scheduler in itertools.product((*WORKERS, *CLIENTS, SERVICE), SCHEDULERS):
            self._lay(f"{name}>{scheduler}", self.cluster.schedulers[scheduler].port)
        if self._pgbouncer_program is not None:
            self._lay(f"{PGBOUNCER}>{POSTGRES}", self.server.port)
            logins = [_by(self.links[f"{PGBOUNCER}>{POSTGRES}"], url) for url in (self.urls.api, self.urls.engine)]
            self._pgbouncer = PgBouncer(
                self.home / PGBOUNCER,
                self._pgbouncer_program,
                pool_size=_SERVER_CONNECTIONS,
                logins=logins,
                settings=_NOT_PATIENT,
            )
            self._lay(f"{BEHIND}>{PGBOUNCER}", self._pgbouncer.port)

    def _database_of(self, scheduler: str) -> dict[str, str]:
        """Its settings."""
        straight = self.links[f"{scheduler}>{POSTGRES}"]
        pooled = self.links.get(f"{scheduler}>{PGBOUNCER}")
        used = straight if pooled is None else pooled
        urls = {"database_url": _by(used, self.urls.api), "engine_url": _by(used, self.urls.engine)}
        return urls if pooled is None else urls | {"listen_url": _by(straight, self.urls.engine)}

    def _lay(self, link: str, port: int) -> None:
        self.links[link] = self._proxies.enter_context(FaultProxy((LOCALHOST, port)))

    def _processes_of(self, name: str) -> Processes:
        """What ends by itself is told of the cluster's, and of PgBouncer is not: that is none of Carillon's."""
        return self._pooling if name == PGBOUNCER else self.cluster.processes

    async def _start_pgbouncer(self) -> None:
        """If it does not run."""
        assert self._pgbouncer is not None
        with suppress(LocalStackError):
            await self._pooling.start(PGBOUNCER, self._pgbouncer.argv, self._pgbouncer.environment)

    async def _keep_pgbouncer(self) -> None:
        """As whoever runs it does: it has faults of its own (1.18 gives up with "bad client state")."""
        while True:
            with suppress(LocalStackError):
                await self._pooling.watch()
            if self.is_there(PGBOUNCER):
                with self.journal.fault(ENDED_BY_ITSELF, PGBOUNCER):
                    await self._start_pgbouncer()
                    await self.ready(PGBOUNCER)

    async def _start_program(self, name: str, environment: Mapping[str, str]) -> None:
        own = {
            "EFFECT_FOLDER": str(self.effects),
            "EFFECT_WORKER": HTTP_WORKER if name == SERVICE else name,
            "CARILLON_TARGET": self.target_of(name),
        }
        if name == SERVICE:
            own |= {
                "SERVICE_PORT": str(self._ports[name]),
                "CARILLON_SERVICE_TOKEN": self.cluster.secrets.email_service_token,
            }
            module = "tests.faults.fault_service"
        else:
            own["CONNECTED_FILE"] = str(self._connected_file(name))
            module = "tests.faults.fault_worker"
        pid = await self.cluster.start_program(name, module, own | dict(environment))
        self.workers_by_pid[pid] = name

    async def _until(
        self, holds: Callable[[], Awaitable[bool]], name: str, else_say: str, within: float = READY_WITHIN
    ) -> None:
        began = time.monotonic()
        while not await holds():
            # Others may end it meanwhile, and start it again.
            if time.monotonic() > max(began, self._started.get(name, began)) + within:
                broken = ", ".join(self.journal.open) or "nothing"
                raise NotReady(f"{else_say} within {within:g} s; broken then: {broken}")
            await asyncio.sleep(_POLL)

    def _connected_file(self, name: str) -> Path:
        return self.home / f"{name}.connected"

    async def _continue_all(self) -> None:
        """What is stopped by SIGSTOP would outlive its SIGTERM for the whole grace."""
        for name in self._wanted:
            self.signal(name, signal.SIGCONT)


def _by(link: FaultProxy, url: str) -> str:
    return make_url(url).set(port=link.port).render_as_string(hide_password=False)


async def _serves(address: str) -> bool:
    """Whether a scheduler's health answers there, be it that it does not serve."""
    async with grpc.aio.insecure_channel(address, options=_OWN_CONNECTION) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        try:
            await stub.Check(health_pb2.HealthCheckRequest(), timeout=2)
        except grpc.aio.AioRpcError as error:
            return error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
    return True


async def _answers(where: str) -> bool:
    status, _ = await fetch(f"http://{LOCALHOST}:{where}")
    return status == 200
