"""What waits to be sent on one work stream.

Whoever adds to it never waits: the stream's writer takes what has piled up, merged into few messages. A worker that
does not read makes it grow past its bound, which ends the stream.

Runs do not wait here for long: by the time that their claim may have been taken back, nobody shall send them any more.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from itertools import repeat
from typing import TypeVar

from carillon.v1 import worker_service_pb2

from scheduler_service.domain.attempt import AttemptRef, ClaimedRun, Verdict
from scheduler_service.domain.errors import Unavailable
from scheduler_service.engine.sessions import SENT_WITHIN
from scheduler_service.rpc import work_encode

MOST_ENTRIES = 50_000
MOST_BYTES = 256 * 1024 * 1024
FULL_BYTES = 4 * 1024 * 1024
"""Of runs that wait to be sent: from then on it is not worth claiming more."""
_BATCH = 500
_BATCH_BYTES = 1024 * 1024
"""Of one message. gRPC's libraries take 4 MiB, unless they are told otherwise; one run has less than half of one."""

# Of a run, beside its payload and labels: ids, names, times, an endpoint.
_ROUGHLY = 256

T = TypeVar("T")


_Waiting = tuple[int, float, ClaimedRun]
"""A run that waits to be sent: its claim, when that was asked for (see `Outbound`), and the run. Plain, since it is
made for every run."""


