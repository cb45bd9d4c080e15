"""Who changes definitions, asks for runs and stops them, through the use cases, and notes in the diary what is owed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from scheduler_service.domain.errors import AlreadyExists, Conflict
from scheduler_service.domain.job import (
    HttpTarget,
    JobOverrides,
    JobSpec,
    Manifest,
    Policies,
    Target,
    TimingSpec,
)
from scheduler_service.domain.names import JobName, ScheduleName
from scheduler_service.domain.schedule import ScheduleSpec
from scheduler_service.domain.timing import CatchUp
from scheduler_service.usecases import cancel, deleting, jobs, pausing, registry, schedules
from scheduler_service.usecases.run_schedule import RunScheduleRequest, run_schedule
from scheduler_service.usecases.trigger import TriggerRequest, trigger_job
from tests.builders import ADMIN, service
from tests.store.model_fleet import one_of
from tests.store.model_owed import TIMINGS, History
from tests.store.model_world import SECOND, World

SERVICE = "email-service"
JOBS = tuple(JobName(SERVICE, job) for job in ("daily-kpi", "weekly-digest", "reminders"))
TENANTS = ("tenant-a", "tenant-b")
_REGISTRANT = service(SERVICE)
# By whether it is one that has ended.
_TABLE = {False: "live_runs", True: "runs"}
_IS_HELD = {False: "session_id is not null", True: "false"}


@dataclass
class Operator:
    """Each method answers whether there was something to do. `timings`: those that jobs were declared with, `overrides`
    what is put over them. A change takes a second before and after, since the diary
    tells what was done at one instant apart from nothing else."""

    world: World
    archived: set[JobName] = field(default_factory=set)
    timings: dict[JobName, TimingSpec] = field(default_factory=dict)
    overrides: dict[JobName, TimingSpec] = field(default_factory=dict)
    history: History = field(default_factory=History)
    keys: set[tuple[JobName, str, str]] = field(default_factory=set)
    paused_when_archived: set[JobName] = field(default_factory=set)
    registered: bool = False
    revised: int = 0

    async def register_first(self, declared: Sequence[tuple[Policies, str]]) -> None:
        self._declared = {name: policies for name, (policies, _) in zip(JOBS, declared, strict=True)}
        self.timings = {name: TIMINGS[timing] for name, (_, timing) in zip(JOBS, declared, strict=True)}
        await self._register()
        for name in JOBS:
            self.world.diary.add_job(self.world.now, name, self.timings[name], self._declared[name])
        self.history.note(self.world.diary, self.world.now)
        self.registered = True
        self.world.pass_time(SECOND)

    async def register_again(self) -> bool:
        """A deploy that changes a description, and no timing."""
        self.revised += 1
        await self._register()
        return True

    async def _register(self) -> None:
        specs = tuple(
            JobSpec(
                name.job,
                description=f"revised {self.revised} times",
                target=Target(http=HttpTarget("http://email-service/run")),
                timing=self.timings[name],
                policies=declared,
                tenant_schedules=True,
            )
            for name, declared in self._declared.items()
            if name not in self.archived
        )
        world = self.world
        await registry.register_jobs(world.database, world.wakeups, _REGISTRANT, Manifest(SERVICE, jobs=specs))

    async def declare_again(self, pick: int, timing: str) -> bool:
        """One that was archived, perhaps with another timing: it owes nothing of the time between. If none was: all."""
        name = one_of(sorted(self.archived, key=str), pick)
        if name is None:
            return await self.register_again()
        diary = self.world.diary
        self.archived.remove(name)
        self.timings[name] = TIMINGS[timing]
        paused = name in self.paused_when_archived
        with self._apart():
            await self._register()
            now, declared = self.world.now, TIMINGS[timing]
            diary.jobs[name].declared = declared
            diary.change_job(now, name, timing=self.overrides.get(name, TimingSpec()).over(declared))
            diary.resume_job(now, name, CatchUp.NONE)
            if paused:
                diary.pause_job(now, name)
        return True

    async def alter_policies(self, name: JobName, altered: Policies) -> bool:
        world = self.world
        if name in self.archived:
            return False
        with self._apart():
            override = JobOverrides(policies=altered)
            await jobs.update_job(world.database, world.wakeups, ADMIN, name, override, ["policies"])
            world.diary.change_job(world.now, name, policies=altered)
        return True

    async def alter_timing(self, name: JobName, timing_of: str) -> bool:
        world, timing = self.world, TIMINGS[timing_of]
        if name in self.archived:
            return False
        with self._apart():
            await jobs.update_job(world.database, world.wakeups, ADMIN, name, JobOverrides(timing=timing), ["timing"])
            world.diary.change_job(world.now, name, timing=timing.over(world.diary.jobs[name].declared))
        self.overrides[name] = timing
        return True

    async def hold_job(self, name: JobName, policy: CatchUp) -> bool:
        """Pauses it, or resumes it with this policy."""
        world = self.world
        if name in self.archived:
            return False
        with self._apart():
            if world.diary.jobs[name].paused:
                await jobs.resume_job(world.database, world.wakeups, ADMIN, name, policy)
                world.diary.resume_job(world.now, name, policy)
            else:
                await jobs.pause_job(world.database, world.wakeups, ADMIN, name)
                world.diary.pause_job(world.now, name)
        return True

    async def pause_all(self) -> None:
        for name in JOBS:
            if not self.world.diary.jobs[name].paused:
                await self.hold_job(name, CatchUp.NONE)

    async def archive(self, name: JobName) -> bool:
        """All but the last of them. It owes nothing from then on."""
        world = self.world
        if name in self.archived or len(self.archived) == len(JOBS) - 1:
            return False
        with self._apart():
            await registry.remove_job(world.database, world.wakeups, _REGISTRANT, name)
            if world.diary.jobs[name].paused:
                self.paused_when_archived.add(name)
            else:
                self.paused_when_archived.discard(name)
                world.diary.pause_job(world.now, name)
        self.archived.add(name)
        return True

    async def hold_schedule(self, pick: int, policy: CatchUp) -> bool:
        """Pauses it, or resumes it with this policy."""
        world, name = self.world, self._schedule(pick)
        with self._apart():
            if world.diary.schedules[name].paused:
                await pausing.resume_schedule(world.database, world.wakeups, ADMIN, name, policy)
                world.diary.resume_schedule(world.now, name, policy)
            else:
                await pausing.pause_schedule(world.database, world.wakeups, ADMIN, name)
                world.diary.pause_schedule(world.now, name)
        return True

    async def put_schedule(self, job: JobName, tenant: str, timing_of: str) -> bool:
        """A new one, one with another timing, or one again that was deleted."""
        if job in self.archived:
            return False
        world, name, timing = self.world, ScheduleName(job, tenant, "extra"), TIMINGS[timing_of]
        with self._apart():
            await schedules.put_schedule(
                world.database, world.wakeups, ADMIN, name, ScheduleSpec(timing=timing), ["timing"]
            )
            known = world.diary.schedules.get(name)
            if known is None or known.deleted:
                world.diary.add_schedule(world.now, name, timing)
            else:
                world.diary.change_schedule(world.now, name, timing=timing)
        return True

    async def switch(self, pick: int) -> bool:
        """Enables a tenant's schedule, or disables it."""
        world, name = self.world, one_of(self._of_tenants(), pick)
        if name is None:
            return False
        enabled = not world.diary.schedules[name].enabled
        with self._apart():
            spec = ScheduleSpec(enabled=enabled)
            await schedules.put_schedule(world.database, world.wakeups, ADMIN, name, spec, ["enabled"])
            world.diary.change_schedule(world.now, name, enabled=enabled)
        return True

    async def delete(self, pick: int) -> bool:
        """A tenant's; a job's own cannot be."""
        world, name = self.world, one_of(self._of_tenants(), pick)
        if name is None:
            return False
        with self._apart():
            await deleting.delete_schedule(world.database, world.wakeups, ADMIN, name)
            world.diary.delete_schedule(world.now, name)
        return True

    async def run_now(self, pick: int) -> bool:
        request = RunScheduleRequest(self._schedule(pick))
        await run_schedule(self.world.database, self.world.wakeups, ADMIN, request, lambda _: b"")
        return True

    def _schedule(self, pick: int) -> ScheduleName:
        """One that is there; one at least always is, since one job is never archived."""
        there = self._schedules()
        return there[pick % len(there)]

    def _of_tenants(self) -> list[ScheduleName]:
        return [name for name in self._schedules() if not name.is_jobs_own]

    def _schedules(self) -> list[ScheduleName]:
        known = self.world.diary.schedules
        return [name for name, each in known.items() if not each.deleted and name.job not in self.archived]

    @contextmanager
    def _apart(self) -> Iterator[None]:
        self.world.pass_time(SECOND)
        yield
        self.history.note(self.world.diary, self.world.now)
        self.world.pass_time(SECOND)

    async def trigger(self, job: JobName, tenants: tuple[str, ...], key: str) -> bool:
        """A key makes a run once: with one that was used it is refused, and makes none for any tenant."""
        if job in self.archived:
            return False
        request = TriggerRequest(job, tenants=tenants, run_key=key)
        taken = [each for each in tenants or ("-",) if key and (job, each, key) in self.keys]
        before = self._count_runs()
        try:
            await trigger_job(self.world.database, self.world.wakeups, ADMIN, request, lambda _: b"")
        except AlreadyExists:
            assert taken, f"{request} was refused"
            assert self._count_runs() == before
            return True
        assert not taken, f"{request} was accepted again for {taken}"
        assert self._count_runs() == before + max(1, len(tenants))
        if key:
            self.keys |= {(job, each, key) for each in tenants or ("-",)}
        return True

    def _count_runs(self) -> int:
        counted = "select (select count(*) from carillon.live_runs) + (select count(*) from carillon.runs)"
        row = self.world.admin.execute(counted).fetchone()
        assert row is not None
        return int(row[0])

    async def cancel(self, pick: int, *, ended: bool) -> bool:
        """One that lives ends or is asked to stop; an ended one is refused."""
        found = f"select run_id, {_IS_HELD[ended]} from carillon.{_TABLE[ended]} order by created_at, run_id limit 31"
        runs = self.world.admin.execute(found.encode()).fetchall()
        if not runs:
            return False
        run_id, held = runs[pick % len(runs)]
        try:
            run = await cancel.cancel_run(self.world.database, self.world.wakeups, ADMIN, run_id)
        except Conflict:
            if not ended:
                raise
            return True
        assert not ended, f"{run_id} had ended, and became {run.state}"
        assert run.state.value == ("RUNNING" if held else "CANCELLED")
        return True
