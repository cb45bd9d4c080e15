"""What becomes of a claimed run that its session will not finish: lost, given back, overdue or cancelled.

An attempt that had started is charged. One that a lost session returns unstarted is not, the first time: its start may
have been lost with the worker, so from the second time on it is. One that never arrived at a session that lives is not
charged the first five times.

Of what was lost with a worker, some run may have killed it. One that was lost twice, or once and has one attempt left,
is next claimed alone: it takes nobody along, and no neighbour takes its last attempt. Nor are others beside one that
did not arrive twice, so that it fits through a slow stream. docs/adr/0006 says why not from the first loss on.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from scheduler_service.domain.record import RunError
from scheduler_service.domain.retry import AS_THE_POLICY_SAYS, End, Following, RetryPolicy, decide
from scheduler_service.domain.run import RunState

WORKER_LOST = "WORKER_LOST"
"""The code of an attempt whose worker was lost: who knows whether the run was the cause."""
WORKER_LEFT = "WORKER_LEFT"
"""The code of an attempt that its worker gave up in order. That speaks against no run."""
ATTEMPT_TIMEOUT = RunError("ATTEMPT_TIMEOUT", "the attempt took longer than its timeout, and the worker did not say so")
MOST_SENT_IN_VAIN = 5
"""Times at no charge. A run that no stream carries to its end must end too."""
AT_ONCE = Following(retry_after=timedelta(0), because="at once, since the attempt before it ended with its worker")
RUN_TIMEOUT = RunError("RUN_TIMEOUT", "the run took longer than its timeout, with all its attempts and waits")


@dataclass(frozen=True, slots=True)
class HeldRun:
    """A live run, as it stands under a lock. `session_id` and `claim_id` are None while nobody holds it.
    `unstarted_returns` counts how often a lost session returned it before it started, `losses` the earlier attempts at
    it that ended in WORKER_LOST. `worker`: the name of the one that holds it; empty where that is not known."""

    run_id: UUID
    session_id: UUID | None
    claim_id: int | None
    attempt: int
    started_at: datetime | None
    run_deadline: datetime | None
    unstarted_returns: int
    cancel_requested_at: datetime | None
    cancel_reason: str | None
    retry: RetryPolicy
    tenant: str = ""
    alone: bool = False
    losses: int = 0
    worker: str = ""


@dataclass(frozen=True, slots=True)
class Freed:
    """Free again at once, at no charge. `lost`: that is counted, since its session did not return it. `alone`: it is
    claimed alone."""

    lost: bool
    alone: bool = False


@dataclass(frozen=True, slots=True)
class Charged:
    """The attempt counts as failed; the next may begin at `run_after`. `alone`: it is claimed alone."""

    error: RunError
    run_after: datetime
    alone: bool = False


@dataclass(frozen=True, slots=True)
class Ended:
    """The run ends."""

    state: RunState
    error: RunError


Return = Freed | Charged | Ended


def after_loss(run: HeldRun, now: datetime) -> Return:
    """Its session was lost."""
    if run.started_at is None and not run.unstarted_returns:
        return _unless_over(run, now) or Freed(lost=True)
    error = _lost(run, f"{_holder(run)} was lost while it held {_attempt(run)}")
    return _failed(run, error, now, AT_ONCE, lost=True)


def after_never_arriving(run: HeldRun, now: datetime) -> Return:
    """Its session lives, and does not know that it holds it: sent on a stream that was dead already, for one. What had
    not started costs nothing, unless it never arrives."""
    if run.started_at is None and run.unstarted_returns < MOST_SENT_IN_VAIN:
        return _unless_over(run, now) or Freed(lost=True, alone=run.unstarted_returns > 0)
    if run.started_at is None:
        said = f"{_attempt(run)} was sent to workers {run.unstarted_returns + 1} times, and reached none of them"
        return _failed(run, RunError(WORKER_LOST, said), now, AT_ONCE, lost=True)
    said = f"{_holder(run)} had started {_attempt(run)}, and lives, but no longer knows of it"
    return _failed(run, _lost(run, said), now, AT_ONCE, lost=True)


def after_goodbye(run: HeldRun, now: datetime) -> Return:
    """Its worker said Goodbye: nothing has killed it. What it had not started costs nothing."""
    if run.started_at is None:
        return _unless_over(run, now) or Freed(lost=False)
    left = RunError(WORKER_LEFT, f"{_holder(run)} stopped before {_attempt(run)} had ended")
    return _failed(run, left, now, AT_ONCE)


def after_timeout(run: HeldRun, now: datetime) -> Return:
    """Its attempt's deadline is over, or its run's."""
    return _failed(run, ATTEMPT_TIMEOUT, now, AS_THE_POLICY_SAYS)


def after_grace(run: HeldRun) -> Return:
    """It was asked to stop, and the time for that is over."""
    return Ended(RunState.CANCELLED, RunError("CANCELLED", run.cancel_reason or "the run was cancelled"))


def _lost(run: HeldRun, said: str) -> RunError:
    """With what speaks against the run itself. That nothing ran beside it is not sure: see domain/solitude.py."""
    times = run.losses + run.unstarted_returns + 1
    if times > 1:
        said += f"; the run was lost {times} times in all"
    if run.alone:
        said += "; it may itself be the cause, and is kept apart from other runs as far as can be"
    return RunError(WORKER_LOST, said)


def _holder(run: HeldRun) -> str:
    return f"worker {run.worker}" if run.worker else "the worker"


def _attempt(run: HeldRun) -> str:
    return f"attempt {run.attempt} of {run.retry.max_attempts}"


def _is_next_alone(run: HeldRun, *, lost: bool) -> bool:
    """`lost`: now too. Its neighbours may have killed its workers until now; they must not take its last attempt."""
    losses = run.losses + run.unstarted_returns + lost
    return losses > 1 or (losses == 1 and run.attempt + 1 >= run.retry.max_attempts)


def _failed(run: HeldRun, error: RunError, now: datetime, asked: Following, *, lost: bool = False) -> Return:
    """What follows. That its worker is gone is no fault of the run: after that it is tried AT_ONCE."""
    if (over := _unless_over(run, now)) is not None:
        return over
    following = decide(run.retry, run.run_id, run.attempt, error.code, asked)
    if isinstance(following, End):
        return Ended(RunState.FAILED, error.adding(following.because))
    return Charged(error.retried(following.because), now + following.after, _is_next_alone(run, lost=lost))


def _unless_over(run: HeldRun, now: datetime) -> Ended | None:
    if run.cancel_requested_at is not None:
        return Ended(RunState.CANCELLED, RunError("CANCELLED", run.cancel_reason or "the run was cancelled"))
    if run.run_deadline is not None and run.run_deadline <= now:
        return Ended(RunState.FAILED, RUN_TIMEOUT)
    return None
