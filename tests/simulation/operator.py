"""Who changes things by hand, through the API's use cases, and writes each change into the diary."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from random import Random
from typing import TypeVar

from scheduler_service.domain.job import JobOverrides
from scheduler_service.domain.names import JobName, ScheduleName
from scheduler_service.domain.schedule import ScheduleSpec
from scheduler_service.domain.timing import CatchUp
from scheduler_service.usecases import deleting, jobs, pausing, schedules, tenants
from scheduler_service.usecases.run_schedule import RunScheduleRequest, run_schedule
from scheduler_service.usecases.wakeups import Wakeups
from tests.builders import ADMIN
from tests.simulation.diary import Diary
from tests.simulation.plan import Drawing
from tests.store.definitions_case import SteppedDatabase

N = TypeVar("N", JobName, ScheduleName)
Change = Callable[[], Awaitable[None]]


class Operator:
    """Does one thing at a time, at the database's now."""

    def __init__(self, database: SteppedDatabase, random: Random, drawing: Drawing, diary: Diary) -> None:
        self._database = database
        self._wakeups = Wakeups()
        self._random = random
        self._drawing = drawing
        self._diary = diary

    def next_change(self) -> Change:
        """What is to be done next."""
        often = {
            self.change_timing: 4,
            self.switch: 3,
            self.change_job: 1,
            self.change_policies: 1,
            self.move_tenant: 1,
            self.hold_job: 2,
            self.hold_schedule: 4,
            self.delete_or_put_again: 2,
            self.run_now: 2,
        }
        return self._random.choices(list(often), list(often.values()))[0]

    async def change_timing(self) -> None:
        name = self._random.choice(self._of_tenants())
        timing = self._drawing.schedule_timing()
        await self._put(name, ScheduleSpec(timing=timing), "timing")
        self._diary.change_schedule(self._database.now, name, timing=timing)
        self._diary.counts["edits"] += 1

    async def switch(self) -> None:
        """Enables a schedule, or disables it."""
        name = self._one_of({each: not self._diary.schedules[each].enabled for each in self._of_tenants()})
        enabled = not self._diary.schedules[name].enabled
        await self._put(name, ScheduleSpec(enabled=enabled), "enabled")
        self._diary.change_schedule(self._database.now, name, enabled=enabled)
        self._diary.counts["edits"] += 1

    async def delete_or_put_again(self) -> None:
        """Deletes a schedule, or puts one again under the name of one that was."""
        name = self._one_of(
            {each: schedule.deleted for each, schedule in self._diary.schedules.items() if _is_tenants(each)}
        )
        if self._diary.schedules[name].deleted:
            timing = self._drawing.schedule_timing()
            await self._put(name, ScheduleSpec(timing=timing), "timing")
            self._diary.add_schedule(self._database.now, name, timing)
        else:
            await deleting.delete_schedule(self._database, self._wakeups, ADMIN, name)
            self._diary.delete_schedule(self._database.now, name)
        self._diary.counts["edits"] += 1

    async def change_job(self) -> None:
        name = self._job()
        timing = self._drawing.job_timing()
        await jobs.update_job(self._database, self._wakeups, ADMIN, name, JobOverrides(timing=timing), ["timing"])
        # What the override leaves out is the declaration's.
        self._diary.change_job(self._database.now, name, timing=timing.over(self._diary.jobs[name].declared))
        self._diary.counts["edits"] += 1

    async def change_policies(self) -> None:
        name = self._job()
        policies = self._drawing.policies()
        await jobs.update_job(self._database, self._wakeups, ADMIN, name, JobOverrides(policies=policies), ["policies"])
        self._diary.change_job(self._database.now, name, policies=policies)
        self._diary.counts["edits"] += 1

    async def move_tenant(self) -> None:
        """Gives a tenant another zone, or none."""
        tenant = self._random.choice(self._of_tenants()).tenant
        zone = self._drawing.tenant_zone()
        await tenants.put_tenant(self._database, self._wakeups, ADMIN, tenant, zone)
        self._diary.move_tenant(self._database.now, tenant, zone)
        self._diary.counts["edits"] += 1

    async def hold_job(self) -> None:
        """Pauses a job, or lets it go on."""
        name = self._one_of({each: job.paused for each, job in self._diary.jobs.items()})
        if self._diary.jobs[name].paused:
            policy = self._random.choice(list(CatchUp))
            await jobs.resume_job(self._database, self._wakeups, ADMIN, name, policy)
            self._diary.resume_job(self._database.now, name, policy)
        else:
            await self.pause_job(name)
            self._diary.counts["pauses"] += 1

    async def pause_job(self, name: JobName) -> None:
        await jobs.pause_job(self._database, self._wakeups, ADMIN, name)
        self._diary.pause_job(self._database.now, name)

    async def hold_schedule(self) -> None:
        """Pauses a schedule, or lets it go on."""
        name = self._one_of({each: one.paused for each, one in self._diary.schedules.items() if not one.deleted})
        if self._diary.schedules[name].paused:
            policy = self._random.choice(list(CatchUp))
            await pausing.resume_schedule(self._database, self._wakeups, ADMIN, name, policy)
            self._diary.resume_schedule(self._database.now, name, policy)
        else:
            await pausing.pause_schedule(self._database, self._wakeups, ADMIN, name)
            self._diary.pause_schedule(self._database.now, name)
            self._diary.counts["pauses"] += 1

    async def run_now(self) -> None:
        """Runs a schedule by hand, which changes nothing of what it owes, nor of what becomes of that."""
        name = self._random.choice(self._of_tenants())
        await run_schedule(self._database, self._wakeups, ADMIN, RunScheduleRequest(name), lambda _: b"")

    async def _put(self, name: ScheduleName, spec: ScheduleSpec, mask: str) -> None:
        await schedules.put_schedule(self._database, self._wakeups, ADMIN, name, spec, [mask])

    def _of_tenants(self) -> list[ScheduleName]:
        return [name for name, schedule in self._diary.schedules.items() if _is_tenants(name) and not schedule.deleted]

    def _job(self) -> JobName:
        return self._random.choice(list(self._diary.jobs))

    def _one_of(self, held: Mapping[N, bool]) -> N:
        """Any, but sooner one that is held (or gone): so that most are not, most of the time."""
        of_those = [name for name, is_held in held.items() if is_held]
        return self._random.choice(of_those if of_those and self._random.random() < 0.7 else list(held))


def _is_tenants(name: ScheduleName) -> bool:
    return not name.is_jobs_own
