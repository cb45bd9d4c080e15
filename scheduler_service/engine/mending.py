"""Mending stuck runs in batches, so that one that cannot be mended keeps no other waiting: a batch that fails is halved
until the offenders are alone, and these are set aside, or, where somebody has locked what they need, put off.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from datetime import datetime
from typing import TypeVar
from uuid import UUID

import structlog

from scheduler_service.domain.repairs import SHOWN, Repair, Repaired
from scheduler_service.domain.returns import Charged, Ended, Freed, HeldRun, Return
from scheduler_service.domain.run import RunState, run_name
from scheduler_service.engine.deciding import decided
from scheduler_service.engine.missing_partitions import MissingPartitions
from scheduler_service.engine.repairs import Decided, Repairs, described
from scheduler_service.engine.set_aside import Key, SetAside
from scheduler_service.store import reap, stuck
from scheduler_service.store.connection import Connection
from scheduler_service.store.errors import IN_THE_WAY, OF_SOME_ROWS

log = structlog.get_logger()

TRIES = 3

T = TypeVar("T")


async def patiently(act: Callable[[], Awaitable[T]], *, tries: int = TRIES) -> T:
    """Again, so often in all, while somebody is in the way: each lock is waited for by itself, for half a second."""
    for _ in range(tries - 1):
        with suppress(*IN_THE_WAY):
            return await act()
    return await act()


@dataclass(frozen=True, slots=True)
class Reaped:
    """What one step did: sessions that it ended, and runs that it freed, charged with an attempt, and ended.

    `released`: runs that got their turn although nobody had left it to them; `removed`: live rows of runs that had
    ended. Neither should happen. `set_aside`: what could not be mended."""

    sessions: int = 0
    freed: int = 0
    charged: int = 0
    failed: int = 0
    cancelled: int = 0
    released: int = 0
    removed: int = 0
    set_aside: int = 0

    def __bool__(self) -> bool:
        return any(getattr(self, each.name) for each in fields(self))

    def __add__(self, other: Reaped) -> Reaped:
        return Reaped(*(getattr(self, each.name) + getattr(other, each.name) for each in fields(self)))


@dataclass(frozen=True, slots=True)
class Look:
    """A way for runs to be stuck, what to decide about those that are, and what kind of repair that is."""

    stuck: stuck.Stuck
    decide: Callable[[HeldRun, datetime], Return]
    kind: Callable[[HeldRun], Repair]


@dataclass(frozen=True, slots=True)
class _Batch:
    """`stuck_at` stands for `now` where it is found out who is stuck. `workers`: names for sessions that are gone."""

    look: Look
    now: datetime
    stuck_at: datetime
    workers: Mapping[UUID, str]


class Mender:
    """`repairs` counts what was mended, by kind. `stop` is told of runs whose workers are to stop. `clock` is
    monotonic, in seconds."""

    def __init__(self, replica: str, clock: Callable[[], float], stop: Callable[[Sequence[HeldRun]], None]) -> None:
        self.repairs = Repairs(replica)
        self.runs_aside: SetAside[UUID] = SetAside()
        self.turns_aside: SetAside[int] = SetAside()
        self._clock = clock
        self._stop = stop
        # Whether a look found runs that somebody had locked, and mended none; whoever wants to know resets it.
        self.left_some = False
        self._partitions = MissingPartitions(self.repairs, clock)
        self._news: list[tuple[str, Exception]] = []

    @property
    def set_aside(self) -> int:
        """How many runs and schedules could not be mended when that was tried last."""
        return len(self.runs_aside) + len(self.turns_aside)

    async def mend(
        self,
        connection: Connection,
        look: Look,
        now: datetime,
        *,
        limit: int,
        stuck_at: datetime | None = None,
        workers: Mapping[UUID, str] | None = None,
    ) -> Reaped:
        """Mends up to `limit` runs that are stuck so (at `stuck_at`; by default now)."""
        batch = _Batch(look, now, stuck_at or now, workers or {})
        resting = self.runs_aside.resting(self._clock())
        found = await stuck.find(connection, look.stuck, batch.stuck_at, without=resting, limit=limit)
        reaped = await self._mend(connection, batch, found) if found else Reaped()
        self.left_some |= bool(found) and not reaped
        return reaped

    async def _mend(
        self, connection: Connection, batch: _Batch, run_ids: Sequence[UUID], *, tries: int = TRIES
    ) -> Reaped:
        try:
            return await patiently(lambda: self._mend_together(connection, batch, run_ids), tries=tries)
        except OF_SOME_ROWS as error:
            return await self._mend_apart(connection, batch, run_ids, error)

    async def _mend_together(self, connection: Connection, batch: _Batch, run_ids: Sequence[UUID]) -> Reaped:
        async with connection.transaction():
            await stuck.be_patient_briefly(connection)
            returns = await self._decide(connection, batch, run_ids)
            reaped, repaired = await self.carry_out(connection, returns, batch.now, batch.look.kind)
        self.runs_aside.forget(run_ids)
        self.repairs.tell(repaired)
        self._stop([run for run, _ in returns])
        return reaped

    async def _decide(self, connection: Connection, batch: _Batch, run_ids: Sequence[UUID]) -> list[Decided]:
        runs = await stuck.lock(connection, batch.look.stuck, run_ids, batch.stuck_at, batch.workers)
        if batch.look.stuck is stuck.SESSION_GONE:
            runs = await stuck.without_session(connection, runs)
        return await decided(runs, lambda run: batch.look.decide(run, batch.now))

    async def _mend_apart(
        self, connection: Connection, batch: _Batch, run_ids: Sequence[UUID], error: Exception
    ) -> Reaped:
        if await self._partitions.mend(connection, error):
            return await self._mend(connection, batch, run_ids)
        if len(run_ids) == 1:
            return self._set_aside(self.runs_aside, run_ids[0], run_name(run_ids[0]), error)
        # Whoever is in the way of one has been waited for: the others are not to wait as long again, for each half.
        tries = 1 if isinstance(error, IN_THE_WAY) else TRIES
        middle = len(run_ids) // 2
        first = await self._mend(connection, batch, run_ids[:middle], tries=tries)
        return first + await self._mend(connection, batch, run_ids[middle:], tries=tries)

    async def carry_out(
        self,
        connection: Connection,
        returns: Sequence[Decided],
        now: datetime,
        kind: Callable[[HeldRun], Repair],
    ) -> tuple[Reaped, list[Repaired]]:
        """Carries out and records, within a transaction of the caller's, who passes what was done to
        `repairs.tell` once that is committed."""
        if not returns:
            return Reaped(), []
        there = await reap.carry_out(connection, returns, now)
        repaired = described(returns, there, kind)
        await self.repairs.record(connection, repaired)
        return _counted([what for run, what in returns if run.run_id not in there], removed=len(there)), repaired

    def _set_aside(self, aside: SetAside[Key], key: Key, name: str, error: Exception) -> Reaped:
        if isinstance(error, IN_THE_WAY) and aside.put_off(key, self._clock()):
            return Reaped()
        if aside.add(key, self._clock()):
            self._news.append((name, error))
        return Reaped(set_aside=1)

    def set_turn_aside(self, schedule_id: int, error: Exception) -> Reaped:
        """A schedule whose runs cannot be given their turn."""
        return self._set_aside(self.turns_aside, schedule_id, f"schedule {schedule_id}", error)

    def tell_hopeless(self) -> None:
        """Logs what was set aside for the first time since this was called last: one line."""
        if self._news:
            names = [name for name, _ in self._news[:SHOWN]]
            error = self._news[0][1]
            log.error(
                "what cannot be repaired is set aside, and tried again now and then; the rest goes on",
                count=len(self._news),
                names=names,
                error=f"{type(error).__name__}: {error}",
            )
            self._news.clear()

    async def forget_the_gone(self, connection: Connection) -> None:
        """Runs that were set aside and have ended, by whomsoever, are counted no more."""
        if aside := self.runs_aside.all():
            self.runs_aside.forget(set(aside) - await stuck.still_live(connection, aside))


def _counted(done: Sequence[Return], *, removed: int) -> Reaped:
    kinds = [type(what) for what in done]
    states = [what.state for what in done if isinstance(what, Ended)]
    return Reaped(
        freed=kinds.count(Freed),
        charged=kinds.count(Charged),
        failed=states.count(RunState.FAILED),
        cancelled=states.count(RunState.CANCELLED),
        removed=removed,
    )
