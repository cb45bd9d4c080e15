"""A service without the client, in another language: Node, `@grpc/grpc-js` and the protos."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from carillon import Client
from carillon.v1 import run_pb2

from tests.conftest import DatabaseUrls
from tests.e2e.cluster import ROOT, Cluster, eventually
from tests.e2e.conftest import ended
from tests.ports import lasting_port

TOKEN = "node.known-to-this-test-only"
JOB = "node-service/line-count"
NODE, NPM = shutil.which("node"), shutil.which("npm")

pytestmark = pytest.mark.skipif(not (NODE and NPM), reason="needs node and npm, which are no part of the environment")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the example with what it depends on, beside a copy of the protos."""
    root = tmp_path_factory.mktemp("node")
    shutil.copytree(ROOT / "protos", root / "protos")
    service = root / "examples" / "node_service"
    shutil.copytree(ROOT / "examples" / "node_service", service, ignore=shutil.ignore_patterns("node_modules"))
    command = [str(NPM), "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--cache", str(root / "cache")]
    done = subprocess.run(command, cwd=service, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return service


@pytest.fixture
async def client(database_urls: DatabaseUrls, tmp_path: Path, installed: Path) -> AsyncIterator[Client]:
    async with Cluster(tmp_path, database_urls) as cluster:
        tokens = f"{cluster.secrets.service_tokens},node-service={TOKEN}"
        await cluster.start_scheduler(service_tokens=tokens)
        await cluster.start_worker_service()
        await cluster.processes.start(
            "node-service",
            [str(NODE), "service.js"],
            {
                "CARILLON_TARGET": next(iter(cluster.schedulers.values())).target,
                "CARILLON_SERVICE_TOKEN": TOKEN,
                "NODE_SERVICE_PORT": str(lasting_port()),
            },
            cwd=installed,
        )
        async with cluster.client() as client:
            await eventually(lambda: is_registered(client))
            yield client
            assert await cluster.terminate("node-service") == 0


async def is_registered(client: Client) -> bool:
    return [job.declared.target.grpc.address async for job in client.list_jobs("node-service")] != []


async def test_its_run_completes_with_an_item_for_each_file(client: Client, tmp_path: Path) -> None:
    poem = tmp_path / "poem.txt"
    poem.write_text("one\ntwo\nthree\n")
    missing = str(tmp_path / "missing.txt")
    (made,) = await client.trigger_job(JOB, {"files": [str(poem), missing]})
    run = await ended(client, made.name)
    assert (run.state, run.attempt) == (run_pb2.RUN_STATE_COMPLETED, 1)
    assert (run.items.processed, run.items.succeeded, run.items.failed) == (2, 1, 1)
    assert dict(run.metrics) == {"lines": 3}
    items = {item.key: item async for item in client.list_items(made.name)}
    assert items[str(poem)].succeeded
    assert "ENOENT" in items[missing].error
    log = tmp_path / "logs" / "node-service.log"
    done = f"services/node-service/jobs/line-count: attempt 1 at {made.name} did 2 items"
    said = await eventually(lambda: asyncio.to_thread(log.read_text), lambda said: done in said)
    assert "services/node-service/jobs/line-count: CHANGE_KIND_CREATED" in said


async def test_what_it_says_is_invalid_is_not_tried_again(client: Client) -> None:
    (made,) = await client.trigger_job(JOB, {"files": "poem.txt"})
    run = await ended(client, made.name)
    assert (run.state, run.attempt, run.error.code) == (run_pb2.RUN_STATE_FAILED, 1, "GRPC_REFUSED")
    job = await client.get_job(JOB)
    assert run.error.message == (
        f"carillon.v1.JobHandlerService/Execute at {job.effective.target.grpc.address} answered INVALID_ARGUMENT: "
        "payload.files must be a list"
    )
