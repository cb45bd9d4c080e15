"""The images' entry points, run with the environment and arguments of the compose file and of the manifests."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from carillon import Client
from carillon.v1 import run_pb2

from local_stack.compose_secrets import write_secrets
from local_stack.ports import LOCALHOST
from local_stack.postgres import ADMIN, EmbeddedPostgres
from local_stack.seed import KPI_JOBS
from tests.deploy.image import Image
from tests.deploy.manifests import TEMPLATE, compose, compose_containers, kubernetes_containers, resources, workloads
from tests.deploy.running import Host, Running
from tests.e2e.cluster import eventually, fetch
from tests.e2e.conftest import ended
from tests.ports import lasting_port
from tests.security.authority import Authority

# The tests' PostgreSQL speaks no TLS.
_OF_TLS = "?sslmode=verify-full&sslrootcert=/etc/carillon/scheduler/database-ca.crt"
_SECRET = "a-secret-of-fifty-characters-that-is-for-this-test"
_SIGNING_KEY = "whsec_" + base64.b64encode(b"a-key-of-the-tests-that-has-32-by").decode()


@pytest.fixture
async def compose_host(
    images: Mapping[str, Image], own_postgres: EmbeddedPostgres, tmp_path: Path
) -> AsyncIterator[Host]:
    """A machine with compose's secrets, PostgreSQL and names."""
    folder = tmp_path / "secrets"
    folder.mkdir()
    (folder / "postgres_password").write_text(own_postgres.password)
    write_secrets(folder)
    addresses = {"postgres:5432": f"{LOCALHOST}:{own_postgres.port}", "smtp-sink": LOCALHOST}
    ports = {1025: lasting_port(), 8081: lasting_port()}
    addresses["email-service:8081"] = f"{LOCALHOST}:{ports[8081]}"
    secrets = {file.name: file.read_text() for file in folder.iterdir()}
    async with Host(tmp_path / "host", images, secrets, addresses, ports) as host:
        yield host


async def start_compose(host: Host) -> dict[str, Running]:
    """As `docker compose up` does: each service in its replicas, once what it depends on is healthy."""
    services, containers, running = compose()["services"], compose_containers(), dict[str, Running]()
    waiting = list(containers)
    while waiting:
        name = next(name for name in waiting if not set(services[name].get("depends_on", ())) & set(waiting))
        replicas = services[name].get("deploy", {}).get("replicas", 1)
        started = [host.place(containers[name], f"{name}-{number}") for number in range(1, replicas + 1)]
        for each in started:
            await each.start()
        check = tuple(services[name].get("healthcheck", {}).get("test", ("CMD",))[1:])
        for each in started:
            if check or each.image.stage.health:
                await each.until_healthy(check)
        if name == "scheduler-service":
            host.addresses["scheduler-service:7007"] = "ipv4:" + ",".join(each.address(7007) for each in started)
        running |= {each.name: each for each in started}
        waiting.remove(name)
    return running


async def declared(client: Client) -> set[str]:
    return {job.name.removeprefix("services/").replace("/jobs/", "/") async for job in client.list_jobs()}


async def lines_of(file: Path) -> list[dict[str, Any]]:
    text = await asyncio.to_thread(lambda: file.read_text() if file.exists() else "")
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


async def test_compose_runs_the_examples_and_every_container_stops_in_time(compose_host: Host) -> None:
    host = compose_host
    running = await start_compose(host)
    assert sorted(running) == [
        "email-service-1",
        "kpi-service-1",
        "scheduler-service-1",
        "scheduler-service-2",
        "smtp-sink-1",
        "worker-service-1",
        "worker-service-2",
    ]
    mailbox = running["smtp-sink-1"].tmp / "received-mail.jsonl"
    [mail, *_] = await eventually(lambda: lines_of(mailbox))
    assert mail["headers"]["X-Carillon-Run"]

    async with Client(host.addresses["scheduler-service:7007"], token=host.secrets["admin_jwt"]) as client:
        run = await client.get_run(mail["headers"]["X-Carillon-Run"])
        assert run.job == "services/email-service/jobs/welcome-mail"
        await eventually(lambda: declared(client), lambda jobs: jobs >= set(KPI_JOBS))
        [asked] = await client.trigger_job("kpi-service/meta", tenants=["acme-in"])
        sync = await ended(client, asked.name.removeprefix("runs/"))
        assert run_pb2.RunState.Name(sync.state) == "RUN_STATE_COMPLETED"
    assert [file.name for file in (running["kpi-service-1"].tmp / "kpi").iterdir()] == [f"{sync.name[5:]}.json"]

    codes = {name: await running[name].stop() for name in reversed(running)}
    assert codes == dict.fromkeys(codes, 0)


