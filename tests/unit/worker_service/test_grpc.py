"""Runs carried out over gRPC, against a real server that answers as the test says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from datetime import timezone
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from carillon import status_details
from carillon.execution import Completed, Failed, ItemCounts, Run
from carillon.v1 import job_handler_service_pb2, job_handler_service_pb2_grpc, run_pb2
from google.protobuf import duration_pb2
from google.rpc import error_details_pb2, status_pb2

from tests.ports import lasting_port
from tests.rpc.client.test_tls import self_signed
from tests.unit.worker_service.conftest import A_RUN
from worker_service.targets.addresses import GrpcAddress, parse_grpc
from worker_service.targets.allowed import Gate
from worker_service.targets.channels import Channels
from worker_service.targets.grpc import GrpcExecutor

PATIENCE = 60.0
LOCALHOST = IPv4Address("127.0.0.1")

Request = job_handler_service_pb2.ExecuteRequest
Response = job_handler_service_pb2.ExecuteResponse
ItemOutcome = job_handler_service_pb2.ItemOutcome
Answer = Callable[[Request, Any], Awaitable[Response]]


class Service(job_handler_service_pb2_grpc.JobHandlerServiceServicer):
    """A service that answers as `answer` does. `address` is where it listens."""

    def __init__(self) -> None:
        self.answer: Answer
        self.address = ""
        self.ended = asyncio.Event()
        self._server: grpc.aio.Server | None = None

    async def Execute(self, request: Request, context: Any) -> Response:
        try:
            return await self.answer(request, context)
        finally:
            self.ended.set()

    async def start(self, answer: Answer, credentials: grpc.ServerCredentials | None = None) -> None:
        """Listens, again at the same address if it did before."""
        self.answer = answer
        self._server = grpc.aio.server()
        job_handler_service_pb2_grpc.add_JobHandlerServiceServicer_to_server(self, self._server)
        wanted = self.address or "127.0.0.1:0"
        if credentials is None:
            port = self._server.add_insecure_port(wanted)
        else:
            port = self._server.add_secure_port(wanted, credentials)
        self.address = f"127.0.0.1:{port}"
        await self._server.start()

    async def stop(self) -> None:
        if self._server is not None:
            await self._server.stop(None)


class Items:
    """Keeps the items that a run reports."""

    def __init__(self) -> None:
        self.done: dict[str, str | None] = {}

    def progressed(self) -> None:
        raise AssertionError("a gRPC run reported progress")

    def item_done(self, key: str, error: str | None) -> None:
        self.done[key] = error


class Caller:
    """Carries out A_RUN at a service. `calls` keeps what the executor said of each call."""

    def __init__(self, gate: Gate) -> None:
        self.calls: list[str] = []
        self.items = Items()
        self.base_urls: dict[str, GrpcAddress] = {}
        self.channels = Channels(most=2, idle=1.0)
        self.executor = GrpcExecutor(gate, self.base_urls, self.observe, self.channels)

    async def execute(self, address: str, scheme: str = "grpc", **changes: Any) -> Completed:
        assignment = replace(A_RUN, endpoint=f"{scheme}://{address}", **changes)
        return await self.executor.execute(assignment, Run(assignment, self.items))

    async def failure(self, address: str, scheme: str = "grpc", **changes: Any) -> Failed:
        with pytest.raises(Failed) as caught:
            await self.execute(address, scheme, **changes)
        return caught.value

    def observe(self, status: str, seconds: float) -> None:
        assert seconds >= 0
        self.calls.append(status)


@pytest.fixture
async def service() -> AsyncIterator[Service]:
    service = Service()
    yield service
    await service.stop()


@pytest.fixture
async def caller(gate: Gate) -> AsyncIterator[Caller]:
    caller = Caller(gate)
    async with caller.executor:
        yield caller


async def say_ok(_request: Request, _context: Any) -> Response:
    return Response()


def refuse(code: grpc.StatusCode, message: str, trailers: tuple[tuple[str, bytes], ...] = ()) -> Answer:
    async def answer(_request: Request, context: Any) -> Response:
        await context.abort(code, message, trailers)
        raise AssertionError("abort raises")

    return answer


async def test_the_service_gets_the_run_its_ids_and_its_deadline(service: Service, caller: Caller) -> None:
    seen: list[tuple[Request, dict[str, str], float]] = []

    async def answer(request: Request, context: Any) -> Response:
        seen.append((request, dict(context.invocation_metadata()), context.time_remaining()))
        return Response()

    await service.start(answer)
    await caller.execute(service.address)
    [(request, metadata, remaining)] = seen
    assert request.run == f"runs/{A_RUN.run_id}"
    assert request.job == "services/email-service/jobs/weekly-digest"
    assert (request.tenant, request.attempt, request.max_attempts, request.claim_id) == ("acme-in", 2, 3, 77)
    assert request.trigger_source == run_pb2.TRIGGER_SOURCE_SCHEDULE
    assert request.scheduled_time.ToDatetime(timezone.utc) == A_RUN.scheduled_time
    assert (dict(request.payload), dict(request.labels)) == ({"batchSize": 100}, {"job_type": "digest"})
    assert metadata["idempotency-key"] == str(A_RUN.run_id)
    assert (metadata["carillon-attempt"], metadata["carillon-claim"]) == ("2", "77")
    assert metadata["user-agent"].startswith("carillon-worker/")
    assert 0 < remaining < A_RUN.attempt_timeout + 1  # gRPC rounds deadlines up
    assert caller.calls == ["OK"]


async def test_ok_completes_the_run_with_what_the_service_reports(service: Service, caller: Caller) -> None:
    async def answer(_request: Request, _context: Any) -> Response:
        outcomes = [ItemOutcome(key="ada", succeeded=True), ItemOutcome(key="alan", error="full")]
        response = Response(items=run_pb2.ItemCounts(processed=9, succeeded=7, failed=2), item_outcomes=outcomes)
        response.metrics.update({"bytes": 12, "rate": 0.5})
        response.metadata.update({"file": "a.csv"})
        return response

    await service.start(answer)
    completed = await caller.execute(service.address)
    assert completed == Completed(ItemCounts(9, 7, 2), {"bytes": 12, "rate": 0.5}, {"file": "a.csv"})
    assert type(completed.metrics["bytes"]) is int
    assert caller.items.done == {"ada": None, "alan": "full"}


async def test_items_are_counted_by_the_worker_where_the_service_did_not(service: Service, caller: Caller) -> None:
    await service.start(say_ok)
    assert await caller.execute(service.address) == Completed()


async def test_what_cannot_be_recorded_is_left_out_and_the_record_says_so(service: Service, caller: Caller) -> None:
    async def answer(_request: Request, _context: Any) -> Response:
        outcomes = [ItemOutcome(key=f"{number}", succeeded=True) for number in range(10_001)]
        outcomes[1].key = ""
        response = Response(item_outcomes=outcomes)
        response.metrics.update({"text": "x" * 64 * 1024})
        return response

    await service.start(answer)
    completed = await caller.execute(service.address)
    assert completed.metrics == {}
    problem = completed.metadata["answer_problem"]
    assert "item_outcomes[1]: an item's key must have 1 to 256 characters" in problem
    assert "item_outcomes has 10,001 entries; at most 10,000 are recorded" in problem
    assert "metrics has 65," in problem
    assert len(caller.items.done) == 9_999


async def test_the_largest_answer_that_is_allowed_is_read(service: Service, caller: Caller) -> None:
    async def answer(_request: Request, _context: Any) -> Response:
        error = "\N{EURO SIGN}" * (4096 // 3)
        return Response(item_outcomes=[ItemOutcome(key=f"{number:256}", error=error) for number in range(10_000)])

    await service.start(answer)
    await caller.execute(service.address)
    assert len(caller.items.done) == 10_000


async def test_any_other_status_fails_the_attempt_and_is_told(service: Service, caller: Caller) -> None:
    await service.start(refuse(grpc.StatusCode.RESOURCE_EXHAUSTED, "the mail server is busy"))
    failed = await caller.failure(service.address)
    assert (failed.code, failed.message) == (
        "GRPC_RESOURCE_EXHAUSTED",
        f"carillon.v1.JobHandlerService/Execute at {service.address} answered RESOURCE_EXHAUSTED: "
        "the mail server is busy",
    )
    assert caller.calls == ["RESOURCE_EXHAUSTED"]


@pytest.mark.parametrize("status", [grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.UNIMPLEMENTED])
async def test_a_request_that_never_fits_is_refused_for_good(
    service: Service, caller: Caller, status: grpc.StatusCode
) -> None:
    named = status_details.encode(status.value[0], "no", reason="EXPORT_EMPTY", detail="")
    await service.start(refuse(status, "no", ((status_details.KEY, named),)))
    assert (await caller.failure(service.address)).code == "GRPC_REFUSED"


async def test_a_service_may_name_its_failure(service: Service, caller: Caller) -> None:
    message, detail = "\N{EURO SIGN}" * (4096 // 3), "d" * 16 * 1024
    named = status_details.encode(9, message, reason="EXPORT_EMPTY", detail=detail)
    await service.start(refuse(grpc.StatusCode.FAILED_PRECONDITION, message, ((status_details.KEY, named),)))
    failed = await caller.failure(service.address)
    assert (failed.code, failed.message, failed.detail) == ("EXPORT_EMPTY", message, detail)


async def test_retry_info_says_when_the_next_attempt_is_due(service: Service, caller: Caller) -> None:
    for wanted, expected in ((2.5, 2.5), (0, 0.0), (-1, None), (10**11, 7 * 86_400.0)):
        details = status_pb2.Status(code=14, message="later")
        delay = duration_pb2.Duration()
        delay.FromNanoseconds(int(wanted * 1e9))
        details.details.add().Pack(error_details_pb2.RetryInfo(retry_delay=delay))
        service.answer = refuse(
            grpc.StatusCode.UNAVAILABLE, "later", ((status_details.KEY, details.SerializeToString()),)
        )
        if not service.address:
            await service.start(service.answer)
        failed = await caller.failure(service.address)
        assert (failed.code, failed.retry, failed.retry_after) == ("GRPC_UNAVAILABLE", True, expected)


@pytest.mark.parametrize(
    ("status", "code"),
    [(grpc.StatusCode.FAILED_PRECONDITION, "BUSY"), (grpc.StatusCode.INVALID_ARGUMENT, "GRPC_REFUSED")],
)
async def test_a_service_may_say_that_a_failure_is_final(
    service: Service, caller: Caller, status: grpc.StatusCode, code: str
) -> None:
    named = status_details.encode(status.value[0], "no", reason="BUSY", detail="", retry=False, retry_after=5)
    await service.start(refuse(status, "no", ((status_details.KEY, named),)))
    failed = await caller.failure(service.address)
    assert (failed.code, failed.retry, failed.retry_after) == (code, False, None)


@pytest.mark.parametrize("reason", ["", "not a code"])
async def test_a_name_that_is_none_is_not_used(service: Service, caller: Caller, reason: str) -> None:
    named = status_details.encode(9, "no", reason=reason, detail="more")
    await service.start(refuse(grpc.StatusCode.FAILED_PRECONDITION, "no", ((status_details.KEY, named),)))
    failed = await caller.failure(service.address)
    assert (failed.code, failed.detail) == ("GRPC_FAILED_PRECONDITION", "more")


async def test_cancelling_the_attempt_cancels_the_call(service: Service, caller: Caller) -> None:
    called = asyncio.Event()

    async def hang(_request: Request, _context: Any) -> Response:
        called.set()
        await asyncio.Event().wait()
        return Response()

    await service.start(hang)
    attempt = asyncio.ensure_future(caller.execute(service.address))
    await asyncio.wait_for(called.wait(), PATIENCE)
    attempt.cancel()
    with pytest.raises(asyncio.CancelledError):
        await attempt
    await asyncio.wait_for(service.ended.wait(), PATIENCE)
    assert caller.calls == ["CANCELLED"]


async def test_a_call_that_is_out_of_time_is_the_attempts_timeout(service: Service, caller: Caller) -> None:
    called = asyncio.Event()

    async def hang(_request: Request, _context: Any) -> Response:
        called.set()
        await asyncio.Event().wait()
        return Response()

    await service.start(hang)
    for seconds in (0.05, 0.5, 5, 30):  # until it suffices to reach the service
        failed = await caller.failure(service.address, attempt_timeout=seconds)
        assert (failed.code, failed.message) == ("ATTEMPT_TIMEOUT", f"the attempt took longer than {seconds} s")
        if called.is_set():
            break
    assert called.is_set()
    await asyncio.wait_for(service.ended.wait(), PATIENCE)


async def test_a_deadline_that_the_service_met_elsewhere_is_a_status(service: Service, caller: Caller) -> None:
    await service.start(refuse(grpc.StatusCode.DEADLINE_EXCEEDED, "the database did not answer"))
    assert (await caller.failure(service.address)).code == "GRPC_DEADLINE_EXCEEDED"


async def test_a_service_that_was_away_is_called_as_soon_as_it_is_back(service: Service, caller: Caller) -> None:
    service.address = f"127.0.0.1:{lasting_port()}"
    await service.start(say_ok)
    await service.stop()
    for _ in range(3):  # more failures would make gRPC wait longer before it connects again
        failed = await caller.failure(service.address)
        assert failed.code == "GRPC_UNAVAILABLE"
        assert "answered UNAVAILABLE" in failed.message
    await service.start(say_ok)
    assert await caller.execute(service.address) == Completed()


async def test_calls_share_a_channel_and_what_is_idle_is_let_go(service: Service, caller: Caller) -> None:
    peers: list[str] = []

    async def answer(_request: Request, context: Any) -> Response:
        peers.append(context.peer())
        return Response()

    await service.start(answer)
    await asyncio.gather(*(caller.execute(service.address) for _ in range(5)))
    assert len(set(peers)) == 1
    assert len(caller.channels) == 1
    async with caller.channels.lend(parse_grpc(f"grpc://{service.address}"), [LOCALHOST]) as lent:
        channel = lent.channel
    async with asyncio.timeout(PATIENCE):
        while (state := channel.get_state()) is not grpc.ChannelConnectivity.IDLE:
            await channel.wait_for_state_change(state)
    await caller.execute(service.address)
    assert len(set(peers)) == 2


async def test_no_more_channels_are_kept_than_wanted(caller: Caller) -> None:
    server = parse_grpc("grpc://a:1")
    async with caller.channels.lend(server, [LOCALHOST]) as used:
        for number in range(5):
            async with caller.channels.lend(parse_grpc(f"grpc://b:{number + 1}"), [LOCALHOST]):
                pass
        assert len(caller.channels) == 2
        async with caller.channels.lend(server, [LOCALHOST]) as again:
            assert again is used


async def test_tls_is_spoken_and_the_service_must_be_trusted(
    service: Service, caller: Caller, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cert, key = self_signed(tmp_path, "service")
    await service.start(say_ok, grpc.ssl_server_credentials([(key.read_bytes(), cert.read_bytes())]))
    assert "UNAVAILABLE" in (await caller.failure(service.address, "grpcs")).message
    monkeypatch.setenv("SSL_CERT_FILE", str(cert))
    assert await caller.execute(service.address, "grpcs") == Completed()
