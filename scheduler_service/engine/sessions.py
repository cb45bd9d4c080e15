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

__all__ = ["SENT_WITHIN", "AttemptRef", "ClaimedRun", "ConnectedSession", "Outbound", "Sessions", "Verdict"]

SENT_WITHIN = 3.0
"""Seconds from before a claim was asked for until its runs are sent, or not at all. After 5 s (`taking_back`) a claim
that its worker does not list is taken back, and may be another's: this leaves 2 s for the way."""


class Outbound(Protocol):
    """What can be sent to a connected worker. Never blocks; on a stream that is gone it does nothing."""

    def assign(self, claim_id: int, runs: Sequence[ClaimedRun], asked_at: float) -> None:
        """`asked_at`: an instant of the monotonic clock before the database was asked for this claim. What has not gone
        out SENT_WITHIN of it is not sent."""

    def acknowledge(self, verdicts: Iterable[tuple[AttemptRef, Verdict]]) -> None: ...

    def cancel(self, attempts: Iterable[AttemptRef]) -> None: ...


@dataclass(eq=False, slots=True)
class ConnectedSession:
    """A session with an open stream here. `credit` is how many runs more it said it can take, less those sent;
    `granted`, all that it ever said; `seated`, how many runs are being made in its hands. `principal`: whose it is.

    `kept_back`: it has, or is to have, a run that is to be alone. `rests_until`, by the monotonic clock: others go
    first until then. `behind`: what it was sent has not gone out yet. `quiet`: it has not been heard for a while.
    `leaving`: it was asked to open another stream."""

    session_id: UUID
    worker: str
    routes: frozenset[str]
    stream: int
    outbound: Outbound
    credit: int = 0
    principal: str = ""
    granted: int = 0
    seated: int = 0
    kept_back: bool = False
    rests_until: float = float("-inf")
    behind: bool = False
    quiet: bool = False
    leaving: bool = False

    @property
    def is_sound(self) -> bool:
        """Whether what it is sent now is likely to arrive, as far as this replica knows."""
        return not (self.behind or self.quiet or self.leaving)

    @property
    def takes_more(self) -> bool:
        """Whether it can be handed runs, in any company."""
        return self.credit > 0 and not self.kept_back and self.is_sound


@dataclass(slots=True)
class Sessions:
    """The sessions connected to this replica. `on_credit` is called whenever one can take more. `resumed`: those that
    had an earlier stream, and are kept back until it is known what they hold."""

    on_credit: Callable[[], None]
    resumed: set[ConnectedSession] = field(default_factory=set)
    _by_id: dict[UUID, ConnectedSession] = field(default_factory=dict)
    _by_route: dict[str, dict[UUID, ConnectedSession]] = field(default_factory=dict)

    def connect(self, session: ConnectedSession) -> None:
        """A stream said Hello. An older stream of the same session counts no longer."""
        if (older := self._by_id.get(session.session_id)) is not None:
            self.disconnect(older)
        self._by_id[session.session_id] = session
        for route in session.routes:
            self._by_route.setdefault(route, {})[session.session_id] = session
        if session.stream > 1:
            session.kept_back = True
            self.resumed.add(session)

    def disconnect(self, session: ConnectedSession) -> None:
        """Its stream ended. Its runs stay its own until the lease ends. Nothing if a newer stream took over."""
        if self._by_id.get(session.session_id) is not session:
            return
        del self._by_id[session.session_id]
        self.resumed.discard(session)
        for route in session.routes:
            serving = self._by_route[route]
            del serving[session.session_id]
            if not serving:
                del self._by_route[route]

    def grant(self, session: ConnectedSession, credit: int) -> None:
        session.credit += credit
        session.granted += credit
        if credit > 0:
            self.on_credit()

    def not_sent(self, session: ConnectedSession, runs: int) -> None:
        """So many runs were handed to it, and never sent: it can take them still."""
        session.credit += runs
        self.on_credit()

    def fall_behind(self, session: ConnectedSession, behind: bool) -> None:
        """What was sent to it has piled up, or has gone out."""
        session.behind = behind
        if not behind:
            self.on_credit()

    def fall_quiet(self, session: ConnectedSession, quiet: bool) -> None:
        """It has not been heard for a while, or is heard again."""
        session.quiet = quiet
        if not quiet:
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
        return sorted((s for s in serving if s.takes_more), key=lambda s: -s.credit)
