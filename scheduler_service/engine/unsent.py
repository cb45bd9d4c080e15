"""Runs that were claimed for a session and not sent in time: given back at once. Nobody has seen them, so that it costs
no attempt, and the session's credit is whole again.
"""

from __future__ import annotations

from collections.abc import Sequence

import structlog

from scheduler_service.domain.attempt import AttemptRef
from scheduler_service.domain.repairs import SHOWN
from scheduler_service.domain.run import run_name
from scheduler_service.engine.sessions import ConnectedSession, Sessions
from scheduler_service.store import stuck
from scheduler_service.store.claim import give_back
from scheduler_service.store.connection import Connection
from scheduler_service.store.errors import IN_THE_WAY, is_database_away

log = structlog.get_logger()


class Unsent:
    """What is to be given back. What cannot be is left to `taking_back`: no list names it."""

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions
        self._runs: dict[ConnectedSession, list[AttemptRef]] = {}

    def add(self, session: ConnectedSession, runs: Sequence[AttemptRef]) -> None:
        """These were handed to this session, and its stream has not sent them."""
        if runs:
            self._runs.setdefault(session, []).extend(runs)

    async def step(self, connection: Connection) -> bool:
        """Gives back what there is. Answers whether runs are free again. Errors: the database is away; then all of it
        is tried again."""
        if not self._runs:
            return False
        runs = {ref: session for session, refs in self._runs.items() for ref in refs}
        try:
            async with connection.transaction():
                await stuck.be_patient_briefly(connection)
                free = await give_back(connection, list(runs))
        except Exception as error:  # heartbeats come after this: nothing may keep it failing
            if not isinstance(error, IN_THE_WAY) and is_database_away(error):
                raise
            log.error("runs that were not sent in time cannot be given back", count=len(runs), error=str(error))
            free = set()
        sessions, self._runs = self._runs, {}
        for session, refs in sessions.items():
            self._tell(session, refs, free)
        return bool(free)

    def _tell(self, session: ConnectedSession, refs: Sequence[AttemptRef], free: set[AttemptRef]) -> None:
        log.warning(
            "runs were not sent in time and are given back; the scheduler stood still, or the worker's link is slow",
            session=str(session.session_id),
            worker=session.worker,
            count=len(refs),
            free=sum(ref in free for ref in refs),
            names=[run_name(ref.run_id) for ref in refs[:SHOWN]],
        )
        self._sessions.not_sent(session, len(refs))
