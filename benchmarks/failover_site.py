"""What `make bench-failover` breaks: two schedulers and some workers, each a process, on a PostgreSQL of their own."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
from carillon import Client, NotFound

from benchmarks.failover_worker import HOLD
from benchmarks.place import now
from local_stack.ports import LOCALHOST, free_port
from local_stack.postgres import ADMIN, EmbeddedPostgres
from scheduler_service.store.logins import API_ROLE, ENGINE_ROLE, Login
from scheduler_service.store.migrations import migrate
from tests import canary
from tests.conftest import DatabaseUrls
from tests.e2e.cluster import Cluster, eventually, fetch

SCHEDULERS = ("scheduler-1", "scheduler-2")

_PATIENCE = 120.0
_SESSIONS = "select worker, replica from carillon.sessions"
_STARTED = """
select s.worker, s.replica from carillon.live_runs r join carillon.sessions s using (session_id)
where r.run_id = %s and r.attempt = %s and r.started_at is not null
"""
_ENDED = "select finished_at from carillon.runs where run_id = %s"


@dataclass(frozen=True)
class Held:
    """A run that a worker is in the middle of, and the replica that the worker is connected to."""

    run_id: UUID
    worker: str
    replica: str


@dataclass(frozen=True)
class Server:
    """PostgreSQL, on a port that it keeps."""

    postgres: EmbeddedPostgres
    urls: DatabaseUrls

    async def stop_at_once(self) -> datetime:
        """SIGQUIT to the postmaster: no checkpoint, and recovery at the start. Answers when it had ended."""
        pid = self.postgres.pid
        assert pid is not None
        os.kill(pid, signal.SIGQUIT)
        while self.postgres.pid is not None:  # noqa: ASYNC110 - another process
            await asyncio.sleep(0.01)
        return now()

    async def start(self) -> datetime:
        """Answers when it took connections."""
        await asyncio.to_thread(self.postgres.start)
        return now()

    async def rows(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        """By a superuser, on a connection of its own: what a scheduler does to its connections is not shared."""

        def ask() -> list[tuple[Any, ...]]:
            with psycopg.connect(self.urls.admin, autocommit=True, connect_timeout=5) as admin:
                return admin.execute(query.encode(), values).fetchall()

        return await asyncio.to_thread(ask)


class FailoverSite:
    """The processes, all of them up and connected. `client`: an admin's, to both schedulers."""

    def __init__(self, server: Server, cluster: Cluster, client: Client, hold_folder: Path) -> None:
        self.server = server
        self.cluster = cluster
        self.client = client
        self._folder = hold_folder
        self._names: dict[str, str] = {}

    async def start_worker(self, name: str) -> None:
        """Returns once it is connected."""
        environment = {"HOLD_FOLDER": str(self._folder)}
        pid = await self.cluster.start_program(name, "benchmarks.failover_worker", environment)
        self._names[str(pid)] = name

        async def is_connected() -> bool:
            return any(self._name(worker) == name for worker, _ in await self.server.rows(_SESSIONS))

        await eventually(is_connected, seconds=_PATIENCE)

    async def hold(self) -> Held:
        """A run by hand, once a worker has begun it."""
        run = await eventually(self._trigger, seconds=_PATIENCE)
        assert run is not None
        return await self.started(run, 1)

    async def started(self, run: UUID, attempt: int) -> Held:
        """Waits until a worker has begun that attempt."""
        rows = await eventually(lambda: self.server.rows(_STARTED, run, attempt), seconds=_PATIENCE)
        ((worker, replica),) = rows
        return Held(run, self._name(worker), replica)

    def let_go(self, run: UUID) -> None:
        (self._folder / str(run)).touch()

    async def ended(self, run: UUID) -> datetime:
        """Waits until the run has ended, and answers when it did."""
        ((finished_at,),) = await eventually(lambda: self.server.rows(_ENDED, run), seconds=_PATIENCE)
        assert isinstance(finished_at, datetime)
        return finished_at

    async def all_ready(self) -> None:
        for scheduler in self.cluster.schedulers.values():
            await eventually(partial(_is_ready, scheduler.metrics_port), seconds=_PATIENCE)

    async def _trigger(self) -> UUID | None:
        """None while no worker has declared the job."""
        with suppress(NotFound):
            (run,) = await self.client.trigger_job(HOLD)
            return UUID(run.name.removeprefix("runs/"))
        return None

    def _name(self, worker: str) -> str:
        """Which of ours a worker is that calls itself `service@host:pid`."""
        return self._names.get(worker.rpartition(":")[2], "")


@contextmanager
def server_of_its_own(home: Path) -> Iterator[Server]:
    """Migrated, and removed afterwards."""
    postgres = EmbeddedPostgres(home / "postgres", port=free_port())
    try:
        postgres.start()
        postgres.create_database("carillon")
        password = canary.secret("database")
        urls = DatabaseUrls(
            api=postgres.url(API_ROLE, password), engine=postgres.url(ENGINE_ROLE, password), admin=postgres.url(ADMIN)
        )
        migrate(urls.admin, [Login(API_ROLE, urls.api), Login(ENGINE_ROLE, urls.engine)])
        yield Server(postgres, urls)
    finally:
        postgres.remove()


@asynccontextmanager
async def site(
    home: Path, server: Server, workers: Sequence[str], settings: Mapping[str, float]
) -> AsyncIterator[FailoverSite]:
    """`settings`: of the schedulers, as variables without `CARILLON_`. Nothing is left running."""
    folder = home / "held"
    folder.mkdir(parents=True, exist_ok=True)
    async with Cluster(home, server.urls, **settings) as cluster:
        for name in SCHEDULERS:
            await cluster.start_scheduler(name)
        async with cluster.client() as client:
            made = FailoverSite(server, cluster, client, folder)
            for name in workers:
                await made.start_worker(name)
            yield made


async def _is_ready(port: int) -> bool:
    status, _ = await fetch(f"http://{LOCALHOST}:{port}/readyz")
    return status == 200
