"""A job whose target is a gRPC method, from end to end: scheduler, worker service, and a service that is called."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
import pytest
from carillon import Client, Failed, Jobs, Run, grpc_handlers
from carillon.v1 import run_pb2

from local_stack.ports import LOCALHOST
from tests.e2e.cluster import PATIENCE, Cluster, eventually
from tests.e2e.conftest import SERVICE, ended
from tests.ports import lasting_port

JOB = f"{SERVICE}/weekly-digest"


@dataclass
class Digest:
    recipients: list[str]


Act = Callable[[Run], Awaitable[dict[str, Any] | None]]


class GrpcService:
    """A service whose one job does what the test says. `runs` gets each attempt."""

    def __init__(self, cluster: Cluster) -> None:
        self.address = f"{LOCALHOST}:{lasting_port()}"
        self.runs: asyncio.Queue[tuple[Run, Digest]] = asyncio.Queue()
        self.act: Act
        self._jobs = Jobs(SERVICE, target=cluster.target, token=cluster.secrets.email_service_token)
        self._server = grpc.aio.server()

    async def start(self, act: Act, **options: object) -> None:
        """Serves the job, and registers it."""
        self.act = act

        @self._jobs.grpc_handler("weekly-digest", address=self.address, **options)  # type: ignore[arg-type]  # as Jobs checks
        async def digest(run: Run, payload: Digest) -> dict[str, Any] | None:
            self.runs.put_nowait((run, payload))
            return await self.act(run)

        grpc_handlers.add_to_server(self._jobs, self._server)
        self._server.add_insecure_port(self.address)
        await self._server.start()
        await self._jobs.register()

    async def stop(self) -> None:
        await self._server.stop(None)

    async def next_run(self) -> tuple[Run, Digest]:
        return await asyncio.wait_for(self.runs.get(), PATIENCE)


@pytest.fixture
async def client(shared_cluster: Cluster) -> AsyncIterator[Client]:
    async with shared_cluster.client() as client:
        yield client


@pytest.fixture
async def service(shared_cluster: Cluster) -> AsyncIterator[GrpcService]:
    service = GrpcService(shared_cluster)
    yield service
    await service.stop()


async def test_a_run_completes_with_the_items_that_the_service_recorded(service: GrpcService, client: Client) -> None:
    async def send(run: Run) -> dict[str, Any]:
        with run.item("ada@example.com"):
            pass
        with run.item("alan@example.com") as item:
            item.fail("mailbox full")
        return {"bytes": 12}

    await service.start(send, labels={"team": "growth"}, timeout=60)
    (made,) = await client.trigger_job(JOB, {"recipients": ["ada@example.com", "alan@example.com"]}, tenants=["acme"])
    seen, payload = await service.next_run()
    run = await ended(client, made.name)
    assert run.state == run_pb2.RUN_STATE_COMPLETED
    assert (run.items.processed, run.items.succeeded, run.items.failed) == (2, 1, 1)
    assert dict(run.metrics) == {"bytes": 12}
    items = {item.key: (item.succeeded, item.error) async for item in client.list_items(made.name)}
    assert items == {"ada@example.com": (True, ""), "alan@example.com": (False, "mailbox full")}

    assert payload == Digest(["ada@example.com", "alan@example.com"])
    assert (f"runs/{seen.run_id}", seen.service, seen.job, seen.tenant) == (made.name, *JOB.split("/"), "acme")
    assert (seen.attempt, seen.max_attempts, seen.trigger_source, dict(seen.labels)) == (
        1,
        3,
        "MANUAL",
        {"team": "growth"},
    )
    assert 0 < seen.attempt_timeout < 61  # gRPC rounds deadlines up
    assert seen.claim_id > 0
    assert seen.scheduled_time == made.scheduled_time.ToDatetime(seen.scheduled_time.tzinfo)
    job = await client.get_job(JOB)
    assert (job.effective.target.grpc.address, job.effective.target.grpc.tls) == (service.address, False)


async def test_an_attempt_that_is_out_of_time_fails_and_stops_its_handler(service: GrpcService, client: Client) -> None:
    stopped = asyncio.Event()

    async def hang(_run: Run) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()

    await service.start(hang, timeout=5, retries=0)  # time enough to reach the service
    (made,) = await client.trigger_job(JOB, {"recipients": []})
    run = await ended(client, made.name)
    assert (run.state, run.error.code) == (run_pb2.RUN_STATE_FAILED, "ATTEMPT_TIMEOUT")
    await asyncio.wait_for(stopped.wait(), PATIENCE)


async def test_a_run_that_is_cancelled_stops_its_handler(service: GrpcService, client: Client) -> None:
    stopped: asyncio.Queue[bool] = asyncio.Queue()

    async def hang(run: Run) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            stopped.put_nowait(True)
            raise

    await service.start(hang)
    (made,) = await client.trigger_job(JOB, {"recipients": []})
    await service.next_run()
    await client.cancel_run(made.name, reason="sent to the wrong list")
    run = await ended(client, made.name)
    assert (run.state, run.error.message) == (
        run_pb2.RUN_STATE_CANCELLED,
        "cancelled by admin:local-admin: sent to the wrong list",
    )
    assert await asyncio.wait_for(stopped.get(), PATIENCE)


async def test_a_failure_is_recorded_by_its_name_and_tried_again(service: GrpcService, client: Client) -> None:
    async def fail_first(run: Run) -> None:
        if run.attempt == 1:
            raise Failed("EXPORT_EMPTY", "nothing to send", "the query had no rows")
        if run.attempt == 2:
            raise RuntimeError("the disk is full")

    await service.start(fail_first, retry_delay=0)
    (made,) = await client.trigger_job(JOB, {"recipients": []})
    run = await ended(client, made.name)
    assert (run.state, run.attempt) == (run_pb2.RUN_STATE_COMPLETED, 3)
    named, unexpected, _ = await client.list_attempts(made.name)
    assert (named.error.code, named.error.message) == ("EXPORT_EMPTY", "nothing to send")
    assert named.error.detail == "the query had no rows"
    assert (unexpected.error.code, unexpected.error.message) == ("HANDLER_ERROR", "RuntimeError: the disk is full")
    assert "in fail_first" in unexpected.error.detail


async def test_a_service_that_is_away_is_tried_again_when_it_is_there(service: GrpcService, client: Client) -> None:
    async def nothing(_run: Run) -> None: ...

    await service.start(nothing, retry_delay=1, retries=20)
    await service.stop()
    (made,) = await client.trigger_job(JOB, {"recipients": []})

    async def attempts() -> list[run_pb2.Attempt]:
        return [each for each in await client.list_attempts(made.name) if each.HasField("error")]

    first, *_ = await eventually(attempts)
    assert first.error.code == "GRPC_UNAVAILABLE"
    assert first.error.message.startswith(
        f"carillon.v1.JobHandlerService/Execute at {service.address} answered UNAVAILABLE: "
    )
    back = grpc.aio.server()
    grpc_handlers.add_to_server(service._jobs, back)
    back.add_insecure_port(service.address)
    await back.start()
    assert (await ended(client, made.name)).state == run_pb2.RUN_STATE_COMPLETED
    await back.stop(None)


async def test_an_invalid_argument_is_not_tried_again(service: GrpcService, client: Client) -> None:
    async def nothing(_run: Run) -> None: ...

    await service.start(nothing, retry_delay=0)
    (made,) = await client.trigger_job(JOB, {"recipient": []})
    run = await ended(client, made.name)
    assert (run.state, run.attempt, run.error.code) == (run_pb2.RUN_STATE_FAILED, 1, "BAD_PAYLOAD")
    assert run.error.message == "payload has the unknown key 'recipient'; allowed are: recipients"
    assert service.runs.empty()
