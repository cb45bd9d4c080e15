"""What the API's ledger says of all schedules in the end, against what was owed and what is recorded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from datetime import datetime

from scheduler_service.domain.ledger import Entry
from scheduler_service.domain.names import ScheduleName
from scheduler_service.usecases.ledger import list_ledger
from tests.builders import ADMIN
from tests.conftest import DatabaseUrls
from tests.simulation.verdict import Owed, Verdict
from tests.store.definitions_case import SteppedDatabase

_PAGE = 1_000
_LIVE = ("RUNNING", "PENDING")


async def judge_ledger(urls: DatabaseUrls, owed: Owed, since: datetime, now: datetime, verdict: Verdict) -> None:
    """Each owed occurrence must be in one entry, with the outcome that is recorded."""
    database = SteppedDatabase(urls.api, urls.engine, pool_size=2)
    database.now = now
    try:
        for name, occurrences in owed.items():
            entries = await _entries(database, name, since)
            instants = [instant for instant, _ in occurrences]
            for sentence in _differences(instants, entries, verdict.found[name]):
                verdict.add("ledger", f"{name}: {sentence}")
    finally:
        await database.close()


async def _entries(database: SteppedDatabase, name: ScheduleName, since: datetime) -> list[Entry]:
    entries: list[Entry] = []
    token = ""
    while True:
        page = await list_ledger(database, ADMIN, name, since=since, size=_PAGE, token=token)
        entries += page.entries
        token = page.next_page_token
        if not token:
            return entries


def _differences(instants: list[datetime], entries: list[Entry], found: Mapping[datetime, str]) -> Iterator[str]:
    said: Counter[datetime] = Counter()
    for entry in entries:
        within = [each for each in instants if entry.owed.first <= each <= entry.owed.last]
        said.update(within)
        if len(within) != entry.owed.count:
            yield f"{len(within)} were owed in {entry}"
        yield from (f"{each} is {found.get(each)} in {entry}" for each in within if not _agrees(entry, found.get(each)))
    yield from (f"{each} is in {said[each]} entries" for each in instants if said[each] != 1)


def _agrees(entry: Entry, state: str | None) -> bool:
    return entry.outcome in _LIVE if state == "LIVE" else entry.outcome.value == state
