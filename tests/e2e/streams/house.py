"""Scheduler replicas in the test's process, each behind a proxy that breaks, and real workers' sessions before them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import psycopg
import structlog
from carillon.execution import Assignment, Completed, Run
from carillon.session import WorkerSession

from local_stack.ports import LOCALHOST
from scheduler_service.app import App
from tests.builders import MadeJob, make_live_run
from tests.conftest import DatabaseUrls
from tests.faults.proxy import FaultProxy
from tests.security.schedulers import WORKER_TOKEN, scheduler

LEASE = 3.0
"""For what waits until one has run out, and in which nobody has to keep it."""
FOUND_OUT = 9.0
"""A lease for where a worker has to find out by itself that its replica is away: it does so after a third of it."""
LONG_LEASE = 30.0
"""For what does not wait for its end: no machine is so slow that it runs out meanwhile."""
HEARTBEAT = 0.3
BOUND = 30.0
"""Seconds after which it is certain that what is waited for never comes, also on a machine with much else to do."""
PATIENCE = 60.0
DRAIN = 60.0
"""Seconds of a scheduler's drain: a quarter of them is for its workers to go elsewhere."""

_log = structlog.get_logger()


@dataclass(eq=False)
class Replica:
    """One scheduler, and what workers reach it through."""

    name: str
    app: App
    proxy: FaultProxy


class Hands:
    """An executor that keeps what it does. Its runs wait until `may_end` is set."""

    routes = ("http",)

    def __init__(self) -> None:
        self.may_end = asyncio.Event()
        self.may_end.set()
        self.begun: list[tuple[UUID, int]] = []
        self.done: list[tuple[UUID, int]] = []
        self.stopped_at: dict[UUID, float] = {}

    async def execute(self, assignment: Assignment, run: Run) -> Completed:
        self.begun.append((run.run_id, run.attempt))
        try:
            await self.may_end.wait()
        except asyncio.CancelledError:
            self.stopped_at[run.run_id] = time.time()
            raise
        self.done.append((run.run_id, run.attempt))
        return Completed()


@dataclass(eq=False)
class House:
    """Replicas, workers and the database."""

    urls: DatabaseUrls
    admin: psycopg.Connection[Any]
    job: MadeJob
    stack: AsyncExitStack
    replicas: list[Replica] = field(default_factory=list)

    @property
    def target(self) -> str:
        """Every replica's proxy, in gRPC's syntax."""
        return "ipv4:" + ",".join(replica.proxy.address for replica in self.replicas)

    async def open_replica(self, at: tuple[str, int] = (LOCALHOST, 0), **settings: Any) -> Replica:
        """`at`: where its proxy listens; port 0: on a free one."""
        name = f"replica-{len(self.replicas) + 1}"
        given = {
            "lease_seconds": LONG_LEASE,
            "heartbeat_seconds": HEARTBEAT,
            "drain_seconds": DRAIN,
            "replica": name,
        }
        app = await self.stack.enter_async_context(scheduler(self.urls, **(given | settings)))
        proxy = self.stack.enter_context(FaultProxy((LOCALHOST, app.port), host=at[0], port=at[1]))
        self.replicas.append(Replica(name, app, proxy))
        return self.replicas[-1]

    async def open_worker(
        self, hands: Hands, name: str = "worker-1", *, target: str = "", **options: Any
    ) -> WorkerSession:
        """A session that is connected."""
        session = self.begin_worker(hands, name, target=target, **options)[0]
        await self.connected(session)
        return session

    def begin_worker(
        self, hands: Hands, name: str = "worker-1", *, target: str = "", **options: Any
    ) -> tuple[WorkerSession, asyncio.Task[None]]:
        given: dict[str, Any] = {"concurrency": 20} | options
        session = WorkerSession(target=target or self.target, token=WORKER_TOKEN, executors=[hands], name=name, **given)
        task = asyncio.create_task(session.run())
        self.stack.push_async_callback(_ended, task)
        return session, task

    def replica_of(self, session: WorkerSession) -> Replica:
        """Where it is connected. Errors: StopIteration if it is not."""
        return next(each for each in self.replicas if each.name == session.state().replica)

    def others(self, replica: Replica) -> Sequence[Replica]:
        return [each for each in self.replicas if each is not replica]

    async def connected(self, session: WorkerSession, to: Replica | None = None) -> None:
        """Returns once it is, to this replica."""
        assert await session.wait_until(
            lambda state: state.connected and to in (None, self.replica_of(session)), PATIENCE
        ), session.state()

    def make_runs(self, count: int = 1, **columns: Any) -> list[UUID]:
        return [make_live_run(self.admin, self.job, **columns) for _ in range(count)]

    def one(self, query: str) -> Any:
        """The first column of a query's one row; None if there is no row."""
        row = self.admin.execute(query.encode()).fetchone()
        return row[0] if row else None

    def completed(self) -> int:
        return int(self.one("select count(*) from carillon.runs where state = 'COMPLETED'"))

    async def until_completed(self, count: int, seconds: float = BOUND) -> None:
        """Returns once at least so many are."""
        await until(lambda: self.completed() >= count, seconds)

    def claimed(self) -> int:
        return int(self.one("select count(*) from carillon.live_runs where session_id is not null"))

    def outcomes(self) -> list[tuple[UUID, str, int]]:
        """Of each run that has ended: its state and last attempt."""
        return self.admin.execute("select run_id, state::text, attempt from carillon.runs order by run_id").fetchall()

    def all_once(self, run_ids: Sequence[UUID], *hands: Hands) -> None:
        """Each of these runs was done once, with its first attempt, and nothing else has happened."""
        assert self.outcomes() == [(run_id, "COMPLETED", 1) for run_id in sorted(run_ids)]
        done = sorted(each for hand in hands for each in hand.done)
        assert done == [(run_id, 1) for run_id in sorted(run_ids)]
        assert self.one("select count(*) from carillon.live_runs") == 0
        assert self.one("select count(*) from carillon.attempts") == 0

    @contextmanager
    def recovering(self) -> Iterator[None]:
        """From the fault until all is well again: the figures of docs/reliability.md."""
        since = time.monotonic()
        yield
        _log.info("recovered within", seconds=round(time.monotonic() - since, 2))


async def until(holds: Callable[[], Any], seconds: float = BOUND) -> None:
    """Waits for what nothing announces. Errors: AssertionError if it is not so in time."""
    try:
        async with asyncio.timeout(seconds):
            while not holds():  # noqa: ASYNC110  # nothing announces it
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(f"it was not so within {seconds:g} s") from None


@asynccontextmanager
async def a_house(urls: DatabaseUrls, admin: psycopg.Connection[Any], job: MadeJob) -> AsyncIterator[House]:
    async with AsyncExitStack() as stack:
        yield House(urls, admin, job, stack)


@asynccontextmanager
async def session_of(hands: Hands, target: str, token: str) -> AsyncIterator[WorkerSession]:
    """A worker's session with schedulers that are not of a house."""
    session = WorkerSession(target=target, token=token, executors=[hands], name="worker-1", concurrency=20)
    task = asyncio.create_task(session.run())
    try:
        yield session
    finally:
        await _ended(task)


async def _ended(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
