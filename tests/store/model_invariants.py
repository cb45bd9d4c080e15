"""What the tables must never show, whatever was done (DESIGN's S1 and S4 to S6; S2 and S3 are in model_ledger)."""

from __future__ import annotations

from typing import Any

import psycopg

Kept = dict[tuple[str, str], str]
"""Of each record its digest, by its table and its key."""

# Each answers what must not be, in words.
_WRONG = """
with every_run as (
  select run_id, schedule_id, scheduled_for, trigger, attempt, max_attempts, created_at from carillon.runs
  union all
  select run_id, schedule_id, scheduled_for, trigger, attempt, max_attempts, created_at from carillon.live_runs
)
select 'S1: ' || count(*) || ' runs of schedule ' || schedule_id || ' for ' || scheduled_for from every_run
where trigger in ('SCHEDULE', 'CATCH_UP') group by schedule_id, scheduled_for having count(*) > 1
union all
select 'S5: run ' || run_id || ' is there ' || count(*) || ' times' from every_run group by run_id having count(*) > 1
union all
select 'S6: run ' || run_id || ' is in attempt ' || attempt || ' of ' || max_attempts from every_run
where attempt > max_attempts
union all
select 'S6: run ' || run_id || ' is in attempt ' || attempt || ', and failed were ' || coalesce(failed, '{}')::text
from every_run
left join (select run_id, array_agg(attempt::int order by attempt) failed from carillon.attempts group by 1) a
  using (run_id)
where coalesce(failed, '{}') <> array(select generate_series(1, attempt - 1))
union all
select 'S6: schedule ' || schedule_id || ' has ' || count(*) || ' claimed runs' from carillon.live_runs
where exclusive and session_id is not null and schedule_id is not null group by schedule_id having count(*) > 1
union all
select 'S6: schedule ' || schedule_id || ' has ' || count(*) || ' runs with the turn' from carillon.live_runs
where exclusive and not blocked and schedule_id is not null group by schedule_id having count(*) > 1
union all
select 'live: run ' || run_id || ' is blocked and claimed' from carillon.live_runs
where blocked and session_id is not null
union all
select 'live: run ' || run_id || ' is claimed by halves' from carillon.live_runs
where num_nonnulls(session_id, claim_id, claimed_at, deadline) not in (0, 4)
union all
select 'turn: of the runs of schedule ' || schedule_id || ' nobody has it' from carillon.live_runs
where exclusive and schedule_id is not null group by schedule_id having bool_and(blocked)
union all
select 'early: run ' || run_id || ' was claimed before it was due' from carillon.live_runs
where session_id is not null and claimed_at < run_after
union all
select 'alone: session ' || session_id || ' holds ' || count(*) || ' runs that are to be alone' from carillon.live_runs
where alone and session_id is not null group by session_id having count(*) > 1
union all
select 'alone: run ' || o.run_id || ' came beside ' || a.run_id from carillon.live_runs a
join carillon.live_runs o on o.session_id = a.session_id and o.claim_id > a.claim_id where a.alone
union all
select 'live: run ' || run_id || ' is held by no session' from carillon.live_runs l
where session_id is not null and not exists (select from carillon.sessions s where s.session_id = l.session_id)
union all
select 'early: run ' || run_id || ' was made before its time' from every_run
where trigger in ('SCHEDULE', 'CATCH_UP') and created_at < scheduled_for"""
_DIGESTS = """
select 'runs', run_id::text, md5(t::text) from carillon.runs t
union all
select 'attempts', run_id || '/' || attempt, md5(t::text) from carillon.attempts t
union all
select 'items', run_id || '/' || attempt || '/' || key, md5(t::text) from carillon.items t"""


def check(admin: psycopg.Connection[Any], kept: Kept) -> None:
    """`kept`: what was recorded before, which stays as it was; gets what is recorded now."""
    wrong = [sentence for (sentence,) in admin.execute(_WRONG).fetchall()]
    assert not wrong, wrong
    found = {(table, key): digest for table, key, digest in admin.execute(_DIGESTS).fetchall()}
    changed = [record for record, digest in kept.items() if found.get(record) != digest]
    assert not changed, f"S5: these records changed, or are gone: {changed}"
    kept.update(found)


def live_runs(admin: psycopg.Connection[Any]) -> list[str]:
    """Those that have not ended, in words."""
    return [row for (row,) in admin.execute("select t::text from carillon.live_runs t").fetchall()]
