"""PostgreSQL: backends ended or frozen, the server stopped and restarted, locks that stay, connections used up."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from contextlib import ExitStack, suppress
from random import Random
from typing import Any

import psycopg

from scheduler_service.store.logins import API_ROLE, ENGINE_ROLE
from tests.faults.breaking import Break
from tests.faults.site import POSTGRES, Site

_OURS = "select pid from pg_stat_activity where usename = any(%(roles)s)"
_IN_A_TRANSACTION = _OURS + " and state <> 'idle' and pid <> pg_backend_pid()"
_LISTENING = _OURS + " and query ilike 'listen %%'"
_ROLES = {"roles": [API_ROLE, ENGINE_ROLE]}
_STOPPED_WITHIN = 30.0


async def backend_killed(site: Site, random: Random, _target: str) -> None:
    await _end_backends(site, random, "database backend killed", _OURS, 1)


async def backends_killed(site: Site, random: Random, _target: str) -> None:
    await _end_backends(site, random, "database backends killed, several", _OURS, 6)


async def listener_killed(site: Site, random: Random, _target: str) -> None:
    await _end_backends(site, random, "LISTEN backend killed", _LISTENING, 3)


async def stopped_at_once(site: Site, random: Random, _target: str) -> None:
    """SIGQUIT: no checkpoint, and recovery at the start."""
    with site.journal.fault("database stopped at once", POSTGRES, kill=True):
        pid = site.server.pid
        assert pid is not None
        os.kill(pid, signal.SIGQUIT)
        async with asyncio.timeout(_STOPPED_WITHIN):
            while site.server.pid is not None:  # noqa: ASYNC110 - another process
                await asyncio.sleep(0.05)
        await asyncio.sleep(random.uniform(0, 4))
        await asyncio.to_thread(site.server.start)
        await _schedulers_ready(site)


async def restarted(site: Site, random: Random, _target: str) -> None:
    """A fast shutdown: connections are cut, transactions rolled back."""
    with site.journal.fault("database restarted", POSTGRES, kill=True):
        await asyncio.to_thread(site.server.stop)
        await asyncio.sleep(random.uniform(0, 2))
        await asyncio.to_thread(site.server.start)
        await _schedulers_ready(site)


async def backend_frozen(site: Site, random: Random, _target: str) -> None:
    """In the middle of a statement or transaction, where one is there: its locks stay."""
    with site.journal.fault("database backend frozen", POSTGRES):
        pid = await asyncio.to_thread(_find_busy, site.urls.admin)
        if pid is None:
            return
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
        try:
            await asyncio.sleep(random.uniform(2, 7))
        finally:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        await _answers(site)


async def table_locked(site: Site, random: Random, _target: str) -> None:
    await _stalled(site, random, "live runs locked", "lock table carillon.live_runs in access exclusive mode")


async def schedules_locked(site: Site, random: Random, _target: str) -> None:
    await _stalled(site, random, "schedules locked", "select from carillon.schedules order by schedule_id for update")


async def session_rows_locked(site: Site, random: Random, _target: str) -> None:
    await _stalled(site, random, "sessions locked", "select from carillon.sessions order by session_id for update")


async def sessions_pruned(site: Site, random: Random, _target: str) -> None:
    """A hand in the database removes the rows before anybody freed what they held."""
    with site.journal.fault("session rows pruned", POSTGRES):
        await site.as_admin(lambda admin: admin.execute("delete from carillon.sessions"))
        await _answers(site)


async def connections_used_up(site: Site, random: Random, _target: str) -> None:
    """And some of ours lost, which cannot come back before there is room."""
    with site.journal.fault("connections used up", POSTGRES):
        taken = await asyncio.to_thread(_take_all, site.urls.api)
        try:
            pids = random.sample(await _backends(site, _OURS), 3)
            await site.rows("select pg_terminate_backend(pid) from unnest(%s::int[]) as pid", [pids])
            await asyncio.sleep(random.uniform(2, 6))
        finally:
            taken.close()
        await _schedulers_ready(site)


BREAKS = tuple(
    Break(do.__name__, (POSTGRES,), do)
    for do in (
        backends_killed,
        listener_killed,
        stopped_at_once,
        restarted,
        backend_frozen,
        table_locked,
        schedules_locked,
        session_rows_locked,
        sessions_pruned,
        connections_used_up,
    )
)


async def _end_backends(site: Site, random: Random, kind: str, which: str, most: int) -> None:
    with ExitStack() as faults:
        pids = await _backends(site, which)
        for pid in random.sample(pids, min(most, len(pids))):
            faults.enter_context(site.journal.fault(kind, POSTGRES, kill=True))
            await site.rows("select pg_terminate_backend(%s)", [pid])
        await _answers(site)


async def _backends(site: Site, which: str) -> list[int]:
    return sorted(pid for (pid,) in await site.rows(which, _ROLES))


async def _stalled(site: Site, random: Random, kind: str, statement: str) -> None:
    """A transaction of somebody else takes locks and does not go on."""

    def lock(admin: psycopg.Connection[Any]) -> None:
        with suppress(psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected), admin.transaction():
            admin.execute("set local lock_timeout = '5s'")
            admin.execute(statement)
            time.sleep(seconds)

    seconds = random.uniform(1, 6)
    with site.journal.fault(kind, POSTGRES):
        await site.as_admin(lock)
        await _answers(site)


async def _answers(site: Site) -> None:
    """What its clients then do about it is their recovery, and no fault any more."""
    await site.rows("select 1")


async def _schedulers_ready(site: Site) -> None:
    for name in site.schedulers():
        await site.ready(name)


def _find_busy(url: str) -> int | None:
    """Looks for a moment for one that is in a transaction; else any."""
    with psycopg.connect(url, autocommit=True, connect_timeout=5) as admin:
        for _ in range(300):
            if found := admin.execute(_IN_A_TRANSACTION, _ROLES).fetchone():
                return int(found[0])
        found = admin.execute(_OURS, _ROLES).fetchone()
        return int(found[0]) if found else None


def _take_all(url: str) -> ExitStack:
    """Connections until no more is given."""
    taken = ExitStack()
    with suppress(psycopg.OperationalError):
        while True:
            taken.enter_context(psycopg.connect(url, connect_timeout=5))
    return taken
