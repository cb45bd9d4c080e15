"""Completion: what workers report is committed in groups, and acknowledged once it is.

Whatever has piled up while the last group was being committed makes the next: group commit for nothing. A group that
fails because the database is away is tried again as it is, which is safe: a result that was committed is recognized.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from typing import Any, cast
from uuid import UUID

from scheduler_service.domain.attempt import AttemptRef, ItemResult, Result, Verdict
from scheduler_service.domain.record import RunError
from scheduler_service.domain.repairs import Repair
from scheduler_service.engine.lanes import Entry, Lanes, Room
from scheduler_service.engine.recording import Recorder
from scheduler_service.engine.sessions import ConnectedSession
from scheduler_service.engine.unrecorded import Unrecorded
from scheduler_service.store.connection import Connection
from scheduler_service.store.patience import PATIENCE
from scheduler_service.usecases.wakeups import Topic, Wakeup, Wakeups

__all__ = ["Completer", "ItemResult", "Result", "RunError"]

GROUP = 1_000
_RESULT_WEIGHT = 5  # what a result costs, in items; of either, each KiB of text as much as an item
_MOST_UNCOMMITTED = 50_000
_LEAST_UNCOMMITTED = 1_000
_MOST_SET_ASIDE = 10_000
"""Of what cannot be recorded now, as much as so many plain results takes no room of its sessions."""

_Item = Entry[ItemResult]
_Result = Entry[Result]


class Completer:
    """The queue of what was reported, and the step that commits it. `wakeup` is set when something is in it.
    `ended` counts the runs that it ended, by outcome. `room`: whether a session may report more: while the database
    is away, or slower than they are, what is reported waits in the workers and not in our memory. `patience`: seconds
    for which it waits for what somebody has locked, before the rest goes on."""

    def __init__(
        self,
        wakeups: Wakeups,
        *,
        replica: str = "-",
        clock: Callable[[], float] = time.monotonic,
        patience: float = PATIENCE,
    ) -> None:
        self.wakeup = Wakeup()
        self._wakeups = wakeups
        self.room = Room(_MOST_UNCOMMITTED * _RESULT_WEIGHT, _LEAST_UNCOMMITTED * _RESULT_WEIGHT)
        self._lanes: Lanes[Result | ItemResult] = Lanes()
        # Taken from the lanes and not yet committed; the items before any result that followed them.
        self._group_items: list[_Item] = []
        self._group: list[_Result] = []
        self._recorder = Recorder(replica, clock, patience)
        self.ended = self._recorder.ended
        self._unrecorded = Unrecorded(clock, _MOST_SET_ASIDE * _RESULT_WEIGHT)

    @property
    def repairs(self) -> Counter[Repair]:
        """What it had to mend to go on, by kind."""
        return self._recorder.repairs.counts

    @property
    def set_aside(self) -> int:
        """Of how many attempts it cannot record what was reported, and goes on without. Those for which somebody else's
        lock has been waited for less than a minute are none of them."""
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
        self._recorder.hurries = self._unrecorded.some_locked
        while self._group_items:
            await self._write_items(connection, self._group_items[:GROUP])
            del self._group_items[:GROUP]
        self._leave_out_unrecorded()
        if self._group:
            verdicts = await self._recorder.record(connection, [result.report for result in self._group], now)
            self._acknowledge(self._group, verdicts)
            group, self._group = self._group, []
            self._make_room(self._set_aside(group))
        self._tell()
        return True

    def _tell(self) -> None:
        self._unrecorded.tell()
        self._wakeups.wake(Topic.RUNS)
        if self._recorder.freed:
            self._recorder.freed = False
            self._wakeups.wake(Topic.PENDING)

    async def _write_items(self, connection: Connection, entries: Sequence[_Item]) -> None:
        """Those of attempts that somebody has locked wait with what is there of them already."""
        free = [entry.report for entry in entries if not self._unrecorded.is_locked(entry.report.ref)]
        await self._recorder.record_items(connection, free)
        self._put_off_failed()
        done: list[Entry[Any]] = []
        for entry in entries:
            waits = self._unrecorded.is_locked(entry.report.ref)
            done += self._unrecorded.add_item(entry) if waits else [entry]
        self._make_room(done)

    async def _try_again(self, connection: Connection, now: datetime | None) -> bool:
        """Results that could not be recorded and have rested. Answers whether one was answered."""
        answered = await self._try_locked_again(connection, now)
        for entry in self._unrecorded.due():
            answered |= await self._answer_again(connection, [entry], now)
        self._unrecorded.tell()
        if answered:
            self._tell()
        return answered

    async def _try_locked_again(self, connection: Connection, now: datetime | None) -> bool:
        """Together, and without waiting for anybody: nearly all of them are locked still, or none."""
        items, results = self._unrecorded.due_locked(GROUP)
        reports: list[Result | ItemResult] = [entry.report for entry in items]
        reports += [entry.report for entry in results]
        if not reports:
            return False
        self._recorder.hurries = True
        await self._recorder.look_who_is_locked(connection, reports)
        free = {each.ref for each in reports} - self._put_off_failed()
        await self._recorder.record_items(connection, [each.report for each in items if each.report.ref in free])
        free -= self._put_off_failed()
        ready = [entry for entry in results if entry.report.ref in free]
        for ref in free - {entry.report.ref for entry in ready}:
            self._make_room(self._unrecorded.forget(ref))
        return await self._answer_again(connection, ready, now)

    def _put_off_failed(self) -> set[AttemptRef]:
        for ref, error in self._recorder.failed.items():
            self._unrecorded.put_off(ref, error)
        return set(self._recorder.failed)

    async def _answer_again(self, connection: Connection, entries: Sequence[_Result], now: datetime | None) -> bool:
        if not entries:
            return False
        verdicts = await self._recorder.record(connection, [entry.report for entry in entries], now)
        failed = self._put_off_failed()
        for entry in entries:
            if entry.report.ref not in failed:
                self._make_room(self._unrecorded.forget(entry.report.ref))
        self._acknowledge(entries, verdicts)
        return len(failed) < len(entries)

    def _leave_out_unrecorded(self) -> None:
        """What is set aside is no part of a group, though its worker sends it again."""
        again = [entry for entry in self._group if entry.report.ref in self._unrecorded]
        if again:
            for entry in again:
                self._make_room(self._unrecorded.replace(entry))
            self._group = [entry for entry in self._group if entry.report.ref not in self._unrecorded]

    def _set_aside(self, group: Sequence[_Result]) -> list[Entry[Any]]:
        """Sets aside what of the group could not be recorded. Answers what needs no room any more."""
        failed = self._recorder.failed
        if not failed:
            return list(group)
        done: list[Entry[Any]] = []
        for entry in group:
            ref = entry.report.ref
            fails = ref in failed and ref not in self._unrecorded
            done += self._unrecorded.add(entry, failed[ref]) if fails else [entry]
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


def _weight_of_result(result: Result) -> int:
    detail = len(result.error.detail) if result.error else 0
    return _RESULT_WEIGHT + (len(result.metrics) + len(result.metadata) + detail) // 1024
