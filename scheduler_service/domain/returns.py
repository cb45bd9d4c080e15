"""What becomes of a claimed run that its session will not finish: lost, given back, overdue or cancelled.

An attempt that had started is charged. One that a lost session returns unstarted is not, the first time: its start may
have been lost with the worker, so from the second time on it is. Either is next claimed alone, so that a run that
kills its worker does not charge its neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from scheduler_service.domain.record import RunError
from scheduler_service.domain.retry import End, RetryPolicy, decide
from scheduler_service.domain.run import RunState

WORKER_LOST = RunError("WORKER_LOST", "the worker was lost while it held the run")
WORKER_LEFT = RunError("WORKER_LOST", "the worker stopped before the attempt ended")
ATTEMPT_TIMEOUT = RunError("ATTEMPT_TIMEOUT", "the attempt took longer than its timeout, and the worker did not say so")
RUN_TIMEOUT = RunError("RUN_TIMEOUT", "the run took longer than its timeout, with all its attempts and waits")


@dataclass(frozen=True, slots=True)
class HeldRun:
    """A live run, as it stands under a lock. `session_id` and `claim_id` are None while nobody holds it.
    `unstarted_returns` counts how often a lost session returned it before it started."""

    run_id: UUID
    session_id: UUID | None
    claim_id: int | None
    attempt: int
    max_attempts: int
    retry_delay: timedelta
    started_at: datetime | None
    run_deadline: datetime | None
    unstarted_returns: int
    cancel_requested_at: datetime | None
    cancel_reason: str | None


@dataclass(frozen=True, slots=True)
class Freed:
    """Free again at once, at no charge. `lost`: a lost session returned it, so it is claimed alone."""

    lost: bool


@dataclass(frozen=True, slots=True)
class Charged:
    """The attempt counts as failed; the next may begin at `run_after`. `lost`: it is claimed alone."""

    error: RunError
    run_after: datetime
    lost: bool


@dataclass(frozen=True, slots=True)
class Ended:
    """The run ends."""

    state: RunState
    error: RunError


Return = Freed | Charged | Ended


def after_loss(run: HeldRun, now: datetime) -> Return:
    """Its session was lost, or does not know that it holds it."""
    if run.started_at is None and not run.unstarted_returns:
        return _unless_over(run, now) or Freed(lost=True)
    return _failed(run, WORKER_LOST, now, timedelta(0), lost=True)


def after_goodbye(run: HeldRun, now: datetime) -> Return:
    """Its worker said Goodbye. What it had not started costs nothing."""
    if run.started_at is None:
        return _unless_over(run, now) or Freed(lost=False)
    return _failed(run, WORKER_LEFT, now, timedelta(0), lost=True)


def after_timeout(run: HeldRun, now: datetime) -> Return:
    """Its attempt's deadline is over, or its run's."""
    return _failed(run, ATTEMPT_TIMEOUT, now, run.retry_delay, lost=False)


def after_grace(run: HeldRun) -> Return:
    """It was asked to stop, and the time for that is over."""
    return Ended(RunState.CANCELLED, RunError("CANCELLED", run.cancel_reason or "the run was cancelled"))


def _failed(run: HeldRun, error: RunError, now: datetime, delay: timedelta, *, lost: bool) -> Return:
    if (over := _unless_over(run, now)) is not None:
        return over
    if isinstance(decide(RetryPolicy(run.max_attempts, delay), run.attempt, error.code), End):
        return Ended(RunState.FAILED, error)
    return Charged(error, now + delay, lost)


def _unless_over(run: HeldRun, now: datetime) -> Ended | None:
    if run.cancel_requested_at is not None:
        return Ended(RunState.CANCELLED, RunError("CANCELLED", run.cancel_reason or "the run was cancelled"))
    if run.run_deadline is not None and run.run_deadline <= now:
        return Ended(RunState.FAILED, RUN_TIMEOUT)
    return None
