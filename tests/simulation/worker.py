"""A worker whose clock is the simulation's: it takes what it can, holds it for as long as was drawn, and reports."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import psycopg

from scheduler_service.domain.attempt import AttemptRef, ClaimedRun, Result, Verdict
from scheduler_service.engine.complete import Completer
from scheduler_service.engine.sessions import ConnectedSession
from scheduler_service.store.claim import claim
from scheduler_service.usecases.wakeups import Wakeups

Connection = psycopg.AsyncConnection[Any]
_AT_ONCE = 500
_CANCELLED = "select run_id from carillon.live_runs where session_id = %s and cancel_requested_at is not null"
_ABOUT = "select run_id, schedule_id, exclusive from carillon.live_runs where run_id = any(%s)"
_MOST = (1 << 64) - 1


@dataclass(order=True)
class _Held:
    """A run in the worker's hands until `ends_at`."""

    ends_at: datetime
    ref: AttemptRef = field(compare=False)
    key: str = field(compare=False)
    began_at: datetime = field(compare=False)
    schedule_id: int | None = field(compare=False)
    exclusive: bool = field(compare=False)
    fails: bool = field(compare=False)
    done: bool = field(default=False, compare=False)


class Worker:
    """`problems`: what it saw that must not be, such as two runs of a schedule at once."""

    def __init__(self, session_id: UUID, seed: int) -> None:
        self.problems: list[str] = []
        self.completed = Completer(Wakeups())
        self._session = ConnectedSession(session_id, "worker-1", frozenset({"http"}), 1, self)
        self._seed = seed
        self._ending: list[_Held] = []
        self._holding: dict[UUID, _Held] = {}
        self._with_turn: dict[int, UUID] = {}

    @property
    def next_end(self) -> datetime | None:
        """When the first run that it holds ends."""
        while self._ending and self._ending[0].done:
            heapq.heappop(self._ending)
        return self._ending[0].ends_at if self._ending else None

    async def take(self, connection: Connection, now: datetime) -> int:
        """Claims everything that may start. Answers how many runs."""
        taken = 0
        while True:
            found = await claim(connection, self._session.session_id, ["http"], _AT_ONCE, now)
            assert found is not None, "the session is there"
            if found.runs:
                await self._hold(connection, found.claim_id, found.runs, now)
            taken += len(found.runs)
            if found.emptied:
                return taken

    async def report(self, connection: Connection, now: datetime) -> int:
        """Reports what has ended by now. Answers how many runs."""
        results = []
        while (ends_at := self.next_end) is not None and ends_at <= now:
            held = heapq.heappop(self._ending)
            held.done = True
            del self._holding[held.ref.run_id]
            if held.schedule_id is not None and self._with_turn.get(held.schedule_id) == held.ref.run_id:
                del self._with_turn[held.schedule_id]
            outcome: Any = "FAILED" if held.fails else "COMPLETED"
            results.append(Result(held.ref, self._session.session_id, outcome, (now - held.began_at).total_seconds()))
        self.completed.submit(results, self._session)
        while await self.completed.step(connection, now=now):
            pass
        return len(results)

    async def heed_cancellations(self, connection: Connection, now: datetime) -> None:
        """Stops within a minute what it was asked to stop."""
        rows = await (await connection.execute(_CANCELLED, [self._session.session_id])).fetchall()
        for (run_id,) in rows:
            held = self._holding[run_id]
            ends_at = now + self._drawn(held.key, "stops") * timedelta(minutes=1)
            if ends_at < held.ends_at:
                held.done = True
                self._keep(_Held(ends_at, held.ref, held.key, held.began_at, held.schedule_id, held.exclusive, True))

    async def _hold(self, connection: Connection, claim_id: int, runs: Sequence[ClaimedRun], now: datetime) -> None:
        rows = await (await connection.execute(_ABOUT, [[run.run_id for run in runs]])).fetchall()
        about = {run_id: (schedule_id, exclusive) for run_id, schedule_id, exclusive in rows}
        for run in runs:
            schedule_id, exclusive = about[run.run_id]
            ref = AttemptRef(run.run_id, run.attempt, claim_id)
            key = f"{schedule_id} {run.scheduled_for.timestamp()} {run.trigger}"
            fails = self._drawn(key, f"fails {run.attempt}") < 0.05
            held = _Held(now + self._duration(key), ref, key, now, schedule_id, exclusive, fails)
            if exclusive and schedule_id is not None:
                self._take_turn(schedule_id, run.run_id, now)
            self._keep(held)

    def _take_turn(self, schedule_id: int, run_id: UUID, now: datetime) -> None:
        if (other := self._with_turn.get(schedule_id)) is not None:
            self.problems.append(f"{now}: run {run_id} of schedule {schedule_id} was handed out beside {other}")
        self._with_turn[schedule_id] = run_id

    def _keep(self, held: _Held) -> None:
        heapq.heappush(self._ending, held)
        self._holding[held.ref.run_id] = held

    def _duration(self, key: str) -> timedelta:
        """Mostly minutes; one in five takes hours, and one in fifty days, so that others come due meanwhile."""
        kind, share = self._drawn(key, "kind"), self._drawn(key, "share")
        longest = timedelta(days=2) if kind < 0.02 else timedelta(hours=6) if kind < 0.2 else timedelta(minutes=20)
        return timedelta(seconds=1) + share * longest

    def _drawn(self, key: str, what: str) -> float:
        """A number from 0 to 1 that is the same in a replay, whatever order runs are taken in: their ids are not, where
        they were made by hand."""
        digest = hashlib.blake2b(f"{self._seed} {key} {what}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big") / _MOST

    def assign(self, claim_id: int, runs: Sequence[ClaimedRun], asked_at: float) -> None:
        raise AssertionError(f"nobody was to hand over {claim_id}: {runs}")

    def acknowledge(self, verdicts: Iterable[tuple[AttemptRef, Verdict]]) -> None:
        self.problems += [f"the result of {ref} was refused: {said}" for ref, said in verdicts if said != "ACCEPTED"]

    def cancel(self, attempts: Iterable[AttemptRef]) -> None:
        """It looks for itself."""
