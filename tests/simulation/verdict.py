"""Holds what the database says against what was owed: nothing missing, twice or early, nothing that was not owed, and
nothing skipped or missed but as the policies say."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import defaultdict
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, NamedTuple

import psycopg

from scheduler_service.domain.job import Policies
from scheduler_service.domain.names import JobName, ScheduleName
from scheduler_service.domain.overlap import Overlap
from scheduler_service.domain.timing import CatchUp
from tests.simulation.diary import Diary, Timing

ON_TIME = timedelta(seconds=60)
_NAMES = """
select s.schedule_id, j.service, j.job, s.tenant_id, s.schedule
from carillon.schedules s join carillon.jobs j using (job_id)"""
_RUNS = """
select schedule_id, scheduled_for, revision, state::text, trigger::text, run_after, created_at, finished_at, started_at,
  attempt
from carillon.runs where schedule_id is not null
union all
select schedule_id, scheduled_for, revision, 'LIVE', trigger::text, run_after, created_at, null, claimed_at,
  attempt
from carillon.live_runs where schedule_id is not null
order by 1, 2"""
_GAPS = """
select schedule_id, first_at, last_at, occurrences, reason, revision, recorded_at
from carillon.gaps order by schedule_id, first_at"""
_REVISIONS = "select schedule_id, revision, cron, time_zone, phase from carillon.schedule_revisions"
Owed = dict[ScheduleName, list[tuple[datetime, Timing]]]


class Run(NamedTuple):
    schedule_id: int
    instant: datetime
    revision: int
    state: str
    trigger: str
    run_after: datetime
    created_at: datetime
    finished_at: datetime | None
    started_at: datetime | None
    attempt: int

    @property
    def late(self) -> timedelta | None:
        """How late it was made, jitter counted. None if a retry has overwritten when it was to start."""
        return self.created_at - self.run_after if self.attempt <= 1 else None


class Gap(NamedTuple):
    schedule_id: int
    first: datetime
    last: datetime
    missed: int
    reason: str
    revision: int
    recorded_at: datetime


@dataclass
class Verdict:
    """What was found. `wrong` has a sentence for each thing that must not be; `found`, what each schedule's occurrences
    became."""

    schedules: int
    occurrences: int = 0
    counts: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    outcomes: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    wrong: list[str] = field(default_factory=list)
    found: dict[ScheduleName, dict[datetime, str]] = field(default_factory=lambda: defaultdict(dict))

    def add(self, kind: str, sentence: str) -> None:
        self.counts[kind] += 1
        self.wrong.append(f"{kind}: {sentence}")

    def line(self, diary: Diary) -> str:
        """The last line of a simulation."""
        done = " ".join(f"{name}={diary.counts[name]}" for name in ("edits", "pauses", "outages"))
        found = " ".join(f"{name}={self.counts[name]}" for name in ("missing", "twice", "early", "unowed"))
        return f"schedules={self.schedules} occurrences={self.occurrences} {done} {found}"


def judge(admin: psycopg.Connection[Any], diary: Diary, owed: Owed) -> Verdict:
    names = {row[0]: ScheduleName(JobName(row[1], row[2]), row[3], row[4]) for row in admin.execute(_NAMES)}
    revisions = {(row[0], row[1]): row[2:] for row in admin.execute(_REVISIONS)}
    verdict = Verdict(len(owed))
    cases = {name: _Schedule(name, diary, occurrences, verdict, revisions) for name, occurrences in owed.items()}
    for row in admin.execute(_RUNS):
        cases[names[row[0]]].add(Run(*row))
    for row in admin.execute(_GAPS):
        cases[names[row[0]]].gaps.append(Gap(*row))
    for case in cases.values():
        case.judge()
    return verdict


@dataclass
class _Schedule:
    """Everything of one name: of several schedules, if they were deleted and put again. `runs` are those that were
    owed, `by_hand` the others."""

    name: ScheduleName
    diary: Diary
    owed: list[tuple[datetime, Timing]]
    verdict: Verdict
    revisions: dict[tuple[int, int], tuple[Any, ...]]
    runs: list[Run] = field(default_factory=list)
    by_hand: list[Run] = field(default_factory=list)
    gaps: list[Gap] = field(default_factory=list)

    def add(self, run: Run) -> None:
        (self.by_hand if run.trigger in ("MANUAL", "BACKFILL") else self.runs).append(run)

    def judge(self) -> None:
        self.instants = [instant for instant, _ in self.owed]
        self.timings = dict(self.owed)
        self.verdict.occurrences += len(self.instants)
        self._each_has_one_outcome()
        for run in self.runs:
            self._judge_run(run)
        for gap in self.gaps:
            self._judge_gap(gap)
        self._judge_skips()

    def _wrong(self, kind: str, sentence: str) -> None:
        self.verdict.add(kind, f"{self.name} {sentence}")

    def _policies(self, at: datetime) -> Policies:
        return self.diary.policies(self.name.job, at)

    def _each_has_one_outcome(self) -> None:
        outcomes: dict[datetime, int] = defaultdict(int)
        for run in self.runs:
            outcomes[run.instant] += 1
            self.verdict.found[self.name][run.instant] = run.state
            self.verdict.outcomes[run.state] += 1
            if run.instant not in self.timings:
                self._wrong("unowed", f"{run}")
        for gap in self.gaps:
            within = self._within(gap)
            self.verdict.outcomes["MISSED"] += gap.missed
            for instant in within:
                outcomes[instant] += 1
                self.verdict.found[self.name][instant] = "MISSED"
            if len(within) != gap.missed or within[0] != gap.first or within[-1] != gap.last:
                kind = "unowed" if gap.missed > len(within) else "missing"
                self._wrong(kind, f"owed {len(within)} in {gap}")
        for instant in self.instants:
            if not outcomes[instant]:
                self._wrong("missing", f"{instant} of {self.timings[instant]}")
        for instant, number in outcomes.items():
            if number > 1:
                self._wrong("twice", f"{instant} has {number} outcomes")

    def _within(self, gap: Gap) -> list[datetime]:
        return self.instants[bisect_left(self.instants, gap.first) : bisect_right(self.instants, gap.last)]

    def _judge_run(self, run: Run) -> None:
        if run.created_at < run.instant or (run.started_at is not None and run.started_at < run.run_after):
            self._wrong("early", f"{run}")
        timing = self.timings.get(run.instant)
        said = self.revisions[run.schedule_id, run.revision]
        if timing is not None and said[:2] != (timing.cron, timing.time_zone):
            self._wrong("other revision", f"{run} is of {said}, and {timing} was in force")
        resumed = self.diary.resumption(self.name, run.created_at) is not None
        late = run.created_at - run.instant if resumed else run.late
        if late is not None and (late >= ON_TIME) != (run.trigger == "CATCH_UP"):
            self._wrong("trigger", f"{run} is {late} late")
        if run.trigger == "CATCH_UP":
            self._judge_caught_up(run)

    def _judge_caught_up(self, run: Run) -> None:
        policies = self._policies(run.created_at)
        resumption = self.diary.resumption(self.name, run.created_at)
        policy = resumption.policy if resumption else policies.catch_up
        late = run.created_at - run.instant if resumption else run.late
        if policy is CatchUp.NONE or (resumption is not None and run.instant <= resumption.since):
            self._wrong("caught up", f"{run}, and the policy was NONE, or it was of an old revision: {resumption}")
        # A change makes what only waits for its jitter, too; that one has not come due yet.
        if policy is CatchUp.LATEST and any(newer.run_after <= newer.created_at for newer in self._beside(run)):
            self._wrong("caught up", f"{run} is not the latest")
        assert policies.catch_up_window is not None
        if late is not None and late > policies.catch_up_window:
            self._wrong("caught up", f"{run} is outside of {policies.catch_up_window}")

    def _beside(self, run: Run) -> list[Run]:
        """Runs for later occurrences that were made at the same moment."""
        return [each for each in self.runs if each.instant > run.instant and each.created_at == run.created_at]

    def _has_stand_in(self, gap: Gap) -> bool:
        """Whether a run for a later occurrence was made when it was recorded, or stood already, made by hand."""
        runs = [(run.instant, run.created_at) for run in self.runs]
        remedied = [(each.first, each.recorded_at) for each in self.gaps if each.reason == "REMEDIED"]
        return any(instant > gap.last and at == gap.recorded_at for instant, at in [*runs, *remedied])

    def _was_made_by_hand(self, gap: Gap) -> bool:
        """Whether each of its occurrences has a run that was asked for before it was recorded."""
        made = {run.instant for run in self.by_hand if run.created_at <= gap.recorded_at}
        return all(instant in made for instant in self._within(gap))

    def _judge_gap(self, gap: Gap) -> None:
        if gap.last > gap.recorded_at:
            self._wrong("early", f"{gap}")
        policies = self._policies(gap.recorded_at)
        resumption = self.diary.resumption(self.name, gap.recorded_at)
        policy = resumption.policy if resumption else policies.catch_up
        late = gap.recorded_at - gap.last
        of_an_old_revision = resumption is not None and gap.last <= resumption.since
        assert policies.catch_up_window is not None
        right = {
            "CATCH_UP_NONE": policy is CatchUp.NONE or of_an_old_revision,
            "CATCH_UP_LATEST": policy is CatchUp.LATEST and self._has_stand_in(gap),
            "REMEDIED": resumption is not None and self._was_made_by_hand(gap),
            # Nothing is caught up from before the month before either.
            "OUTSIDE_WINDOW": late > min(policies.catch_up_window, timedelta(days=28)),
        }
        may_be_early = of_an_old_revision or gap.reason == "REMEDIED"
        if (late < ON_TIME and not may_be_early) or not right[gap.reason]:
            self._wrong("missed", f"{gap}, {late} late, {policy} {policies.catch_up_window} {resumption}")

    def _judge_skips(self) -> None:
        """An occurrence is skipped only where an earlier one was live, or two of them for BUFFER_ONE."""
        for run in self.runs:
            if run.state != "SKIPPED":
                continue
            overlap = self._policies(run.created_at).overlap
            least = {Overlap.SKIP: 1, Overlap.BUFFER_ONE: 2}.get(overlap or Overlap.SKIP)
            if least is None:
                self._wrong("skipped", f"{run}, and the policy was {overlap}")
            elif len(self._live_at(run)) < least:
                self._wrong("skipped", f"{run}, and {len(self._live_at(run))} were live")
            if run.trigger != "SCHEDULE":
                self._wrong("skipped", f"{run} was caught up")

    def _live_at(self, skipped: Run) -> list[Run]:
        """Those that were live when it was skipped."""
        at = skipped.created_at
        return [
            run
            for run in [*self.runs, *self.by_hand]
            if run.schedule_id == skipped.schedule_id
            and run.state != "SKIPPED"
            and run.created_at <= at
            and (run.finished_at is None or run.finished_at >= at)
            and run.instant != skipped.instant
        ]
