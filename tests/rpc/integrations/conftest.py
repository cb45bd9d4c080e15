"""A scripted scheduler to register with, and programs to run beside it."""

from __future__ import annotations

import asyncio
import os
import sys
import urllib.request
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any
from urllib.error import HTTPError

import pytest

from local_stack.processes import Processes
from tests.e2e.cluster import ROOT, eventually
from tests.rpc.client.conftest import ScriptedScheduler

NOBODY = "127.0.0.1:1"
PATIENCE = 60.0


@pytest.fixture
async def scheduler() -> AsyncIterator[ScriptedScheduler]:
    scripted = ScriptedScheduler()
    await scripted.start()
    yield scripted
    await scripted.stop()


class Programs:
    """Python programs of the test's own, from the checkout."""

    def __init__(self, processes: Processes, target: str) -> None:
        self.processes = processes
        self._target = target

    async def start(self, *argv: str, **variables: str) -> None:
        """Starts `python argv...`, with the scripted scheduler as its own unless the variables say otherwise."""
        own = {"CARILLON_TARGET": self._target, "CARILLON_SERVICE_TOKEN": "t.secret", **variables}
        await self.processes.start("program", [sys.executable, *argv], own, cwd=ROOT)

    async def run(self, *argv: str, **variables: str) -> str:
        """Starts a program and waits for its end; returns all that it wrote. Errors: AssertionError if it failed."""
        code, written = await self._complete(*argv, **variables)
        assert code == 0, written
        return written

    async def run_in_vain(self, *argv: str, **variables: str) -> str:
        """As `run`, for a program that is to fail."""
        code, written = await self._complete(*argv, **variables)
        assert code == 1, written
        return written

    async def says(self, words: str) -> str:
        """Waits until the program has written these words; returns all that it wrote."""

        async def written() -> str:
            return self.processes.log_path("program").read_text()

        return await eventually(written, lambda text: words in text)

    async def _complete(self, *argv: str, **variables: str) -> tuple[int | None, str]:
        # Below errors, gRPC's core tells of connections that end.
        own = {"CARILLON_TARGET": self._target, "CARILLON_SERVICE_TOKEN": "t.secret", "GRPC_VERBOSITY": "ERROR"}
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, *argv),
            cwd=ROOT,
            env={**os.environ, **own, **variables},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        written, _ = await asyncio.wait_for(process.communicate(), PATIENCE)
        return process.returncode, written.decode()


@pytest.fixture
async def programs(scheduler: ScriptedScheduler, tmp_path: Path) -> AsyncIterator[Programs]:
    async with Processes(tmp_path / "logs", grace=PATIENCE) as processes:
        yield Programs(processes, scheduler.target)


async def registered(scheduler: ScriptedScheduler) -> Any:
    """The next manifest that arrives."""
    return await asyncio.wait_for(scheduler.registrations.get(), PATIENCE)


async def post(url: str, body: bytes = b"{}", headers: Mapping[str, str] = MappingProxyType({})) -> tuple[int, bytes]:
    """The status and body that a worker would get. Errors: URLError as long as nobody listens."""
    sent = {"Content-Type": "application/json", **headers}

    def ask() -> tuple[int, bytes]:
        request = urllib.request.Request(url, body, sent, method="POST")
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
                return answer.status, answer.read()
        except HTTPError as error:
            with error:
                return error.code, error.read()

    return await asyncio.to_thread(ask)
