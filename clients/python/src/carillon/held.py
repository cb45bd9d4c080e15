"""The attempts that the session holds.

An attempt is held from its assignment until its result is acknowledged, or until it is forgotten (superseded, or
lost with its lease). A claim is held as long as one of its attempts is.
"""

from __future__ import annotations

import asyncio
import enum
import uuid
from collections.abc import Callable, Iterator
from datetime import timezone

from carillon.outcome import ATTEMPT_TIMEOUT, CANCELLED
from carillon.run import Assignment, Run
from carillon.v1 import run_pb2, work_pb2

TRIGGER_SOURCES = {value: name.removeprefix("TRIGGER_SOURCE_") for name, value in run_pb2.TriggerSource.items()}
"""What `Run.trigger_source` says of each value."""


class Stop(enum.Enum):
    """Why an attempt was asked to stop, with the code that its result has then."""

    CANCEL = CANCELLED
    TIMEOUT = ATTEMPT_TIMEOUT


class HeldAttempt:
    """One attempt in this worker's hands, and what it has to report. Also where its run's reports arrive."""

    __slots__ = (
        "_on_report",
        "assignment",
        "began",
        "forgotten",
        "items",
        "items_sent",
        "ref",
        "reported",
        "result",
        "run",
        "stop",
        "task",
        "timer",
    )

    def __init__(self, assignment: Assignment, on_report: Callable[[HeldAttempt], None]) -> None:
        self.assignment = assignment
        self.run = Run(assignment, self)
        self.ref = work_pb2.AttemptRef(
            run_id=assignment.run_id.bytes, attempt=assignment.attempt, claim_id=assignment.claim_id
        )
        self.began: float | None = None  # monotonic; None while it waits for a slot
        self.task: asyncio.Task[object] | None = None
        self.timer: asyncio.TimerHandle | None = None  # its timeout, then the end of its grace
        self.stop: Stop | None = None
        self.forgotten = False
        self.result: work_pb2.AttemptResult | None = None  # set once, when it ends
        self.items: list[work_pb2.ItemResult] = []  # kept until the result is acknowledged
        self.items_sent = 0  # how many of them went out on the present stream
        self.reported = False  # True from a report until the session looked at it
        self._on_report = on_report

    def progressed(self) -> None:
        """See `carillon.run.Reports`."""
        self._report()

    def item_done(self, key: str, error: str | None) -> None:
        """See `carillon.run.Reports`. Once the attempt's result is settled, items come too late."""
        if self.result is not None or self.forgotten:
            return
        self.items.append(work_pb2.ItemResult(attempt=self.ref, key=key, succeeded=error is None, error=error or ""))
        self._report()

    def _report(self) -> None:
        if not self.reported:
            self.reported = True
            self._on_report(self)


class Holdings:
    """All held attempts, by run: a session holds at most one attempt of a run."""

    def __init__(self) -> None:
        self._attempts: dict[bytes, HeldAttempt] = {}
        self._claims: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._attempts)

    def __iter__(self) -> Iterator[HeldAttempt]:
        return iter(list(self._attempts.values()))

    def of_run(self, run_id: bytes) -> HeldAttempt | None:
        """The attempt that is held of this run."""
        return self._attempts.get(run_id)

    def find(self, ref: work_pb2.AttemptRef) -> HeldAttempt | None:
        """Exactly this attempt, if it is held."""
        held = self._attempts.get(ref.run_id)
        if held is None or (held.ref.attempt, held.ref.claim_id) != (ref.attempt, ref.claim_id):
            return None
        return held

    def add(self, attempt: HeldAttempt) -> None:
        """Holds an attempt of a run of which none is held."""
        self._attempts[attempt.ref.run_id] = attempt
        claim = attempt.ref.claim_id
        self._claims[claim] = self._claims.get(claim, 0) + 1

    def remove(self, attempt: HeldAttempt) -> None:
        """Holds it no longer."""
        del self._attempts[attempt.ref.run_id]
        claim = attempt.ref.claim_id
        self._claims[claim] -= 1
        if not self._claims[claim]:
            del self._claims[claim]

    @property
    def claims(self) -> list[int]:
        """The claims that are held, as `Hello` and heartbeats list them."""
        return list(self._claims)


def read_assignment(claim_id: int, sent: work_pb2.Assignment) -> Assignment:
    """The assignment as executors see it. Raises ValueError if it is malformed."""
    _, service, _, job = sent.job.split("/")
    return Assignment(
        run_id=uuid.UUID(bytes=sent.run_id),
        attempt=sent.attempt,
        claim_id=claim_id,
        max_attempts=sent.max_attempts,
        service=service,
        job=job,
        tenant=sent.tenant,
        endpoint=sent.endpoint,
        payload_json=sent.payload_json,
        attempt_timeout=sent.attempt_timeout.seconds + sent.attempt_timeout.nanos / 1e9,
        cancel_grace=sent.cancel_grace.seconds + sent.cancel_grace.nanos / 1e9,
        scheduled_time=sent.scheduled_time.ToDatetime(timezone.utc),
        trigger_source=TRIGGER_SOURCES.get(sent.trigger_source, str(sent.trigger_source)),
        labels=dict(sent.labels),
    )
