"""What is simulated: jobs and schedules in many zones, with every policy, and expressions that they change to."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import timedelta
from random import Random

from scheduler_service.domain.job import HttpTarget, JobSpec, Policies, RetryPolicy, Target, TimingSpec
from scheduler_service.domain.names import JobName, ScheduleName
from scheduler_service.domain.overlap import Overlap
from scheduler_service.domain.timing import CatchUp, GapPolicy, RepeatPolicy

SERVICE = "simulated-service"
SCHEDULES_PER_JOB = 10
MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)

# Clocks that change by an hour, by half of one, on other days than most, in Ramadan, at midnight, or not at all.
ZONES = tuple(
    zone
    for line in (
        "Africa/Cairo Africa/Casablanca Africa/Johannesburg Africa/Lagos America/Adak America/Argentina/Buenos_Aires",
        "America/Asuncion America/Bogota America/Caracas America/Chicago America/Havana America/Los_Angeles",
        "America/Mexico_City America/New_York America/Nuuk America/Santiago America/Sao_Paulo America/St_Johns",
        "Antarctica/Troll Asia/Beirut Asia/Dubai Asia/Gaza Asia/Jerusalem Asia/Kathmandu Asia/Kolkata Asia/Shanghai",
        "Asia/Tehran Asia/Tokyo Atlantic/Azores Australia/Adelaide Australia/Lord_Howe Australia/Sydney Europe/Berlin",
        "Europe/Chisinau Europe/Dublin Europe/London Pacific/Apia Pacific/Auckland Pacific/Chatham UTC",
    )
    for zone in line.split()
)

# How often (out of 100) a schedule has an expression of each kind. Two thirds come due once a day or less.
_KINDS = {"hours": 3, "parts of a day": 14, "a day": 45, "weekdays": 18, "months": 12, "every": 8}
_HOURS = ["0 * * * *", "30 */2 * * *", "15 */3 * * *", "*/30 1-3 * * *", "45 0/2 * * *"]
_PARTS = ["0 2,14 * * *", "30 1,2,3 * * *", "0 */6 * * *", "15 0-4/2 * * *", "59 1,23 * * *", "0,30 2 * * *"]
_WEEKDAYS = ["1-5", "0", "0,6", "1", "0#1", "0#2", "0L", "5L", "6-7"]
_MONTHS = ["1 * *", "L * *", "29-31 * *", "*/7 * *", "1,15 * *", "1-7 * 0", "13 * 5", "8-14 3,10,11 *", "*/5 * 0"]
_PERIODS = ["6h", "8h", "12h", "1d", "25h", "36h", "3d", "7d"]
_CLOCK_MINUTES = [0, 0, 0, 30, 30, 15, 45, 59]
# Most of the hours in which clocks change.
_CLOCK_HOURS = [0, 0, 1, 1, 2, 2, 2, 3, 4, 9, 12, 18, 23]

_WINDOWS = [timedelta(), 10 * MINUTE, 6 * HOUR, DAY, DAY, 7 * DAY, 30 * DAY]


@dataclass(frozen=True)
class PlannedJob:
    """A job with a schedule of its own, or without; and the policies and timing that it begins with."""

    name: JobName
    timing: TimingSpec
    policies: Policies

    @property
    def spec(self) -> JobSpec:
        return JobSpec(
            self.name.job,
            target=Target(http=HttpTarget("http://simulated/run")),
            timing=self.timing,
            policies=self.policies,
            tenant_schedules=True,
        )


@dataclass(frozen=True)
class PlannedSchedule:
    """A tenant's schedule, and what it says itself."""

    name: ScheduleName
    timing: TimingSpec


@dataclass(frozen=True)
class Plan:
    """What there is at the start; every job has a schedule of its own besides."""

    jobs: list[PlannedJob]
    schedules: list[PlannedSchedule]


class Drawing:
    """Draws what there is, and what it changes to."""

    def __init__(self, random: Random, zones: int) -> None:
        self._random = random
        self._zones = random.sample(ZONES, zones)

    def plan(self, schedules: int) -> Plan:
        """So many schedules, those of the jobs among them."""
        plan = Plan([], [])
        while (room := schedules - len(plan.jobs) - len(plan.schedules)) > 0:
            name = JobName(SERVICE, f"job-{len(plan.jobs)}")
            plan.jobs.append(PlannedJob(name, self.job_timing(), self.policies()))
            for place in range(min(SCHEDULES_PER_JOB, room) - 1):
                of_tenant = ScheduleName(name, f"tenant-{place % 4}", f"schedule-{place}")
                plan.schedules.append(PlannedSchedule(of_tenant, self.schedule_timing()))
        return plan

    def job_timing(self) -> TimingSpec:
        """All that a job says of its timing: always an expression, so that each of its schedules has one."""
        draw = self._random.choice
        return TimingSpec(
            cron=self._cron(),
            time_zone=draw(self._zones),
            gap=draw([None, *GapPolicy]),
            repeat=draw([None, *RepeatPolicy]),
            jitter=draw([None, None, 20 * MINUTE]),
        )

    def schedule_timing(self) -> TimingSpec:
        """All that a schedule says of its timing: nothing, a part of it, or all; the rest is the job's."""
        whole = self.job_timing()
        said = self._random.choice(["all", "all", "all", "all", "zone", "expression", "nothing"])
        if said == "zone":
            return TimingSpec(time_zone=whole.time_zone)
        if said == "expression":
            return TimingSpec(cron=whole.cron)
        if said == "nothing":
            return TimingSpec()
        if whole.cron is not None and whole.cron.startswith("@every"):
            return replace(whole, phase=self._random.randrange(0, 6 * 60) * MINUTE)
        return whole

    def tenant_zone(self) -> str:
        """Empty for none."""
        return self._random.choice(["", *self._zones])

    def policies(self) -> Policies:
        draw = self._random.choice
        return Policies(
            overlap=draw(list(Overlap)),
            attempt_timeout=7 * DAY,
            run_timeout=30 * DAY,
            retry=RetryPolicy(max_attempts=2, delay=10 * MINUTE),
            catch_up=draw(list(CatchUp)),
            catch_up_window=draw(_WINDOWS),
        )

    def _cron(self) -> str:
        draw = self._random.choice
        minute, hour = draw(_CLOCK_MINUTES), draw(_CLOCK_HOURS)
        drawn = {
            "hours": draw(_HOURS),
            "parts of a day": draw(_PARTS),
            "a day": f"{minute} {hour} * * *",
            "weekdays": f"{minute} {hour} * * {draw(_WEEKDAYS)}",
            "months": f"{minute} {hour} {draw(_MONTHS)}",
            "every": f"@every {draw(_PERIODS)}",
        }
        return drawn[self._random.choices(list(_KINDS), list(_KINDS.values()))[0]]