@pytest.fixture
async def cluster_host(
    images: Mapping[str, Image], own_postgres: EmbeddedPostgres, tmp_path: Path
) -> AsyncIterator[Host]:
    """A cluster with the template's secrets filled in."""
    addresses = {"HOST:5432": f"{LOCALHOST}:{own_postgres.port}"}
    migrator = f"{ADMIN}:{own_postgres.password}@"
    secrets = {
        f"{secret['metadata']['name']}/{key}": value.replace("MIGRATOR:PASSWORD@", migrator)
        .replace("whsec_SECRET", _SIGNING_KEY)
        .replace("SECRET", _SECRET)
        .replace(_OF_TLS, "")
        for secret in resources(TEMPLATE)
        for key, value in secret["stringData"].items()
    }
    authority = Authority(tmp_path)
    pair = authority.signs("scheduler")
    of_tls = {"tls.crt": pair.certificate, "tls.key": pair.key, "ca.crt": authority.file}
    secrets |= {f"scheduler-tls/{key}": file.read_text() for key, file in of_tls.items()}
    async with Host(tmp_path / "host", images, secrets, addresses) as host:
        yield host


async def probed(running: Running, which: str) -> bool:
    """What kubelet would see: its gRPC probe is answered by ours, in the container."""
    pods = dict(workloads())
    [container] = pods[running.container.name]["containers"]
    probe = container[which]
    if "grpc" in probe:
        address = f"{LOCALHOST}:{probe['grpc']['port']}"
        code, _ = await running.run(("python", "-m", "operations.probe", address, probe["grpc"].get("service", "")))
        return code == 0
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    url = f"http://{running.address(ports[probe['httpGet']['port']])}{probe['httpGet']['path']}"
    status, _ = await fetch(url)
    return status == 200


async def test_kubernetes_pods_wait_for_the_migration_are_probed_and_stop_in_time(cluster_host: Host) -> None:
    host = cluster_host
    containers = kubernetes_containers()
    schedulers = [host.place(containers["scheduler-service"], f"scheduler-service-{number}") for number in (1, 2)]
    for scheduler in schedulers:
        await scheduler.start()
        await eventually(lambda scheduler=scheduler: probed(scheduler, "startupProbe"))  # type: ignore[misc]  # a default
        await eventually(lambda scheduler=scheduler: probed(scheduler, "livenessProbe"))  # type: ignore[misc]  # a default
        assert not await probed(scheduler, "readinessProbe")

    migration = host.place(containers["migration"], "migration")
    code, said = await migration.run((*migration.image.stage.entrypoint, *migration.container.arguments))
    assert (code, "the schema is at version" in said) == (0, True), said
    for scheduler in schedulers:
        await eventually(lambda scheduler=scheduler: probed(scheduler, "readinessProbe"))  # type: ignore[misc]  # a default

    # One of them: the certificate is for a name, and a list of addresses has none.
    host.addresses["scheduler-service-headless:7007"] = schedulers[0].address(7007)
    worker = host.place(containers["worker-service"], "worker-service-1")
    await worker.start()
    await worker.until_healthy()
    for which in ("startupProbe", "readinessProbe", "livenessProbe"):
        await eventually(lambda which=which: probed(worker, which))  # type: ignore[misc]  # a default

    assert [await each.stop() for each in (worker, *schedulers)] == [0, 0, 0]


async def test_a_process_that_writes_outside_its_tmp_is_caught(compose_host: Host) -> None:
    container = compose_host.place(compose_containers()["worker-service"], "worker-service-1")
    compose_host.addresses["scheduler-service:7007"] = f"{LOCALHOST}:1"
    assert await container.run(("python", "-c", "import os; open(os.environ['TMPDIR'] + '/x', 'w').close()")) == (0, "")
    code, said = await container.run(("python", "-c", "open('/app-was-here', 'w')"))
    assert code == 70
    assert "READ-ONLY: open /app-was-here" in said
