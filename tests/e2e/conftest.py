"""What end-to-end tests share: a service that keeps what it receives, and waiting for a run to end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import web
from carillon import Client, Jobs
from carillon.v1 import run_pb2

from local_stack.ports import LOCALHOST
from local_stack.postgres import EmbeddedPostgres
from tests.conftest import fresh_database
from tests.e2e.cluster import PATIENCE, Cluster

SERVICE = "email-service"


@dataclass(frozen=True)
class Call:
    """One request of a worker."""

    headers: dict[str, str]
    body: dict[str, Any]

    @property
    def run(self) -> str:
        return self.headers["Idempotency-Key"]

    @property
    def attempt(self) -> int:
        return int(self.headers["Carillon-Attempt"])


Answer = Callable[[Call], Awaitable[web.Response]]


async def _say_ok(_call: Call) -> web.Response:
    return web.Response()


class Service:
    """An HTTP service of a test's own. `calls` gets each request; `answer` may be set to answer otherwise."""

    def __init__(self) -> None:
        self.calls: asyncio.Queue[Call] = asyncio.Queue()
        self.answer: Answer = _say_ok
        self.base_url = ""

    async def next_call(self) -> Call:
        return await asyncio.wait_for(self.calls.get(), PATIENCE)

    def jobs(self, cluster: Cluster) -> Jobs:
        """To declare the service's jobs with."""
        return Jobs(SERVICE, target=cluster.target, token=cluster.secrets.email_service_token, base_url=self.base_url)

    async def receive(self, request: web.Request) -> web.Response:
        call = Call(dict(request.headers), await request.json())
        self.calls.put_nowait(call)
        return await self.answer(call)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared_cluster(
    postgres: EmbeddedPostgres, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Cluster]:
    """A scheduler and a worker service for those tests of a file that stop neither and leave no run live.

    Its processes belong to another event loop than a test's: a test may call them, and not end them.
    """
    with fresh_database(postgres) as urls:
        async with Cluster(tmp_path_factory.mktemp("shared"), urls, drain_seconds=6) as cluster:
            await cluster.start_scheduler()
            await cluster.start_worker_service()
            yield cluster


@pytest.fixture
async def service() -> AsyncIterator[Service]:
    service = Service()
    app = web.Application()
    app.router.add_post("/{path:.*}", service.receive)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, LOCALHOST, 0).start()
    service.base_url = f"http://{LOCALHOST}:{runner.addresses[0][1]}"
    yield service
    await runner.cleanup()


async def ended(client: Client, run: str) -> run_pb2.Run:
    """The run, once it has ended."""
    async with asyncio.timeout(PATIENCE):
        # The stream of one run ends with the run.
        return [state async for state in client.watch_runs(run=run)][-1]
