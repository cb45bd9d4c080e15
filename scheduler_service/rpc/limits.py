"""How often a principal may make calls that change something, on this replica.

Credentials that fail are not counted: to find out that one does takes less than the rest of a call, and what a flood of
them would be refused by (an address) others share, behind an ingress or a mesh.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NoReturn

from prometheus_client import CollectorRegistry, Counter

from scheduler_service.domain.access import Principal
from scheduler_service.domain.errors import RateLimited
from scheduler_service.domain.rates import Buckets, Rate, RateLimits

_MINUTE = 60.0
_BURST_SECONDS = 10


@dataclass(frozen=True, slots=True)
class _Limit:
    """`setting`: the variable that changes it. `says`: what was done too often, in a refusal's words."""

    name: str
    setting: str
    says: str
    rate: Rate


def _registrations(per_minute: int) -> _Limit:
    """As many at once as in a minute: a deploy starts all copies of a service together."""
    says = f"changes what its service declares more often than {per_minute:,} times a minute"
    rate = Rate(per_minute / _MINUTE, per_minute)
    return _Limit("registrations", "CARILLON_REGISTRATIONS_PER_MINUTE", says, rate)


def _triggers(per_second: int) -> _Limit:
    """Ten seconds' worth at once."""
    says = f"starts runs more often than {per_second:,} times a second"
    return _Limit("triggers", "CARILLON_TRIGGERS_PER_SECOND", says, _rate(per_second))


def _changes(per_second: int) -> _Limit:
    """Ten seconds' worth at once."""
    says = f"changes something more often than {per_second:,} times a second"
    return _Limit("changes", "CARILLON_CHANGES_PER_SECOND", says, _rate(per_second))


def _rate(per_second: int) -> Rate:
    return Rate(per_second, per_second * _BURST_SECONDS)


LIMITED: Mapping[str, str] = {
    "/carillon.v1.RegistryService/RegisterJobs": "registrations",
    "/carillon.v1.RegistryService/RemoveJob": "registrations",
    "/carillon.v1.JobService/UpdateJob": "changes",
    "/carillon.v1.JobService/ResetJobOverrides": "changes",
    "/carillon.v1.JobService/PauseJob": "changes",
    "/carillon.v1.JobService/ResumeJob": "changes",
    "/carillon.v1.JobService/TriggerJob": "triggers",
    "/carillon.v1.JobService/BackfillJob": "triggers",
    "/carillon.v1.JobService/CancelBackfill": "changes",
    "/carillon.v1.ScheduleService/PutSchedule": "changes",
    "/carillon.v1.ScheduleService/DeleteSchedule": "changes",
    "/carillon.v1.ScheduleService/PauseSchedule": "changes",
    "/carillon.v1.ScheduleService/ResumeSchedule": "changes",
    "/carillon.v1.ScheduleService/RunSchedule": "triggers",
    "/carillon.v1.ScheduleService/PutTenant": "changes",
    "/carillon.v1.ScheduleService/RemoveTenant": "changes",
    "/carillon.v1.RunService/CancelRun": "changes",
    "/carillon.v1.RunService/RetryRun": "changes",
}
"""Every method that changes something, and the limit that it counts for: each change stays in the audit trail."""


class Limits:
    """The limits of one replica, and how many calls they refused."""

    def __init__(
        self,
        registry: CollectorRegistry,
        allowed: RateLimits = RateLimits(),  # noqa: B008  # a value
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        of_principals = (
            _registrations(allowed.registrations_per_minute),
            _triggers(allowed.triggers_per_second),
            _changes(allowed.changes_per_second),
        )
        self._of_principals = {limit.name: (limit, Buckets(limit.rate)) for limit in of_principals}
        self._refused = Counter(
            "carillon_rate_limited",
            "Calls that were refused because their caller calls too often.",
            ["limit"],
            registry=registry,
        )
        for name in self._of_principals:
            self._refused.labels(name)

    def admit(self, principal: Principal, method: str) -> None:
        """Counts a call. Errors: RateLimited."""
        name = LIMITED.get(method)
        if name is None:
            return
        limit, buckets = self._of_principals[name]
        who = (principal.kind, principal.service or principal.name, principal.tenant)
        if wait := buckets.take(who, self._clock()):
            self._refuse(limit, f"{principal} {limit.says}", wait)

    def _refuse(self, limit: _Limit, sentence: str, wait: float) -> NoReturn:
        self._refused.labels(limit.name).inc()
        raise RateLimited(
            f"{sentence} ({limit.setting}, on each replica); try again in {wait:.3g} s",
            retry_after=wait,
            setting=limit.setting,
        )
