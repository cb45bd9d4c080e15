"""What a fault run leaves behind, for the checker to decide on: plain values, gathered when everything has ended.

Where it comes from: `occurrences` from the plan alone (what the schedules were put as, and from when to when they were
armed; never from the database's own idea of it); `calls` from what clients noted before and after each call; `effects`
from files that handlers append to and fsync; `records`, `attempts`, `live` and `gaps` from the database; `faults` from
whoever caused them. Instants are aware datetimes of one machine's wall clock, which the run leaves alone: where a
process's clock is shifted, its effects are still noted by the machine's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal
from uuid import UUID

Ending = Literal["COMPLETED", "FAILED", "CANCELLED", "SKIPPED"]
Answer = Literal["ok", "refused", "unknown"]


@dataclass(frozen=True, slots=True)
class Occurrence:
    """That a schedule owes: it must run, and complete. `overlap_may_skip`: unless its job's overlap recorded it as
    skipped while an earlier one was live."""

    job: str
    tenant: str
    schedule: str
    instant: datetime
    overlap_may_skip: bool = False


@dataclass(frozen=True, slots=True)
class Call:
    """A client's call. `unknown`: no answer came, or one that does not say whether it was done. `key`: what makes it
    safe to repeat (`request_id` or `run_key`): calls that share one are one call that was repeated. `runs`: what the
    answer named; for a cancel and a retry, `of` is the run it was about."""

    what: Literal["trigger", "cancel", "retry"]
    job: str
    tenant: str
    key: str
    began: datetime
    ended: datetime
    answer: Answer
    runs: tuple[UUID, ...] = ()
    of: UUID | None = None


@dataclass(frozen=True, slots=True)
class Effect:
    """One attempt's, as its handler wrote it: a line when it began, and one when it was done (`ended` is None if that
    line is not there: it died, or was stopped). `marker` is what the payload carried, which names job and tenant.
    `outcome`: what the handler was about to report."""

    run_id: UUID
    attempt: int
    job: str
    tenant: str
    marker: str
    scheduled_for: datetime
    worker: str
    pid: int
    began: datetime
    ended: datetime | None
    outcome: Ending | None


@dataclass(frozen=True, slots=True)
class Record:
    """A row of `runs`. `schedule` is empty for runs that none owes. `result` is what the attempt that counted said of
    itself in its metadata: `attempt/worker/pid`; empty where none did."""

    run_id: UUID
    job: str
    tenant: str
    schedule: str
    trigger: str
    scheduled_for: datetime
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime
    state: Ending
    attempt: int
    max_attempts: int
    error_code: str
    worker: str
    result: str
    cancel_requested_at: datetime | None


@dataclass(frozen=True, slots=True)
class FailedAttempt:
    """A row of `attempts`: one that did not end its run."""

    run_id: UUID
    attempt: int
    error_code: str
    finished_at: datetime


@dataclass(frozen=True, slots=True)
class Gap:
    """A row of `gaps`: occurrences that became no run."""

    job: str
    tenant: str
    schedule: str
    first: datetime
    last: datetime
    count: int
    reason: str


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that was broken from `began` to `ended`, when it was whole again (a process: ready again). `kill`: a
    process was ended without being asked. `target`: whose it was, such as `worker-2` or `scheduler-1>postgres`.
    `touches`: the workers whose attempts it may have cut or made twice; None: any. `way`: the one scheduler that they
    lost by it; empty: it was more than that."""

    kind: str
    target: str
    began: datetime
    ended: datetime
    kill: bool = False
    touches: frozenset[str] | None = None
    way: str = ""


@dataclass(frozen=True, slots=True)
class Evidence:
    """Everything of one fault run. `live`: ids of runs that had not ended when the run was over, although everything
    was whole again for long enough. `grace`: seconds within which an occurrence completes while nothing is broken (its
    window); what is broken extends it. `foreign`: answers that a tenant got and that were another's. `ways`: the
    schedulers that workers have, of which one is enough."""

    began: datetime
    ended: datetime
    grace: float
    occurrences: Sequence[Occurrence] = ()
    calls: Sequence[Call] = ()
    effects: Sequence[Effect] = ()
    records: Sequence[Record] = ()
    attempts: Sequence[FailedAttempt] = ()
    live: Sequence[UUID] = ()
    gaps: Sequence[Gap] = ()
    faults: Sequence[Fault] = ()
    foreign: Sequence[str] = ()
    ways: Sequence[str] = ()
    notes: Mapping[str, str] = field(default_factory=dict)
