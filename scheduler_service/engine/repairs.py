"""What a replica mended, told: counted, logged, and in the audit trail in the same transaction."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from uuid import UUID

import structlog

from scheduler_service.domain.repairs import Repair, Repaired
from scheduler_service.domain.returns import Ended, HeldRun, Return
from scheduler_service.domain.run import run_name
from scheduler_service.store import audit
from scheduler_service.store.connection import Connection

log = structlog.get_logger()

Decided = tuple[HeldRun, Return]


class Repairs:
    """`counts`: how much was mended, by kind. `replica` signs what is told to the audit trail."""

    def __init__(self, replica: str) -> None:
        self.counts: Counter[Repair] = Counter()
        self._replica = replica

    async def record(self, connection: Connection, repaired: Sequence[Repaired]) -> None:
        """For the audit trail, in the caller's transaction, who passes it to `tell` once that is committed."""
        for each in repaired:
            if (change := each.as_change()) is not None:
                await audit.record_own(connection, self._replica, change)

    def tell(self, repaired: Sequence[Repaired]) -> None:
        """Counts and logs what is committed: a line for each kind."""
        for each in repaired:
            self.counts[each.kind] += each.count
            say = log.info if each.kind.is_routine else log.warning
            say("repaired", kind=each.kind.value, count=each.count, names=each.shown, **each.details)


def described(decided: Sequence[Decided], there: Collection[UUID], kind: Callable[[HeldRun], Repair]) -> list[Repaired]:
    """What was decided about runs and carried out. `there`: those that had a record already."""
    by_kind: dict[Repair, list[Decided]] = {}
    for run, what in decided:
        by_kind.setdefault(Repair.RECORDED_ALREADY if run.run_id in there else kind(run), []).append((run, what))
    return [
        Repaired(
            each,
            [run_name(run.run_id) for run, _ in those],
            frozenset(run.tenant for run, _ in those),
            {} if each is Repair.RECORDED_ALREADY else {"became": dict(Counter(became(what) for _, what in those))},
        )
        for each, those in by_kind.items()
    ]


def became(what: Return) -> str:
    """In a word."""
    return what.state.value.lower() if isinstance(what, Ended) else type(what).__name__.lower()
