"""The worker's session with the scheduler.

In charge: the scheduler decides who holds what; the session does what it is told and keeps what it owes. A session
outlives its streams: it reconnects for ever, says `Hello` with the claims it holds, and sends again what was not
acknowledged. When its lease is about to end it gives up the runs that go on; with results that were settled before it
goes on under its id, for as long as the scheduler knows it, and without any it begins anew under another. When the
scheduler has lost it, it gives up all and begins anew.

States of an attempt here: waiting for a slot, running, settled (its result waits for the acknowledgement), then
forgotten. The clock is the process's monotonic one. Everything happens in one event loop; only `Run` is used from
other threads.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from carillon import results, verdicts
from carillon.channel import Connection
from carillon.execution import Executor
from carillon.held import HeldAttempt, Holdings, Stop, read_assignment
from carillon.lease_watch import LeaseWatch
from carillon.reporting import Reporting
from carillon.slots import Slots
from carillon.stream import HANDSHAKE_SECONDS, StreamBroke, WorkStream
from carillon.streams import Streams
from carillon.tls import Tls
from carillon.v1 import work_pb2, worker_service_pb2
from carillon.version import CLIENT

_log = logging.getLogger("carillon")

FLUSH_SECONDS = 10.0
CLEAN_UP_SECONDS = 5.0
# With more results than this not acknowledged, the worker takes less: the scheduler is behind.
UNACKNOWLEDGED_RESULTS = 2_000


@dataclass(frozen=True, slots=True)
class SessionState:
    """How the session stands, for health checks and metrics."""

    connected: bool
    replica: str
    running: int
    waiting: int
    held: int
    unacknowledged: int
    draining: bool
    last_error: str


class WorkerSession:
    """A worker process's session: takes runs for its executors, and reports what became of them.

    name: the worker's, for people. concurrency: attempts that run at once. prefetch: attempts taken beyond these, so
    that the next one is at hand. clock: seconds, for the lease. Opens nothing before `run`.
    """

    def __init__(
        self,
        *,
        target: str | None = None,
        token: str | None = None,
        executors: Sequence[Executor],
        name: str,
        concurrency: int = 10,
        prefetch: int = 0,
        tls: Tls | bool | None = None,
        plaintext: bool | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if concurrency < 1 or prefetch < 0:
            raise ValueError("a worker needs a concurrency of at least 1 and a prefetch of at least 0")
        self._connection = Connection.resolve(target, service_token=token, tls=tls, plaintext=plaintext)
        self._routes = {route: executor for executor in executors for route in executor.routes}
        if not self._routes:
            raise ValueError("a worker needs at least one route to serve")
        self._name = name[:200]
        self._capacity = concurrency + prefetch
        self._holdings = Holdings()
        self._reporting = Reporting(self._wake)
        self._slots = Slots(
            self._routes,
            concurrency,
            on_begin=self._reporting.began,
            on_result=self._settle,
            on_free=self._on_free,
        )
        self._lease = LeaseWatch(self._lease_runs_out, clock)
        self._session_id = b""
        self._outstanding = 0  # credit granted on the current stream and not used yet
        self._unacknowledged = 0
        self._streams = Streams(self._connection, self)
        self._replica = ""
        self._draining = False
        self._changed = asyncio.Event()
        self._stopped = asyncio.Event()
        self._begun = False

    def state(self) -> SessionState:
        """How the session stands now."""
        return SessionState(
            connected=self._streams.current is not None,
            replica=self._replica if self._streams.current is not None else "",
            running=self._slots.running,
            waiting=self._slots.waiting,
            held=len(self._holdings),
            unacknowledged=self._unacknowledged,
            draining=self._draining,
            last_error=self._streams.last_error,
        )

    async def wait_until(self, is_so: Callable[[SessionState], bool], seconds: float) -> bool:
        """Waits until the state is so, at most that long. Returns whether it is."""
        deadline = time.monotonic() + seconds
        while not is_so(self.state()):
            self._changed.clear()
            try:
                await asyncio.wait_for(self._changed.wait(), max(0.0, deadline - time.monotonic()))
            except asyncio.TimeoutError:
                return is_so(self.state())
        return True

    async def run(self) -> None:
        """Serves until it was drained (then it returns) or is cancelled. Reconnects for ever. Call it once."""
        if self._begun:
            raise RuntimeError("a worker session runs once; make a new one")
        self._begun = True
        self._reporting.begin()
        # Made here, not before: processes that fork after the worker was built must not share a session.
        self._session_id = uuid.uuid4().bytes
        try:
            await self._streams.stay_connected()
        finally:
            await self._shut_down()
            self._stopped.set()

    async def drain(self, grace: float) -> None:
        """Ends the session in order.

        Takes nothing more, returns what was not started, lets what runs go on for at most `grace` seconds, waits at
        most 10 s for the acknowledgement of the results, and says `Goodbye`. What still runs then is free again for
        other workers at once. The last fifth of the grace, at most 5 s, is for what is interrupted to clean up.
        """
        if not self._begun or self._stopped.is_set():
            self._streams.close(worker_service_pb2.WorkRequest())
            return
        self._draining = True
        for attempt in self._slots.withdraw():
            self._settle(attempt, results.returned(attempt))
        clean_up = min(CLEAN_UP_SECONDS, grace / 5)
        await self.wait_until(lambda state: not state.running, grace - clean_up)
        for attempt in self._holdings:
            if attempt.result is None:
                _log.warning("run %s is given up: the worker drains", attempt.assignment.run_id)
                self._forget(attempt)
        await self._slots.ended(clean_up)
        if not await self.wait_until(lambda state: not state.held, FLUSH_SECONDS):
            _log.error("%d results were not acknowledged; their runs will be tried again", len(self._holdings))
        self._streams.close(worker_service_pb2.WorkRequest(goodbye=work_pb2.Goodbye()))
        await self._stopped.wait()

    # What the streams ask and tell.

    @property
    def session_id(self) -> bytes:
        """The id of this incarnation: 16 bytes, another one after the session was lost."""
        return self._session_id

    def streams_changed(self) -> None:
        """See `SessionOwner`."""
        self._changed.set()

    def is_in_time(self, stream: WorkStream) -> bool:
        """See `StreamOwner`."""
        if self._lease.is_over():
            self._lease_runs_out()
        return stream.session_id == self._session_id and not stream.is_dropped

    def patience(self) -> float:
        """See `StreamOwner`."""
        return self._lease.patience(HANDSHAKE_SECONDS)

    def hello(self, stream: WorkStream) -> work_pb2.Hello:
        """See `StreamOwner`."""
        self._lease.hello()
        return work_pb2.Hello(
            session_id=stream.session_id,
            worker=self._name,
            routes=list(self._routes),
            held_claims=self._holdings.claims,
            client=CLIENT,
        )

    def welcomed(self, stream: WorkStream, welcome: work_pb2.Welcome) -> None:
        """See `StreamOwner`."""
        self._streams.welcomed(stream)
        self._replica = welcome.replica
        self._lease.welcomed(welcome.lease.ToTimedelta().total_seconds())
        self._outstanding = 0
        self._reporting.begin_again(self._holdings)
        self._changed.set()
        _log.info("connected to %s (%s)", self._connection.target, welcome.replica)

    def heartbeat(self, stream: WorkStream) -> work_pb2.Heartbeat:
        """See `StreamOwner`."""
        sequence = self._lease.beat() if stream is self._streams.current else 0
        if sequence is None:
            raise StreamBroke("the scheduler does not answer heartbeats")
        return work_pb2.Heartbeat(sequence=sequence, held_claims=self._holdings.claims)

    def next_message(self, stream: WorkStream) -> worker_service_pb2.WorkRequest | None:
        """See `StreamOwner`. Credit travels with whatever goes out."""
        if stream is not self._streams.current:
            return None
        message = self._reporting.next_message()
        credit = self._free() - self._outstanding
        if credit > 0:
            message = message or worker_service_pb2.WorkRequest()
            message.credit = credit
            self._outstanding += credit
        return message

    def received(self, stream: WorkStream, response: worker_service_pb2.WorkResponse) -> None:
        """See `StreamOwner`."""
        if not self.is_in_time(stream):
            return
        kind = response.WhichOneof("message")
        if kind == "assignments":
            self._take(stream, response.assignments)
        elif kind == "result_acks":
            self._acknowledged(response.result_acks)
        elif kind == "heartbeat_ack":
            self._lease.acknowledged(response.heartbeat_ack.sequence)
        elif kind == "cancel":
            for ref in response.cancel.attempts:
                if (attempt := self._holdings.find(ref)) is not None:
                    self._slots.stop(attempt, Stop.CANCEL)
        elif kind == "drain":
            stream.successor_wanted.set()

    # Taking runs and forgetting them.

    def _take(self, stream: WorkStream, sent: work_pb2.Assignments) -> None:
        if stream is self._streams.current:
            self._outstanding = max(0, self._outstanding - len(sent.assignments))
        for assignment in sent.assignments:
            held = self._holdings.of_run(assignment.run_id)
            if held is not None and held.ref.claim_id >= sent.claim_id:
                continue
            if held is not None:
                _log.warning("run %s came again under a newer claim", held.assignment.run_id)
                self._forget(held)
            self._hold(sent.claim_id, assignment)
        self._wake()

    def _hold(self, claim_id: int, sent: work_pb2.Assignment) -> None:
        try:
            assignment = read_assignment(claim_id, sent)
        except ValueError:
            _log.exception("the scheduler sent an assignment that this client cannot read")
            return
        attempt = HeldAttempt(assignment, self._reporting.reported)
        self._holdings.add(attempt)
        if assignment.route not in self._routes:
            self._settle(attempt, results.not_served(attempt))
        elif self._draining:
            self._settle(attempt, results.returned(attempt))
        else:
            self._slots.submit(attempt)

    def _acknowledged(self, sent: work_pb2.ResultAcks) -> None:
        for ack in sent.acks:
            attempt = self._holdings.find(ack.attempt)
            if attempt is None or attempt.result is None:
                continue
            verdicts.name_refused(attempt, ack.verdict)
            self._forget(attempt)
        self._wake()

    def _forget(self, attempt: HeldAttempt) -> None:
        attempt.forgotten = True
        self._unacknowledged -= attempt.result is not None
        self._holdings.remove(attempt)
        self._reporting.forget(attempt)
        self._slots.abandon(attempt)
        self._changed.set()

    def _free(self) -> int:
        """How many runs more could be taken now."""
        if self._draining:
            return 0
        behind = max(0, self._unacknowledged - UNACKNOWLEDGED_RESULTS)
        return self._capacity - self._slots.running - self._slots.waiting - behind

    def _settle(self, attempt: HeldAttempt, result: work_pb2.AttemptResult) -> None:
        if self._lease.is_over():
            attempt.result = None  # too late to be one: the run may be another worker's by now
            self._lease_runs_out()
            return
        self._unacknowledged += 1
        self._reporting.ended(attempt, result)

    def _on_free(self) -> None:
        self._changed.set()
        self._wake()

    def _wake(self) -> None:
        if self._streams.current is not None:
            self._streams.current.wake()

    # The lease.

    def _lease_runs_out(self) -> None:
        going_on = [attempt for attempt in self._holdings if attempt.result is None]
        if len(going_on) == len(self._holdings):
            self.lost("its lease runs out without an acknowledged heartbeat")
            return
        # Whether these count is the scheduler's to say, which may have been away itself all the time.
        settled = len(self._holdings) - len(going_on)
        _log.warning("the lease runs out; runs given up: %d, results kept: %d", len(going_on), settled)
        for attempt in going_on:
            self._forget(attempt)
        self._lease.forget()
        self._streams.drop_all()

    def lost(self, why: str) -> None:
        """See `SessionOwner`. Gives up all runs, and takes another session id."""
        _log.warning("the session is lost: %s; runs given up: %d", why, len(self._holdings))
        verdicts.name_given_up([attempt for attempt in self._holdings if attempt.result is not None])
        for attempt in self._holdings:
            self._forget(attempt)
        self._session_id = uuid.uuid4().bytes
        self._lease.forget()
        self._streams.drop_all()

    async def _shut_down(self) -> None:
        self._reporting.cancel()
        self._lease.cancel()
        for attempt in self._holdings:
            self._forget(attempt)
        await self._streams.cancel()
        await self._slots.ended(CLEAN_UP_SECONDS)
