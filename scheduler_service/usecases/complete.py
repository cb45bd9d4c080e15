"""Completion: what workers report is committed in groups, and acknowledged once it is.

Whatever has piled up while the last group was being committed makes the next: group commit for nothing. A group that
fails because the database is away is tried again as it is, which is safe: a result that was committed is recognized.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any, cast
from uuid import UUID

import psycopg
import structlog
from psycopg.rows import TupleRow

from scheduler_service.domain.attempt import AttemptRef, ItemResult, Result, Verdict
from scheduler_service.domain.record import RunError
from scheduler_service.domain.repairs import Repair
from scheduler_service.domain.retry import AS_THE_POLICY_SAYS, End, Retry, decide
from scheduler_service.domain.returns import AT_ONCE, WORKER_LEFT
from scheduler_service.store import complete as store
from scheduler_service.store.complete import Held, Known
from scheduler_service.store.items import insert_items
from scheduler_service.store.turns import arrange
from scheduler_service.usecases.lanes import Entry, Lanes, Room
from scheduler_service.usecases.mending import HOPELESS
from scheduler_service.usecases.missing_partitions import MissingPartitions
from scheduler_service.usecases.repairs import Repairs
from scheduler_service.usecases.sessions import ConnectedSession
from scheduler_service.usecases.unrecorded import Unrecorded
from scheduler_service.usecases.wakeups import Topic, Wakeup, Wakeups

__all__ = ["Completer", "ItemResult", "Result", "RunError"]

GROUP = 1_000
_RESULT_WEIGHT = 5  # what a result costs, in items; of either, each KiB of text as much as an item
_MOST_UNCOMMITTED = 50_000
_LEAST_UNCOMMITTED = 1_000

Connection = psycopg.AsyncConnection[TupleRow]
_Item = Entry[ItemResult]
_Result = Entry[Result]
# What a result's own values can be the cause of.
_UNREADABLE = (psycopg.DataError, psycopg.IntegrityError)
# Who archives or deletes locks a run out of order where it got its turn just then: one of the two is ended. The second
# comes where somebody has set a stricter isolation than ours for the engine's role.
_GAVE_WAY = (psycopg.errors.DeadlockDetected, psycopg.errors.SerializationFailure)
_TRIES = 3
_log = structlog.get_logger()


class Completer:
    """The queue of what was reported, and the step that commits it. `wakeup` is set when something is in it.
    `ended` counts the runs that it ended, by outcome. `room`: whether a session may report more: while the database
    is away, or slower than they are, what is reported waits in the workers and not in our memory."""

    def __init__(self, wakeups: Wakeups, *, replica: str = "-", clock: Callable[[], float] = time.monotonic) -> None:
        self.wakeup = Wakeup()
        self.ended: Counter[str] = Counter()
        self._wakeups = wakeups
        self.room = Room(_MOST_UNCOMMITTED * _RESULT_WEIGHT, _LEAST_UNCOMMITTED * _RESULT_WEIGHT)
        self._lanes: Lanes[Result | ItemResult] = Lanes()
        # Taken from the lanes and not yet committed; the items before any result that followed them.
        self._group_items: list[_Item] = []
        self._group: list[_Result] = []
        self._freed = False
        self._unrecorded = Unrecorded(clock)
        self._repairs = Repairs(replica)
        self._partitions = MissingPartitions(self._repairs, clock)
        # Of the group, what could not be recorded now.
        self._failed: dict[AttemptRef, Exception] = {}

    @property
    def repairs(self) -> Counter[Repair]:
        """What it had to mend to go on, by kind."""
        return self._repairs.counts

    @property
    def set_aside(self) -> int:
        """How many results it cannot record, and goes on without."""
        return len(self._unrecorded)

    def __len__(self) -> int:
        """Reports that are not committed yet, without those that are set aside."""
        return len(self._lanes) + len(self._group_items) + len(self._group)

    def submit(self, results: Sequence[Result], session: ConnectedSession) -> None:
        """Takes results; each is acknowledged to this session once it is committed, or refused."""
        self._put(session, [Entry(each, session, _weight_of_result(each)) for each in results])

    def submit_items(self, items: Sequence[ItemResult], session: ConnectedSession) -> None:
        """Takes results of items. They are committed before every result that the session submits after them."""
        self._put(session, [Entry(each, session, 1 + len(each.error) // 1024) for each in items])

    def _put(self, session: ConnectedSession, entries: list[Entry[Result | ItemResult]]) -> None:
        self._lanes.put(session, entries)
        self.room.use(session, sum(entry.weight for entry in entries))
        self.wakeup.set()

    async def step(self, connection: Connection, *, now: datetime | None = None) -> bool:
        """Commits one group and acknowledges it. Answers whether there was anything."""
        tried_again = await self._try_again(connection, now)
        if not self._group and not self._group_items:
            self._take_group()
        if not self._group and not self._group_items:
            return tried_again
        while self._group_items:
            items = self._group_items[:GROUP]
            await self._write_items(connection, [item.report for item in items])
            del self._group_items[:GROUP]
            self._make_room(items)
        self._leave_out_unrecorded()
        if self._group:
            verdicts = await self._conclude(connection, [result.report for result in self._group], now)
            self._acknowledge(self._group, verdicts)
            group, self._group = self._group, []
            self._make_room(self._set_aside(group))
        self._tell()
        return True

    def _tell(self) -> None:
        self._unrecorded.tell()
        self._wakeups.wake(Topic.RUNS)
        if self._freed:
            self._freed = False
            self._wakeups.wake(Topic.PENDING)

    async def _try_again(self, connection: Connection, now: datetime | None) -> bool:
        """Results that were set aside and have rested, each by itself. Answers whether one was answered."""
        answered = False
        for entry in self._unrecorded.due():
            verdicts = await self._conclude(connection, [entry.report], now)
            if (error := self._failed.pop(entry.report.ref, None)) is not None:
                self._unrecorded.add(entry, error)
                continue
            self._unrecorded.forget(entry.report.ref)
            self._acknowledge([entry], verdicts)
            self._make_room([entry])
            answered = True
        if answered:
            self._tell()
        return answered

    def _leave_out_unrecorded(self) -> None:
        """What is set aside is no part of a group, though its worker sends it again."""
        again = [entry for entry in self._group if entry.report.ref in self._unrecorded]
        if again:
            self._make_room([self._unrecorded.replace(entry) for entry in again])
            self._group = [entry for entry in self._group if entry.report.ref not in self._unrecorded]

    def _set_aside(self, group: Sequence[_Result]) -> list[_Result]:
        """Sets aside what of the group could not be recorded. Answers what needs no room any more."""
        if not self._failed:
            return list(group)
        done = []
        for entry in group:
            ref = entry.report.ref
            if ref in self._failed and ref not in self._unrecorded:
                self._unrecorded.add(entry, self._failed[ref])
            else:
                done.append(entry)
        self._failed.clear()
        return done

    def _take_group(self) -> None:
        for entry in self._lanes.take(GROUP * _RESULT_WEIGHT):
            if isinstance(entry.report, Result):
                self._group.append(cast(_Result, entry))
            else:
                self._group_items.append(cast(_Item, entry))

    def _make_room(self, written: Iterable[Entry[Any]]) -> None:
        weights: Counter[UUID] = Counter()
        for entry in written:
            weights[entry.session.session_id] += entry.weight
        self.room.free(weights)

    def _acknowledge(self, group: Sequence[_Result], verdicts: Sequence[Verdict | None]) -> None:
        by_session: dict[ConnectedSession, list[tuple[AttemptRef, Verdict]]] = {}
        for entry, verdict in zip(group, verdicts, strict=True):
            if verdict is None:
                continue
            by_session.setdefault(entry.session, []).append((entry.report.ref, verdict))
        for session, answers in by_session.items():
            session.outbound.acknowledge(answers)

    async def _write_items(self, connection: Connection, items: Sequence[ItemResult]) -> None:
        try:
            await insert_items(connection, items)
        except HOPELESS as error:
            if len(items) == 1:
                _log.error("an item's result cannot be stored", run_id=str(items[0].ref.run_id), error=str(error))
                return
            middle = len(items) // 2
            await self._write_items(connection, items[:middle])
            await self._write_items(connection, items[middle:])

    async def _conclude(
        self, connection: Connection, results: Sequence[Result], now: datetime | None
    ) -> list[Verdict | None]:
        """Commits results and answers what became of each; None: it could not be recorded, see `_failed`."""
        self._failed.clear()
        first = {each.ref: each for each in reversed(results)}
        unmatched = await self._write(connection, sorted(first.values(), key=_run_id), now)
        if not unmatched and not self._failed and len(first) == len(results):
            return [Verdict.ACCEPTED] * len(results)
        rest = [
            each
            for each in results
            if each.ref not in self._failed and (each.ref in unmatched or first[each.ref] is not each)
        ]
        known = dict(zip(map(id, rest), await store.look_up(connection, rest), strict=True)) if rest else {}
        return [
            None if each.ref in self._failed else _verdict(known[id(each)]) if id(each) in known else Verdict.ACCEPTED
            for each in results
        ]

    async def _write(self, connection: Connection, results: Sequence[Result], now: datetime | None) -> set[AttemptRef]:
        """Commits results in order of run ids; answers which matched no live attempt. A group that the data of one
        fails is halved until that one is alone, and its run ends FAILED; or, if even that fails, it is in `_failed`."""
        try:
            if all(each.outcome == "COMPLETED" for each in results):
                unmatched = await self._end(connection, results, now)
                self.ended["COMPLETED"] += len(results) - len(unmatched)
                # They match nothing, or others wait for their end, or for their locks.
                results = [each for each in results if each.ref in unmatched]
            return await self._decide_and_write(connection, results, now) if results else set()
        except HOPELESS as error:
            if await self._partitions.mend(connection, error):
                return await self._write(connection, results, now)
            if len(results) == 1:
                return await self._condemn_or_fail(connection, results[0], error, now)
        middle = len(results) // 2
        return await self._write(connection, results[:middle], now) | await self._write(
            connection, results[middle:], now
        )

    async def _end(self, connection: Connection, results: Sequence[Result], now: datetime | None) -> set[AttemptRef]:
        try:
            return await store.end_runs(connection, results, now)
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
        held = await store.lock_attempts(connection, results)
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
            self._freed |= await arrange(connection, left) > 0
        if retries:
            again = [each for each in live if each.ref in retries]
            await store.retry_runs(connection, again, list(retries.values()), now, [said[each.ref] for each in again])
        if returned:
            await store.free_runs(connection, [each for each in live if each.ref in returned])
        self._freed |= bool(retries or returned)
        return {each.ref for each in results} - held.keys(), [_outcome(each, held[each.ref]) for each in ending]

    async def _condemn_or_fail(
        self, connection: Connection, result: Result, error: Exception, now: datetime | None
    ) -> set[AttemptRef]:
        try:
            if not isinstance(error, _UNREADABLE):
                raise error
            return await self._condemn(connection, result, error, now)
        except HOPELESS as cause:
            self._failed[result.ref] = cause
            return set()

    async def _condemn(
        self, connection: Connection, result: Result, error: Exception, now: datetime | None
    ) -> set[AttemptRef]:
        """Ends a run whose result cannot be recorded: FAILED, saying so. Errors: what was wrong was not the result."""
        run_id = result.ref.run_id
        if isinstance(error, psycopg.errors.UniqueViolation) and await store.remove_recorded(connection, run_id):
            _log.critical("a live run had a record already; the live one is removed", run_id=str(run_id))
            self._freed = True
            return {result.ref}
        reason = RunError("BAD_RESULT", "the attempt's result could not be recorded", str(error).replace("\0", ""))
        stand_in = replace(result, outcome="FAILED", error=reason, duration=None, items=None, metrics="", metadata="")
        unmatched = await self._decide_and_write(connection, [stand_in], now, digests=[result.digest()])
        _log.error("a result could not be recorded, its run has ended FAILED", run_id=str(run_id), error=str(error))
        return unmatched


def _weight_of_result(result: Result) -> int:
    detail = len(result.error.detail) if result.error else 0
    return _RESULT_WEIGHT + (len(result.metrics) + len(result.metadata) + detail) // 1024


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
    """A result that ends its run, with why its other attempts are not used."""
    if not isinstance(following, End) or not following.because:
        return result
    return replace(result, error=_error_of(result).adding(following.because))


def _error_of(result: Result) -> RunError:
    return result.error or store.UNNAMED[result.outcome]


def _verdict(known: Known) -> Verdict:
    if known.identical:
        return Verdict.ACCEPTED
    if known.state is not None:
        return Verdict.RUN_CANCELLED if known.state == "CANCELLED" else Verdict.RUN_ENDED
    return Verdict.STALE if known.run_exists else Verdict.UNKNOWN
