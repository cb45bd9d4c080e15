"""What is known of runs, as readers see it: frozen values, read in one piece and never changed.

JSON documents (`payload`, `metrics`, `metadata`) are plain dicts; their integers are exact.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from scheduler_service.domain.pending import PendingReason
from scheduler_service.domain.run import RunState, TriggerSource

Document = Mapping[str, Any]
CLEARED = "cleared, since it is older than its job keeps it"
"""What the database's `clear_payloads` leaves of an error's message."""


@dataclass(frozen=True, slots=True)
class RunError:
    """Why an attempt or a run did not complete: a short code, a sentence, and more (a traceback). `retry`: why the
    attempt after it comes when it does, in a sentence; empty where none follows."""

    code: str
    message: str
    detail: str = ""
    # No result comes with one, and the digest of a result is made of its error's text: see domain/attempt.py.
    retry: str = field(default="", repr=False)

    def adding(self, more: str) -> RunError:
        """With a further line of detail."""
        return replace(self, detail=f"{self.detail}\n{more}" if self.detail else more) if more else self

    def retried(self, because: str) -> RunError:
        """With why the next attempt comes when it does."""
        return replace(self, retry=because)

    def to_document(self) -> dict[str, str]:
        """As the columns `error` and `last_error` hold it."""
        document = {"code": self.code, "message": self.message, "detail": self.detail}
        return document | {"retry": self.retry} if self.retry else document

    @classmethod
    def from_document(cls, document: Document | None) -> RunError | None:
        if document is None:
            return None
        return cls(
            code=str(document.get("code", "")),
            message=str(document.get("message", "")),
            detail=str(document.get("detail", "")),
            retry=str(document.get("retry", "")),
        )


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a running attempt is. `total` is 0 if it is not known."""

    done: int
    total: int
    message: str
    updated_at: datetime

    @classmethod
    def from_document(cls, document: Document | None) -> Progress | None:
        if document is None:
            return None
        return cls(
            done=document["done"],
            total=document["total"],
            message=document["message"],
            updated_at=datetime.fromisoformat(document["updated_at"]),
        )


@dataclass(frozen=True, slots=True)
class ItemCounts:
    """Items that the last attempt worked through."""

    processed: int = 0
    succeeded: int = 0
    failed: int = 0


@dataclass(frozen=True, slots=True)
class Run:
    """A run as it was at one moment, live or ended. `schedule`, `revision`, `scheduled_local` and `time_zone` are
    empty for runs that no schedule owes. `blocked`: it is pending because an earlier run of its schedule has to end.
    `retry_of`: the ended run that it tries again, by hand; `retried_by`: of one that ended without success, the newest
    run that was made to do what it did not. `pending_reason` is None for one that is not pending, or if that could not
    be found out."""

    run_id: UUID
    service: str
    job: str
    tenant: str
    schedule: str
    revision: int
    state: RunState
    trigger: TriggerSource
    origin: str
    triggered_by: str
    scheduled_for: datetime
    scheduled_local: datetime | None
    time_zone: str
    created_at: datetime
    run_after: datetime
    started_at: datetime | None
    finished_at: datetime | None
    duration: timedelta | None
    attempt: int
    max_attempts: int
    worker: str
    labels: Mapping[str, str]
    payload: Document
    metrics: Document
    metadata: Document
    items: ItemCounts
    progress: Progress | None
    error: RunError | None
    cancel_requested_at: datetime | None
    blocked: bool = False
    retry_of: UUID | None = None
    retried_by: UUID | None = None
    pending_reason: PendingReason | None = None


@dataclass(frozen=True, slots=True)
class Attempt:
    """One try at a run. `state` is FAILED for each but the last one."""

    run_id: UUID
    attempt: int
    state: RunState
    started_at: datetime | None
    finished_at: datetime | None
    duration: timedelta | None
    worker: str
    error: RunError | None


@dataclass(frozen=True, slots=True)
class Item:
    """One unit of work inside a run, with its own result."""

    run_id: UUID
    attempt: int
    key: str
    succeeded: bool
    error: str
    finished_at: datetime


@dataclass(frozen=True, slots=True)
class JobStats:
    """A job's ended runs in a window, test runs left out. Durations are of completed runs' last attempts."""

    counts: Mapping[RunState, int]
    average_duration: timedelta | None
    longest_duration: timedelta | None
    items: ItemCounts
    last_finished_at: datetime | None
    last_state: RunState | None


def last_attempt(run: Run) -> Attempt | None:
    """The attempt that a run is at or ended with. None if no worker has had it: the ones before stand in the record."""
    if run.state is RunState.PENDING or not (run.worker or run.started_at):
        return None
    return Attempt(
        run_id=run.run_id,
        attempt=run.attempt,
        state=run.state,
        started_at=run.started_at,
        finished_at=run.finished_at,
        duration=run.duration,
        worker=run.worker,
        error=None if run.state is RunState.RUNNING else run.error,
    )


def newest_attempt_number(run: Run) -> int:
    """The number of the newest attempt that a worker has had, 0 if none: that of a run which waits, or ended while
    it waited, is one that never came."""
    return run.attempt if last_attempt(run) is not None else max(run.attempt - 1, 0)
