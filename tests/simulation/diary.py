"""What was done, and when: from this alone follows what was owed. Nothing in it was read from the database.

A change at an instant holds from then on: an occurrence exactly at that instant is owed by what was in force before.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from scheduler_service.domain.job import Policies, TimingSpec
from scheduler_service.domain.names import JobName, ScheduleName
from scheduler_service.domain.timing import CatchUp


@dataclass(frozen=True)
class Timing:
    """What is in force for a schedule: every field has a value."""

    cron: str
    time_zone: str
    skip_gaps: bool
    both: bool
    phase: timedelta


@dataclass(frozen=True)
class Span:
    """A time `(after, until]` in which a schedule owed what this timing says."""

    after: datetime
    until: datetime
    timing: Timing


@dataclass(frozen=True)
class Resumption:
    """Something was let go on, and what had come due meanwhile caught up by this policy: what the schedule's revision
    owed, in force from `since` on. What an earlier one owed is not run."""

    at: datetime
    since: datetime
    policy: CatchUp


@dataclass
class _Job:
    declared: TimingSpec
    timing: TimingSpec
    policies: list[tuple[datetime, Policies]]
    halts: list[tuple[datetime, datetime | None]] = field(default_factory=list)

    @property
    def paused(self) -> bool:
        return bool(self.halts) and self.halts[-1][1] is None


@dataclass(frozen=True)
class _Revision:
    """What is in force for a schedule, and whether it owes something while its job is not paused."""

    timing: Timing
    jitter: timedelta
    enabled: bool
    owes: bool


@dataclass
class _Schedule:
    """All that had one name, one after the other."""

    name: ScheduleName
    timing: TimingSpec
    revision: _Revision | None
    revised_at: datetime
    enabled: bool = True
    paused: bool = False
    deleted: bool = False
    spans: list[Span] = field(default_factory=list)
    resumptions: list[Resumption] = field(default_factory=list)


class Diary:
    """Who changes something in the simulation writes it here too, with the instant that the scheduler was told."""

    def __init__(self) -> None:
        self.jobs: dict[JobName, _Job] = {}
        self.schedules: dict[ScheduleName, _Schedule] = {}
        self._tenant_zones: dict[str, str] = {}
        self.counts: dict[str, int] = defaultdict(int)

    def add_job(self, at: datetime, name: JobName, timing: TimingSpec, policies: Policies) -> None:
        """A job, and its own schedule."""
        self.jobs[name] = _Job(timing, timing, [(at, policies)])
        self.add_schedule(at, ScheduleName(name, "-", "default"), TimingSpec())

    def add_schedule(self, at: datetime, name: ScheduleName, timing: TimingSpec) -> None:
        """Also again, once it was deleted."""
        schedule = _Schedule(name, timing, None, at)
        if (before := self.schedules.get(name)) is not None:
            schedule.spans, schedule.resumptions = before.spans, before.resumptions
        self.schedules[name] = schedule
        self._revise(at, schedule)

    def delete_schedule(self, at: datetime, name: ScheduleName) -> None:
        schedule = self.schedules[name]
        schedule.deleted = True
        self._revise(at, schedule, always=True)

    def change_schedule(
        self, at: datetime, name: ScheduleName, *, timing: TimingSpec | None = None, enabled: bool | None = None
    ) -> None:
        schedule = self.schedules[name]
        schedule.timing = schedule.timing if timing is None else timing
        schedule.enabled = schedule.enabled if enabled is None else enabled
        self._revise(at, schedule)

    def pause_schedule(self, at: datetime, name: ScheduleName) -> None:
        schedule = self.schedules[name]
        schedule.paused = True
        self._revise(at, schedule, always=True)

    def resume_schedule(self, at: datetime, name: ScheduleName, policy: CatchUp) -> None:
        """With catch-up, it owes from when it was paused or last changed on."""
        schedule = self.schedules[name]
        schedule.paused = False
        if policy is CatchUp.NONE or not schedule.enabled:
            self._revise(at, schedule, always=True)
            return
        since = schedule.revised_at
        schedule.resumptions.append(Resumption(at, since, policy))
        self._revise(since, schedule, always=True)

    def change_job(
        self, at: datetime, name: JobName, *, timing: TimingSpec | None = None, policies: Policies | None = None
    ) -> None:
        job = self.jobs[name]
        job.timing = job.timing if timing is None else timing
        if policies is not None:
            job.policies.append((at, policies))
        for schedule in self._of(name):
            self._revise(at, schedule)

    def pause_job(self, at: datetime, name: JobName) -> None:
        self.jobs[name].halts.append((at, None))

    def resume_job(self, at: datetime, name: JobName, policy: CatchUp) -> None:
        """With catch-up, the pause is taken back."""
        paused_at, _ = self.jobs[name].halts.pop()
        if policy is CatchUp.NONE:
            self.jobs[name].halts.append((paused_at, at))
            return
        for schedule in self._of(name):
            schedule.resumptions.append(Resumption(at, max(paused_at, schedule.revised_at), policy))

    def move_tenant(self, at: datetime, tenant: str, time_zone: str) -> None:
        self._tenant_zones[tenant] = time_zone
        for schedule in self.schedules.values():
            if schedule.name.tenant == tenant:
                self._revise(at, schedule)

    def policies(self, job: JobName, at: datetime) -> Policies:
        """Those by which is decided at an instant; of a change at that very instant, those before it."""
        changes = self.jobs[job].policies
        return changes[max(bisect_left(changes, at, key=lambda change: change[0]) - 1, 0)][1]

    def resumption(self, name: ScheduleName, at: datetime) -> Resumption | None:
        """The one at this very instant."""
        return next((each for each in self.schedules[name].resumptions if each.at == at), None)

    def spans(self, name: ScheduleName, until: datetime) -> list[Span]:
        """When a schedule owed what, up to an instant."""
        schedule = self.schedules[name]
        spans = list(schedule.spans)
        if schedule.revision is not None and schedule.revision.owes:
            spans.append(Span(schedule.revised_at, until, schedule.revision.timing))
        for start, end in self.jobs[schedule.name.job].halts:
            halves = [
                (replace(span, until=min(span.until, start)), replace(span, after=max(span.after, end or until)))
                for span in spans
            ]
            spans = [half for both in halves for half in both if half.after < half.until]
        return [replace(span, until=min(span.until, until)) for span in spans if span.after < until]

    def _of(self, job: JobName) -> list[_Schedule]:
        return [schedule for schedule in self.schedules.values() if schedule.name.job == job]

    def _revise(self, at: datetime, schedule: _Schedule, *, always: bool = False) -> None:
        revision = self._revision(schedule)
        if revision == schedule.revision and not always:
            return
        if schedule.revision is not None and schedule.revision.owes and schedule.revised_at < at:
            schedule.spans.append(Span(schedule.revised_at, at, schedule.revision.timing))
        schedule.revised_at, schedule.revision = at, revision

    def _revision(self, schedule: _Schedule) -> _Revision:
        own, jobs = schedule.timing, self.jobs[schedule.name.job].timing
        gap, repeat = own.gap or jobs.gap, own.repeat or jobs.repeat
        timing = Timing(
            cron=own.cron or jobs.cron or "",
            time_zone=own.time_zone or self._tenant_zones.get(schedule.name.tenant) or jobs.time_zone or "UTC",
            skip_gaps=gap is not None and gap.name == "SKIP",
            both=repeat is not None and repeat.name == "BOTH",
            phase=own.phase or timedelta(),
        )
        owes = schedule.enabled and not schedule.paused and not schedule.deleted
        return _Revision(timing, own.jitter or jobs.jitter or timedelta(), schedule.enabled, owes)
