"""What a schedule is, and what is in force for it: its own timing over its job's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

from scheduler_service.domain.job import JobOverrides, JobSpec, TimingSpec
from scheduler_service.domain.job import in_force as job_in_force
from scheduler_service.domain.names import DEFAULT_SCHEDULE, JobName, ScheduleName
from scheduler_service.domain.settling import Standing, first_start
from scheduler_service.domain.timing import (
    CatchUp,
    GapPolicy,
    Occurrence,
    RepeatPolicy,
    Timing,
    TimingError,
    describe,
    next_occurrence,
)
from scheduler_service.domain.values import paths_of

NO_EXPRESSION = "its job has no cron expression any more, and it has none of its own"
NOT_ALLOWED = "its job allows no schedules for tenants any more"
OWES_NOTHING = (NO_EXPRESSION, NOT_ALLOWED)
"""Reasons for which a schedule is set aside that say that it owes nothing. By any other it owes what it owed."""
NO_CRON = "Not yet: its job has no cron expression, and it has none of its own"


FOLLOWS_JOB = TimingSpec()
"""The timing of a schedule that says nothing itself."""


@dataclass(frozen=True, slots=True)
class ScheduleSpec:
    """What a caller sets of a schedule. `config` and `labels` are put over the job's for its runs."""

    timing: TimingSpec = FOLLOWS_JOB
    enabled: bool = True
    config: Mapping[str, Any] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)


SCHEDULE_PATHS = tuple(paths_of(ScheduleSpec))
ALL_FIELDS = ("timing", "enabled", "config", "labels")


@dataclass(frozen=True, slots=True)
class InForce:
    """What one revision of a schedule says, every default filled in. `cron` is empty only in a default that is not
    stored, of a job that has none."""

    enabled: bool
    cron: str
    time_zone: str
    gap: GapPolicy
    repeat: RepeatPolicy
    phase: timedelta
    jitter: timedelta

    @property
    def timing(self) -> Timing:
        """Refuses with a TimingError what cannot be evaluated (any more)."""
        return Timing.of(self.cron, self.time_zone, self.gap, self.repeat, self.phase)

    def as_spec(self) -> TimingSpec:
        """The same, as it could have been asked for. Only an interval has a phase."""
        phase = self.phase if self.cron.startswith("@every") else None
        return TimingSpec(self.cron or None, self.time_zone, self.gap, self.repeat, phase, self.jitter)


@dataclass(frozen=True, slots=True)
class Schedule:
    """A schedule as it stands. `halted`: its job is paused or archived. `next_run_at` is when it is armed for, jitter
    included; None if it is not armed. A paused one owes nothing after `paused_at`, whatever its owner asks for.
    `stored` is False for a default that is only shown: its id is 0, and it was created at no time."""

    schedule_id: int
    job_id: int
    name: ScheduleName
    spec: ScheduleSpec
    in_force: InForce
    revision: int
    settled_to: datetime
    owed_from: datetime
    halted: bool
    next_run_at: datetime | None
    set_aside_reason: str
    created_at: datetime | None
    created_by: str
    updated_at: datetime | None
    updated_by: str
    stored: bool = True
    paused_at: datetime | None = None

    @property
    def next_occurrence(self) -> Occurrence | None:
        """What it owes next. None while it is disabled, set aside or paused, or its job paused or archived."""
        return next_owed(self.in_force, self.next_run_at, max(self.settled_to, self.owed_from), halted=self.halted)

    @property
    def shown(self) -> InForce:
        """What is in force, as people see it: where it has no expression any more, without the one that it had."""
        lost = self.set_aside_reason == NO_EXPRESSION or (self.name.is_jobs_own and not self.spec.enabled)
        return replace(self.in_force, cron="") if lost else self.in_force

    @property
    def description(self) -> str:
        """Its timing in a sentence."""
        if not self.shown.cron:
            return NO_CRON
        try:
            return describe(self.shown.timing)
        except TimingError as error:
            return str(error)


def next_owed(in_force: InForce, next_run_at: datetime | None, since: datetime, *, halted: bool) -> Occurrence | None:
    """The first occurrence after `since` of a schedule that is armed; None for one that is not."""
    if next_run_at is None or halted:
        return None
    try:
        return next_occurrence(in_force.timing, since)
    except TimingError:
        return None


def revise(
    spec: ScheduleSpec,
    job: TimingSpec,
    before: InForce | None,
    *,
    is_jobs_own: bool,
    tenant_zone: str = "",
    paused: bool = False,
    allowed: bool = True,
) -> InForce:
    """What is to be in force for a schedule of a job whose timing in force is `job`, and whose tenant set a zone or
    none. A job's own schedule is enabled while the job has an expression; another that has lost it keeps the one
    `before`, and owes nothing. Nor does one that is paused, or that its job does not allow (any more)."""
    merged = (
        FOLLOWS_JOB.over(job) if is_jobs_own else spec.timing.over(TimingSpec(time_zone=tenant_zone or None).over(job))
    )
    has_expression = bool(merged.cron)
    cron = merged.cron or (before.cron if before else "")
    return InForce(
        enabled=has_expression and (is_jobs_own or spec.enabled) and not paused and allowed,
        cron=cron,
        time_zone=merged.time_zone or "UTC",
        gap=merged.gap or GapPolicy.SHIFT,
        repeat=merged.repeat or RepeatPolicy.FIRST,
        phase=merged.phase or timedelta(),
        jitter=merged.jitter or timedelta(),
    )


@dataclass(frozen=True, slots=True)
class JobDefault:
    """What a job offers a tenant that has no schedule for it: its timing as declared and as overridden."""

    job_id: int
    job: JobName
    tenant: str
    tenant_zone: str
    declared: TimingSpec
    overridden: TimingSpec
    owed_from: datetime
    halted: bool

    def shown(self, default_time_zone: str) -> Schedule:
        """The schedule that is not there: disabled, with the timing that it would have."""
        declared, overrides = JobSpec(self.job.job, timing=self.declared), JobOverrides(timing=self.overridden)
        spec = ScheduleSpec(enabled=False)
        timing = job_in_force(declared, overrides, default_time_zone).timing
        return Schedule(
            schedule_id=0,
            job_id=self.job_id,
            name=ScheduleName(self.job, self.tenant, DEFAULT_SCHEDULE),
            spec=spec,
            in_force=revise(spec, timing, None, is_jobs_own=False, tenant_zone=self.tenant_zone),
            revision=0,
            settled_to=self.owed_from,
            owed_from=self.owed_from,
            halted=self.halted,
            next_run_at=None,
            set_aside_reason="",
            created_at=None,
            created_by="",
            updated_at=None,
            updated_by="",
            stored=False,
        )


def start_after(schedule_id: int, in_force: InForce, since: datetime) -> datetime | None:
    """When the first occurrence after an instant is to start, jitter included; None if it is disabled or never comes.
    Refuses with a TimingError what cannot be evaluated."""
    if not in_force.enabled:
        return None
    standing = Standing(
        schedule_id=schedule_id,
        cron=in_force.cron,
        time_zone=in_force.time_zone,
        gap=in_force.gap.name,
        repeat=in_force.repeat.name,
        phase=in_force.phase,
        jitter=in_force.jitter,
        settled_to=since,
        owed_from=since,
        halted=False,
        catch_up=CatchUp.LATEST,
        window=timedelta(),
    )
    return first_start(standing, since)
