"""What is measured: something that carries out due and pending runs of the place's one job."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from typing import Protocol

from benchmarks.place import ROUTE, Place
from scheduler_service.domain.attempt import AttemptRef, ClaimedRun, Result, Verdict
from scheduler_service.engine.sessions import ConnectedSession, Sessions
from scheduler_service.loops.engine import Engine
from scheduler_service.store.database import Database
from scheduler_service.usecases.wakeups import Wakeups

CREDIT = 2_000
Started = Callable[[datetime], None]


class Stack(Protocol):
    """A scheduler with one worker. `started` is called with a run's nominal instant when its handler starts."""

    name: str

    async def start(self, place: Place, started: Started) -> None: ...

    async def stop(self) -> None: ...


class EngineAlone:
    """The engine in this process, with a worker that is called directly: no gRPC."""

    name = "engine alone"

    async def start(self, place: Place, started: Started) -> None:
        self._database = Database(place.api_url, place.engine_url)
        sessions = Sessions(on_credit=lambda: None)
        self._engine = Engine(self._database, sessions, Wakeups(), "bench")
        await self._engine.start()
        worker = _Worker(self._engine, sessions, started)
        session = ConnectedSession(place.session(), "bench", frozenset({ROUTE}), 1, worker)
        worker.session = session
        sessions.connect(session)
        sessions.grant(session, CREDIT)

    async def stop(self) -> None:
        await self._engine.drain()
        await self._database.close()


class _Worker:
    """Completes each run where it is handed over."""

    session: ConnectedSession

    def __init__(self, engine: Engine, sessions: Sessions, started: Started) -> None:
        self._completer = engine.completer
        self._sessions = sessions
        self._started = started

    def assign(self, claim_id: int, runs: Sequence[ClaimedRun], asked_at: float) -> None:  # noqa: ARG002 - it is at once
        for run in runs:
            self._started(run.scheduled_for)
        results = [
            Result(
                AttemptRef(run.run_id, run.attempt, claim_id),
                self.session.session_id,
                "COMPLETED",
                duration=0.01,
                metrics='{"sent": 1}',
            )
            for run in runs
        ]
        self._completer.submit(results, self.session)

    def acknowledge(self, verdicts: Iterable[tuple[AttemptRef, Verdict]]) -> None:
        answers = [verdict for _, verdict in verdicts]
        if wrong := set(answers) - {Verdict.ACCEPTED}:
            raise RuntimeError(f"results were refused: {wrong}")
        self._sessions.grant(self.session, len(answers))

    def cancel(self, attempts: Iterable[AttemptRef]) -> None:
        """Nobody cancels here."""
