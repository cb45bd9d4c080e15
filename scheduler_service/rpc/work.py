"""`carillon.v1.WorkerService`: the stream of a worker.

Each stream has a reader (this worker's messages, in their order) and a writer (its outbox). The leases say which
stream of a session counts; the completer takes results; nothing here waits for the worker to read.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from typing import Protocol

import structlog
from carillon.v1 import worker_service_pb2, worker_service_pb2_grpc

from scheduler_service.domain.access import Action, Principal, require
from scheduler_service.domain.attempt import ItemResult, Result
from scheduler_service.domain.errors import RateLimited, Unavailable
from scheduler_service.domain.rates import Buckets, Rate
from scheduler_service.engine.lanes import Room
from scheduler_service.engine.leases import Leases
from scheduler_service.engine.report import Reports
from scheduler_service.engine.sessions import ConnectedSession, Sessions
from scheduler_service.rpc import work_decode
from scheduler_service.rpc.work_decode import Malformed
from scheduler_service.rpc.work_outbox import Outbox
from scheduler_service.rpc.work_pace import Pace

log = structlog.get_logger()

HELLO_SECONDS = 10.0
RENEWAL_SECONDS = 30.0
"""How long a worker has to open another stream before an old one is closed."""

WorkRequest = worker_service_pb2.WorkRequest
WorkResponse = worker_service_pb2.WorkResponse


def openings(most_streams: int) -> Rate:
    """How often a principal that may have so many streams may open one: all of them twice at once, then each one
    every 10 s; with few, as if it were 100."""
    streams = max(most_streams, 100)
    return Rate(per_second=streams / 10, burst=streams * 2)


OPENINGS = openings(500)


class Results(Protocol):
    """Where results go. `room`: whether a session may send more of them."""

    room: Room

    def submit(self, results: Sequence[Result], session: ConnectedSession) -> None: ...

    def submit_items(self, items: Sequence[ItemResult], session: ConnectedSession) -> None: ...


class WorkerService(worker_service_pb2_grpc.WorkerServiceServicer):
    """`caller` says who makes the call that is being handled; `lease`, `heartbeat_interval`, `hello_timeout` and
    `stream_age` are in seconds. `openings`: how often a principal may open a stream. `stream_age`: once a stream has
    lasted for between four fifths of it and all of it, its worker is asked for another; 0: never."""

    def __init__(
        self,
        leases: Leases,
        sessions: Sessions,
        reports: Reports,
        results: Results,
        *,
        caller: Callable[[], Principal],
        replica: str,
        lease: float = 30.0,
        heartbeat_interval: float = 5.0,
        hello_timeout: float = HELLO_SECONDS,
        openings: Rate = OPENINGS,
        stream_age: float = 0.0,
        new_outbox: Callable[[], Outbox] = Outbox,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._leases = leases
        self._sessions = sessions
        self._reports = reports
        self._results = results
        self._caller = caller
        self._replica = replica
        self._lease = lease
        self._heartbeat_interval = heartbeat_interval
        self._hello_timeout = hello_timeout
        self._openings = Buckets(openings)
        self._stream_age = stream_age
        self._new_outbox = new_outbox
        self._clock = clock
        self._draining = False
        self._streams: dict[Outbox, ConnectedSession] = {}
        self._leaving: set[asyncio.Future[None]] = set()
        self._ended = asyncio.Event()

    async def Work(  # the contract's name
        self,
        request_iterator: AsyncIterator[WorkRequest],
        context: worker_service_pb2_grpc._ServicerContext,
    ) -> AsyncIterator[WorkResponse]:
        if self._is_going():
            raise Unavailable("this replica is going; connect to another one")
        principal = self._caller()
        require(principal, Action.WORK)
        self._refuse_too_many(principal)
        first = await self._first_message(request_iterator)
        if first is None:
            return
        outbox = self._new_outbox()
        outbox.welcome(self._lease, self._heartbeat_interval, self._replica)
        hello = work_decode.hello_of(first.hello)
        credit = work_decode.credit_of(first.credit, 0)
        session = await self._leases.open(principal, hello, outbox)
        pace = Pace.of(self._heartbeat_interval, self._lease, len(hello.held_claims), self._clock)
        reader = asyncio.ensure_future(self._read(request_iterator, session, outbox, pace))
        self._begun(session, outbox, reader)
        if self._is_going():  # it was let in before, and said Hello after
            self._send_away(session, outbox)
        # A writer that waits for a worker which went away is not told; the call is.
        context.add_done_callback(lambda _: outbox.finish())  # type: ignore[arg-type]  # typed as synchronous
        self._sessions.grant(session, credit)
        try:
            async for message in outbox.messages():
                yield message
        finally:
            outbox.finish()

    async def drain(self, grace: float) -> None:
        """Asks every worker to go to another replica, refuses new streams, and waits for the streams to end; those
        that have not after `grace` seconds are closed."""
        self._draining = True
        for outbox, session in self._streams.items():
            self._send_away(session, outbox)
        try:
            async with asyncio.timeout(grace):
                while self._streams:
                    self._ended.clear()
                    await self._ended.wait()
        except TimeoutError:
            for outbox in list(self._streams):
                outbox.end(Unavailable("this replica stops; connect to another one"))

    def _is_going(self) -> bool:
        return self._draining

    def _send_away(self, session: ConnectedSession, outbox: Outbox) -> None:
        self._sessions.disconnect(session)
        outbox.drain()

    def _refuse_too_many(self, principal: Principal) -> None:
        """Each stream writes its session's row. Errors: RateLimited."""
        if wait := self._openings.take(str(principal), self._clock()):
            raise RateLimited(
                f"{principal} opens work streams too often; keep one open for each worker", retry_after=wait
            )

    def _begun(self, session: ConnectedSession, outbox: Outbox, reader: asyncio.Future[None]) -> None:
        renewal = self._renew_in_time(session, outbox)

        def ended() -> None:
            if renewal is not None:
                renewal.cancel()
            self._leases.close(session)
            self._streams.pop(outbox, None)
            self._ended.set()
            reader.cancel()
            log.info("stream ended", session=str(session.session_id), worker=session.worker)

        self._streams[outbox] = session
        outbox.on_end = ended
        outbox.on_full = partial(self._sessions.fall_behind, session)
        outbox.on_late = self._leases.wakeup.set
        log.info("stream opened", session=str(session.session_id), worker=session.worker, stream=session.stream)

    def _renew_in_time(self, session: ConnectedSession, outbox: Outbox) -> asyncio.TimerHandle | None:
        """Asks for another stream before a proxy or its load balancer ends this one; also, workers spread over replicas
        that came later."""
        if not self._stream_age:
            return None
        loop = asyncio.get_running_loop()

        def renew() -> None:
            session.leaving = True
            outbox.drain()
            loop.call_later(RENEWAL_SECONDS, outbox.end, Unavailable("this stream is old; open another one"))

        return loop.call_later(self._stream_age * random.uniform(0.8, 1), renew)

    async def _first_message(self, requests: AsyncIterator[WorkRequest]) -> WorkRequest | None:
        """The Hello; None if the worker closed the stream before. Errors: Malformed."""
        try:
            async with asyncio.timeout(self._hello_timeout):
                first = await anext(requests, None)
        except TimeoutError:
            raise Malformed("hello", f"did not come within {self._hello_timeout:g} s; send it first") from None
        if first is not None and not first.HasField("hello"):
            raise Malformed("hello", "must be the first message of a stream")
        return first

    async def _read(
        self, requests: AsyncIterator[WorkRequest], session: ConnectedSession, outbox: Outbox, pace: Pace
    ) -> None:
        """Takes the worker's messages until it closes its side, says Goodbye, or one is wrong."""
        try:
            async for request in requests:
                if request.HasField("goodbye"):
                    await self._leave(session)
                    break
                self._take(request, session, outbox, pace)
                await self._results.room.wait(session)
                await self._reports.room.wait(session)
            outbox.finish()
        except Exception as error:
            outbox.end(error)

    async def _leave(self, session: ConnectedSession) -> None:
        """To its end, even if the worker hangs up meanwhile."""
        leaving = asyncio.ensure_future(self._leases.leave(session))
        self._leaving.add(leaving)
        leaving.add_done_callback(self._leaving.discard)
        await asyncio.shield(leaving)

    def _take(self, request: WorkRequest, session: ConnectedSession, outbox: Outbox, pace: Pace) -> None:
        kind = request.WhichOneof("message")
        if kind == "results":
            results = work_decode.results_of(request.results.results, session.session_id)
            pace.results.check(len(results), outbox.runs)
            self._results.submit(results, session)
        elif kind == "items":
            self._results.submit_items(work_decode.items_of(request.items, session.session_id), session)
        elif kind == "starts":
            starts = work_decode.starts_of(request.starts)
            pace.starts.check(len(starts), outbox.runs)
            self._reports.started(session, starts)
        elif kind == "progress":
            self._reports.progressed(session, work_decode.progress_of(request.progress))
        elif kind == "heartbeat":
            pace.heartbeats.check(len(request.heartbeat.held_claims), outbox.claims)
            held = work_decode.claims_of(request.heartbeat.held_claims)
            self._leases.beat(session, request.heartbeat.sequence, [*held, *outbox.unsent_claims])
        elif kind == "hello":
            raise Malformed("hello", "came a second time; it is only the first message of a stream")
        if request.credit:
            self._sessions.grant(session, work_decode.credit_of(request.credit, session.credit))
