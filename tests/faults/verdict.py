"""Whether every occurrence became exactly one run that was carried out: records in SQL beside the effects in files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg

# What the job's schedules owed, from the database's own books, without asking the code that settles: each whole
# second after the job was resumed, up to when it was paused.
_OWED = """
owed as (
  select s.schedule_id, instant
  from carillon.schedules s join carillon.jobs j using (job_id),
    generate_series(date_trunc('second', j.owed_from) + interval '1 second', j.paused_at, interval '1 second') instant
  where s.enabled
),
recorded as (select schedule_id, scheduled_for as instant from carillon.runs where schedule_id is not null)
"""
_RECORDS = f"""
with {_OWED}
select
  (select count(*) from carillon.schedules),
  (select count(*) from owed),
  (select count(*) from recorded),
  (select count(*) from carillon.runs where state = 'COMPLETED'),
  (select count(*) from (select * from owed except select * from recorded) missing),
  (select count(*) - count(distinct (schedule_id, instant)) from recorded),
  (select count(*) from (select * from recorded except select * from owed) surplus),
  (select count(*) from carillon.live_runs),
  (select count(*) from carillon.gaps),
  (select coalesce(extract(epoch from
     percentile_cont(0.99) within group (order by started_at - scheduled_for)), 0)::float8 from carillon.runs)
"""
_COMPLETED = "select run_id::text from carillon.runs where state = 'COMPLETED'"


@dataclass(frozen=True)
class Records:
    """Counts of what the database says. From `missing` on, each must be 0, but for the last."""

    schedules: int
    occurrences: int
    runs: int
    completed: int
    missing: int
    twice: int
    surplus: int
    live: int
    gaps: int
    late_p99: float

    @property
    def are_whole(self) -> bool:
        wrong = self.missing or self.twice or self.surplus or self.live or self.gaps
        return not wrong and 0 < self.occurrences == self.runs == self.completed


@dataclass(frozen=True)
class Effects:
    """Counts of what the workers did, beside the records. All but the last must be 0.

    A repeat is a second effect of one run; one is explained if the first was by a worker that was killed.
    """

    without_run: int
    runs_without: int
    unexplained_repeats: int
    repeats: int

    @property
    def agree(self) -> bool:
        return not (self.without_run or self.runs_without or self.unexplained_repeats)


@dataclass(frozen=True)
class Verdict:
    records: Records
    effects: Effects

    @property
    def passes(self) -> bool:
        return self.records.are_whole and self.effects.agree

    def details(self) -> str:
        records, effects = self.records, self.effects
        return (
            f"not owed={records.surplus} live={records.live} gaps={records.gaps}"
            f" effects without a run={effects.without_run} runs without an effect={effects.runs_without}"
            f" repeated effects={effects.repeats}, of these not by the kill={effects.unexplained_repeats}"
        )

    def line(self, seconds: float) -> str:
        found = self.records
        return (
            f"soak: schedules={found.schedules} seconds={seconds:g} occurrences={found.occurrences} runs={found.runs}"
            f" completed={found.completed} missing={found.missing} twice={found.twice} late_p99={found.late_p99:.3f}s"
            f" verdict={'pass' if self.passes else 'FAIL'}"
        )


def judge(admin: psycopg.Connection[Any], effects: Mapping[str, Path], killed: Collection[str] = ()) -> Verdict:
    """Compares once everything has ended. `effects`: each worker's file; `killed`: the workers that were."""
    completed = {run for (run,) in admin.execute(_COMPLETED)}
    return Verdict(count_records(admin), _compare(completed, effects, killed))


def count_records(admin: psycopg.Connection[Any]) -> Records:
    counts = admin.execute(_RECORDS).fetchone()
    assert counts is not None
    return Records(*counts)


def _compare(completed: set[str], effects: Mapping[str, Path], killed: Collection[str]) -> Effects:
    seen = {worker: _runs_of(file) for worker, file in effects.items()}
    total = sum(seen.values(), Counter[str]())
    by_survivors = sum((runs for worker, runs in seen.items() if worker not in killed), Counter[str]())
    return Effects(
        without_run=len(total.keys() - completed),
        runs_without=len(completed - total.keys()),
        unexplained_repeats=sum(_is_unexplained(count, by_survivors[run]) for run, count in total.items()),
        repeats=sum(count - 1 for count in total.values()),
    )


def _is_unexplained(effects: int, by_survivors: int) -> bool:
    """A run may have one effect more than one, and that by a worker that was killed before its result counted."""
    return by_survivors > 1 or effects - by_survivors > 1


def _runs_of(file: Path) -> Counter[str]:
    """The runs that a worker's file names. A last line without its end was not yet written when it was killed."""
    lines = file.read_text().split("\n")[:-1] if file.exists() else []
    return Counter(line.split()[0] for line in lines)
