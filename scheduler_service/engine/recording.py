"""Recording: a group of results, or of items' results, written so that one that cannot be written stops no other.

A group that fails on data is halved until the offender is alone; its run ends FAILED, or, if even that fails, it is
left unrecorded. Nobody is waited for long who has a live run or a session locked: what they are in the way of is left
unrecorded, and the rest written. Who waits for how long is said with the statements themselves: store/complete.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from typing import TypeVar

import psycopg
import structlog

from scheduler_service.domain.attempt import AttemptRef, ItemResult, Result, Verdict
from scheduler_service.domain.record import RunError
from scheduler_service.domain.retry import AS_THE_POLICY_SAYS, End, Retry, decide
from scheduler_service.domain.returns import AT_ONCE, WORKER_LEFT
from scheduler_service.engine.missing_partitions import MissingPartitions
from scheduler_service.engine.repairs import Repairs
from scheduler_service.store import complete as store
from scheduler_service.store.complete import Held, Known
from scheduler_service.store.connection import Connection
from scheduler_service.store.errors import HOPELESS
from scheduler_service.store.in_the_way import in_the_way
from scheduler_service.store.items import insert_items
from scheduler_service.store.patience import BRIEFLY
from scheduler_service.store.turns import arrange

# What a result's own values can be the cause of.
_UNREADABLE = (psycopg.DataError, psycopg.IntegrityError)
# Who archives or deletes locks a run out of order where it got its turn just then: one of the two is ended. The second
# comes where somebody has set a stricter isolation than ours for the engine's role.
_GAVE_WAY = (psycopg.errors.DeadlockDetected, psycopg.errors.SerializationFailure)
_LOCKED = psycopg.errors.LockNotAvailable
_NOT_NOW: tuple[type[Exception], ...] = (*HOPELESS, _LOCKED)
_TRIES = 3
_MOST_WAITS = 12
"""For locks, in one group: enough to halve it until one is alone. After that, what is left is left for later."""

Report = TypeVar("Report", Result, ItemResult)
_log = structlog.get_logger()


class Recorder:
    """Writes groups. `ended` counts the runs that it ended, by outcome; `freed`: some run may be claimed since that was
    set to false last; `failed`: of the group that was written last, what could not be recorded, and why. `hurries`:
    somebody has locked something, and is not to be waited for at each group. `patience`: seconds that it waits for a
    lock otherwise."""

    def __init__(self, replica: str, clock: Callable[[], float], patience: float) -> None:
        self.ended: Counter[str] = Counter()
        self.repairs = Repairs(replica)
        self.freed = False
        self.failed: dict[AttemptRef, Exception] = {}
        self.hurries = False
        self._longest_wait = patience
        self._partitions = MissingPartitions(self.repairs, clock)
        self._waits = 0

    async def record_items(self, connection: Connection, items: Sequence[ItemResult]) -> None:
        """Commits results of items. Those of attempts that are in `failed` then are not written."""
        self._begin()
        if items:
            await self._write_items(connection, items)

    async def record(
        self, connection: Connection, results: Sequence[Result], now: datetime | None
    ) -> list[Verdict | None]:
        """Commits results and answers what became of each; None: it could not be recorded, see `failed`."""
        self._begin()
        first = {each.ref: each for each in reversed(results)}
        unmatched = await self._write(connection, sorted(first.values(), key=_run_id), now)
        if not unmatched and not self.failed and len(first) == len(results):
            return [Verdict.ACCEPTED] * len(results)
        rest = [
            each
            for each in results
            if each.ref not in self.failed and (each.ref in unmatched or first[each.ref] is not each)
        ]
        known = dict(zip(map(id, rest), await store.look_up(connection, rest), strict=True)) if rest else {}
        return [
            None if each.ref in self.failed else _verdict(known[id(each)]) if id(each) in known else Verdict.ACCEPTED
            for each in results
        ]

    async def look_who_is_locked(self, connection: Connection, reports: Sequence[Result | ItemResult]) -> None:
        """Nothing is written: `failed` are then those of these whose rows somebody has locked."""
        self._begin()
        locked = await in_the_way(connection, reports)
        self.failed = dict.fromkeys(locked, _LOCKED("somebody has locked the run, or its session"))

    def _begin(self) -> None:
        self.failed = {}
        self._waits = 0

    @property
    def _patience(self) -> float:
        """Whoever is in the way of some has been waited for: the others are not to wait as long again."""
        return BRIEFLY if self.hurries or self._waits else self._longest_wait

    async def _write_items(self, connection: Connection, items: Sequence[ItemResult]) -> None:
        try:
            await insert_items(connection, items, patience=self._patience)
            return
        except _LOCKED as error:
            parts = await self._without_the_locked(connection, items, error)
        except HOPELESS as error:
            if await self._partitions.mend(connection, error):
                parts = [items]
            else:
                if len(items) == 1:
                    _log.error("an item's result cannot be stored", run_id=str(items[0].ref.run_id), error=str(error))
                parts = _halves(items)
        for part in parts:
            await self._write_items(connection, part)

    async def _write(self, connection: Connection, results: Sequence[Result], now: datetime | None) -> set[AttemptRef]:
        """Commits results in order of run ids; answers which matched no live attempt. A group that the data of one
        fails is halved until that one is alone, and its run ends FAILED; or, if even that fails, it is in `failed`, as
        is one whose rows somebody has locked."""
        try:
            if all(each.outcome == "COMPLETED" for each in results):
                unmatched = await self._end(connection, results, now)
                self.ended["COMPLETED"] += len(results) - len(unmatched)
                # They match nothing, or others wait for their end, or for their locks.
                results = [each for each in results if each.ref in unmatched]
            return await self._decide_and_write(connection, results, now) if results else set()
        except _LOCKED as error:
            parts = await self._without_the_locked(connection, results, error)
        except HOPELESS as error:
            if await self._partitions.mend(connection, error):
                return await self._write(connection, results, now)
            if len(results) == 1:
                return await self._condemn_or_fail(connection, results[0], error, now)
            parts = _halves(results)
        unmatched = set()
        for part in parts:
            unmatched |= await self._write(connection, part, now)
        return unmatched

    async def _without_the_locked(
        self, connection: Connection, reports: Sequence[Report], error: Exception
    ) -> list[Sequence[Report]]:
        """What to write next, after somebody was in the way of these: all but those that are locked; or, where it is
        something else that is locked, halves. Those that have to wait are in `failed`."""
        self._waits += 1
        gives_up = self._waits > _MOST_WAITS
        locked = set() if gives_up else await in_the_way(connection, reports)
        if not locked and len(reports) > 1 and not gives_up:
            return _halves(reports)
        locked = locked or {each.ref for each in reports}
        self.failed |= dict.fromkeys(locked, error)
        rest = [each for each in reports if each.ref not in locked]
        return [rest] if rest else []

    async def _end(self, connection: Connection, results: Sequence[Result], now: datetime | None) -> set[AttemptRef]:
        try:
            return await store.end_runs(connection, results, now, patience=self._patience)
        except _GAVE_WAY:
            return {each.ref for each in results}

    async def _decide_and_write(
        self,
        connection: Connection,
        results: Sequence[Result],
        now: datetime | None,
        digests: Sequence[str] | None = None,
    ) -> set[AttemptRef]:
        for attempt in range(_TRIES):
            try:
                async with connection.transaction():
                    unmatched, ended = await self._write_locked(connection, results, now, digests)
                break
            except _GAVE_WAY:
                if attempt == _TRIES - 1:
                    raise
        self.ended.update(ended)
        return unmatched

    async def _write_locked(
        self, connection: Connection, results: Sequence[Result], now: datetime | None, digests: Sequence[str] | None
    ) -> tuple[set[AttemptRef], list[str]]:
        held = await store.lock_attempts(connection, results, patience=self._patience)
        said = dict(zip((each.ref for each in results), digests or [each.digest() for each in results], strict=True))
        live = [_counted(each, held[each.ref]) for each in results if each.ref in held]
        failed = {each.ref: _after_failure(each, held[each.ref]) for each in live if _failed(each, held[each.ref])}
        retries = {ref: what.after for ref, what in failed.items() if isinstance(what, Retry)}
        returned = {each.ref for each in live if each.outcome == "RETURNED" and not held[each.ref].cancel_requested}
        ending = [each for each in live if each.ref not in retries and each.ref not in returned]
        if ending:
            explained = [_explained(each, failed.get(each.ref)) for each in ending]
            await store.end_runs(connection, explained, now, [said[each.ref] for each in ending], also_followed=True)
            left = {on for each in ending if (on := held[each.ref].followed_on) is not None}
            self.freed |= await arrange(connection, left) > 0
        if retries:
            again = [_explained(each, failed[each.ref]) for each in live if each.ref in retries]
            await store.retry_runs(connection, again, list(retries.values()), now, [said[each.ref] for each in again])
        if returned:
            await store.free_runs(connection, [each for each in live if each.ref in returned])
        self.freed |= bool(retries or returned)
        return {each.ref for each in results} - held.keys(), [_outcome(each, held[each.ref]) for each in ending]

    async def _condemn_or_fail(
        self, connection: Connection, result: Result, error: Exception, now: datetime | None
    ) -> set[AttemptRef]:
        try:
            if not isinstance(error, _UNREADABLE):
                raise error
            return await self._condemn(connection, result, error, now)
        except _NOT_NOW as cause:
            self.failed[result.ref] = cause
            return set()

    async def _condemn(
        self, connection: Connection, result: Result, error: Exception, now: datetime | None
    ) -> set[AttemptRef]:
        """Ends a run whose result cannot be recorded: FAILED, saying so. Errors: what was wrong was not the result."""
        run_id = result.ref.run_id
        if isinstance(error, psycopg.errors.UniqueViolation) and await store.remove_recorded(connection, run_id):
            _log.critical("a live run had a record already; the live one is removed", run_id=str(run_id))
            self.freed = True
            return {result.ref}
        reason = RunError("BAD_RESULT", "the attempt's result could not be recorded", str(error).replace("\0", ""))
        stand_in = replace(result, outcome="FAILED", error=reason, duration=None, items=None, metrics="", metadata="")
        unmatched = await self._decide_and_write(connection, [stand_in], now, digests=[result.digest()])
        _log.error("a result could not be recorded, its run has ended FAILED", run_id=str(run_id), error=str(error))
        return unmatched


def _halves(reports: Sequence[Report]) -> list[Sequence[Report]]:
    """Nothing, of one."""
    middle = len(reports) // 2
    return [reports[:middle], reports[middle:]] if middle else []


def _run_id(result: Result) -> int:
    return result.ref.run_id.int


def _outcome(result: Result, held: Held) -> str:
    """How a result that ends its run ends it."""
    return "COMPLETED" if result.outcome == "COMPLETED" else "CANCELLED" if held.cancel_requested else "FAILED"


def _counted(result: Result, held: Held) -> Result:
    """As what a result counts. An attempt that had started cannot be returned: its worker left it, and it is charged,
    or a worker could have it for ever."""
    if result.outcome != "RETURNED" or not held.started or held.cancel_requested:
        return result
    left = RunError(WORKER_LEFT, f"the worker gave back attempt {result.ref.attempt} after it had started")
    return replace(result, outcome="FAILED", error=left, following=AT_ONCE)


def _failed(result: Result, held: Held) -> bool:
    """Whether it was a failure. After a cancel request, nothing that did not complete is one."""
    return result.outcome not in ("COMPLETED", "RETURNED") and not held.cancel_requested


def _after_failure(result: Result, held: Held) -> Retry | End:
    code, asked = _error_of(result).code, result.following or AS_THE_POLICY_SAYS
    return decide(held.retry, result.ref.run_id, result.ref.attempt, code, asked)


def _explained(result: Result, following: Retry | End | None) -> Result:
    """A result that ends its run with why its other attempts are not used, any other with why the next one comes when
    it does."""
    if following is None or not following.because:
        return result
    error = _error_of(result)
    because = following.because
    return replace(result, error=error.adding(because) if isinstance(following, End) else error.retried(because))


def _error_of(result: Result) -> RunError:
    return result.error or store.UNNAMED[result.outcome]


def _verdict(known: Known) -> Verdict:
    if known.identical:
        return Verdict.ACCEPTED
    if known.state is not None:
        return Verdict.RUN_CANCELLED if known.state == "CANCELLED" else Verdict.RUN_ENDED
    return Verdict.STALE if known.run_exists else Verdict.UNKNOWN
