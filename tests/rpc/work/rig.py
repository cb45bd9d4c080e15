"""A real scheduler's worker stream for tests: gRPC server with authentication, leases, dispatcher and completer on a
real database; and a worker that is nothing but generated stubs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import grpc
import psycopg
from carillon.ending import Ending
from carillon.v1 import work_pb2, worker_service_pb2, worker_service_pb2_grpc
from prometheus_client import CollectorRegistry

from scheduler_service.domain.attempt import ClaimedRun
from scheduler_service.domain.rates import Rate
from scheduler_service.domain.run import TriggerSource
from scheduler_service.engine.complete import Completer
from scheduler_service.engine.dispatch import Dispatcher
from scheduler_service.engine.leases import Leases
from scheduler_service.engine.reap import Cancels, Reaper
from scheduler_service.engine.report import Reports
from scheduler_service.engine.sessions import Sessions
from scheduler_service.identity.credentials import Credentials
from scheduler_service.loops.completer import CompleterLoop
from scheduler_service.loops.loop import Loop
from scheduler_service.loops.reaper import ReaperLoop
from scheduler_service.loops.ticker import SecondTicker, Ticker
from scheduler_service.loops.worker_streams import LeaseLoop, ReportLoop
from scheduler_service.rpc.calls import Calls, caller
from scheduler_service.rpc.metrics import CallMetrics
from scheduler_service.rpc.work import OPENINGS, WorkerService
from scheduler_service.rpc.work_outbox import Outbox
from scheduler_service.store.database import Database
from scheduler_service.usecases.wakeups import Wakeups
from tests import canary
from tests.credentials import accepting

WORKER_TOKEN = canary.token("worker")
EMAIL_TOKEN = canary.token("email")
TOKENS = f"*={WORKER_TOKEN},email-service={EMAIL_TOKEN}"
PATIENCE = 60.0

LIVE = "select count(*) from carillon.live_runs where session_id is not null"
SESSIONS = "select count(*) from carillon.sessions"

Request = worker_service_pb2.WorkRequest
Response = worker_service_pb2.WorkResponse


@dataclass
class Clock:
    """The replica's monotonic clock, which tests step."""

    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Replica:
    """One scheduler replica's part of the stream. `completes`: whether it commits results by itself."""

    database: Database
    clock: Clock = field(default_factory=Clock)
    wakeups: Wakeups = field(default_factory=Wakeups)
    new_outbox: Callable[[], Outbox] = Outbox
    hello_timeout: float = PATIENCE
    openings: Rate = OPENINGS
    completes: bool = True
    stream_age: float = 0.0
    address: str = ""

    def __post_init__(self) -> None:
        self.sessions = Sessions(lambda: None)
        self.leases = Leases(
            self.database, self.sessions, self.wakeups, replica=f"replica-{id(self)}", clock=self.passing
        )
        self.reports = Reports(self.wakeups)
        self.completer = Completer(self.wakeups)
        self.service = WorkerService(
            self.leases,
            self.sessions,
            self.reports,
            self.completer,
            caller=caller,
            replica="replica-1",
            hello_timeout=self.hello_timeout,
            openings=self.openings,
            stream_age=self.stream_age,
            new_outbox=self.new_outbox,
            clock=self.clock,
        )

    def passing(self) -> float:
        """The clock of what is compared with the database's: it passes by itself, too."""
        return time.monotonic() + self.clock.now


@asynccontextmanager
async def serving(replica: Replica, credentials: Credentials | None = None) -> AsyncIterator[Replica]:
    """The replica with its server and its loops."""
    calls = Calls(
        credentials or accepting(TOKENS),
        CallMetrics(CollectorRegistry()),
    )
    server = grpc.aio.server(interceptors=(calls,))
    worker_service_pb2_grpc.add_WorkerServiceServicer_to_server(replica.service, server)
    replica.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    async with AsyncExitStack() as stack:
        connect = replica.database.hot_connection
        reaper = Reaper(replica.sessions, replica.leases, replica.wakeups, clock=replica.passing)
        dispatcher = Dispatcher(replica.sessions, replica.wakeups)
        second = SecondTicker(connect, dispatcher, replica.wakeups)
        ticker = Ticker(connect, dispatcher, replica.wakeups, second)
        replica.sessions.on_credit = ticker.wakeup.set
        for loop in (
            LeaseLoop(connect, replica.leases),
            ReportLoop(connect, replica.reports),
            *([CompleterLoop(connect, replica.completer)] if replica.completes else []),
            ReaperLoop(connect, reaper, Cancels(replica.sessions), replica.wakeups),
            ticker,
        ):
            loop.start()
            stack.push_async_callback(_stopped, loop)
        stack.push_async_callback(server.stop, None)
        yield replica


async def _stopped(loop: Loop) -> None:
    await loop.stop()
    assert loop.health().error is None


