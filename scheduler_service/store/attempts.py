"""Attempts that did not end their run, and items."""

from __future__ import annotations

from uuid import UUID

from sqlalchemy import text

from scheduler_service.domain.record import Attempt, Item, RunError
from scheduler_service.domain.run import RunState
from scheduler_service.store.database import Transaction


async def failed_attempts(tx: Transaction, run_id: UUID, *, before: int) -> list[Attempt]:
    """A run's attempts of lower numbers, the first one first: all of them failed."""
    rows = await tx.connection.execute(
        text(
            "select attempt, started_at, finished_at, duration, worker, error from carillon.attempts"
            " where run_id = :run_id and attempt < :before order by attempt"
        ),
        {"run_id": run_id, "before": before},
    )
    return [
        Attempt(
            run_id=run_id,
            attempt=row.attempt,
            state=RunState.FAILED,
            started_at=row.started_at,
            finished_at=row.finished_at,
            duration=row.duration,
            worker=row.worker,
            error=RunError.from_document(row.error),
        )
        for row in rows
    ]


async def list_items(
    tx: Transaction, run_id: UUID, attempt: int, *, failed_only: bool, after: str, limit: int
) -> list[Item]:
    """An attempt's items by key (in the database's order of text), those after `after`."""
    rows = await tx.connection.execute(
        text(
            "select key, succeeded, error, finished_at from carillon.items"
            " where run_id = :run_id and attempt = :attempt and key > :after and (not :failed_only or not succeeded)"
            " order by key limit :limit"
        ),
        {"run_id": run_id, "attempt": attempt, "after": after, "failed_only": failed_only, "limit": limit},
    )
    return [Item(run_id, attempt, row.key, row.succeeded, row.error, row.finished_at) for row in rows]
