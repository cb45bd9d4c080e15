"""The whole process `python -m worker_service`, between a scripted scheduler and a real service."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from carillon.v1 import work_pb2

from tests.ports import silent_port
from tests.rpc.worker_service.conftest import Endpoint, ScriptedScheduler

ROOT = Path(__file__).parents[3]
PATIENCE = 60.0

Serve = Callable[[Endpoint], Awaitable[str]]


class Worker:
    """A running worker process, and the lines that it logs."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.lines: list[dict[str, Any]] = []

    async def logged(self, event: str) -> dict[str, Any]:
        """Waits for the next line with this event."""
        assert self.process.stdout is not None
        while line := await asyncio.wait_for(self.process.stdout.readline(), PATIENCE):
            self.lines.append(json.loads(line))
            if self.lines[-1]["event"].startswith(event):
                return self.lines[-1]
        raise AssertionError(f"the worker ended without logging {event!r}: {self.lines}")

    async def ended(self) -> int:
        return await asyncio.wait_for(self.process.wait(), PATIENCE)


@asynccontextmanager
async def started(scheduler: ScriptedScheduler, **settings: str) -> AsyncIterator[Worker]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("CARILLON_")}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "worker_service"),
        cwd=ROOT,
        env={
            **kept,
            "CARILLON_TARGET": scheduler.target,
            "CARILLON_WORKER_TOKEN": "w.secret",
            "CARILLON_WORKER_NAME": "w-1",
            "CARILLON_WORKER_CONCURRENCY": "2",
            "CARILLON_WORKER_PORT": "0",
            **settings,
        },
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        yield Worker(process)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


@pytest.fixture
async def worker(scheduler: ScriptedScheduler) -> AsyncIterator[Worker]:
    async with started(scheduler, CARILLON_ALLOWED_TARGETS="127.0.0.1:*") as worker:
        yield worker


@pytest.fixture
async def closed_worker(scheduler: ScriptedScheduler) -> AsyncIterator[Worker]:
    """One that was not told what it may call."""
    async with started(scheduler) as worker:
        yield worker


async def result_of(scheduler: ScriptedScheduler) -> work_pb2.AttemptResult:
    return await asyncio.wait_for(scheduler.results.get(), PATIENCE)


async def fetch(url: str) -> tuple[int, str]:
    async with aiohttp.ClientSession() as client, client.get(url) as response:
        return response.status, await response.text()


async def test_it_says_who_it_is_and_carries_out_what_it_gets(
    scheduler: ScriptedScheduler, worker: Worker, serve: Serve
) -> None:
    async def endpoint(request: web.Request) -> web.Response:
        assert (await request.json())["trigger_source"] == "SCHEDULE"
        return web.json_response({"items": {"succeeded": 3}, "metrics": {"bytes": 12}})

    probes = (await worker.logged("listening"))["url"]
    hello = await asyncio.wait_for(scheduler.hellos.get(), PATIENCE)
    assert (hello.worker, list(hello.routes)) == ("w-1", ["http", "grpc"])
    assert scheduler.tokens == ["w.secret"]
    run = await scheduler.assign(await serve(endpoint))
    result = await result_of(scheduler)
    assert result.attempt.run_id == run.bytes
    assert result.outcome == work_pb2.ATTEMPT_OUTCOME_COMPLETED
    assert (result.items.processed, result.items.succeeded) == (3, 3)
    assert json.loads(result.metrics_json) == {"bytes": 12}
    line = await worker.logged("attempt completed")
    assert (line["run"], line["attempt"]) == (str(run), 1)
    assert line["job"] == "services/email-service/jobs/weekly-digest"
    assert await fetch(f"{probes}/livez") == (200, "alive\n")
    assert await fetch(f"{probes}/readyz") == (200, "connected to scripted\n")
    _, figures = await fetch(f"{probes}/metrics")
    assert 'carillon_worker_attempts_total{outcome="completed"} 1.0' in figures
    assert 'carillon_worker_http_seconds_count{status="2xx"} 1.0' in figures
    assert "carillon_worker_connected 1.0" in figures


async def test_grpc_calls_are_carried_out_and_counted_too(scheduler: ScriptedScheduler, worker: Worker) -> None:
    probes = (await worker.logged("listening"))["url"]
    with silent_port() as port:
        await scheduler.assign(f"grpc://127.0.0.1:{port}")
        result = await result_of(scheduler)
    assert (result.outcome, result.error.code) == (work_pb2.ATTEMPT_OUTCOME_FAILED, "GRPC_UNAVAILABLE")
    _, figures = await fetch(f"{probes}/metrics")
    assert 'carillon_worker_grpc_seconds_count{status="UNAVAILABLE"} 1.0' in figures


