"""What a person with only `buf curl` (or grpcurl) and a token can do, through reflection."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import DatabaseUrls
from tests.e2e.cluster import PATIENCE, Cluster

BUF = Path(sys.executable).with_name("buf")
JOB = "services/email-service/jobs/weekly-digest"


@pytest.fixture
async def cluster(database_urls: DatabaseUrls, tmp_path: Path) -> AsyncIterator[Cluster]:
    async with Cluster(tmp_path, database_urls) as cluster:
        await cluster.start_scheduler()
        yield cluster


async def buf_curl(cluster: Cluster, *arguments: str, path: str = "", header: str = "") -> tuple[int | None, str, str]:
    url = f"http://{cluster.schedulers['scheduler'].target}{path}"
    process = await asyncio.create_subprocess_exec(
        *(str(BUF), "curl", "--protocol", "grpc", "--http2-prior-knowledge"),
        *(["-H", header] if header else []),
        *arguments,
        url,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        out, errors = await asyncio.wait_for(process.communicate(), PATIENCE)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return process.returncode, out.decode(), errors.decode()


async def call(cluster: Cluster, method: str, header: str, **request: Any) -> Any:
    code, out, errors = await buf_curl(cluster, "-d", json.dumps(request), path=f"/carillon.v1.{method}", header=header)
    assert code == 0, errors
    return json.loads(out or "{}")


async def test_reflection_lists_the_services(cluster: Cluster) -> None:
    code, out, errors = await buf_curl(cluster, "--list-services")
    assert code == 0, errors
    kinds = ("Registry", "Job", "Schedule", "Run", "Worker")
    assert {f"carillon.v1.{kind}Service" for kind in kinds} | {"grpc.health.v1.Health"} <= set(out.split())


async def test_a_job_can_be_registered_triggered_and_its_run_read(cluster: Cluster) -> None:
    token = f"x-service-token: {cluster.secrets.email_service_token}"
    admin = f"authorization: Bearer {cluster.secrets.admin_jwt()}"
    job = {
        "job": "weekly-digest",
        "target": {"http": {"endpoint": "/api/jobs/weekly-digest"}},
        "timing": {"cron": "0 9 * * 1", "time_zone": "America/New_York"},
    }
    manifest = {"service": "email-service", "base_url": "http://127.0.0.1:1", "jobs": [job]}
    registered = await call(cluster, "RegistryService/RegisterJobs", token, **manifest)
    assert [(change["name"], change["kind"]) for change in registered["changes"]] == [(JOB, "CHANGE_KIND_CREATED")]

    listed = await call(cluster, "JobService/ListJobs", admin, parent="services/-")
    assert [each["name"] for each in listed["jobs"]] == [JOB]
    triggered = await call(cluster, "JobService/TriggerJob", admin, name=JOB, payload={"batchSize": 5})
    (made,) = triggered["runs"]
    run = (await call(cluster, "RunService/GetRun", admin, name=made["name"]))["run"]
    assert (run["state"], run["pendingReason"]) == ("RUN_STATE_PENDING", "PENDING_REASON_NO_WORKER")
    assert run["payload"] == {"batchSize": 5}
    assert run["triggeredBy"] == "admin:local-admin"


async def test_what_is_wrong_is_said_in_a_sentence(cluster: Cluster) -> None:
    admin = f"authorization: Bearer {cluster.secrets.admin_jwt()}"
    path = "/carillon.v1.JobService/GetJob"
    request = ("-d", json.dumps({"name": JOB}))
    _, _, anonymous = await buf_curl(cluster, *request, path=path)
    assert '"code": "unauthenticated"' in anonymous
    _, _, missing = await buf_curl(cluster, *request, path=path, header=admin)
    assert '"code": "not_found"' in missing
    code, _, unknown = await buf_curl(cluster, "-d", '{"nmae": "x"}', path=path, header=admin)
    assert code != 0
    assert "nmae" in unknown
