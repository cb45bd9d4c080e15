"""Worker sessions that are connected to this replica: what they serve, how much more they can take, and the port
through which they are sent something.

The database's `sessions` rows say which sessions live, wherever they are connected; this says which of them this
replica can hand runs to. `rpc` implements the port, so nothing here knows gRPC.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol
from uuid import UUID

from scheduler_service.domain.attempt import AttemptRef, ClaimedRun, Verdict

__all__ = ["AttemptRef", "ClaimedRun", "ConnectedSession", "Outbound", "Sessions", "Verdict"]


class Outbound(Protocol):
    """What can be sent to a connected worker. Never blocks; on a stream that is gone it does nothing."""

    def assign(self, claim_id: int, runs: Sequence[ClaimedRun]) -> None: ...

    def acknowledge(self, verdicts: Iterable[tuple[AttemptRef, Verdict]]) -> None: ...

    def cancel(self, attempts: Iterable[AttemptRef]) -> None: ...


@dataclass(eq=False, slots=True)
class ConnectedSession:
    """A session with an open stream here. `credit` is how many runs more it said it can take, less those sent.
    `principal`: whose it is."""

    session_id: UUID
    worker: str
    routes: frozenset[str]
    stream: int
    outbound: Outbound
    credit: int = 0
    principal: str = ""


@dataclass(slots=True)
class Sessions:
    """The sessions connected to this replica. `on_credit` is called whenever one can take more."""

    on_credit: Callable[[], None]
    _by_id: dict[UUID, ConnectedSession] = field(default_factory=dict)
    _by_route: dict[str, dict[UUID, ConnectedSession]] = field(default_factory=dict)

    def connect(self, session: ConnectedSession) -> None:
        """A stream said Hello. An older stream of the same session counts no longer."""
        if (older := self._by_id.get(session.session_id)) is not None:
            self.disconnect(older)
        self._by_id[session.session_id] = session
        for route in session.routes:
            self._by_route.setdefault(route, {})[session.session_id] = session

    def disconnect(self, session: ConnectedSession) -> None:
        """Its stream ended. Its runs stay its own until the lease ends. Nothing if a newer stream took over."""
        if self._by_id.get(session.session_id) is not session:
            return
        del self._by_id[session.session_id]
        for route in session.routes:
            serving = self._by_route[route]
            del serving[session.session_id]
            if not serving:
                del self._by_route[route]

    def grant(self, session: ConnectedSession, credit: int) -> None:
        session.credit += credit
        if credit > 0:
            self.on_credit()

    def get(self, session_id: UUID) -> ConnectedSession | None:
        return self._by_id.get(session_id)

    def __len__(self) -> int:
        return len(self._by_id)

    def __iter__(self) -> Iterator[ConnectedSession]:
        return iter(list(self._by_id.values()))

    def routes(self) -> frozenset[str]:
        """Routes that some connected session serves."""
        return frozenset(self._by_route)

    def with_credit(self, route: str) -> list[ConnectedSession]:
        """Sessions that serve a route and can take more, the one with most credit first."""
        serving = self._by_route.get(route, {}).values()
        return sorted((s for s in serving if s.credit > 0), key=lambda s: -s.credit)