async def test_a_worker_that_was_allowed_nothing_says_so_once_and_calls_nothing(
    scheduler: ScriptedScheduler, closed_worker: Worker, serve: Serve
) -> None:
    async def endpoint(_request: web.Request) -> web.Response:
        raise AssertionError("it was called")

    warning = await closed_worker.logged("CARILLON_ALLOWED_TARGETS is not set: nothing is called")
    assert warning["level"] == "warning"
    await scheduler.assign(await serve(endpoint))
    result = await result_of(scheduler)
    assert result.error.code == "TARGET_NOT_ALLOWED"
    assert (await closed_worker.logged("attempt failed"))["code"] == "TARGET_NOT_ALLOWED"


async def test_a_service_that_refuses_fails_the_attempt(
    scheduler: ScriptedScheduler, worker: Worker, serve: Serve
) -> None:
    async def endpoint(_request: web.Request) -> web.Response:
        return web.Response(status=409, text="already closed")

    await scheduler.assign(await serve(endpoint))
    result = await result_of(scheduler)
    assert result.outcome == work_pb2.ATTEMPT_OUTCOME_FAILED
    assert result.error.code == "HTTP_409"
    assert result.error.detail == "already closed"
    assert (await worker.logged("attempt failed"))["code"] == "HTTP_409"


async def test_a_cancelled_run_closes_its_request(scheduler: ScriptedScheduler, worker: Worker, serve: Serve) -> None:
    began, aborted = asyncio.Event(), asyncio.Event()

    async def endpoint(_request: web.Request) -> web.Response:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            aborted.set()
        return web.Response()

    run = await scheduler.assign(await serve(endpoint))
    await asyncio.wait_for(began.wait(), PATIENCE)
    scheduler.cancel(run)
    assert (await result_of(scheduler)).outcome == work_pb2.ATTEMPT_OUTCOME_CANCELLED
    await asyncio.wait_for(aborted.wait(), PATIENCE)
    line = await worker.logged("attempt stopped")
    assert (line["level"], line["code"], line["run"]) == ("info", "CANCELLED", str(run))


async def test_an_attempt_that_is_out_of_time_is_told_as_a_failure(
    scheduler: ScriptedScheduler, worker: Worker, serve: Serve
) -> None:
    async def endpoint(_request: web.Request) -> web.Response:
        await asyncio.Event().wait()
        return web.Response()

    run = await scheduler.assign(await serve(endpoint), timeout=0.05)
    assert (await result_of(scheduler)).error.code == "ATTEMPT_TIMEOUT"
    line = await worker.logged("attempt stopped")
    assert (line["level"], line["code"]) == ("warning", "ATTEMPT_TIMEOUT")
    assert line["error"] == "the attempt took longer than 0.05 s"
    assert (line["run"], line["job"]) == (str(run), "services/email-service/jobs/weekly-digest")


async def test_sigterm_lets_a_running_attempt_finish_then_says_goodbye(
    scheduler: ScriptedScheduler, worker: Worker, serve: Serve
) -> None:
    began, go_on = asyncio.Event(), asyncio.Event()

    async def endpoint(_request: web.Request) -> web.Response:
        began.set()
        await go_on.wait()
        return web.Response()

    await scheduler.assign(await serve(endpoint))
    await asyncio.wait_for(began.wait(), PATIENCE)
    worker.process.send_signal(signal.SIGTERM)
    assert (await worker.logged("draining"))["running"] == 1
    go_on.set()
    assert (await result_of(scheduler)).outcome == work_pb2.ATTEMPT_OUTCOME_COMPLETED
    await asyncio.wait_for(scheduler.said_goodbye.wait(), PATIENCE)
    assert await worker.ended() == 0


async def test_a_second_signal_quits_at_once(scheduler: ScriptedScheduler, worker: Worker, serve: Serve) -> None:
    began = asyncio.Event()

    async def endpoint(_request: web.Request) -> web.Response:
        began.set()
        await asyncio.Event().wait()
        return web.Response()

    await scheduler.assign(await serve(endpoint))
    await asyncio.wait_for(began.wait(), PATIENCE)
    worker.process.send_signal(signal.SIGTERM)
    await worker.logged("draining")
    worker.process.send_signal(signal.SIGINT)
    assert await worker.ended() == 128 + signal.SIGINT
    assert scheduler.results.empty()
