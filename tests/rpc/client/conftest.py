"""A scripted scheduler on a real gRPC server: the test says what it answers, and sees all that arrives."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, TypeVar

import carillon
import grpc
import grpc.aio
import pytest
from carillon.execution import Assignment, Completed, Run
from carillon.session import WorkerSession
from carillon.v1 import (
    registry_service_pb2,
    registry_service_pb2_grpc,
    work_pb2,
    worker_service_pb2,
    worker_service_pb2_grpc,
)
from google.protobuf import duration_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

T = TypeVar("T")

SAFETY_SECONDS = 60.0


async def soon(waiting: Awaitable[T]) -> T:
    """What is awaited, or a failure long before the test run would hang."""
    return await asyncio.wait_for(waiting, SAFETY_SECONDS)


class ScriptedStream:
    """One work stream as the scheduler has it."""

    def __init__(self, metadata: dict[str, str]) -> None:
        self.metadata = metadata
        self.granted = 0
        self.seen: list[str] = []
        self.ended = asyncio.Event()
        self.half_closed = asyncio.Event()
        self._changed = asyncio.Event()
        self._requests: list[worker_service_pb2.WorkRequest] = []
        self.answers: asyncio.Queue[Any] = asyncio.Queue()

    async def listen(self, requests: Any) -> None:
        async for request in requests:
            self.granted += request.credit
            if kind := request.WhichOneof("message"):
                self.seen.append(kind)
            self._requests.append(request)
            self._changed.set()
        self.half_closed.set()

    async def next(self, kind: str) -> Any:
        """The next message of that kind; others stay until they are asked for."""
        while True:
            self._changed.clear()
            for request in self._requests:
                if request.WhichOneof("message") == kind:
                    self._requests.remove(request)
                    return getattr(request, kind)
            await soon(self._changed.wait())

    async def credit(self, at_least: int) -> int:
        """Waits until that much was granted in all."""
        while self.granted < at_least:
            self._changed.clear()
            await soon(self._changed.wait())
        return self.granted

    def say(self, **message: Any) -> None:
        self.answers.put_nowait(worker_service_pb2.WorkResponse(**message))

    def end(self, code: grpc.StatusCode, details: str, reason: str = "") -> None:
        """Ends the stream with this status."""
        self.answers.put_nowait((code, details, reason))

    def welcome(self, lease: float = 30.0, heartbeat: float = 5.0) -> None:
        self.say(
            welcome=work_pb2.Welcome(
                lease=_duration(lease), heartbeat_interval=_duration(heartbeat), replica="scripted"
            )
        )

    def assign(self, *runs: work_pb2.Assignment, claim: int = 1) -> None:
        self.say(assignments=work_pb2.Assignments(claim_id=claim, assignments=runs))

    def acknowledge(
        self,
        results: Any,
        verdict: work_pb2.ResultVerdict.ValueType = work_pb2.RESULT_VERDICT_ACCEPTED,
    ) -> None:
        acks = [work_pb2.ResultAck(attempt=result.attempt, verdict=verdict) for result in results.results]
        self.say(result_acks=work_pb2.ResultAcks(acks=acks))

    async def answer_heartbeat(self) -> work_pb2.Heartbeat:
        beat: work_pb2.Heartbeat = await self.next("heartbeat")
        self.say(heartbeat_ack=work_pb2.HeartbeatAck(sequence=beat.sequence))
        return beat


class ScriptedScheduler(
    worker_service_pb2_grpc.WorkerServiceServicer, registry_service_pb2_grpc.RegistryServiceServicer
):
    """A scheduler that does what the test says."""

    def __init__(self) -> None:
        self.target = ""
        self.streams: asyncio.Queue[ScriptedStream] = asyncio.Queue()
        self.registrations: asyncio.Queue[registry_service_pb2.RegisterJobsRequest] = asyncio.Queue()
        self.refusals: list[status_pb2.Status] = []
        self.may_answer = asyncio.Event()
        """Cleared, it leaves registrations without an answer."""
        self.may_answer.set()
        self._server: grpc.aio.Server | None = None

    async def start(self, port: int = 0) -> int:
        self._server = grpc.aio.server()
        worker_service_pb2_grpc.add_WorkerServiceServicer_to_server(self, self._server)
        registry_service_pb2_grpc.add_RegistryServiceServicer_to_server(self, self._server)
        bound = self._server.add_insecure_port(f"127.0.0.1:{port}")
        await self._server.start()
        self.target = f"127.0.0.1:{bound}"
        return int(bound)

    async def stop(self) -> None:
        if self._server is not None:
            await self._server.stop(None)

    async def next_stream(self) -> ScriptedStream:
        return await soon(self.streams.get())

    async def Work(self, request_iterator: Any, context: Any) -> AsyncIterator[Any]:
        stream = ScriptedStream(dict(context.invocation_metadata()))
        listening = asyncio.ensure_future(stream.listen(request_iterator))
        self.streams.put_nowait(stream)
        closed = asyncio.ensure_future(stream.half_closed.wait())
        try:
            while True:
                answer = asyncio.ensure_future(stream.answers.get())
                await asyncio.wait({answer, closed}, return_when=asyncio.FIRST_COMPLETED)
                if not answer.done():
                    answer.cancel()
                    return
                if isinstance(answer.result(), tuple):
                    code, details, reason = answer.result()
                    await context.abort_with_status(rpc_status.to_status(refusal(code, details, reason)))
                yield answer.result()
        finally:
            stream.ended.set()
            for task in (listening, closed):
                task.cancel()
                with suppress(asyncio.CancelledError, Exception):
                    await task

    async def RegisterJobs(self, request: Any, context: Any) -> Any:
        self.registrations.put_nowait(request)
        await self.may_answer.wait()
        if self.refusals:
            await context.abort_with_status(rpc_status.to_status(self.refusals.pop(0)))
        return registry_service_pb2.RegisterJobsResponse(generation=request.generation)

    async def RemoveJob(self, request: Any, context: Any) -> Any:
        raise NotImplementedError


def refusal(
    code: grpc.StatusCode, details: str, reason: str = "", violations: Sequence[tuple[str, str]] = ()
) -> status_pb2.Status:
    """A status as the scheduler sends it, with `google.rpc` details."""
    status = status_pb2.Status(code=code.value[0], message=details)
    if reason:
        status.details.add().Pack(error_details_pb2.ErrorInfo(reason=reason, domain="carillon"))
    if violations:
        wrong = error_details_pb2.BadRequest()
        for field, description in violations:
            wrong.field_violations.add(field=field, description=description)
        status.details.add().Pack(wrong)
    return status


def run_to_assign(number: int = 1, **fields: Any) -> work_pb2.Assignment:
    """An assignment with defaults; `number` makes its run id."""
    given: dict[str, Any] = {
        "run_id": uuid.UUID(int=number).bytes,
        "attempt": 1,
        "max_attempts": 3,
        "job": "services/kpi-service/jobs/sync",
        "tenant": "-",
        "payload_json": json.dumps({"number": number}),
        "attempt_timeout": _duration(60),
        "cancel_grace": _duration(30),
    }
    return work_pb2.Assignment(**{**given, **fields})


class Recorder:
    """An executor that does what the test says, for each run by its number."""

    routes = ("handler/kpi-service/sync",)

    def __init__(self) -> None:
        self.started: asyncio.Queue[Run] = asyncio.Queue()
        self.interrupted: asyncio.Queue[Run] = asyncio.Queue()
        self.ended = 0
        self.act: Callable[[Run], Awaitable[Completed]] = self.at_once

    async def execute(self, assignment: Assignment, run: Run) -> Completed:
        self.started.put_nowait(run)
        try:
            return await self.act(run)
        except asyncio.CancelledError:
            self.interrupted.put_nowait(run)
            raise
        finally:
            self.ended += 1

    async def at_once(self, run: Run) -> Completed:
        return Completed(metrics={"number": json.loads(run.payload_json)["number"]})

    async def for_ever(self, run: Run) -> Completed:
        await asyncio.Event().wait()
        raise AssertionError("nobody sets the event")


@pytest.fixture
async def scheduler() -> AsyncIterator[ScriptedScheduler]:
    scripted = ScriptedScheduler()
    await scripted.start()
    yield scripted
    await scripted.stop()


@pytest.fixture
def executor() -> Recorder:
    return Recorder()


@pytest.fixture
async def start_session(
    scheduler: ScriptedScheduler, executor: Recorder
) -> AsyncIterator[Callable[..., WorkerSession]]:
    running: list[asyncio.Task[None]] = []

    def start(**options: Any) -> WorkerSession:
        given: dict[str, Any] = {"target": scheduler.target, "token": "t.secret", "executors": [executor]}
        session = WorkerSession(**{**given, "name": "test", "concurrency": 2, **options})
        running.append(asyncio.ensure_future(session.run()))
        return session

    yield start
    for task in running:
        task.cancel()
    for outcome in await soon(asyncio.gather(*running, return_exceptions=True)):
        assert outcome is None or isinstance(outcome, asyncio.CancelledError), outcome


@pytest.fixture
def new_run() -> Callable[..., work_pb2.Assignment]:
    return run_to_assign


@pytest.fixture
def refused() -> Callable[..., status_pb2.Status]:
    return refusal


@pytest.fixture
def in_time() -> Callable[[Awaitable[Any]], Awaitable[Any]]:
    return soon


def _duration(seconds: float) -> duration_pb2.Duration:
    duration = duration_pb2.Duration()
    duration.FromNanoseconds(int(seconds * 1e9))
    return duration


@pytest.fixture
def jobs(scheduler: ScriptedScheduler) -> carillon.Jobs:
    return carillon.Jobs("kpi-service", target=scheduler.target, token="kpi.secret", generation=3)
