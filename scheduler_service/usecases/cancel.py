"""Asking a run to stop."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from scheduler_service.domain.access import Action, Principal, require
from scheduler_service.domain.audit import updated
from scheduler_service.domain.errors import Conflict, NotFound, Unavailable
from scheduler_service.domain.fields import Violations, check_text
from scheduler_service.domain.record import Run, RunError
from scheduler_service.domain.run import RunState, run_name
from scheduler_service.store import audit
from scheduler_service.store import cancel as store
from scheduler_service.store.database import Database, Transaction
from scheduler_service.store.runs import get_run
from scheduler_service.usecases.wakeups import Topic, Wakeups

_MAX_REASON = 1000
# A run may pass from pending to running and back between two statements; not forever.
_TRIES = 5


async def cancel_run(database: Database, wakeups: Wakeups, principal: Principal, run_id: UUID, reason: str = "") -> Run:
    """Ends a pending run as CANCELLED, or asks a running one's worker to stop it. Answers the run as it is then; a
    run that was asked before is left as it is.

    Errors: InvalidInput, NotFound, Conflict (RUN_ENDED).
    """
    require(principal, Action.CANCEL)
    wrong = Violations()
    check_text(reason, "reason", wrong, at_most=_MAX_REASON)
    wrong.refuse_if_any()
    async with database.acting_for(principal) as tx:
        run = await _cancel(tx, run_id, reason)
    # Where it has ended, another may have got its turn.
    wakeups.wake(Topic.CANCELS if run.state.is_live else Topic.PENDING)
    wakeups.wake(Topic.RUNS)
    return run


async def _cancel(tx: Transaction, run_id: UUID, reason: str) -> Run:
    error = RunError("CANCELLED", f"cancelled by {tx.principal}{f': {reason}' if reason else ''}")
    for _ in range(_TRIES):
        changed = await store.end_pending(tx, run_id, error) or await store.request_cancel(tx, run_id, error.message)
        run = await get_run(tx, run_id)
        if run is None:
            raise NotFound("there is no such run, or it is not yours to see")
        if changed:
            await _record(tx, run, reason)
        if changed or (run.state.is_live and run.cancel_requested_at is not None):
            return run
        if not run.state.is_live:
            raise Conflict(
                f"{run_name(run_id)} has ended ({run.state}); an ended run never changes", reason="RUN_ENDED"
            )
    raise Unavailable(f"{run_name(run_id)} changes hands at this moment; try again")


async def _record(tx: Transaction, run: Run, reason: str) -> None:
    """A run that was pending has ended; one in a worker's hands was asked to stop."""
    before: dict[str, Any]
    after: dict[str, Any]
    if run.state.is_live:
        before, after = {"cancel_requested": False}, {"cancel_requested": True, "reason": reason}
    else:
        before, after = {"state": RunState.PENDING.name}, {"state": run.state.name, "reason": reason}
    await audit.record(tx, [updated(run_name(run.run_id), before, after, tenant=run.tenant)])
