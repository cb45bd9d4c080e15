"""The example programs as processes: they start although no scheduler is there, and end in order."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import socket
import sys
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import aiohttp
import grpc
import grpc.aio
import pytest
from carillon.v1 import job_handler_service_pb2, job_handler_service_pb2_grpc

from tests.ports import lasting_port
from tests.signed import KEY, signed_json

ROOT = Path(__file__).parents[3]
PATIENCE = 60.0


class Example:
    """A running example, and what it prints."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    async def printed(self, words: str) -> str:
        """Waits for the next line with these words."""
        assert self.process.stdout is not None
        while line := (await asyncio.wait_for(self.process.stdout.readline(), PATIENCE)).decode():
            if words in line:
                return line.strip()
        raise AssertionError(f"it ended without printing {words!r}")

    async def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return await self.ended()

    async def ended(self) -> int:
        return await asyncio.wait_for(self.process.wait(), PATIENCE)


Start = Callable[..., Awaitable[Example]]


@pytest.fixture
async def start(tmp_path: Path) -> AsyncIterator[Start]:
    started: list[Example] = []

    async def start(name: str, **variables: str) -> Example:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", f"examples.{name}"),
            cwd=ROOT,
            env={
                **os.environ,
                "CARILLON_TARGET": "127.0.0.1:1",
                "CARILLON_SERVICE_TOKEN": "a.b",
                "CARILLON_SIGNING_KEYS": KEY,
                "KPI_OUTPUT_DIR": str(tmp_path),
                **variables,
            },
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        started.append(Example(process))
        return started[-1]

    yield start
    for example in started:
        if example.process.returncode is None:
            example.process.kill()
        await example.process.wait()


async def test_mail_goes_from_the_email_service_to_the_sink(start: Start, tmp_path: Path) -> None:
    port = lasting_port()
    written = tmp_path / "mail.jsonl"
    sink = await start("smtp_sink", SMTP_PORT="0", SMTP_SINK_FILE=str(written))
    listening = await sink.printed("listening on 127.0.0.1:")
    smtp_port = listening.split("127.0.0.1:")[1].split(",")[0]
    service = await start("email_service", EMAIL_SERVICE_PORT=str(port), SMTP_PORT=smtp_port)
    await service.printed("Running on")
    meant = {"run": "r-1", "service": "email-service", "job": "weekly-digest"}
    run = {**meant, "attempt": 1, "scheduled_time": "2026-11-23T14:00:00Z", "payload": {}}
    url = f"http://127.0.0.1:{port}/api/jobs/weekly-digest"
    async with aiohttp.ClientSession() as client, client.post(url, **signed_json(run)) as response:
        answer = await response.json()
    assert answer["items"]["succeeded"] == 12 == len(written.read_text().splitlines())
    assert await service.stop() == 0
    assert await sink.stop() == 0


async def test_the_kpi_service_starts_without_a_scheduler_and_stops_in_order(start: Start) -> None:
    service = await start("kpi_service")
    await service.printed("not registered")
    assert await service.stop() == 0


async def test_the_grpc_service_answers_a_call(start: Start) -> None:
    port = lasting_port()
    service = await start("grpc_service", GRPC_SERVICE_PORT=str(port))
    request = job_handler_service_pb2.ExecuteRequest(
        run=f"runs/{uuid.uuid4()}", job="services/grpc-service/jobs/checksums", tenant="-", attempt=1
    )
    request.payload.update({"folder": "examples/grpc_service"})
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = job_handler_service_pb2_grpc.JobHandlerServiceStub(channel)
        answer = await stub.Execute(request, timeout=PATIENCE, wait_for_ready=True)
    readme = (ROOT / "examples" / "grpc_service" / "README.md").read_bytes()
    assert answer.metadata["README.md"] == hashlib.sha256(readme).hexdigest()
    assert {item.key for item in answer.item_outcomes if item.succeeded} >= {"README.md", "__main__.py"}
    assert await service.stop() == 0


@pytest.mark.parametrize(("name", "variable"), [("email_service", "EMAIL_SERVICE_PORT"), ("smtp_sink", "SMTP_PORT")])
async def test_a_port_that_is_taken_is_a_sentence(start: Start, tmp_path: Path, name: str, variable: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        example = await start(name, **{variable: port, "SMTP_SINK_FILE": str(tmp_path / "mail")})
        line = await example.printed("cannot")
        assert line.startswith(f"{name}: cannot")
        assert port in line
        assert await example.ended() == 1
