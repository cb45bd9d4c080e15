"""Reading runs, their attempts and their items."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from scheduler_service.domain.access import Action, Kind, Principal, Resource, require
from scheduler_service.domain.errors import NotFound
from scheduler_service.domain.record import Attempt, Item, Run, last_attempt, newest_attempt_number
from scheduler_service.domain.run_filter import RunFilter
from scheduler_service.store import attempts as attempt_store
from scheduler_service.store import runs as store
from scheduler_service.store.database import Database, Transaction
from scheduler_service.store.pages import Pages, page_size

_MAX_PAGE_BYTES = 3_500_000
_FIXED_BYTES = 100


@dataclass(frozen=True, slots=True)
class RunList:
    """One page of runs, newest first; `next_page_token` is empty on the last one."""

    runs: Sequence[Run]
    next_page_token: str


@dataclass(frozen=True, slots=True)
class ItemList:
    """One page of items, by key; `next_page_token` is empty on the last one."""

    items: Sequence[Item]
    next_page_token: str


async def get_run(database: Database, principal: Principal, run_id: UUID) -> Run:
    """One run, live or ended. Errors: NotFound."""
    require(principal, Action.READ)
    async with database.acting_for(principal) as tx:
        return await _found(tx, run_id)


async def list_runs(
    database: Database, principal: Principal, wanted: RunFilter, *, size: int = 0, token: str = ""
) -> RunList:
    """A page of the runs that match and that the caller may see. Errors: InvalidInput."""
    require(principal, Action.READ, Resource(service=wanted.service))
    limit = page_size(size)
    pages = Pages("runs", {"caller": str(principal), **_choice(wanted)})
    position = pages.position(token, UUID)
    async with database.acting_for(principal) as tx:
        job_ids = await _job_ids(tx, wanted)
        page = await store.list_runs(
            tx, wanted, job_ids, before=position[0] if position is not None else None, limit=limit
        )
    return RunList(page.runs, pages.token([str(page.runs[-1].run_id)]) if page.more else "")


async def list_attempts(database: Database, principal: Principal, run_id: UUID) -> list[Attempt]:
    """A run's attempts, the first one first; the newest may still be running. Errors: NotFound."""
    require(principal, Action.READ)
    async with database.acting_for(principal) as tx:
        run = await _found(tx, run_id)
        failed = await attempt_store.failed_attempts(tx, run_id, before=run.attempt)
    newest = last_attempt(run)
    return [*failed, newest] if newest is not None else failed


async def list_items(
    database: Database, principal: Principal, run_id: UUID, *, failed_only: bool = False, size: int = 0, token: str = ""
) -> ItemList:
    """A page of the items of a run's newest attempt. Errors: NotFound, InvalidInput."""
    require(principal, Action.READ)
    limit = page_size(size)
    pages = Pages("items", {"caller": str(principal), "run": str(run_id), "failed_only": failed_only})
    position = pages.position(token, int, str)
    async with database.acting_for(principal) as tx:
        run = await _found(tx, run_id)
        # The pages of one list are of one attempt, also if the next one begins meanwhile.
        attempt, after = (position[0], position[1]) if position is not None else (newest_attempt_number(run), "")
        items = await attempt_store.list_items(
            tx, run_id, attempt, failed_only=failed_only, after=after, limit=limit + 1
        )
    shown = _that_fit(items[:limit])
    return ItemList(shown, pages.token([attempt, shown[-1].key]) if len(items) > len(shown) else "")


def _that_fit(items: Sequence[Item]) -> Sequence[Item]:
    """The first items, up to what a client accepts in one message."""
    room = _MAX_PAGE_BYTES
    for count, item in enumerate(items):
        room -= _FIXED_BYTES + len(item.key.encode()) + len(item.error.encode())
        if room < 0:
            return items[:count]
    return items


async def _found(tx: Transaction, run_id: UUID) -> Run:
    run = await store.get_run(tx, run_id)
    if run is None:
        raise NotFound("there is no such run, or it is not yours to see")
    return run


async def _job_ids(tx: Transaction, wanted: RunFilter) -> list[int] | None:
    """The jobs to look through, or None for any: a service's are known, and looking through them by index is quicker
    than passing over everybody else's runs."""
    if wanted.service or tx.principal.kind is Kind.SERVICE:
        return await store.jobs_of(tx, wanted.service, wanted.job)
    return None


def _choice(wanted: RunFilter) -> dict[str, object]:
    return {
        "service": wanted.service,
        "job": wanted.job,
        "tenant": wanted.tenant,
        "labels": dict(wanted.labels),
        "states": sorted(wanted.states),
        "triggers": sorted(wanted.triggers),
        "origin": wanted.origin,
        "since": wanted.since.isoformat() if wanted.since else None,
        "until": wanted.until.isoformat() if wanted.until else None,
    }
