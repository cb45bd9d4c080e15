"""Who has something run again by hand: RetryRun and BackfillJob, and what must come of each.

What a run is for (an occurrence, or nothing but itself) is remembered here, from when it was made: of the runs for one
thing, at most one at a time is live or completed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import NamedTuple
from uuid import UUID

from scheduler_service.domain.backfill import Backfill
from scheduler_service.domain.errors import AlreadyExists, Conflict
from scheduler_service.domain.names import ANY_TENANT, JobName, ScheduleName
from scheduler_service.domain.overlap import Overlap
from scheduler_service.domain.record import Run
from scheduler_service.usecases.backfill import BackfillRequest, backfill_job
from scheduler_service.usecases.retry_run import RetryRunRequest, retry_run
from tests.builders import ADMIN
from tests.store.model_operator import Operator
from tests.store.model_world import World

Thing = tuple[int, datetime] | UUID
"""What runs are for: a schedule's occurrence, or what the first of them was made for."""
_OF_OCCURRENCES = ("SCHEDULE", "CATCH_UP", "BACKFILL")
_STANDING = """
select run_id, trigger::text, schedule_id, scheduled_for from carillon.live_runs
union all
select run_id, trigger::text, schedule_id, scheduled_for from carillon.runs where state = 'COMPLETED'"""
_ENDED = """
select r.run_id, r.trigger::text, r.schedule_id, r.scheduled_for, r.state::text, j.service, j.job, r.tenant_id,
  r.payload::text, coalesce(r.error ->> 'code', ''),
  exists (select from carillon.schedules s where s.schedule_id = r.schedule_id and s.deleted_at is not null),
  exists (select from carillon.live_runs h where h.schedule_id = r.schedule_id and h.exclusive and not h.blocked)
from carillon.runs r join carillon.jobs j using (job_id)
order by %s and r.state = 'COMPLETED', r.finished_at desc, r.run_id limit 31"""
_MADE = """
select trigger::text, schedule_id, scheduled_for, tenant_id, payload::text, attempt, alone, exclusive, blocked,
  run_after, created_at, (select retry_of from carillon.retries t where t.run_id = l.run_id)
from carillon.live_runs l where run_id = %s"""
_BACKFILLED = """
select schedule_id, scheduled_for from carillon.live_runs where trigger = 'BACKFILL' and origin = %s"""
_SCHEDULES = """
select s.schedule_id, j.service, j.job, s.tenant_id, s.schedule
from carillon.schedules s join carillon.jobs j using (job_id) where s.deleted_at is null"""
_COUNT = """
select (select count(*) from carillon.live_runs) + (select count(*) from carillon.runs),
  (select count(*) from carillon.retries) + (select count(*) from carillon.backfills)"""


class _Ended(NamedTuple):
    run_id: UUID
    trigger: str
    schedule_id: int | None
    scheduled_for: datetime
    state: str
    service: str
    job: str
    tenant: str
    payload: str
    error_code: str
    is_of_deleted: bool
    turn_is_taken: bool


