"""The framework examples as services of a real scheduler: their jobs are registered, called, and recorded."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from carillon import Client
from carillon.v1 import run_pb2

from local_stack.ports import LOCALHOST
from tests.conftest import DatabaseUrls
from tests.e2e.cluster import ROOT, Cluster, eventually, fetch
from tests.e2e.conftest import ended
from tests.ports import lasting_port

TOKENS = {
    service: f"{service}.known-to-these-tests-only" for service in ("fastapi-service", "django-service", "script")
}


@pytest.fixture
async def cluster(database_urls: DatabaseUrls, tmp_path: Path) -> AsyncIterator[Cluster]:
    async with Cluster(tmp_path, database_urls) as cluster:
        tokens = [cluster.secrets.service_tokens, *(f"{service}={token}" for service, token in TOKENS.items())]
        await cluster.start_scheduler(service_tokens=",".join(tokens))
        yield cluster


@pytest.fixture
async def client(cluster: Cluster) -> AsyncIterator[Client]:
    async with cluster.client() as client:
        yield client


async def is_declared(client: Client, service: str) -> bool:
    return bool([job async for job in client.list_jobs(service)])


async def listens(port: int) -> bool:
    """Whether its server does; it may have registered its jobs before."""
    return (await fetch(f"http://{LOCALHOST}:{port}/"))[0] != 0


async def test_a_fastapi_endpoint_carries_out_its_job(cluster: Cluster, client: Client) -> None:
    await cluster.start_worker_service()
    port = lasting_port()
    own = {"FASTAPI_SERVICE_PORT": str(port), "CARILLON_SERVICE_TOKEN": TOKENS["fastapi-service"]}
    await cluster.start_program("fastapi", "examples.fastapi_service", own)
    await eventually(lambda: is_declared(client, "fastapi-service"))
    await eventually(lambda: listens(port))
    async with aiohttp.ClientSession(f"http://{LOCALHOST}:{port}") as http:
        for text in ("the bell", "the clock and the bell"):
            await http.post("/notes", json={"text": text})
        [made] = await client.trigger_job("fastapi-service/count-words", {"words": 2})
        run = await ended(client, made.name)
        assert (run.state, run.items.succeeded, dict(run.metrics)) == (run_pb2.RUN_STATE_COMPLETED, 2, {"words": 7})
        async with http.get("/top-words") as top:
            assert await top.json() == {"the": 3, "bell": 2}


async def test_a_django_view_carries_out_its_job(cluster: Cluster, client: Client, tmp_path: Path) -> None:
    await cluster.start_worker_service()
    port = lasting_port()
    own = {
        "CARILLON_TARGET": cluster.target,
        "CARILLON_SERVICE_TOKEN": TOKENS["django-service"],
        "DJANGO_SERVICE_DB": str(tmp_path / "sessions.sqlite3"),
        "DJANGO_SERVICE_URL": f"http://{LOCALHOST}:{port}",
    }
    command = [sys.executable, "-m", "examples.django_service"]
    await cluster.processes.start("migrate", [*command, "migrate"], own, cwd=ROOT)
    await eventually(lambda: says(cluster, "migrate", "Applying sessions"))
    await cluster.processes.start("django", [*command, "runserver", str(port)], own, cwd=ROOT)
    await eventually(lambda: is_declared(client, "django-service"))
    await eventually(lambda: listens(port))
    [made] = await client.trigger_job("django-service/clear-sessions")
    run = await ended(client, made.name)
    assert (run.state, dict(run.metrics)) == (run_pb2.RUN_STATE_COMPLETED, {"deleted": 0})


async def test_a_script_registers_triggers_and_reads_without_asyncio(
    cluster: Cluster, client: Client, tmp_path: Path
) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    for name in ("a", "b"):
        (folder / name).write_text(name)
    right = hashlib.sha256(b"a").hexdigest()
    (folder / "SHA256SUMS").write_text(f"{right}  a\n{right}  b\n")
    own = {"CARILLON_TARGET": cluster.target, "CARILLON_SERVICE_TOKEN": TOKENS["script"]}
    await cluster.processes.start("script", [sys.executable, "-m", "examples.script", str(folder)], own, cwd=ROOT)
    await eventually(lambda: says(cluster, "script", "1 of 2 files are as they should be"))
    wrong = hashlib.sha256(b"b").hexdigest()
    assert f"b: its checksum is {wrong}" in cluster.processes.tail("script")
    [run] = [run async for run in client.list_runs("script/verify")]
    assert (run.state, run.items.failed, dict(run.metrics)) == (run_pb2.RUN_STATE_COMPLETED, 1, {"bytes": 2})


async def says(cluster: Cluster, program: str, words: str) -> bool:
    return words in cluster.processes.tail(program, 50)
