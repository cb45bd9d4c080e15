"""Runs that are to be alone, and the sessions of this replica that are kept for them: see `domain/solitude.py`.

In charge: the database, where `claim_alone` locks the session and looks at what it holds. What is kept here says which
sessions get nothing else meanwhile: a session is connected to one replica at a time, and one that had an earlier stream
gets nothing until the database has said what it holds. (What another replica still claims for it finds no way to the
worker.) Timed by this process's monotonic clock.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from datetime import datetime
from math import inf

import structlog

from scheduler_service.domain import solitude
from scheduler_service.domain.solitude import LONGEST_WAIT, Place
from scheduler_service.engine.sessions import ConnectedSession, Sessions
from scheduler_service.store import claim as store
from scheduler_service.store.connection import Connection

# How often it is looked whether a session has become empty, or its run has ended: soon after something happened, and
# less and less while nothing does.
_SOON = 0.02
_LATEST = 0.5

_log = structlog.get_logger()


@dataclass(slots=True)
class _Kept:
    """Why a session is kept back: `holds` its run, or is to become empty for one. `since` then, or since before."""

    since: float
    holds: bool = False


class AloneRuns:
    """Hands out runs that are to be alone."""

    def __init__(self, sessions: Sessions, clock: Callable[[], float] = time.monotonic) -> None:
        self._sessions = sessions
        self._clock = clock
        self._kept: dict[ConnectedSession, _Kept] = {}
        self._look_at = 0.0
        self._pause = _SOON
        self._granted = 0

    def is_due(self) -> bool:
        """Whether `step` may find something to do."""
        if not len(self._sessions):
            return False
        return self._clock() >= self._look_at or self._granted != self._credit_granted() or bool(self._sessions.resumed)

    def seconds_to_next(self) -> float:
        """How long there is nothing to do, unless a session that is kept back says that it can take more."""
        return max(0.0, self._look_at - self._clock()) if len(self._sessions) else inf

    async def step(self, connection: Connection, drained: AbstractSet[str], now: datetime | None = None) -> int:
        """Lets sessions go that are free of their run, hands out what can be handed out, and keeps sessions back for
        the rest. `drained`: routes where nothing else waits. Answers how many runs were handed over."""
        before = {session: kept.holds for session, kept in self._kept.items()}
        granted = self._credit_granted()
        self._forget_disconnected()
        self._keep_resumed()
        await self._let_go_of_ended(connection)
        handed = await self._hand_out(connection, drained, now)
        moved = before != {session: kept.holds for session, kept in self._kept.items()} or granted != self._granted
        self._granted = self._credit_granted()
        self._pause = _SOON if moved else min(self._pause * 2, _LATEST)
        self._look_at = self._clock() + self._pause
        return handed

    def _keep_resumed(self) -> None:
        for session in self._sessions.resumed:
            self._keep(session, holds=True)
        self._sessions.resumed.clear()

    async def _let_go_of_ended(self, connection: Connection) -> None:
        holding = {session.session_id: session for session, kept in self._kept.items() if kept.holds}
        if not holding:
            return
        found = await store.holdings(connection, holding)
        for session_id, session in holding.items():
            if not found[session_id].alone:
                self._let_go(session)

    async def _hand_out(self, connection: Connection, drained: AbstractSet[str], now: datetime | None) -> int:
        waiting = await store.alone_waiting(connection, self._sessions.routes(), now)
        self._let_go_of_unneeded(waiting)
        serving = [session for session in self._sessions if not session.routes.isdisjoint(waiting)]
        places = await self._places(connection, [each for each in serving if not self._holds(each)], drained)
        handed = 0
        for session, place in places.items():
            if place.held == 0 and (session in self._kept or place.idle):
                handed += await self._hand_to(connection, session, now)
        handed += await self._hand_out_beside_others(connection, places, now)
        left = sum(waiting.values()) - handed
        for session, place in self._to_keep_back(places, left, len(serving)):
            self._keep(session)
            if place.held == 0:
                handed += await self._hand_to(connection, session, now)
        return handed

    def _to_keep_back(
        self, places: dict[ConnectedSession, Place], waiting: int, serving: int
    ) -> Iterator[tuple[ConnectedSession, Place]]:
        free = {
            place: session
            for session, place in places.items()
            if session not in self._kept and _may_become_able(session, place)
        }
        having = sum(kept.holds for kept in self._kept.values())
        for _ in range(solitude.most_kept_back(waiting, having, serving) - len(self._kept)):
            if (place := solitude.to_keep_back(free)) is None:
                return
            yield free.pop(place), place

    async def _hand_out_beside_others(
        self, connection: Connection, places: dict[ConnectedSession, Place], now: datetime | None
    ) -> int:
        """Where a session did not become empty in time."""
        handed = 0
        late = [each for each, kept in self._kept.items() if not kept.holds and self._waits_too_long(kept)]
        for waiting in late:
            able = {
                place.session_id: session
                for session, place in places.items()
                if _can_take(session) and not self._holds(session)
            }
            place = solitude.least(each for each in places.values() if each.session_id in able)
            if place is None:
                continue
            session = able[place.session_id]
            if await self._hand_to(connection, session, now, beside=True):
                handed += 1
                if session is not waiting:
                    self._let_go(waiting)
        return handed

    async def _hand_to(
        self, connection: Connection, session: ConnectedSession, now: datetime | None, *, beside: bool = False
    ) -> int:
        """Answers how many runs: one, or none."""
        if not _can_take(session):
            return 0
        was_kept = session in self._kept
        self._keep(session)  # nobody seats another run in it while this one is asked for
        handed = 0
        try:
            handed = await self._claim_for(connection, session, now, beside=beside)
        finally:
            if not handed and not was_kept:
                self._let_go(session)
        return handed

    async def _claim_for(
        self, connection: Connection, session: ConnectedSession, now: datetime | None, *, beside: bool
    ) -> int:
        asked_at = self._clock()
        claim = await store.claim_alone(
            connection, session.session_id, session.stream, sorted(session.routes), beside=beside, now=now
        )
        if claim is None:
            session.credit = 0
            return 0
        if claim.runs:
            self._keep(session, holds=True)
            session.credit -= 1
            session.outbound.assign(claim.claim_id, claim.runs, asked_at)
            _log.info("a run that is to be alone was handed out", run=str(claim.runs[0].run_id), beside_others=beside)
        return len(claim.runs)

    async def _places(
        self, connection: Connection, sessions: Iterable[ConnectedSession], drained: AbstractSet[str]
    ) -> dict[ConnectedSession, Place]:
        there = {session.session_id: session for session in sessions}
        held = await store.holdings(connection, there) if there else {}
        now = self._clock()
        places = {}
        for session_id, session in there.items():
            idle = session.routes <= drained
            places[session] = Place(session_id, held[session_id].runs, idle, now < session.rests_until)
            if held[session_id].alone:
                self._keep(session, holds=True)
        return places

    def _keep(self, session: ConnectedSession, *, holds: bool = False) -> None:
        kept = self._kept.setdefault(session, _Kept(self._clock()))
        kept.holds = kept.holds or holds
        session.kept_back = True

    def _let_go(self, session: ConnectedSession) -> None:
        kept = self._kept.pop(session)
        session.kept_back = False
        if kept.holds:  # others go first for as long as it was kept from them
            session.rests_until = 2 * self._clock() - kept.since

    def _let_go_of_unneeded(self, waiting: Collection[str]) -> None:
        for session, kept in list(self._kept.items()):
            if not kept.holds and session.routes.isdisjoint(waiting):
                self._let_go(session)

    def _forget_disconnected(self) -> None:
        for session in list(self._kept):
            if self._sessions.get(session.session_id) is not session:
                del self._kept[session]

    def _holds(self, session: ConnectedSession) -> bool:
        return session in self._kept and self._kept[session].holds

    def _waits_too_long(self, kept: _Kept) -> bool:
        return self._clock() - kept.since >= LONGEST_WAIT

    def _credit_granted(self) -> int:
        return sum(session.granted for session in self._kept)


def _may_become_able(session: ConnectedSession, place: Place) -> bool:
    """Not one that holds nothing and takes nothing: its worker has gone, or leaves."""
    return session.is_sound and (place.held > 0 or session.credit > 0)


def _can_take(session: ConnectedSession) -> bool:
    """A run that is being made in a seat of the session is in its hands already, although nobody sees it yet."""
    return session.credit > 0 and not session.seated and session.is_sound