@dataclass
class Remedies:
    """Methods answer False where there was nothing to do it with. `things`: what each retry is for; `answered`: by
    request id, which run was to be tried again and what was answered. `filled` counts runs that backfills made,
    `retried` those that RetryRun made."""

    world: World
    operator: Operator
    things: dict[UUID, Thing] = field(default_factory=dict)
    answered: dict[str, tuple[UUID, UUID]] = field(default_factory=dict)
    filled: int = 0
    retried: int = 0

    async def retry(self, pick: int, request_id: str, *, also_completed: bool) -> bool:
        """One of those that ended last. Asked again at once, it answers the same run."""
        rows = self.world.admin.execute(_ENDED, [not also_completed]).fetchall()
        if not rows:
            return False
        ended = _Ended(*rows[pick % len(rows)])
        if request_id in self.answered:
            await self._ask_under_used_id(ended, request_id)
            return True
        thing = self._thing(*ended[:4])
        standing, before = self._standing()[thing], self._counted()
        try:
            made = await self._retry(ended.run_id, request_id)
        except Conflict:
            assert self._is_refused(ended), f"{ended} was refused"
            assert self._counted() == before
            return True
        assert not self._is_refused(ended), f"{ended} was tried again"
        if standing:
            assert standing == [made], f"{standing} stood for {ended}, and {made} was answered"
            assert self._counted() == before
        else:
            self._check_made(ended, made)
            self.things[made] = thing
            self.retried += 1
        if request_id:
            self.answered[request_id] = (ended.run_id, made)
        before = self._counted()
        assert await self._retry(ended.run_id, request_id) == made
        assert self._counted() == before
        return True

    async def _ask_under_used_id(self, ended: _Ended, request_id: str) -> None:
        of_run, made = self.answered[request_id]
        before = self._counted()
        assert await self._retry(of_run, request_id) == made, "the same request has another answer"
        if ended.run_id != of_run:
            try:
                other = await self._retry(ended.run_id, request_id)
            except AlreadyExists:
                other = None
            assert other is None, f"{request_id} was for {of_run}, and made {other} of {ended}"
        assert self._counted() == before

    async def _retry(self, run_id: UUID, request_id: str) -> UUID:
        request = RetryRunRequest(run_id, request_id, run_id.bytes)
        return UUID(bytes=await retry_run(self.world.database, self.world.wakeups, ADMIN, request, _run_id))

    def _is_refused(self, ended: _Ended) -> bool:
        archived = JobName(ended.service, ended.job) in self.operator.archived
        return ended.state == "COMPLETED" or archived or ended.is_of_deleted

    def _check_made(self, ended: _Ended, made: UUID) -> None:
        """It is about the same, due now; it behaves as its job now says, and has no neighbours if a worker was lost."""
        now = self.world.now
        overlap = self.world.diary.policies(JobName(ended.service, ended.job), now).overlap
        exclusive = ended.schedule_id is not None and overlap is not Overlap.ALLOW_ALL
        about = ("MANUAL", ended.schedule_id, ended.scheduled_for, ended.tenant, ended.payload)
        behaves = (1, ended.error_code == "WORKER_LOST", exclusive, exclusive and ended.turn_is_taken)
        row = self.world.admin.execute(_MADE, [made]).fetchone()
        assert row == (*about, *behaves, now, now, ended.run_id), f"{ended} became {row}"

    async def backfill(
        self, job: JobName, tenant: str, ago: timedelta, length: timedelta, *, counted_first: bool
    ) -> bool:
        """Each occurrence of the range has one run in the end that stands for it; a second time makes nothing."""
        diary = self.world.diary
        schedules = [
            name
            for name, each in diary.schedules.items()
            if name.job == job and not each.deleted and tenant in (name.tenant, ANY_TENANT)
        ]
        if job in self.operator.archived or not schedules:
            return False
        until = self.world.now - ago
        request = BackfillRequest(job, until - length, until, tenant)
        wanted = self._things_wanted(schedules, request)
        stood, before = self._standing(), self._counted()
        counted = await self._backfill(request, validate_only=True) if counted_first else None
        assert self._counted() == before
        filled = await self._backfill(request)
        made = self._backfilled(filled)
        assert counted is None or (counted.occurrences, counted.runs) == (filled.occurrences, filled.runs)
        assert (filled.occurrences, filled.runs) == (len(wanted), len(made)), f"{filled} of {wanted}"
        assert made <= set(wanted), f"{filled} made {made}"
        twice = [each for each in made if stood[each]]
        assert not twice, f"{filled} made runs for what stood: {twice}"
        stands = self._standing()
        left = [each for each in wanted if len(stands[each]) != 1]
        assert not left, f"{filled} has left these out: {left}"
        self.filled += len(made)
        before = self._counted()
        again = await self._backfill(request)
        assert (again.occurrences, again.runs) == (len(wanted), 0), f"{again} after {filled}"
        assert self._counted()[0] == before[0]
        return True

    def _things_wanted(self, schedules: Sequence[ScheduleName], request: BackfillRequest) -> list[tuple[int, datetime]]:
        rows = self.world.admin.execute(_SCHEDULES).fetchall()
        ids = {ScheduleName(JobName(row[1], row[2]), row[3], row[4]): row[0] for row in rows}
        history = self.operator.history
        return [
            (ids[name], instant)
            for name in schedules
            for instant in history.occurrences(name, request.since, request.until)
        ]

    async def _backfill(self, request: BackfillRequest, *, validate_only: bool = False) -> Backfill:
        answered: list[Backfill] = []

        def encode(backfill: Backfill) -> bytes:
            answered.append(backfill)
            return b""

        asked = BackfillRequest(request.job, request.since, request.until, request.tenant, validate_only=validate_only)
        await backfill_job(self.world.database, self.world.wakeups, ADMIN, asked, encode)
        return answered[0]

    def _backfilled(self, backfill: Backfill) -> set[Thing]:
        assert backfill.name is not None
        origin = f"backfills/{backfill.name.backfill_id}"
        return {(row[0], row[1]) for row in self.world.admin.execute(_BACKFILLED, [origin]).fetchall()}

    def check(self) -> None:
        """Of the runs for one thing, at most one is live or completed."""
        twice = {thing: runs for thing, runs in self._standing().items() if len(runs) > 1}
        assert not twice, f"these are run twice: {twice}"

    def _standing(self) -> defaultdict[Thing, list[UUID]]:
        standing: defaultdict[Thing, list[UUID]] = defaultdict(list)
        for run_id, *about in self.world.admin.execute(_STANDING).fetchall():
            standing[self._thing(run_id, *about)].append(run_id)
        return standing

    def _thing(self, run_id: UUID, trigger: str, schedule_id: int | None, scheduled_for: datetime) -> Thing:
        if run_id in self.things:
            return self.things[run_id]
        if schedule_id is not None and trigger in _OF_OCCURRENCES:
            return schedule_id, scheduled_for
        return run_id

    def _counted(self) -> tuple[int, int]:
        """Runs; and what is kept about retries and backfills."""
        row = self.world.admin.execute(_COUNT).fetchone()
        assert row is not None
        return row[0], row[1]


def _run_id(run: Run) -> bytes:
    return run.run_id.bytes
