"""An attempt: one try at a run in one session's hands, what is handed over for it, and how it ended."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Literal, NamedTuple
from uuid import UUID

from scheduler_service.domain.record import ItemCounts, RunError
from scheduler_service.domain.retry import Following
from scheduler_service.domain.run import TriggerSource

AttemptOutcome = Literal["COMPLETED", "FAILED", "CANCELLED", "RETURNED"]


class AttemptRef(NamedTuple):  # not a dataclass: made and hashed several times for every run
    """One attempt in one session's hands: what a result must match to count."""

    run_id: UUID
    attempt: int
    claim_id: int


@dataclass(slots=True)  # not frozen: made for every run, where freezing costs four times the making
class ClaimedRun:
    """A run as it is handed to a worker. Times in seconds; `payload` is a JSON text."""

    run_id: UUID
    attempt: int
    max_attempts: int
    service: str
    job: str
    tenant: str
    endpoint: str
    payload: str
    attempt_timeout: float
    cancel_grace: float
    scheduled_for: datetime
    trigger: TriggerSource
    labels: dict[str, str]


class Verdict(StrEnum):
    """What became of a reported result."""

    ACCEPTED = "ACCEPTED"
    STALE = "STALE"
    RUN_ENDED = "RUN_ENDED"
    RUN_CANCELLED = "RUN_CANCELLED"
    UNKNOWN = "UNKNOWN"


@dataclass(slots=True)  # not frozen: made for every run, where freezing costs four times the making
class Result:
    """How a session says that an attempt ended. `duration` in seconds; `metrics` and `metadata` are JSON objects as
    text, or empty. RETURNED: it was never started. `following` is
    what it asked to follow a failure; None: nothing."""

    ref: AttemptRef
    session_id: UUID
    outcome: AttemptOutcome
    duration: float | None = None
    error: RunError | None = None
    items: ItemCounts | None = None
    metrics: str = ""
    metadata: str = ""
    following: Following | None = None

    def digest(self) -> str:
        """The same for the same result, sent again: 128 bits in hexadecimal. A result with a `following` that a
        scheduler of schema 7 recorded, which cannot read that, has another one here: sent again to us, it is STALE,
        though it counted. A worker lets go of it either way."""
        said = (self.outcome, self.duration, self.error, self.items, self.metrics, self.metadata)
        text = repr(said) if self.following is None else repr((*said, self.following))
        return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=16).hexdigest()


@dataclass(frozen=True, slots=True)
class ItemResult:
    """The result of one item of an attempt, as its session says. `error` is empty where it succeeded."""

    ref: AttemptRef
    session_id: UUID
    key: str
    succeeded: bool
    error: str = ""
