"""The place of a fault run: real processes on one PostgreSQL, with a fault proxy between each two that talk.

    client-1, client-2, http-service ──► scheduler-1, scheduler-2, scheduler-3 (at times) ──► postgres
    worker-1, worker-2, worker-3     ──►
    worker-3 ──► http-service

A link is named `worker-1>scheduler-2`. Everything is started, ended and asked for whether it is ready by its name.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
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

from local_stack.ports import LOCALHOST, free_port
from local_stack.postgres import EmbeddedPostgres
from tests.conftest import DatabaseUrls
from tests.e2e.cluster import Cluster, fetch
from tests.e2e.moved_clock import MovedClock
from tests.faults.journal import Journal
from tests.faults.plan import Plan
from tests.faults.proxy import FaultProxy

T = TypeVar("T")

SCHEDULERS = ("scheduler-1", "scheduler-2", "scheduler-3")
ALWAYS = SCHEDULERS[:2]
"""The third is there at times."""
HANDLER_WORKERS = ("worker-1", "worker-2")
HTTP_WORKER = "worker-3"
WORKERS = (*HANDLER_WORKERS, HTTP_WORKER)
SERVICE = "http-service"
CLIENTS = ("client-1", "client-2")
POSTGRES = "postgres"
READY_WITHIN = 90.0

_POLL = 0.1
_OWN_CONNECTION = (("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0))


class NotReady(Exception):
    """A process did not become ready although it had long enough; the text says which."""


class Site:
    """To be entered; whoever leaves it leaves no process behind. `home` gets logs, effects and secrets."""

    def __init__(self, home: Path, server: EmbeddedPostgres, urls: DatabaseUrls, plan: Plan) -> None:
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
        self._ports = {name: free_port() for name in (HTTP_WORKER, SERVICE)}
        self._wanted: set[str] = set()

    async def __aenter__(self) -> Site:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self._continue_all()
            await self.cluster.__aexit__(kind, error, trace)
        finally:
            self._proxies.close()

    async def start_all(self) -> None:
        """Everything that is always there, ready."""
        self._lay_links()
        for names in (ALWAYS, (SERVICE,), WORKERS):
            for name in names:
                await self.start(name)
            for name in names:
                await self.ready(name)

    # Processes.

    async def start(self, name: str, environment: Mapping[str, str] | None = None, *, failing: bool = False) -> None:
        """Returns once the process is there; `ready` waits until it works. `failing`: a scheduler of which some store
        calls fail."""
        self._wanted.add(name)
        self.cluster.environments[name] = environment or {}
        if name in SCHEDULERS:
            module = "tests.faults.failing_scheduler" if failing else "scheduler_service"
            link = self.links[f"{name}>{POSTGRES}"]
            urls = {"database_url": _by(link, self.urls.api), "engine_url": _by(link, self.urls.engine)}
            await self.cluster.start_scheduler(name, ready=False, module=module, **urls)
        elif name == HTTP_WORKER:
            port, target = self._ports[name], self.target_of(name)
            await self.cluster.start_worker_service(name, ready=False, worker_port=port, target=target, drain_seconds=5)
        else:
            await self._start_program(name, environment or {})

    async def ready(self, name: str, within: float = READY_WITHIN) -> None:
        """Waits until it is. Errors: NotReady."""
        await self._until(partial(self.is_ready, name), f"{name} was not ready", within)

    async def is_ready(self, name: str) -> bool:
        if name in HANDLER_WORKERS:
            file = self._connected_file(name)
            return file.exists() and file.read_text() == str(self.cluster.processes.pid(name))
        if name in SCHEDULERS:
            return await _answers(f"{self.cluster.schedulers[name].metrics_port}/readyz")
        return await _answers(f"{self._ports[name]}/readyz" if name == HTTP_WORKER else f"{self._ports[name]}/")

    async def kill(self, name: str) -> None:
        self._wanted.discard(name)
        await self.cluster.kill(name)

    async def terminate(self, name: str) -> int:
        self._wanted.discard(name)
        return await self.cluster.terminate(name)

    def is_there(self, name: str) -> bool:
        """Whether it is meant to run now."""
        return name in self._wanted

    def schedulers(self) -> list[str]:
        """Those that are meant to run now."""
        return [name for name in SCHEDULERS if name in self._wanted]

    def signal(self, name: str, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.cluster.processes.pid(name), number)

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
            await self.ready(name, within)

    # Links.

    def target_of(self, name: str) -> str:
        """Every scheduler's address for this worker or client, by its proxies."""
        return "ipv4:" + ",".join(self.links[f"{name}>{scheduler}"].address for scheduler in SCHEDULERS)

    async def passes(self, link: str) -> None:
        """Waits until a call goes through it, where the other end is meant to be there. Errors: NotReady."""
        name, _, scheduler = link.partition(">")
        if scheduler == POSTGRES:
            if self.is_there(name):
                await self.ready(name)
        elif self.is_there(scheduler):
            await self.ready(scheduler)
            await self._until(partial(_serves, self.links[link].address), f"a call by {link} was not answered")

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

    def _lay(self, link: str, port: int) -> None:
        self.links[link] = self._proxies.enter_context(FaultProxy((LOCALHOST, port)))

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

    async def _until(self, holds: Callable[[], Awaitable[bool]], else_say: str, within: float = READY_WITHIN) -> None:
        try:
            async with asyncio.timeout(within):
                while not await holds():  # noqa: ASYNC110 - what is asked is another process
                    await asyncio.sleep(_POLL)
        except TimeoutError:
            broken = ", ".join(self.journal.open) or "nothing"
            raise NotReady(f"{else_say} within {within:g} s; broken then: {broken}") from None

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
