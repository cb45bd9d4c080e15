"""S2 and S3: each occurrence that was owed has exactly one outcome, in the tables and in the ledger that the API reads;
and jitter moves when a run starts, never what it is for."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from uuid import UUID

from scheduler_service.domain.names import JobName, ScheduleName
from tests.simulation.ledger import judge_ledger
from tests.simulation.verdict import judge
from tests.store.model_owed import History, everything_owed, instants
from tests.store.model_world import World

_TICK = timedelta(microseconds=1)
_FAR = timedelta(days=2)
_SETTLED = """
select j.service, j.job, s.tenant_id, s.schedule, s.settled_to
from carillon.schedules s join carillon.jobs j using (job_id) where s.deleted_at is null"""
_STARTS = """
with every_run as (
  select run_id, schedule_id, scheduled_for, run_after, trigger, attempt from carillon.runs
  union all
  select run_id, schedule_id, scheduled_for, run_after, trigger, attempt from carillon.live_runs
)
select r.run_id, r.schedule_id, j.service, j.job, s.tenant_id, s.schedule, r.scheduled_for, r.run_after
from every_run r join carillon.schedules s using (schedule_id) join carillon.jobs j using (job_id)
where r.trigger in ('SCHEDULE', 'CATCH_UP') and r.attempt = 1"""


@dataclass
class Ledger:
    """What was owed, against what is recorded. `shares`: between which two numbers lies each schedule's share of its
    jitter, as far as its runs have shown."""

    world: World
    history: History
    shares: dict[int, tuple[Fraction, Fraction]] = field(default_factory=dict)
    seen: set[UUID] = field(default_factory=set)

    def check(self) -> None:
        """At any time: what was owed up to where a schedule is settled has an outcome, and nothing beyond."""
        rows = self.world.admin.execute(_SETTLED).fetchall()
        settled = {ScheduleName(JobName(row[0], row[1]), row[2], row[3]): row[4].astimezone(UTC) for row in rows}
        now = self.world.now
        owed = everything_owed(self.world.diary, lambda name: min(now, settled.get(name, now)))
        verdict = judge(self.world.admin, self.world.diary, owed)
        assert not verdict.wrong, verdict.wrong
        self._check_jitter()

    async def check_all(self) -> int:
        """Once everything is settled. Answers how many occurrences were owed."""
        world = self.world
        owed = everything_owed(world.diary, lambda _: world.now)
        verdict = judge(world.admin, world.diary, owed)
        await judge_ledger(world.urls, owed, world.start, world.now, verdict)
        assert not verdict.wrong, verdict.wrong
        self._check_jitter()
        return verdict.occurrences

    def _check_jitter(self) -> None:
        """A run starts the same share of its jitter, or of the time to the next occurrence, after its instant."""
        for run_id, schedule_id, *name, instant, run_after in self.world.admin.execute(_STARTS).fetchall():
            if run_id in self.seen:
                continue
            self.seen.add(run_id)
            room = self._room(ScheduleName(JobName(*name[:2]), *name[2:]), instant.astimezone(UTC))
            if not room:
                assert run_after == instant, f"{run_id} has no jitter, and starts {run_after - instant} late"
                continue
            late = (run_after - instant) // _TICK
            least, most = self.shares.get(schedule_id, (Fraction(0), Fraction(1)))
            least, most = max(least, Fraction(late, room // _TICK)), min(most, Fraction(late + 1, room // _TICK))
            assert least < most, f"{run_id} starts {run_after - instant} late, of at most {room}: others do otherwise"
            self.shares[schedule_id] = least, most

    def _room(self, name: ScheduleName, instant: datetime) -> timedelta:
        said = self.history.said_at(name, instant)
        following = next(instants(said.timing, instant, instant + _FAR), None)
        return said.jitter if following is None else min(said.jitter, following - instant)
