"""A scheduler that does as the test says, on a real gRPC server, and a service with one endpoint."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import grpc.aio
import pytest
from aiohttp import web
from carillon.v1 import run_pb2, work_pb2, worker_service_pb2, worker_service_pb2_grpc

Stream = grpc.aio.ServicerContext[Any, Any]
Endpoint = Callable[[web.Request], Awaitable[web.Response]]


class ScriptedScheduler(worker_service_pb2_grpc.WorkerServiceServicer):
    """Welcomes workers, acknowledges heartbeats and results, and sends what `assign` is told to."""

    target: str

    def __init__(self) -> None:
        self.hellos: asyncio.Queue[work_pb2.Hello] = asyncio.Queue()
        self.results: asyncio.Queue[work_pb2.AttemptResult] = asyncio.Queue()
        self.said_goodbye = asyncio.Event()
        self.tokens: list[str] = []
        self._credit = asyncio.Semaphore(0)
        self._to_send: asyncio.Queue[worker_service_pb2.WorkResponse] = asyncio.Queue()
        self._claims = 0

    async def Work(
        self,
        request_iterator: AsyncIterator[worker_service_pb2.WorkRequest],
        context: Stream,
    ) -> AsyncIterator[worker_service_pb2.WorkResponse]:
        metadata: Any = context.invocation_metadata()
        self.tokens.append(dict(metadata)["x-service-token"])
        reading = asyncio.create_task(self._read(request_iterator))
        try:
            while not self.said_goodbye.is_set():
                yield await self._to_send.get()
        finally:
            reading.cancel()

    async def assign(self, endpoint: str, *, timeout: float = 60.0, **changes: Any) -> uuid.UUID:
        """Sends one run, as soon as the worker granted credit for it; returns its id. timeout: seconds."""
        await self._credit.acquire()
        self._claims += 1
        run = uuid.uuid4()
        assignment = work_pb2.Assignment(
            run_id=run.bytes,
            attempt=1,
            max_attempts=3,
            job="services/email-service/jobs/weekly-digest",
            tenant="-",
            endpoint=endpoint,
            payload_json="{}",
            trigger_source=run_pb2.TRIGGER_SOURCE_SCHEDULE,
            **changes,
        )
        assignment.attempt_timeout.FromNanoseconds(int(timeout * 1e9))
        assignment.cancel_grace.FromSeconds(30)
        assignment.scheduled_time.FromSeconds(1_795_000_000)
        sent = work_pb2.Assignments(claim_id=self._claims, assignments=[assignment])
        self._to_send.put_nowait(worker_service_pb2.WorkResponse(assignments=sent))
        return run

    def cancel(self, run: uuid.UUID) -> None:
        """Asks for the newest claim's run to stop."""
        ref = work_pb2.AttemptRef(run_id=run.bytes, attempt=1, claim_id=self._claims)
        cancel = work_pb2.CancelAttempts(attempts=[ref])
        self._to_send.put_nowait(worker_service_pb2.WorkResponse(cancel=cancel))

    async def _read(self, requests: AsyncIterator[worker_service_pb2.WorkRequest]) -> None:
        async for request in requests:
            for _ in range(request.credit):
                self._credit.release()
            if (answer := self._answer(request)) is not None:
                self._to_send.put_nowait(answer)

    def _answer(self, request: worker_service_pb2.WorkRequest) -> worker_service_pb2.WorkResponse | None:
        match request.WhichOneof("message"):
            case "hello":
                self.hellos.put_nowait(request.hello)
                welcome = work_pb2.Welcome(replica="scripted")
                welcome.lease.FromSeconds(30)
                welcome.heartbeat_interval.FromSeconds(5)
                return worker_service_pb2.WorkResponse(welcome=welcome)
            case "heartbeat":
                ack = work_pb2.HeartbeatAck(sequence=request.heartbeat.sequence)
                return worker_service_pb2.WorkResponse(heartbeat_ack=ack)
            case "results":
                return self._acknowledge(request.results)
            case "goodbye":
                self.said_goodbye.set()
                return worker_service_pb2.WorkResponse(drain=work_pb2.Drain())
            case _:
                return None

    def _acknowledge(self, results: work_pb2.Results) -> worker_service_pb2.WorkResponse:
        acks = work_pb2.ResultAcks()
        for result in results.results:
            self.results.put_nowait(result)
            acks.acks.add(attempt=result.attempt, verdict=work_pb2.RESULT_VERDICT_ACCEPTED)
        return worker_service_pb2.WorkResponse(result_acks=acks)


@pytest.fixture
async def scheduler() -> AsyncIterator[ScriptedScheduler]:
    scheduler = ScriptedScheduler()
    server = grpc.aio.server()
    worker_service_pb2_grpc.add_WorkerServiceServicer_to_server(scheduler, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    scheduler.target = f"127.0.0.1:{port}"
    yield scheduler
    await server.stop(None)


@pytest.fixture
async def serve() -> AsyncIterator[Callable[[Endpoint], Awaitable[str]]]:
    """Starts a service with one endpoint; returns its URL."""
    runners: list[web.AppRunner] = []

    async def start(endpoint: Endpoint) -> str:
        app = web.Application()
        app.router.add_post("/job", endpoint)
        runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        runners.append(runner)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        return f"http://127.0.0.1:{runner.addresses[0][1]}/job"

    yield start
    for runner in runners:
        await runner.cleanup()
