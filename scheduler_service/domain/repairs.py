"""What a replica mends by itself, and how the audit trail tells it: one event for each kind and transaction, however
many runs that was, with a few of their names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from scheduler_service.domain.audit import Change, repaired

SHOWN = 20
"""Of how many runs, sessions or schedules a log line or an audit event gives the names."""


class Repair(StrEnum):
    """What was found and mended."""

    SESSION_LOST = "session_lost"
    """A worker's lease ended: its session was ended."""
    WORKER_LOST = "worker_lost"
    """Runs of such a session."""
    NEVER_ARRIVED = "never_arrived"
    """Runs that a session, which lives, does not know that it holds: sent on a stream that was dead already, or by a
    replica that died."""
    SESSION_GONE = "session_gone"
    """Runs that were held by a session that is not there."""
    ATTEMPT_OVERDUE = "attempt_overdue"
    """Attempts over their time (or their run's) that their worker, which has a session, did not end."""
    STOP_FORGOTTEN = "stop_forgotten"
    """Runs that were asked to stop, that nobody holds, and that were live still."""
    RECORDED_ALREADY = "recorded_already"
    """Live runs that had ended: their record was there."""
    TURN_FREE = "turn_free"
    """Runs that waited for a turn that nobody had."""
    SCHEDULE_NOT_ARMED = "schedule_not_armed"
    """Enabled schedules that nobody would have ticked: armed, or set aside with the reason why they cannot be."""
    SCHEDULE_SET_ASIDE = "schedule_set_aside"
    """Schedules that had been set aside, and can be evaluated again."""
    PARTITION_MISSING = "partition_missing"
    """Partitions of the record that were made because an end could not be recorded."""
    CANCEL_GRACE = "cancel_grace"
    """Runs whose worker did not stop them within their grace. Routine."""
    RUN_TIMEOUT = "run_timeout"
    """Runs whose time was over while they waited for their next attempt. Routine."""

    @property
    def is_routine(self) -> bool:
        """A rule of the job's that took effect: the run's record says so, and the trail leaves it out."""
        return self in (Repair.CANCEL_GRACE, Repair.RUN_TIMEOUT)


_ACTIONS = {
    Repair.SESSION_LOST: ("EndLostSessions", "sessions/-"),
    Repair.WORKER_LOST: ("TakeBackRunsOfLostSessions", "runs/-"),
    Repair.NEVER_ARRIVED: ("TakeBackRunsThatNeverArrived", "runs/-"),
    Repair.SESSION_GONE: ("TakeBackRunsWithoutSession", "runs/-"),
    Repair.ATTEMPT_OVERDUE: ("EndOverdueAttempts", "runs/-"),
    Repair.STOP_FORGOTTEN: ("EndForgottenRuns", "runs/-"),
    Repair.RECORDED_ALREADY: ("RemoveEndedRuns", "runs/-"),
    Repair.TURN_FREE: ("ReleaseRuns", "services/-"),
    Repair.SCHEDULE_NOT_ARMED: ("ArmSchedules", "services/-"),
    Repair.SCHEDULE_SET_ASIDE: ("TryAgainSchedules", "services/-"),
    Repair.PARTITION_MISSING: ("CreatePartitions", "partitions/-"),
}


@dataclass(frozen=True, slots=True)
class Repaired:
    """What one transaction mended of one kind. `names`: resource names. `tenants`: whose these are. `details`: what
    became of them."""

    kind: Repair
    names: Sequence[str]
    tenants: frozenset[str] = frozenset()
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def count(self) -> int:
        return len(self.names)

    @property
    def shown(self) -> list[str]:
        return list(self.names[:SHOWN])

    def as_change(self) -> Change | None:
        """For the audit trail; None for what is routine. It is a tenant's only if nobody else's is in it: whoever looks
        at a tenant's events must not learn of another's. `resource` is its name where it is one, and a collection's
        (`runs/-`) where it is more."""
        if self.kind.is_routine:
            return None
        action, collection = _ACTIONS[self.kind]
        after: dict[str, Any] = {"kind": self.kind.value, "count": self.count, **self.details}
        alone = self.count == 1
        if not alone:
            after["names"] = self.shown
        tenant = next(iter(self.tenants)) if len(self.tenants) == 1 else ""
        return repaired(self.names[0] if alone else collection, action, after, tenant=tenant)
