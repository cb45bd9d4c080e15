"""Reading the audit trail, and verifying that nobody changed it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass

from scheduler_service.domain.access import Action, Kind, Principal, require
from scheduler_service.domain.audit import Event, EventFilter
from scheduler_service.domain.audit_chain import (
    EMPTY,
    MAX_HEADS,
    BrokenLink,
    Head,
    Link,
    Problem,
    Walk,
    check_head,
    gone_before_sealing,
    missing_head,
    not_sealed,
    rewritten,
)
from scheduler_service.domain.fields import Violations, check_text
from scheduler_service.store import audit_events, audit_seals
from scheduler_service.store.database import Database, Transaction
from scheduler_service.store.pages import Pages, page_size

MAX_LINKS = 50_000
"""How many links of the chain one call verifies."""
PATIENCE = 5.0
"""Seconds for which verifying watches an event that should have its seal by now: a sealer looks each second."""
_LOOK_SECONDS = 0.25
_MAX_CHARACTERS = 64 * 1024 * 1024
_MAX_TEXT = 1000
# Nobody anonymous changes anything.
_KINDS = [f"{kind}:" for kind in Kind if kind is not Kind.ANONYMOUS]
_TEXTS = ("principal", "action", "resource", "tenant", "request_id")


@dataclass(frozen=True, slots=True)
class Verdict:
    """What verifying found. `verified`: how far the chain holds. `complete`: it was looked at to its end, or to its
    broken link. `unsealed`: events that wait for their seal."""

    broken: BrokenLink | None
    verified: Head
    complete: bool
    unsealed: int


async def list_audit_events(
    database: Database, principal: Principal, wanted: EventFilter, *, size: int = 0, token: str = ""
) -> tuple[Sequence[Event], str]:
    """One page of events, the newest first, and the token of the next (empty on the last). Errors: InvalidInput,
    Forbidden."""
    require(principal, Action.AUDIT)
    _check(wanted)
    limit = page_size(size)
    pages = Pages("audit_events", {"caller": str(principal), "of": _choice(wanted)})
    position = pages.position(token, int)
    async with database.acting_for(principal) as tx:
        before = position[0] if position else None
        page = await audit_events.list_events(tx, wanted, before=before, limit=limit)
    return page.events, pages.token([page.events[-1].event_id]) if page.more else ""


async def get_audit_head(database: Database, principal: Principal) -> Head:
    """The end of the chain now. Errors: Forbidden."""
    require(principal, Action.AUDIT)
    async with database.acting_for(principal) as tx:
        return await audit_seals.head(tx)


async def verify_audit_trail(
    database: Database,
    principal: Principal,
    known: Sequence[Head] = (),
    after: Head = EMPTY,
    *,
    limit: int = MAX_LINKS,
    patience: float = PATIENCE,
) -> Verdict:
    """Computes up to `limit` links of the chain again from `after` on, and names the first that does not hold. Each
    known head must be on the chain. An event that should have its seal is watched for `patience` seconds before it is
    named. Errors: InvalidInput, Forbidden."""
    require(principal, Action.AUDIT)
    _check_heads(known, after)
    # One moment for everything, so that what is verified and what is unsealed add up.
    async with database.acting_for(principal, one_snapshot=True) as tx:
        unsealed = await audit_seals.count_unsealed(tx)
        broken = await _lost_head(tx, after, known)
        if broken is not None:
            return Verdict(broken, EMPTY, complete=True, unsealed=unsealed)
        walk = Walk(after, known)
        broken, complete = await _go_along(tx, walk, limit)
        if broken is None and complete:
            broken = walk.end()
        begin, end = await _looked_at(tx, walk, after, complete=complete)
        if broken is None and complete and (gone := await audit_seals.first_gone_before_sealing(tx)) is not None:
            broken = gone_before_sealing(gone)
        suspected = broken is None and await audit_seals.first_not_sealed(tx, begin, end) is not None
    if suspected:
        broken = await _not_sealed(database, principal, begin, end, patience)
    return Verdict(broken, walk.reached, complete or broken is not None, unsealed)


async def _lost_head(tx: Transaction, after: Head, known: Sequence[Head]) -> BrokenLink | None:
    """The first head, up to the one after which verifying goes on, that is not on the chain."""
    passed = sorted((head for head in (after, *known) if 0 < head.position <= after.position), key=_position)
    there = await audit_seals.hashes_at(tx, (head.position for head in passed))
    for head in passed:
        if head.position not in there:
            end = await audit_seals.head(tx)
            if end.position < head.position:
                return missing_head(head, end)
            return BrokenLink(Problem.SEAL_MISSING, head.position, 0, f"the seal at position {head.position} is gone")
        if there[head.position] != head.hash:
            return rewritten(head.position)
    return None


async def _go_along(tx: Transaction, walk: Walk, limit: int) -> tuple[BrokenLink | None, bool]:
    """Verifies link by link, until one does not hold, `limit` are done, or what was read is large. Answers also
    whether that was the end of the chain."""
    taken = characters = 0
    async with audit_seals.links(tx, walk.reached.position, limit) as links:
        async for link in links:
            if (broken := walk.take(link)) is not None:
                return broken, True
            taken += 1
            characters += _length(link)
            if characters > _MAX_CHARACTERS:
                return None, False
    return None, taken < limit


async def _looked_at(tx: Transaction, walk: Walk, after: Head, *, complete: bool) -> tuple[int | None, int | None]:
    """Among which ids a call looks for events that are not in the chain: from that of the link at which it began to
    that of the link at which it ended, and the last call at all later ones. Wherever the ids in between jump to,
    together they look at every id."""
    begin = await audit_seals.event_at(tx, after.position) if after.position else None
    return begin, None if complete else await audit_seals.event_at(tx, walk.reached.position)


async def _not_sealed(
    database: Database, principal: Principal, begin: int | None, end: int | None, patience: float
) -> BrokenLink | None:
    """The first event in a range of ids that goes on having no seal. What was written long ago may have been committed
    a moment ago, which no column tells: such an event has its seal within seconds, if any scheduler runs."""
    watched, until = 0, 0.0
    while True:
        async with database.acting_for(principal) as tx:
            found = await audit_seals.first_not_sealed(tx, begin, end)
        if found is None:
            return None
        event_id, queued = found
        if not queued or (event_id == watched and time.monotonic() >= until):
            return not_sealed(event_id, queued=queued)
        if event_id != watched:
            watched, until = event_id, time.monotonic() + patience
        await asyncio.sleep(_LOOK_SECONDS)


def _position(head: Head) -> int:
    return head.position


def _length(link: Link) -> int:
    return sum(len(text) for text in link.event or () if text)


def _choice(wanted: EventFilter) -> list[str]:
    times = [at.isoformat() if at else "" for at in (wanted.since, wanted.until)]
    return [*(getattr(wanted, name) for name in _TEXTS), *times]


def _check(wanted: EventFilter) -> None:
    wrong = Violations()
    for name in _TEXTS:
        check_text(getattr(wanted, name), name, wrong, at_most=_MAX_TEXT)
    if wanted.of_a_kind and wanted.principal not in _KINDS:
        kinds = ", ".join(f"`{kind}`" for kind in _KINDS)
        wrong.add("principal", f"there is no such kind; write one of {kinds}, or a whole one such as `admin:alice`")
    if wanted.resource.endswith("/"):
        wrong.add("resource", "it ends with `/`; leave that out: what lies below a resource is found with it")
    if wanted.since and wanted.until and wanted.since >= wanted.until:
        wrong.add("until", "it is not after `since`; it is the end of the range, exclusive")
    wrong.refuse_if_any()


def _check_heads(known: Sequence[Head], after: Head) -> None:
    wrong = Violations()
    if len(known) > MAX_HEADS:
        wrong.add("known_heads", f"there are {len(known):,}; at most {MAX_HEADS:,} are held against the chain at once")
    for index, head in enumerate(known[:MAX_HEADS]):
        check_head(head, f"known_heads[{index}]", wrong)
    check_head(after, "after", wrong)
    wrong.refuse_if_any()
