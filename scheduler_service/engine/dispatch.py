"""Dispatch: pending runs are claimed for the sessions connected here, and sent once the claim is committed.

A route is drained when a claim for it came back short. It is looked at again when something says that a run waits,
and only drained routes may have runs claimed the moment they are made, or those that wait already would starve.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from uuid import UUID

import structlog

from scheduler_service.domain.attempt import ClaimedRun
from scheduler_service.engine.alone import AloneRuns
from scheduler_service.engine.sessions import ConnectedSession, Sessions
from scheduler_service.store import claim as store
from scheduler_service.store.claim import Claim
from scheduler_service.store.connection import Connection
from scheduler_service.usecases.wakeups import Topic, Wakeups

BATCH = 500
# While nothing has piled up, sessions take turns with this much, so that the first does not get everything.
TURN = 16

_log = structlog.get_logger()


@dataclass(slots=True)
class Seats:
    """Credit set aside for runs about to be made, route by route, the sessions in turn. `asked_at`, by the monotonic
    clock: before any of them was made."""

    _sessions: Sessions
    _drained: frozenset[str]
    asked_at: float
    _lines: dict[str, list[ConnectedSession]] = field(default_factory=dict)
    _turns: dict[str, int] = field(default_factory=dict)
    _taken: dict[ConnectedSession, int] = field(default_factory=dict)

    def seat(self, route: str) -> UUID | None:
        """A session that may have one run more of this route; None if it has to wait."""
        if route not in self._drained:
            return None
        line = self._lines.get(route)
        if line is None:
            line = self._lines[route] = self._sessions.with_credit(route)
        while line:
            turn = self._turns.get(route, 0) % len(line)
            session = line[turn]
            if session.takes_more:
                self._turns[route] = turn + 1
                session.credit -= 1
                session.seated += 1
                self._taken[session] = self._taken.get(session, 0) + 1
                return session.session_id
            del line[turn]
        return None

    def give_back(self, used: dict[tuple[UUID, int], list[ClaimedRun]]) -> None:
        """Returns the credit of seats that no run took."""
        taken = Counter[UUID]()
        for (session_id, _), runs in used.items():
            taken[session_id] += len(runs)
        for session, seats in self._taken.items():
            session.credit += seats - taken[session.session_id]
            session.seated -= seats

    def session(self, session_id: UUID) -> ConnectedSession:
        return next(each for each in self._taken if each.session_id == session_id)


class Dispatcher:
    """Hands runs to the sessions of this replica. `clock`: monotonic, in seconds."""

    def __init__(self, sessions: Sessions, wakeups: Wakeups, clock: Callable[[], float] = time.monotonic) -> None:
        self._sessions = sessions
        self._clock = clock
        self._alone = AloneRuns(sessions, clock)
        self._wakeups = wakeups
        self._drained: set[str] = set()
        self._backlog = False
        self._turn = 0

    def look_again(self) -> None:
        """Runs may be waiting, on any route."""
        self._drained.clear()

    def seats(self) -> Seats:
        """Places for runs about to be made, in sessions whose routes have nothing waiting."""
        return Seats(self._sessions, frozenset(self._drained), self._clock())

    def hand_over(self, seats: Seats, claims: dict[tuple[UUID, int], list[ClaimedRun]]) -> None:
        """Sends runs that were made in these seats, once that is committed."""
        seats.give_back(claims)
        for (session_id, claim_id), runs in claims.items():
            seats.session(session_id).outbound.assign(claim_id, runs, seats.asked_at)

    def has_work(self) -> bool:
        """Whether a session that takes more serves a route that is not known to be drained, or it is time to look after
        runs that are to be alone."""
        return self._alone.is_due() or any(
            session.takes_more and not session.routes <= self._drained for session in self._sessions
        )

    def seconds_to_alone(self) -> float:
        """How long until runs that are to be alone are looked after; infinite if there are none."""
        return self._alone.seconds_to_next()

    async def seconds_to_next(self, connection: Connection) -> float | None:
        """How long until a run may be handed over that waits for its time; None if none does, or nobody can take
        one."""
        routes = frozenset[str]().union(*(each.routes for each in self._sessions if each.takes_more))
        return await store.seconds_to_next(connection, routes) if routes else None

    async def dispatch(self, connection: Connection, *, now: datetime | None = None) -> int:
        """One claim for each session that can take more; answers how many runs were handed over."""
        handed = await self._alone.step(connection, self._drained, now) if self._alone.is_due() else 0
        hungry = sorted((each for each in self._sessions if each.takes_more), key=lambda each: -each.credit)
        share = BATCH if self._backlog or len(hungry) == 1 else TURN
        for session in hungry:
            limit = min(session.credit, share) if session.takes_more else 0
            if limit > 0 and (routes := self._in_turn(session.routes - self._drained)):
                # Set aside while the claim is under way: a tick beside it seats runs from the same credit.
                session.credit -= limit
                asked_at = self._clock()
                try:
                    claim = await store.claim(connection, session.session_id, routes, limit, now, stream=session.stream)
                finally:
                    session.credit += limit
                handed += self._hand_out(session, routes, claim, asked_at)
        if handed:
            self._wakeups.wake(Topic.RUNS)
        return handed

    def _in_turn(self, routes: Iterable[str]) -> Sequence[str]:
        """The routes, beginning with another one each time: a claim that is full took nothing of the last ones."""
        ordered = sorted(routes)
        self._turn += 1
        first = self._turn % len(ordered) if ordered else 0
        return ordered[first:] + ordered[:first]

    def _hand_out(self, session: ConnectedSession, routes: Sequence[str], claim: Claim | None, asked_at: float) -> int:
        if claim is None:
            _log.info("a session has ended or gone elsewhere, it gets nothing more", session_id=str(session.session_id))
            session.credit = 0
            return 0
        self._backlog = not claim.emptied
        if claim.emptied:
            self._drained.update(routes)
        if claim.runs:
            session.credit -= len(claim.runs)
            session.outbound.assign(claim.claim_id, claim.runs, asked_at)
        return len(claim.runs)
