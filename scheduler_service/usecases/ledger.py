"""The ledger of a schedule: what became of every occurrence that it owed."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence, Set
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from itertools import islice
from typing import Any

from scheduler_service.domain.access import Action, Principal, Resource, require
from scheduler_service.domain.errors import InvalidInput, NotFound, Violation
from scheduler_service.domain.ledger import TICK, Account, Entry, Outcome, Owed, explained, judged, owed
from scheduler_service.domain.names import ScheduleName
from scheduler_service.domain.run import EPOCH
from scheduler_service.domain.timing import HORIZON
from scheduler_service.store import ledger as store
from scheduler_service.store.database import Database, Transaction
from scheduler_service.store.pages import Pages, page_size

DEFAULT_WINDOW = timedelta(days=1)
LOOKED_AT = 5_000
"""Occurrences that one page looks at, whatever it is to show."""
_BATCH = 500
_LAST = (HORIZON - EPOCH) // TICK


@dataclass(frozen=True, slots=True)
class Ledger:
    """One page of the ledger, in order of time; `next_page_token` is empty on the last one."""

    entries: Sequence[Entry]
    next_page_token: str


async def list_ledger(
    database: Database,
    principal: Principal,
    name: ScheduleName,
    *,
    since: datetime | None = None,
    until: datetime | None = None,
    outcomes: Collection[Outcome] = (),
    size: int = 0,
    token: str = "",
) -> Ledger:
    """A page of what a schedule owed from `since` (default: a day before `until`) until `until` (exclusive; default
    and latest: now), with one of these outcomes (default: any). Errors: NotFound, InvalidInput, Forbidden."""
    require(principal, Action.READ, Resource(service=name.job.service, tenant=name.tenant))
    if since is not None and until is not None and since >= until:
        raise InvalidInput(Violation("until", f"{until.isoformat()} is not after since, {since.isoformat()}"))
    limit = page_size(size)
    pages = Pages("ledger", _choice(principal, name, since, until, outcomes))
    position = pages.position(token, int, int)
    # A page is as everything was at one moment: a run that ends meanwhile is found either live or ended, and what a
    # tick settles meanwhile either due or settled.
    async with database.acting_for(principal, one_snapshot=True) as tx:
        after, end = _window(since, until, tx.now) if position is None else map(_instant, position)
        end = min(end, tx.now - TICK)
        accounts = await store.accounts(tx, name, end)
        if not accounts:
            raise NotFound(f"there is no schedule {name}, or it is not yours to see")
        page = await _page(tx, accounts, after, end, frozenset(outcomes), limit)
    # The end goes along: a window up to now is the same on every page.
    following = [] if page.reached is None else [_microseconds(page.reached), _microseconds(end)]
    return Ledger(page.entries, pages.token(following) if following else "")


def _window(since: datetime | None, until: datetime | None, now: datetime) -> tuple[datetime, datetime]:
    """The window as the engine has it, `(after, until]`."""
    end = max(min(until or now, now), EPOCH)
    begin = max(since, EPOCH) if since else max(end - min(DEFAULT_WINDOW, end - EPOCH), EPOCH)
    return begin - TICK, end - TICK


@dataclass(frozen=True, slots=True)
class _Page:
    """`reached`: everything up to this instant was looked at, and more may follow; None: nothing follows."""

    entries: list[Entry]
    reached: datetime | None


async def _page(
    tx: Transaction, accounts: Sequence[Account], after: datetime, until: datetime, wanted: Set[Outcome], limit: int
) -> _Page:
    """The first entries that are wanted, of those owed in `(after, until]`."""
    known = await store.gaps(tx, [each.schedule_id for each in accounts], after, until, at_most=LOOKED_AT)
    steps = owed(accounts, known.gaps, after, known.until)
    entries: list[Entry] = []
    looked_at, reached = 0, after
    while len(entries) < limit and looked_at < LOOKED_AT:
        room = limit - len(entries)
        batch = list(islice(steps, min(_BATCH, LOOKED_AT - looked_at, _BATCH if wanted else room)))
        if not batch:
            break
        looked_at += len(batch)
        shown = [each for each in await _judged(tx, batch) if not wanted or each.outcome in wanted][:room]
        entries += shown
        reached = shown[-1].owed.last if len(shown) == room else batch[-1].last
    if next(owed(accounts, known.gaps, reached, known.until), None) is None:
        reached = known.until
    return _Page(await _completed(tx, entries), reached if reached < until else None)


async def _judged(tx: Transaction, batch: Sequence[Owed]) -> list[Entry]:
    run_ids = [each.run_id for each in batch]
    found = await store.runs(tx, [run_id for run_id in run_ids if run_id is not None])
    return [judged(each, found.get(run_id) if run_id else None) for each, run_id in zip(batch, run_ids, strict=True)]


async def _completed(tx: Transaction, entries: list[Entry]) -> list[Entry]:
    """With what was run afterwards, and what an entry that is unaccounted for is likely to be."""
    if any(each.outcome is Outcome.UNACCOUNTED for each in entries):
        kept_from = await store.kept_from(tx)
        entries = [explained(each, kept_from) for each in entries]
    remedies = await store.remedies(tx, [each.owed for each in entries]) if entries else {}
    return [replace(each, remedy=remedies.get(place)) for place, each in enumerate(entries)]


def _choice(
    principal: Principal,
    name: ScheduleName,
    since: datetime | None,
    until: datetime | None,
    outcomes: Iterable[Outcome],
) -> dict[str, Any]:
    """What makes a page token one of this list."""
    return {
        "caller": str(principal),
        "tenant": principal.tenant,
        "schedule": str(name),
        "window": [each.isoformat() if each else None for each in (since, until)],
        "outcomes": sorted(outcomes),
    }


def _microseconds(instant: datetime) -> int:
    return (instant - EPOCH) // TICK


def _instant(microseconds: int) -> datetime:
    """The instant that a token names. It is ours, or made up: then any instant will do that there is."""
    return EPOCH + min(max(microseconds, 0), _LAST) * TICK
