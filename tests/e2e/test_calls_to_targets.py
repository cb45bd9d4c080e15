"""What a worker service signs and refuses, from end to end: scheduler, worker service, and a service that verifies."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web
from carillon import Client, Jobs, SignatureInvalid
from carillon.v1 import run_pb2

from local_stack.ports import LOCALHOST
from tests.conftest import DatabaseUrls
from tests.e2e.cluster import Cluster
from tests.e2e.conftest import SERVICE, ended
from tests.ports import lasting_port


class VerifyingService:
    """Answers the calls that are signed for it, and remembers of all whether they were."""

    def __init__(self, cluster: Cluster, port: int) -> None:
        secrets = cluster.secrets
        self.verified: list[bool] = []
        self.jobs = Jobs(
            SERVICE,
            target=cluster.target,
            token=secrets.email_service_token,
            base_url=f"http://{LOCALHOST}:{port}",
            signing_keys=[secrets.email_service_signing_key],
        )

    async def receive(self, request: web.Request) -> web.Response:
        try:
            self.jobs.verify(request.headers, await request.read(), job="digest")
        except SignatureInvalid as invalid:
            self.verified.append(False)
            return web.Response(status=401, text=str(invalid))
        self.verified.append(True)
        return web.Response()


@pytest.fixture
def port() -> int:
    """The service's, which is named before it is there."""
    return lasting_port()


@pytest.fixture
async def cluster(database_urls: DatabaseUrls, tmp_path: Path, port: int) -> AsyncIterator[Cluster]:
    async with Cluster(tmp_path, database_urls, drain_seconds=6) as cluster:
        await cluster.start_scheduler()
        await cluster.start_worker_service(
            allowed_targets=f"{LOCALHOST}:{port}",
            allowed_networks="",
            signing_keys=cluster.secrets.signing_keys,
            require_signing=True,
        )
        yield cluster


@pytest.fixture
async def service(cluster: Cluster, port: int) -> AsyncIterator[VerifyingService]:
    service = VerifyingService(cluster, port)
    app = web.Application()
    app.router.add_post("/{path:.*}", service.receive)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, LOCALHOST, port).start()
    yield service
    await runner.cleanup()


async def run_of(client: Client, job: str) -> run_pb2.Run:
    [made] = await client.trigger_job(f"{SERVICE}/{job}")
    return await ended(client, made.name)


async def test_a_call_is_signed_and_what_is_not_allowed_fails_at_once(
    cluster: Cluster, service: VerifyingService
) -> None:
    service.jobs.endpoint("digest", "/jobs/digest")
    service.jobs.endpoint("metadata", "http://169.254.169.254/latest/meta-data/", retries=5)
    service.jobs.grpc_endpoint("elsewhere", "localhost:50051", retries=5)
    await service.jobs.register()
    async with cluster.client() as client:
        assert (await run_of(client, "digest")).state == run_pb2.RUN_STATE_COMPLETED
        assert service.verified == [True]
        for job, where in (("metadata", "169.254.169.254:80"), ("elsewhere", "localhost:50051")):
            run = await run_of(client, job)
            assert (run.state, run.attempt) == (run_pb2.RUN_STATE_FAILED, 1)
            assert run.error.code == "TARGET_NOT_ALLOWED"
            assert f"{where} is not among CARILLON_ALLOWED_TARGETS of the worker service" in run.error.message
