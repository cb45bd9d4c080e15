"""A service's gRPC handlers on a real server, called as a worker calls them."""

from __future__ import annotations

import asyncio
import threading
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import carillon
import grpc
import grpc.aio
import pytest
from carillon import grpc_handlers, status_details
from carillon.structs import from_struct
from carillon.v1 import job_handler_service_pb2, job_handler_service_pb2_grpc

if TYPE_CHECKING:
    from carillon.handler_types import Declare

Request = job_handler_service_pb2.ExecuteRequest
Response = job_handler_service_pb2.ExecuteResponse
RUN = uuid.UUID(int=7)


@dataclass
class Sync:
    brand: str
    rows: int = 0


class Service:
    """A server of what `jobs` declares, once it is started."""

    def __init__(self) -> None:
        self.jobs = carillon.Jobs("kpi-service")
        self._server = grpc.aio.server()
        self._channel: grpc.aio.Channel | None = None

    def handler(self) -> Declare:
        return self.jobs.grpc_handler("sync", address="kpi-service:50051")

    async def call(self, payload: dict[str, Any], *, timeout: float | None = 30, **fields: Any) -> Response:
        if self._channel is None:
            grpc_handlers.add_to_server(self.jobs, self._server)
            port = self._server.add_insecure_port("127.0.0.1:0")
            await self._server.start()
            self._channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}")
        given = {"run": f"runs/{RUN}", "job": "services/kpi-service/jobs/sync", "tenant": "-", "attempt": 1}
        request = Request(**{**given, **fields})
        request.payload.update(payload)
        return await job_handler_service_pb2_grpc.JobHandlerServiceStub(self._channel).Execute(request, timeout=timeout)

    async def refusal(self, payload: dict[str, Any], **fields: Any) -> tuple[grpc.StatusCode, str, str, str]:
        """Status, message, code and detail."""
        error, said = await self.error(payload, **fields)
        return error.code(), error.details() or "", said.reason, said.detail

    async def error(
        self, payload: dict[str, Any], **fields: Any
    ) -> tuple[grpc.aio.AioRpcError, status_details.StatusDetails]:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await self.call(payload, **fields)
        error = raised.value
        trailers: Any = error.trailing_metadata()
        return error, status_details.decode(dict(trailers).get(status_details.KEY))

    async def stop(self) -> None:
        if self._channel is not None:
            await self._channel.close()
        await self._server.stop(None)


@pytest.fixture
async def service() -> AsyncIterator[Service]:
    service = Service()
    yield service
    await service.stop()


async def test_a_handler_gets_its_payload_and_answers_with_metrics(service: Service) -> None:
    @service.handler()
    async def sync(payload: Sync, run: carillon.Run) -> dict[str, Any]:
        assert 0 < run.attempt_timeout < 31  # gRPC rounds deadlines up
        return {"brand": payload.brand, "rows": payload.rows, "run": str(run.run_id), "source": run.trigger_source}

    response = await service.call({"brand": "acme", "rows": 5}, trigger_source=3)
    assert dict(response.metrics) == {"brand": "acme", "rows": 5, "run": str(RUN), "source": "MANUAL"}
    assert not response.HasField("items")


async def test_json_goes_there_and_back_unchanged(service: Service) -> None:
    values = {"list": [1, 2.5, None, {"yes": True}], "large": 2**53, "text": "\N{EURO SIGN}", "empty": {}}

    @service.handler()
    async def sync(payload: dict[str, Any]) -> carillon.Completed:
        assert payload == values
        assert type(payload["large"]) is int
        return carillon.Completed(metadata=payload)

    assert from_struct((await service.call(values)).metadata) == values


async def test_a_payload_that_does_not_fit_is_an_invalid_argument(service: Service) -> None:
    @service.handler()
    async def sync(payload: Sync) -> None: ...

    message = "payload has the unknown key 'brnd'; allowed are: brand, rows"
    assert await service.refusal({"brnd": "acme"}) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        message,
        "BAD_PAYLOAD",
        "",
    )


async def test_a_plain_function_runs_in_a_thread_and_its_items_come_back(service: Service) -> None:
    @service.handler()
    def sync(run: carillon.Run) -> carillon.Completed:
        assert threading.current_thread() is not threading.main_thread()
        for brand in run.track(["acme", "umbrella"]):
            with run.item(brand):
                assert brand == "acme"
        return carillon.Completed(items=carillon.ItemCounts(10, 9, 1), metadata={"file": "a.csv"})

    response = await service.call({})
    assert {item.key: (item.succeeded, item.error) for item in response.item_outcomes} == {
        "acme": (True, ""),
        "umbrella": (False, "AssertionError: assert 'umbrella' == 'acme'\n  \n  - acme\n  + umbrella"),
    }
    assert (response.items.processed, response.items.succeeded, response.items.failed) == (10, 9, 1)
    assert dict(response.metadata) == {"file": "a.csv"}


