"""A real HTTP server in this process, and an executor that calls it."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import replace
from datetime import datetime, timezone
from typing import Any

import pytest
from aiohttp import web
from carillon.execution import Assignment, Completed, Failed, Run
from yarl import URL

from worker_service.targets import http
from worker_service.targets.allowed import Gate, Target
from worker_service.targets.http import HttpExecutor
from worker_service.targets.networks import Networks, read_network
from worker_service.targets.resolving import Names
from worker_service.targets.signing import Signer

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Serve = Callable[[Handler], Awaitable[str]]

A_RUN = Assignment(
    run_id=uuid.UUID("019a9f3e-7c00-8000-8000-000000000001"),
    attempt=2,
    claim_id=77,
    max_attempts=3,
    service="email-service",
    job="weekly-digest",
    tenant="acme-in",
    endpoint="",
    payload_json='{"batchSize": 100}',
    attempt_timeout=90.5,
    cancel_grace=30.0,
    scheduled_time=datetime(2026, 11, 23, 14, 0, tzinfo=timezone.utc),
    trigger_source="SCHEDULE",
    labels={"job_type": "digest"},
)

# Tests' own services are on this machine.
ANYWHERE = (Target("*", None),)
LOOPBACK = Networks([read_network("127.0.0.0/8"), read_network("::1")])


class NoReports:
    """An endpoint reports nothing while it works, so nothing may arrive here."""

    def progressed(self) -> None:
        raise AssertionError("an HTTP run reported progress")

    def item_done(self, key: str, error: str | None) -> None:
        raise AssertionError("an HTTP run reported an item")


class Caller:
    """Carries out A_RUN at an endpoint, and keeps what the executor said about each call."""

    def __init__(self) -> None:
        self.calls: list[int | None] = []
        self.executor: HttpExecutor

    async def execute(self, endpoint: str, **changes: Any) -> Completed:
        assignment = replace(A_RUN, endpoint=endpoint, **changes)
        return await self.executor.execute(assignment, Run(assignment, NoReports()))

    async def failure(self, endpoint: str, **changes: Any) -> Failed:
        with pytest.raises(Failed) as caught:
            await self.execute(endpoint, **changes)
        return caught.value

    def observe(self, status: int | None, seconds: float) -> None:
        assert seconds >= 0
        self.calls.append(status)


@pytest.fixture
def base_urls() -> Mapping[str, URL]:
    """Override it to give the executor a deployment's base URLs."""
    return {}


@pytest.fixture
async def gate() -> AsyncIterator[Gate]:
    """Lets through to any host and port, at loopback and public addresses."""
    async with Names() as names:
        yield Gate(ANYWHERE, LOOPBACK, names)


@pytest.fixture
def signer() -> Signer:
    """Override it to give the executor keys."""
    return Signer({})


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections are not given up for having been idle for a while, which would hide why they were. Ask for it before
    `caller`, as a mark does."""
    monkeypatch.setattr(http, "KEEPALIVE_TIMEOUT", 3_600.0)


@pytest.fixture
async def caller(gate: Gate, signer: Signer, base_urls: Mapping[str, URL]) -> AsyncIterator[Caller]:
    caller = Caller()
    async with HttpExecutor(gate, signer, base_urls, caller.observe) as caller.executor:
        yield caller


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    """Starts a server whose every path and method is answered by one handler; returns its URL."""
    runners: list[web.AppRunner] = []

    async def start(handler: Handler) -> str:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", handler)
        runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        runners.append(runner)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        return f"http://127.0.0.1:{runner.addresses[0][1]}"

    yield start
    for runner in runners:
        await runner.cleanup()
