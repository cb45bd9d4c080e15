"""Taking back runs from sessions that live and do not know that they hold them: sent on a stream that was dead already,
or by a replica that died in between.

Heartbeats wait for this step. So it waits for nobody for long, what a worker lists costs next to nothing, and a run
that cannot be taken back keeps no other waiting. Whatever is left here is found again with the next heartbeat.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from uuid import UUID

import structlog

from scheduler_service.domain.attempt import AttemptRef
from scheduler_service.domain.repairs import Repair
from scheduler_service.domain.returns import HeldRun, after_never_arriving
from scheduler_service.domain.run import run_name
from scheduler_service.engine.deciding import decided
from scheduler_service.engine.repairs import Repairs, described
from scheduler_service.engine.sessions import Sessions
from scheduler_service.engine.set_aside import SetAside
from scheduler_service.store import reap, stuck
from scheduler_service.store.connection import Connection
from scheduler_service.store.errors import IN_THE_WAY, OF_SOME_ROWS

log = structlog.get_logger()

IN_FLIGHT_SECONDS = 5.0
"""A claim that is younger than this when a list of held claims arrives may still have been on its way."""
_BATCH = 500
"""Runs in one transaction."""
_MOST_WAITS = 3  # of half a second, in one step


@dataclass(frozen=True, slots=True)
class Listed:
    """What a session said so many seconds ago that it holds."""

    session_id: UUID
    age: float
    claims: Sequence[int]


class TakingBack:
    """`repairs` counts what was taken back. `clock` is monotonic, in seconds."""

    def __init__(self, sessions: Sessions, replica: str, clock: Callable[[], float]) -> None:
        self.repairs = Repairs(replica)
        self._sessions = sessions
        self._clock = clock
        self._aside: SetAside[UUID] = SetAside()

    @property
    def set_aside(self) -> int:
        """How many runs could not be taken back when that was tried last."""
        return len(self._aside)

    async def forget_the_gone(self, connection: Connection) -> None:
        """Runs that were set aside, and that have ended or were freed by whomsoever, are counted no more."""
        if aside := self._aside.all():
            self._aside.forget(set(aside) - await stuck.still_held(connection, aside))

    async def step(self, connection: Connection, lists: Sequence[Listed], now: datetime) -> list[HeldRun]:
        """Takes back what these sessions hold and did not list, and tells their workers to stop it. Answers what was
        taken back."""
        try:
            unknown, found = await self._find(connection, lists, now)
        except IN_THE_WAY:
            return []
        parts = deque(found[at : at + _BATCH] for at in range(0, len(found), _BATCH))
        taken: list[HeldRun] = []
        waits = 0
        while parts and waits < _MOST_WAITS:
            part = parts.popleft()
            try:
                taken += await self._take_back(connection, part, unknown, now)
            except OF_SOME_ROWS as error:
                waits += isinstance(error, IN_THE_WAY)
                parts.extend(self._halved(part, error))
        return taken

    async def _find(
        self, connection: Connection, lists: Sequence[Listed], now: datetime
    ) -> tuple[reap.Claims, list[UUID]]:
        """What is held and not listed: the claims, and their runs but for those set aside."""
        before = {each.session_id: now - timedelta(seconds=each.age + IN_FLIGHT_SECONDS) for each in lists}
        async with connection.transaction():
            await stuck.be_patient_briefly(connection)
            unknown = await _not_listed(lists, await reap.claims_held(connection, before))
            found = await reap.runs_of_claims(connection, unknown) if unknown else []
        resting = set(self._aside.resting(self._clock()))
        return unknown, [run_id for run_id in found if run_id not in resting]

    async def _take_back(
        self, connection: Connection, run_ids: Sequence[UUID], unknown: reap.Claims, now: datetime
    ) -> list[HeldRun]:
        async with connection.transaction():
            await stuck.be_patient_briefly(connection)
            runs = await reap.lock_held(connection, run_ids, unknown)
            returns = await decided(runs, partial(after_never_arriving, now=now))
            there = await reap.carry_out(connection, returns, now)
            repaired = described(returns, there, lambda _: Repair.NEVER_ARRIVED)
            await self.repairs.record(connection, repaired)
        self._aside.forget(run_ids)
        self.repairs.tell(repaired)
        self._stop(runs)
        return runs

    def _halved(self, run_ids: list[UUID], error: Exception) -> list[list[UUID]]:
        """What to try after these could not be taken back together: nothing, after one that could not alone."""
        if len(run_ids) > 1:
            middle = len(run_ids) // 2
            return [run_ids[:middle], run_ids[middle:]]
        if isinstance(error, IN_THE_WAY) and self._aside.put_off(run_ids[0], self._clock()):
            return []
        if self._aside.add(run_ids[0], self._clock()):
            log.error("a run cannot be taken back; it is tried again", run=run_name(run_ids[0]), error=str(error))
        return []

    def _stop(self, runs: Sequence[HeldRun]) -> None:
        """The worker may hold them nevertheless, and says so with its next heartbeat: two must not go on."""
        for run in runs:
            session = self._sessions.get(run.session_id) if run.session_id is not None else None
            if session is not None and run.claim_id is not None:
                session.outbound.cancel([AttemptRef(run.run_id, run.attempt, run.claim_id)])


async def _not_listed(lists: Sequence[Listed], held: Mapping[UUID, set[int]]) -> list[tuple[UUID, int]]:
    """What a worker lists may be long: between one list and the next others have their turn."""
    unknown = []
    for each in lists:
        if claims := held.get(each.session_id):
            unknown += [(each.session_id, claim_id) for claim_id in sorted(claims.difference(each.claims))]
            await asyncio.sleep(0)
    return unknown
