"""The whole of it: a scheduler process, gRPC, and the Python client's worker in this process."""

from __future__ import annotations

import asyncio
import os
import secrets
import sys
import urllib.error
import urllib.request
from asyncio.subprocess import DEVNULL, Process

from carillon import Jobs, Run, Worker

from benchmarks.place import Place
from benchmarks.stack import Started
from local_stack.ports import LOCALHOST, free_port

CONCURRENCY = 1_000
_LOOK = 0.05
_READY_SECONDS = 30


class WholeStack:
    """A scheduler and a worker, as a user runs them, with a handler that does nothing."""

    name = "whole stack"

    async def start(self, place: Place, started: Started) -> None:
        token = f"bench.{secrets.token_urlsafe(32)}"
        port, metrics_port = free_port(), free_port()
        self._scheduler = await _scheduler(place, token, port, metrics_port)
        try:
            await _until_ready(f"http://{LOCALHOST}:{metrics_port}/readyz", self._scheduler)
            jobs = Jobs("bench", target=f"{LOCALHOST}:{port}", token=token)

            @jobs.handler("noop")
            async def noop(run: Run) -> dict[str, int]:
                started(run.scheduled_time)
                return {"sent": 1}

            self._worker = Worker(jobs, CONCURRENCY, prefetch=CONCURRENCY)
            await self._worker.__aenter__()
        except BaseException:
            await self._end()
            raise

    async def stop(self) -> None:
        await self._worker.__aexit__(None, None, None)
        await self._end()

    async def _end(self) -> None:
        if self._scheduler.returncode is None:
            self._scheduler.terminate()
        await self._scheduler.wait()


async def _scheduler(place: Place, token: str, port: int, metrics_port: int) -> Process:
    settings = {
        "CARILLON_DATABASE_URL": place.api_url,
        "CARILLON_ENGINE_URL": place.engine_url,
        "CARILLON_SERVICE_TOKENS": f"bench={token}",
        "CARILLON_PORT": str(port),
        "CARILLON_METRICS_PORT": str(metrics_port),
    }
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "scheduler_service", env=os.environ | settings, stdout=DEVNULL, stderr=DEVNULL
    )


async def _until_ready(url: str, scheduler: Process) -> None:
    async with asyncio.timeout(_READY_SECONDS):
        while not await asyncio.to_thread(_is_ok, url):
            if scheduler.returncode is not None:
                raise RuntimeError(f"the scheduler ended with {scheduler.returncode}")
            await asyncio.sleep(_LOOK)


def _is_ok(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=1) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False
