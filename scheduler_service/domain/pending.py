"""Why a pending run is in no worker's hands."""

from __future__ import annotations

from datetime import datetime
from enum import Enum, StrEnum


class PendingReason(StrEnum):
    """The first that holds, in this order."""

    BLOCKED = "BLOCKED"
    """An earlier run of its schedule has to end first."""
    NOT_DUE = "NOT_DUE"
    """Its time lies ahead, and no attempt was made."""
    RETRY_DELAY = "RETRY_DELAY"
    """It waits for its next attempt."""
    NO_WORKER = "NO_WORKER"
    """No session serves its route."""
    ALONE = "ALONE"
    """It waits for a session that holds nothing else: see domain/returns.py."""
    BEHIND_ALONE = "BEHIND_ALONE"
    """Every session that serves its route holds a run that is alone, and takes nothing else until that has ended."""
    READY = "READY"
    """A worker that serves it takes it as soon as it has room."""


class Served(Enum):
    """Whether some worker's session serves a route."""

    NO = "no"
    KEPT = "kept"
    """Yes, but each that does holds a run that is alone: it gets nothing else until that has ended."""
    YES = "yes"


def before_due(*, blocked: bool, attempt: int, run_after: datetime, now: datetime) -> PendingReason | None:
    """Why nobody may be handed a pending run yet. None for one that is due: then workers decide."""
    if blocked:
        return PendingReason.BLOCKED
    if run_after > now:
        return PendingReason.NOT_DUE if attempt == 1 else PendingReason.RETRY_DELAY
    return None


def once_due(*, alone: bool, served: Served | None) -> PendingReason | None:
    """Why nobody has a run that is due. `served`: whether a session serves its route; None, and then the answer is
    None as well, if that is not known."""
    if served is None:
        return None
    if served is Served.NO:
        return PendingReason.NO_WORKER
    if alone:
        return PendingReason.ALONE
    return PendingReason.BEHIND_ALONE if served is Served.KEPT else PendingReason.READY