class RawWorker:
    """One stream of a worker. `reads`: set while it reads what comes."""

    def __init__(self, address: str, token: str = WORKER_TOKEN, session_id: UUID | None = None) -> None:
        self.session_id = session_id or uuid4()
        self._channel = grpc.aio.insecure_channel(address)
        stub = worker_service_pb2_grpc.WorkerServiceStub(self._channel)
        self.call: Any = stub.Work(metadata=(("x-service-token", token),) if token else ())
        self._responses: asyncio.Queue[Response] = asyncio.Queue()
        self.reads = asyncio.Event()
        self.reads.set()
        self._reading = asyncio.ensure_future(self._read())

    async def hello(self, *, routes: Sequence[str] = ("http",), held: Sequence[int] = (), credit: int = 0) -> None:
        hello = work_pb2.Hello(
            session_id=self.session_id.bytes, worker="worker-1", routes=routes, held_claims=held, client="raw"
        )
        await self.send(hello=hello, credit=credit)

    async def welcomed(self, **hello: Any) -> RawWorker:
        await self.hello(**hello)
        await self.expect("welcome")
        return self

    async def send(self, **fields: Any) -> None:
        with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):  # ended meanwhile: `status` says why
            await self.call.write(Request(**fields))

    async def beat(self, sequence: int, held: Sequence[int] = ()) -> None:
        await self.send(heartbeat=work_pb2.Heartbeat(sequence=sequence, held_claims=held))

    async def verdict(self, result: work_pb2.AttemptResult) -> work_pb2.ResultVerdict.ValueType:
        """What becomes of one result."""
        await self.send(results=work_pb2.Results(results=[result]))
        [ack] = (await self.expect("result_acks")).acks
        verdict: work_pb2.ResultVerdict.ValueType = ack.verdict
        return verdict

    async def read(self) -> Response | None:
        """The next message, or None where the stream has ended."""
        waiting = asyncio.ensure_future(self._responses.get())
        async with asyncio.timeout(PATIENCE):
            await asyncio.wait({waiting, self._reading}, return_when=asyncio.FIRST_COMPLETED)
        if waiting.done():
            return waiting.result()
        waiting.cancel()
        return None

    async def kind(self) -> str:
        """Which kind the next message is of."""
        response = await self.read()
        return str(response and response.WhichOneof("message"))

    async def expect(self, kind: str) -> Any:
        """The next message, which must be of this kind."""
        response = await self.read()
        assert response is not None, f"the stream ended while {kind} was expected: {await self.status()}"
        assert response.WhichOneof("message") == kind, response
        return getattr(response, kind)

    async def status(self) -> tuple[grpc.StatusCode, str]:
        """How the stream ends, whatever comes before that."""
        async with asyncio.timeout(PATIENCE):
            return await asyncio.shield(self._reading)

    async def close(self) -> None:
        self._reading.cancel()
        self.call.cancel()
        await self._channel.close()

    async def _read(self) -> tuple[grpc.StatusCode, str]:
        """Reads from the start, as a worker does, and returns how the stream ended."""
        ending = Ending(self.call)
        try:
            while (response := await self.call.read()) is not grpc.aio.EOF:
                self._responses.put_nowait(response)
                await self.reads.wait()
        except grpc.aio.AioRpcError as error:
            sent = await ending.sent(error)
            return sent.code(), sent.details() or ""
        return await self.call.code(), await self.call.details()


@asynccontextmanager
async def a_worker(replica: Replica, **kwargs: Any) -> AsyncIterator[RawWorker]:
    worker = RawWorker(replica.address, **kwargs)
    try:
        yield worker
    finally:
        await worker.close()


async def until(condition: Callable[[], bool]) -> None:
    """Waits for a condition that nothing announces."""
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110  # nothing announces it
            await asyncio.sleep(0.005)


def a_claimed_run(payload: str = "{}") -> ClaimedRun:
    return ClaimedRun(
        run_id=uuid4(),
        attempt=1,
        max_attempts=3,
        service="email-service",
        job="weekly-digest",
        tenant="-",
        endpoint="",
        payload=payload,
        attempt_timeout=0.25,
        cancel_grace=30,
        scheduled_for=datetime(2030, 1, 1, microsecond=250_000, tzinfo=UTC),
        trigger=TriggerSource.CATCH_UP,
        labels={},
    )


def ref(run_id: bytes, claim_id: int, attempt: int = 1) -> work_pb2.AttemptRef:
    return work_pb2.AttemptRef(run_id=run_id, attempt=attempt, claim_id=claim_id)


def one(admin: psycopg.Connection[Any], query: str) -> Any:
    """The first column of a query's one row; None if there is no row."""
    row = admin.execute(query.encode()).fetchone()
    return row[0] if row else None


def a_result(attempt: work_pb2.AttemptRef, **fields: Any) -> work_pb2.AttemptResult:
    fields.setdefault("outcome", work_pb2.ATTEMPT_OUTCOME_COMPLETED)
    return work_pb2.AttemptResult(attempt=attempt, **fields)
