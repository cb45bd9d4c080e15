"""Schedules that a week's outage left overdue, and what they owed by PostgreSQL's reckoning: none of it is computed by
what is measured."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from benchmarks.place import Place

WEEK = timedelta(days=7)

# Clocks that never change, so that PostgreSQL and Carillon need no agreement on hours that are shown twice or never.
ZONES = ("UTC", "Asia/Kolkata", "Asia/Tokyo", "America/Bogota", "Africa/Lagos")

# Six in ten catch up with the latest, three with none, one with all of the last hour. No session serves their route:
# their runs wait, so that what is measured is settling.
_JOBS = """
insert into carillon.jobs (service, job, declared, route, overlap, catch_up, catch_up_window, attempt_timeout,
  run_timeout, cancel_grace, max_attempts, retry_delay, tenant_schedules, labels, config, generation, owed_from,
  created_at, updated_at)
select service, lower(policy), declared, 'handler/bench/' || lower(policy), 'ALLOW_ALL', policy::carillon.catch_up,
  case policy when 'ALL' then interval '1 h' else interval '1 d' end, attempt_timeout, run_timeout, cancel_grace,
  max_attempts, retry_delay, tenant_schedules, labels, config, generation, owed_from, created_at, updated_at
from carillon.jobs, unnest(array['LATEST', 'NONE', 'ALL']) policy where job = 'noop'"""

# Each timing: at a minute of each hour from the first to the last, daily or on one day of the week; 35,280 differ.
_TIMINGS = """
create temporary table timings as
select n, n %% 60 as minute, n / 60 %% 12 as first_hour, 12 + n / 720 %% 7 as last_hour,
  nullif(n / 5040 %% 7, 0) as weekday
from generate_series(0, %(expressions)s - 1) n"""

_OWED = """
create function pg_temp.owed(timing timings, zone text, after timestamptz, until timestamptz)
returns setof timestamptz language sql stable as $$
  select instant from (
    select (day + make_time(hour, timing.minute, 0)) at time zone zone as instant
    from generate_series(date_trunc('day', after at time zone zone), until at time zone zone, interval '1 d') day,
      generate_series(timing.first_hour, timing.last_hour) hour
    where timing.weekday is null or extract(dow from day) = timing.weekday) o
  where instant > after and instant <= until
$$"""

_OVERDUE = """
create temporary table overdue as
with made as (
  insert into carillon.schedules (job_id, tenant_id, schedule, timing, enabled, cron, time_zone, gap, repeat, phase,
    jitter, settled_to, next_run_at, created_at, created_by, updated_at, updated_by)
  select (select job_id from carillon.jobs where job = case when number %% 10 < 6 then 'latest'
      when number %% 10 < 9 then 'none' else 'all' end), '-', 'overdue-' || number, '{}', true,
    format('%%s %%s-%%s * * %%s', t.minute, t.first_hour, t.last_hour, coalesce(t.weekday::text, '*')), z.zone,
    'SHIFT', 'FIRST', '0', '0', since, (select min(o) from pg_temp.owed(t, z.zone, since, since + interval '8 d') o),
    since, 'bench', since, 'bench'
  from generate_series(0, %(schedules)s - 1) number
  join timings t on t.n = number %% %(expressions)s
  cross join lateral (
    select (%(zones)s::text[])[1 + number / %(expressions)s %% array_length(%(zones)s::text[], 1)] as zone) z
  cross join (select now() - %(outage)s::interval as since) outage
  returning schedule_id, schedule, settled_to, time_zone
)
select schedule_id, time_zone, settled_to, split_part(schedule, '-', 2)::int %% %(expressions)s as n from made"""

_ANALYZE = "create index on overdue (schedule_id); analyze timings; analyze overdue; analyze carillon.schedules"

# Of each schedule: everything owed up to where it stands is a run or in a gap, none is both or twice, and nothing more
# was owed when it was settled.
_WRONG = """
with runs as (
  select schedule_id, count(*) as runs, count(distinct scheduled_for) as instants, min(scheduled_for) as first_at
  from carillon.live_runs group by schedule_id
),
missed as (
  select schedule_id, sum(occurrences) as missed, min(first_at) as first_at, max(last_at) as last_at
  from carillon.gaps group by schedule_id
)
select count(*), count(*) filter (where coalesce(r.runs, 0) + coalesce(m.missed, 0) <> owed.count
    or r.runs <> r.instants or r.first_at <= m.last_at or m.first_at <= o.settled_to
    or s.next_run_at is null or s.next_run_at < %(began)s),
  sum(r.runs)::bigint, sum(m.missed)::bigint
from overdue o join carillon.schedules s using (schedule_id) join timings t using (n)
cross join lateral (select count(*) from pg_temp.owed(t, o.time_zone, o.settled_to, s.settled_to)) owed
left join runs r using (schedule_id) left join missed m using (schedule_id)"""


@dataclass(frozen=True)
class Found:
    """What the records say. `wrong`: schedules whose runs and gaps are not what was owed."""

    schedules: int
    wrong: int
    runs: int
    missed: int


@dataclass(frozen=True)
class Overdue:
    """The overdue schedules of a place."""

    place: Place

    def make(self, schedules: int, expressions: int) -> None:
        values = {"schedules": schedules, "expressions": expressions, "zones": list(ZONES), "outage": WEEK}
        with self.place.admin.transaction():
            self.place.admin.execute(_JOBS)
            self.place.admin.execute(_TIMINGS, values)
            self.place.admin.execute(_OWED.encode())
            self.place.admin.execute(_OVERDUE, values)
        self.place.admin.execute(_ANALYZE.encode())

    def is_settled(self) -> bool:
        row = self.place.admin.execute(
            "select extract(epoch from now() - min(next_run_at)) < 60 from carillon.schedules"
        ).fetchone()
        return row is not None and row[0]

    def found(self, began: object) -> Found:
        row = self.place.admin.execute(_WRONG, {"began": began}).fetchone()
        assert row is not None
        return Found(*(int(each or 0) for each in row))