async def test_items_beyond_the_most_are_counted(service: Service) -> None:
    @service.handler()
    async def sync(run: carillon.Run) -> None:
        for number in range(10_002):
            with run.item(str(number)) as item:
                if number == 0:
                    item.fail("first")

    response = await service.call({})
    assert len(response.item_outcomes) == 10_000
    assert (response.items.processed, response.items.succeeded, response.items.failed) == (10_002, 10_001, 1)


async def test_a_call_that_is_cancelled_stops_its_handler(service: Service) -> None:
    started, stopped = asyncio.Event(), asyncio.Event()

    @service.handler()
    async def sync(run: carillon.Run) -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()

    call = asyncio.ensure_future(service.call({}))
    await asyncio.wait_for(started.wait(), 60)
    call.cancel()
    await asyncio.wait_for(stopped.wait(), 60)


async def test_a_plain_function_sees_that_its_call_is_out_of_time(service: Service) -> None:
    started, stopped = threading.Event(), threading.Event()

    @service.handler()
    def sync(run: carillon.Run) -> None:
        started.set()
        try:
            while True:
                run.check()
        finally:
            stopped.set()

    seconds = 0.1
    while not started.is_set():  # a call that was out of time before it got there shows nothing
        status, *_ = await service.refusal({}, timeout=seconds)
        assert status is grpc.StatusCode.DEADLINE_EXCEEDED
        seconds *= 2
    assert await asyncio.to_thread(stopped.wait, 60)


async def test_a_failure_keeps_its_name_message_and_detail(service: Service) -> None:
    @service.handler()
    async def sync() -> None:
        raise carillon.Failed("EXPORT_EMPTY", "nothing to send", "the query had no rows")

    assert await service.refusal({}) == (
        grpc.StatusCode.FAILED_PRECONDITION,
        "nothing to send",
        "EXPORT_EMPTY",
        "the query had no rows",
    )


@pytest.mark.parametrize(
    ("wish", "no_retry", "retry_after"), [({"retry": False}, True, None), ({"retry_after": 2.5}, False, 2.5)]
)
async def test_a_failure_says_what_is_to_follow(
    service: Service, wish: dict[str, Any], no_retry: bool, retry_after: float | None
) -> None:
    @service.handler()
    async def sync() -> None:
        raise carillon.Failed("BUSY", "later", **wish)

    _, said = await service.error({})
    assert (said.reason, said.no_retry, said.retry_after) == ("BUSY", no_retry, retry_after)


async def test_an_exception_is_unknown_with_its_traceback(service: Service, caplog: pytest.LogCaptureFixture) -> None:
    @service.handler()
    async def sync() -> None:
        raise RuntimeError("the disk is full")

    status, message, code, detail = await service.refusal({})
    assert (status, message, code) == (grpc.StatusCode.UNKNOWN, "RuntimeError: the disk is full", "HANDLER_ERROR")
    assert "in sync" in detail
    assert f"run {RUN} failed" in caplog.text


async def test_a_handler_that_cancels_itself_has_failed(service: Service) -> None:
    @service.handler()
    async def sync() -> None:
        raise asyncio.CancelledError

    assert (await service.refusal({}))[:2] == (grpc.StatusCode.UNKNOWN, "the handler cancelled itself")


@pytest.mark.parametrize("value", [5, {"a": {1}}, {"a": 2**60}])
async def test_a_result_that_cannot_be_recorded_is_internal(service: Service, value: object) -> None:
    @service.handler()
    async def sync() -> Any:
        return value

    status, _, code, _ = await service.refusal({})
    assert (status, code) == (grpc.StatusCode.INTERNAL, "BAD_RESULT")


async def test_a_job_that_is_not_here_is_not_found_and_nonsense_is_refused(service: Service) -> None:
    @service.handler()
    async def sync() -> None: ...

    status, message, *_ = await service.refusal({}, job="services/kpi-service/jobs/other")
    assert status is grpc.StatusCode.NOT_FOUND
    assert message == "kpi-service has no gRPC handler for services/kpi-service/jobs/other"
    assert (await service.refusal({}, job="services/other/jobs/sync"))[0] is grpc.StatusCode.NOT_FOUND
    for wrong in ({"run": "runs/7"}, {"run": "x"}, {"job": "sync"}):
        assert (await service.refusal({}, **wrong))[0] is grpc.StatusCode.INVALID_ARGUMENT


async def test_jobs_without_grpc_handlers_have_nothing_to_serve(service: Service) -> None:
    service.jobs.grpc_endpoint("sync", "kpi-service:50051")
    with pytest.raises(ValueError, match="declares no gRPC handler"):
        await service.call({})