class Outbox:
    """One stream's outgoing queue: the port through which everybody else sends. `on_end` is called once, when the
    stream can send no more; `on_full` with true once 4 MiB of runs wait, or one has waited too long, and with false
    once they do no longer; `on_late` when it leaves out runs that came too late. `claims` and `runs`: how many were
    assigned on it. `clock`: monotonic, in seconds."""

    def __init__(
        self,
        *,
        most_entries: int = MOST_ENTRIES,
        most_bytes: int = MOST_BYTES,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.on_end: Callable[[], None] = lambda: None
        self.on_full: Callable[[bool], None] = lambda _full: None
        self.on_late: Callable[[], None] = lambda: None
        self.claims = 0
        self.runs = 0
        self._most_entries = most_entries
        self._most_bytes = most_bytes
        self._clock = clock
        self._bytes = 0
        self._full = False
        self._stuck = False
        self._first: deque[worker_service_pb2.WorkResponse] = deque()
        self._heartbeat: int | None = None
        self._cancels: deque[AttemptRef] = deque()
        self._runs: deque[_Waiting] = deque()
        self._late: list[AttemptRef] = []
        self._verdicts: deque[tuple[AttemptRef, Verdict]] = deque()
        self._news = asyncio.Event()
        self._error: Exception | None = None
        self._finished = False

    def welcome(self, lease: float, heartbeat_interval: float, replica: str) -> None:
        self._put_first(work_encode.welcome(lease, heartbeat_interval, replica))

    def drain(self) -> None:
        """Asks the worker to open another stream elsewhere, then to close this one."""
        self._put_first(work_encode.drain())

    def assign(self, claim_id: int, runs: Sequence[ClaimedRun], asked_at: float) -> None:
        if not self._is_over:
            self.claims += 1
            self.runs += len(runs)
            self._runs.extend(zip(repeat(claim_id), repeat(asked_at), runs, strict=False))
            self._weigh(sum(map(_bytes_of, runs)))
            self._grown()

    def acknowledge(self, verdicts: Iterable[tuple[AttemptRef, Verdict]]) -> None:
        if not self._is_over:
            self._verdicts.extend(verdicts)
            self._grown()

    def cancel(self, attempts: Iterable[AttemptRef]) -> None:
        if not self._is_over:
            self._cancels.extend(attempts)
            self._grown()

    def acknowledge_heartbeat(self, sequence: int) -> None:
        """Only the newest needs an answer."""
        if not self._is_over:
            self._heartbeat = max(sequence, self._heartbeat or 0)
            self._news.set()

    def end(self, error: Exception) -> None:
        """Ends the stream with an error; what waits is dropped."""
        if self._is_over:
            return
        self._error = error
        for queue in (self._first, self._cancels, self._runs, self._verdicts):
            queue.clear()
        self._over()

    def finish(self) -> None:
        """Ends the stream in good order, once what waits is sent."""
        if not self._is_over:
            self._finished = True
            self._over()

    @property
    def unsent_claims(self) -> set[int]:
        """Claims of which the worker cannot know yet."""
        return {claim_id for claim_id, _, _ in self._runs}

    def withdraw_late(self) -> list[AttemptRef]:
        """Takes back runs that have waited too long for the writer. Answers them, and those that came too late since
        this was called last: they are not sent. As long as the writer stands still, it is not worth claiming more."""
        if self._is_late():
            self._leave_out_late()
            self._stuck = True
            self._weigh(0)
        late, self._late = self._late, []
        return late

    async def messages(self) -> AsyncIterator[worker_service_pb2.WorkResponse]:
        """What to send, until the stream ends. Errors: what it was ended with."""
        while True:
            self._news.clear()
            while (message := self._next()) is not None:
                yield message
            if self._error is not None:
                raise self._error
            if self._finished:
                return
            await self._news.wait()

    @property
    def _is_over(self) -> bool:
        return self._finished or self._error is not None

    def _over(self) -> None:
        self._news.set()
        self.on_end()

    def _put_first(self, message: worker_service_pb2.WorkResponse) -> None:
        if not self._is_over:
            self._first.append(message)
            self._news.set()

    def _grown(self) -> None:
        entries = len(self._runs) + len(self._verdicts) + len(self._cancels)
        if entries > self._most_entries or self._bytes > self._most_bytes:
            self.end(Unavailable("this worker does not read its stream; reconnect"))
        self._news.set()

    def _next(self) -> worker_service_pb2.WorkResponse | None:
        if self._stuck:
            self._stuck = False
            self._weigh(0)
        if self._is_late():
            self._leave_out_late()
            self.on_late()
        if self._first:
            return self._first.popleft()
        if self._heartbeat is not None:
            sequence, self._heartbeat = self._heartbeat, None
            return work_encode.heartbeat_ack(sequence)
        if self._cancels:
            return work_encode.cancel(_taken(self._cancels))
        if self._runs:
            return self._next_assignments()
        if self._verdicts:
            return work_encode.result_acks(_taken(self._verdicts))
        return None

    def _next_assignments(self) -> worker_service_pb2.WorkResponse:
        """Runs of one claim, as many as fit into a message of a size that every worker accepts."""
        claim_id = self._runs[0][0]
        batch: list[ClaimedRun] = []
        size = 0
        while self._runs and self._runs[0][0] == claim_id and len(batch) < _BATCH:
            of_run = _bytes_of(self._runs[0][2])
            if batch and size + of_run > _BATCH_BYTES:
                break
            size += of_run
            batch.append(self._runs.popleft()[2])
        self._weigh(-size)
        return work_encode.assignments(claim_id, batch)

    def _is_late(self) -> bool:
        return bool(self._runs) and self._clock() - self._runs[0][1] > SENT_WITHIN

    def _leave_out_late(self) -> None:
        """All that is late at the head; what is behind something younger has its turn when that is gone."""
        size = 0
        while self._is_late():
            claim_id, _, run = self._runs.popleft()
            self._late.append(AttemptRef(run.run_id, run.attempt, claim_id))
            size += _bytes_of(run)
        self._weigh(-size)

    def _weigh(self, more: int) -> None:
        self._bytes += more
        if self._full != (self._stuck or self._bytes >= FULL_BYTES):
            self._full = not self._full
            self.on_full(self._full)


def _bytes_of(run: ClaimedRun) -> int:
    """What a run takes in a message, and rather more: a character that is not ASCII has up to four bytes."""
    size = _ROUGHLY + len(run.payload) * (1 if run.payload.isascii() else 4)
    return size + sum(4 * (len(key) + len(value)) for key, value in run.labels.items())


def _taken(queue: deque[T]) -> list[T]:
    return [queue.popleft() for _ in range(min(len(queue), _BATCH))]
