"""Transactions of Carillon's: held up by locks, ended by a deadlock, made to give way, cancelled."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any, LiteralString

import psycopg

from scheduler_service.store.logins import API_ROLE, ENGINE_ROLE
from tests.faults.breaking import Break
from tests.faults.names import POSTGRES
from tests.faults.site import Site

Admin = psycopg.Connection[Any]

_LIVE_RUNS_LOCKED = "live runs locked"
_SCHEDULES_LOCKED = "schedules locked"
_SESSIONS_LOCKED = "sessions locked"
NO_DEADLOCK = "locks taken in the opposite order"
"""What was to be a deadlock, and nobody had what was wanted."""
_DEADLOCK = "deadlock"
_GIVES_WAY = "serialization failures"
_CANCELLED = "statements cancelled"
_IN_THE_WAY = (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected)

# Some of ours give way before a deadlock is looked for, where that takes its usual second.
_SOON: LiteralString = "alter system set deadlock_timeout = '100ms'"
_AS_IT_WAS: LiteralString = "alter system reset deadlock_timeout"
_TRIES = 6

_ROLES = {"roles": [API_ROLE, ENGINE_ROLE]}
_WAITS_FOR_US: LiteralString = """
select from pg_stat_activity where usename = any(%(roles)s) and pg_backend_pid() = any(pg_blocking_pids(pid)) limit 1"""
_CANCEL_ONE: LiteralString = """
select pg_cancel_backend(pid) from pg_stat_activity
where usename = any(%(roles)s) and state = 'active' and query not ilike 'listen %%' limit 1"""
# What a serializable transaction of somebody else would do to them, a deadlock among it.
_PLANTED: LiteralString = """
create function public.give_way() returns trigger language plpgsql as $$
begin
  if random() < 0.15 then
    raise exception 'made by the fault harness'
      using errcode = case when random() < 0.7 then '40001' else '40P01' end;
  end if;
  if tg_op = 'DELETE' then
    return old;
  end if;
  return new;
end $$;
create trigger give_way before insert or update or delete on carillon.live_runs
  for each row execute function public.give_way()"""
_UPROOTED: LiteralString = """
drop trigger if exists give_way on carillon.live_runs;
drop function if exists public.give_way"""


async def table_locked(site: Site, random: Random, _target: str) -> None:
    await _stalled(site, random, _LIVE_RUNS_LOCKED, "lock table carillon.live_runs in access exclusive mode")


async def schedules_locked(site: Site, random: Random, _target: str) -> None:
    await _stalled(site, random, _SCHEDULES_LOCKED, "select from carillon.schedules order by schedule_id for update")


async def session_rows_locked(site: Site, random: Random, _target: str) -> None:
    await _stalled(site, random, _SESSIONS_LOCKED, "select from carillon.sessions order by session_id for update")


async def deadlocked(site: Site, _random: Random, _target: str) -> None:
    """Somebody has the runs that workers hold, and then wants their sessions and schedules, which everybody else locks
    before. PostgreSQL ends who notices first: it is never this one, which is more patient."""
    with site.journal.fault(NO_DEADLOCK, POSTGRES) as fault:
        log = site.server.log_path
        before = _deadlocks(log)
        try:
            await site.as_admin(lambda admin: _set_for_all(admin, _SOON))
            for _ in range(_TRIES):
                await site.as_admin(_lock_in_the_opposite_order)
                if _deadlocks(log) > before:
                    fault.kind = _DEADLOCK
                    break
        finally:
            await site.as_admin(lambda admin: _set_for_all(admin, _AS_IT_WAS))
        await answers(site)


async def made_to_give_way(site: Site, random: Random, _target: str) -> None:
    """By a trigger, in the middle of what is about live runs, for some of them."""
    with site.journal.fault(_GIVES_WAY, POSTGRES):
        try:
            await site.as_admin(lambda admin: _until_it_has_the_lock(admin, _PLANTED))
            await asyncio.sleep(random.uniform(3, 6))
        finally:
            await site.as_admin(lambda admin: _until_it_has_the_lock(admin, _UPROOTED))
        # One that began meanwhile does not serve with a trigger that is not Carillon's.
        await schedulers_ready(site)


async def cancelled(site: Site, random: Random, _target: str) -> None:
    """One after another, whichever is at work."""

    def cancel(admin: Admin) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            admin.execute(_CANCEL_ONE, _ROLES)
            time.sleep(0.02)

    seconds = random.uniform(2, 5)
    with site.journal.fault(_CANCELLED, POSTGRES):
        await site.as_admin(cancel)
        await answers(site)


BREAKS = (
    Break((_LIVE_RUNS_LOCKED,), (POSTGRES,), table_locked),
    Break((_SCHEDULES_LOCKED,), (POSTGRES,), schedules_locked),
    Break((_SESSIONS_LOCKED,), (POSTGRES,), session_rows_locked),
    Break((_DEADLOCK,), (POSTGRES,), deadlocked),
    Break((_GIVES_WAY,), (POSTGRES,), made_to_give_way),
    Break((_CANCELLED,), (POSTGRES,), cancelled),
)


async def answers(site: Site) -> None:
    """Once PostgreSQL does. What its clients then do about it is their recovery, and no fault any more."""
    await site.rows("select 1")


async def schedulers_ready(site: Site) -> None:
    for name in site.schedulers():
        await site.settled(name)


async def _stalled(site: Site, random: Random, kind: str, statement: LiteralString) -> None:
    """A transaction of somebody else takes locks and does not go on."""

    def lock(admin: Admin) -> None:
        with suppress(*_IN_THE_WAY), admin.transaction():
            admin.execute("set local lock_timeout = '5s'")
            admin.execute(statement)
            time.sleep(seconds)

    seconds = random.uniform(1, 6)
    with site.journal.fault(kind, POSTGRES):
        await site.as_admin(lock)
        await answers(site)


def _lock_in_the_opposite_order(admin: Admin) -> None:
    with suppress(*_IN_THE_WAY), admin.transaction():
        admin.execute("set local deadlock_timeout = '1min'")
        admin.execute("set local lock_timeout = '5s'")
        admin.execute("select from carillon.live_runs where session_id is not null for update")
        if _within(3.0, lambda: admin.execute(_WAITS_FOR_US, _ROLES).fetchone() is not None):
            admin.execute("select from carillon.sessions order by session_id for update")
            admin.execute("select from carillon.schedules order by schedule_id for update")


def _set_for_all(admin: Admin, statement: LiteralString) -> None:
    admin.execute(statement)
    admin.execute("select pg_reload_conf()")


def _within(seconds: float, holds: Callable[[], bool]) -> bool:
    until = time.monotonic() + seconds
    while not (held := holds()) and time.monotonic() < until:
        time.sleep(0.02)
    return held


def _deadlocks(log: Path) -> int:
    """Those that PostgreSQL has found since it was first started."""
    return log.read_text(errors="replace").count("ERROR:  deadlock detected")


def _until_it_has_the_lock(admin: Admin, statements: LiteralString) -> None:
    while True:
        with suppress(*_IN_THE_WAY), admin.transaction():
            admin.execute("set local lock_timeout = '2s'")
            admin.execute(statements)
            return
