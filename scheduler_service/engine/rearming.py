"""Arming anew: what was set aside is tried again, and next times follow a new tzdata release.

Each replica looks when it starts and hourly. Where its tzdata is newer than what the next times were computed by last,
it computes each again, from where the schedule stands, and then says by which release that was. A replica with an older
one changes nothing, but its ticks arm what they settle by the old rules until it is gone: hence a new release has
everything computed again for two hours, which is longer than replicas of two releases are meant to run side by side.

Batches are small transactions, and a schedule that somebody holds is come back to: nobody waits for this, and it waits
for nobody. One that cannot be read or written stays as it is, and the others go on. (Schedules that nobody ticks
although nothing says why: engine/unarmed.py.)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import LiteralString

import structlog

from scheduler_service.domain.repairs import SHOWN, Repair, Repaired
from scheduler_service.domain.settling import Standing, next_start
from scheduler_service.domain.timing import tzdata_version
from scheduler_service.domain.timing.release import is_newer_release
from scheduler_service.engine.halving import apart
from scheduler_service.store import audit
from scheduler_service.store import rearming as store
from scheduler_service.store.connection import Connection
from scheduler_service.store.rearming import BY_ZONE, SET_ASIDE, Rules
from scheduler_service.store.schedule_names import names_of

BATCH = 200
"""Schedules of one transaction: some 30 ms of computing, with every timing new."""

_PERIOD = 3_600.0
_AGAIN = 1.0
_SIDE_BY_SIDE = timedelta(hours=2)
_SAID_EACH = 100_000
_log = structlog.get_logger()


@dataclass
class _Walk:
    """A way through all schedules of a kind. `left`: those that somebody held. `passed_over`: those that cannot be
    armed anew, of which the `refused` could be read."""

    kind: LiteralString
    reached: int = 0
    left: list[int] = field(default_factory=list)
    is_through: bool = False
    seen: int = 0
    changed: int = 0
    replica: str = "-"
    repairs: Counter[Repair] = field(default_factory=Counter)
    passed_over: dict[int, Exception] = field(default_factory=dict)
    refused: set[int] = field(default_factory=set)

    @property
    def is_over(self) -> bool:
        return self.is_through and not self.left

    async def step(self, connection: Connection) -> bool:
        """Arms a batch. Answers whether that got anywhere: not if all that is left is held."""
        batch = await self._next(connection)
        if not batch:
            return True
        todo, reached = set(batch), self.seen + len(self.passed_over)
        read: set[int] = set()

        async def arm(schedule_ids: Sequence[int]) -> None:
            await self._arm(connection, schedule_ids, read)
            todo.difference_update(schedule_ids)

        async def pass_over(schedule_id: int, error: Exception) -> None:
            self.passed_over[schedule_id] = error
            self.refused |= {schedule_id} & read
            todo.discard(schedule_id)

        try:
            await apart(batch, arm, pass_over)
        except BaseException:
            self.left += sorted(todo)
            raise
        return self.seen + len(self.passed_over) > reached or not self.is_through

    async def _arm(self, connection: Connection, batch: Sequence[int], read: set[int]) -> None:
        async with connection.transaction():
            locked = await store.lock_free(connection, self.kind, batch)
            read |= {each.schedule_id for each, _ in locked}
            changed = _changed(locked)
            if changed:
                await store.arm(connection, changed)
                await self._record(connection, changed)
            held = set(batch) - {each.schedule_id for each, _ in locked}
            left = await store.still(connection, self.kind, held) if held else []
        self.left += left
        self._count(len(locked), len(changed))
        if self.kind == SET_ASIDE:
            self.repairs[Repair.SCHEDULE_SET_ASIDE] += len(changed)

    async def _record(self, connection: Connection, changed: Mapping[int, datetime | None]) -> None:
        """Times that follow a new tzdata release are no repair."""
        if self.kind != SET_ASIDE:
            return
        named = await names_of(connection, changed)
        tenants = frozenset(name.tenant for name in named)
        repaired = Repaired(Repair.SCHEDULE_SET_ASIDE, [str(name) for name in named], tenants)
        if (change := repaired.as_change()) is not None:
            await audit.record_own(connection, self.replica, change)

    async def _next(self, connection: Connection) -> Sequence[int]:
        if self.is_through:
            batch, self.left = self.left[:BATCH], self.left[BATCH:]
            return batch
        batch = await store.after(connection, self.kind, self.reached, BATCH)
        self.is_through = len(batch) < BATCH
        self.reached = batch[-1] if batch else self.reached
        return batch

    def _count(self, seen: int, changed: int) -> None:
        self.seen += seen
        self.changed += changed
        if self.kind == BY_ZONE and self.seen // _SAID_EACH > (self.seen - seen) // _SAID_EACH:
            _log.info("computing next times again", schedules=self.seen, changed=self.changed)


class Rearming:
    """The looks of one replica. `version`: its tzdata release. `replica` signs what it tells the audit trail.
    `repairs` counts what was set aside and is armed again."""

    def __init__(self, version: str | None = None, *, replica: str = "-") -> None:
        self.repairs: Counter[Repair] = Counter()
        self._version = version or tzdata_version()
        self._replica = replica
        self._look_at = 0.0
        self._walks: list[_Walk] = []
        self._before: str | None = None

    async def step(self, connection: Connection, now: float) -> bool:
        """Does a batch, if one is due at `now`, seconds of any clock. Answers whether there was anything to do."""
        if now < self._look_at:
            return False
        if not self._walks:
            self._walks = await self._begin(connection)
        walk = self._walks[0]
        if not await walk.step(connection):
            self._look_at = now + _AGAIN
            return False
        if walk.is_over:
            await self._end(connection, self._walks.pop(0))
            if not self._walks:
                self._look_at = now + _PERIOD
        return True

    def next_at(self) -> float:
        return self._look_at

    async def _begin(self, connection: Connection) -> list[_Walk]:
        rules = await store.rules(connection)
        self._before = rules.version if rules else ""
        if self._is_to_be_computed(rules):
            _log.info("next times are computed again", tzdata=self._version, before=self._before)
            return [self._walk(SET_ASIDE), self._walk(BY_ZONE)]
        return [self._walk(SET_ASIDE)]

    def _walk(self, kind: LiteralString) -> _Walk:
        return _Walk(kind, replica=self._replica, repairs=self.repairs)

    def _is_to_be_computed(self, rules: Rules | None) -> bool:
        # Where nobody has said anything, what is armed may be from any release.
        if rules is None or is_newer_release(self._version, rules.version):
            return True
        if is_newer_release(rules.version, self._version):
            _log.warning(
                "another replica has a newer tzdata; give all replicas the same",
                tzdata=self._version,
                newer=rules.version,
            )
            return False
        return rules.age < _SIDE_BY_SIDE

    async def _end(self, connection: Connection, walk: _Walk) -> None:
        if walk.passed_over:
            _log.error(
                "schedules cannot be armed anew and stay as they are; the others go on",
                count=len(walk.passed_over),
                schedule_ids=list(walk.passed_over)[:SHOWN],
                error=str(next(iter(walk.passed_over.values()))),
            )
        if walk.kind == SET_ASIDE:
            if walk.changed:
                _log.info("schedules that were set aside are tried again", schedules=walk.changed)
            return
        _log.info("next times were computed again", tzdata=self._version, schedules=walk.seen, changed=walk.changed)
        if walk.refused:
            return  # whatever refuses them may pass: the next look computes all of them again
        if self._before is not None and is_newer_release(self._version, self._before):
            await store.put_rules_in_force(connection, self._version, self._before)


def _changed(locked: Sequence[tuple[Standing, datetime | None]]) -> dict[int, datetime | None]:
    """Those that start at another time than they are armed for, and when."""
    starts = ((each.schedule_id, before, _start(each, before)) for each, before in locked)
    return {schedule_id: start for schedule_id, before, start in starts if start != before}


def _start(standing: Standing, before: datetime | None) -> datetime | None:
    """When a schedule is to start next. One that cannot be evaluated stays as it is: if it is armed, the tick sets it
    aside, with the reason."""
    try:
        return next_start(standing)
    except Exception:  # whatever is wrong with one schedule
        return before
