"""PostgreSQL: backends ended or frozen, the server stopped and restarted, sessions gone, connections used up."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from random import Random

import psycopg

from scheduler_service.store.logins import API_ROLE, ENGINE_ROLE
from tests.faults.breaking import Break
from tests.faults.breaking_transactions import answers, schedulers_ready
from tests.faults.names import POSTGRES
from tests.faults.site import Site

BACKEND_KILLED = "database backend killed"
_BACKENDS_KILLED = "database backends killed, several"
_LISTENER_KILLED = "LISTEN backend killed"
_STOPPED = "database stopped at once"
_RESTARTED = "database restarted"
_BACKEND_FROZEN = "database backend frozen"
_PRUNED = "session rows pruned"
_USED_UP = "connections used up"

_OURS = "select pid from pg_stat_activity where usename = any(%(roles)s)"
_IN_A_TRANSACTION = _OURS + " and state <> 'idle' and pid <> pg_backend_pid()"
_LISTENING = _OURS + " and query ilike 'listen %%'"
_ROLES = {"roles": [API_ROLE, ENGINE_ROLE]}
_STOPPED_WITHIN = 30.0


async def backend_killed(site: Site, random: Random, _target: str) -> None:
    await _end_backends(site, random, BACKEND_KILLED, _OURS, 1)


async def backends_killed(site: Site, random: Random, _target: str) -> None:
    await _end_backends(site, random, _BACKENDS_KILLED, _OURS, 6)


async def listener_killed(site: Site, random: Random, _target: str) -> None:
    await _end_backends(site, random, _LISTENER_KILLED, _LISTENING, 3)


async def stopped_at_once(site: Site, random: Random, _target: str) -> None:
    """SIGQUIT: no checkpoint, and recovery at the start."""
    with site.journal.fault(_STOPPED, POSTGRES, kill=True):
        pid = site.server.pid
        assert pid is not None
        os.kill(pid, signal.SIGQUIT)
        async with asyncio.timeout(_STOPPED_WITHIN):
            while site.server.pid is not None:  # noqa: ASYNC110 - another process
                await asyncio.sleep(0.05)
        await asyncio.sleep(random.uniform(0, 4))
        await asyncio.to_thread(site.server.start)
        await schedulers_ready(site)


async def restarted(site: Site, random: Random, _target: str) -> None:
    """A fast shutdown: connections are cut, transactions rolled back."""
    with site.journal.fault(_RESTARTED, POSTGRES, kill=True):
        await asyncio.to_thread(site.server.stop)
        await asyncio.sleep(random.uniform(0, 2))
        await asyncio.to_thread(site.server.start)
        await schedulers_ready(site)


async def backend_frozen(site: Site, random: Random, _target: str) -> None:
    """In the middle of a statement or transaction, where one is there: its locks stay."""
    with site.journal.fault(_BACKEND_FROZEN, POSTGRES):
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
        await answers(site)


async def sessions_pruned(site: Site, random: Random, _target: str) -> None:
    """A hand in the database removes the rows before anybody freed what they held."""
    with site.journal.fault(_PRUNED, POSTGRES):
        await site.as_admin(lambda admin: admin.execute("delete from carillon.sessions"))
        await answers(site)


async def connections_used_up(site: Site, random: Random, _target: str) -> None:
    """And some of ours lost, which cannot come back before there is room."""
    with site.journal.fault(_USED_UP, POSTGRES):
        taken = await asyncio.to_thread(_take_all, site.urls.api)
        try:
            pids = _some(random, await _backends(site, _OURS), 3)
            await site.rows("select pg_terminate_backend(pid) from unnest(%s::int[]) as pid", [pids])
            await asyncio.sleep(random.uniform(2, 6))
        finally:
            taken.close()
        await schedulers_ready(site)


BREAKS = (
    Break((_BACKENDS_KILLED,), (POSTGRES,), backends_killed),
    Break((_LISTENER_KILLED,), (POSTGRES,), listener_killed),
    Break((_STOPPED,), (POSTGRES,), stopped_at_once),
    Break((_RESTARTED,), (POSTGRES,), restarted),
    Break((_BACKEND_FROZEN,), (POSTGRES,), backend_frozen),
    Break((_PRUNED,), (POSTGRES,), sessions_pruned),
    Break((_USED_UP,), (POSTGRES,), connections_used_up),
)


async def _end_backends(site: Site, random: Random, kind: str, which: str, most: int) -> None:
    """What was under way is tried again at once, on another connection."""
    with ExitStack() as faults:
        pids = await _backends(site, which)
        for pid in _some(random, pids, most):
            faults.enter_context(site.journal.fault(kind, POSTGRES, kill=True, cuts_nothing=True))
            await site.rows("select pg_terminate_backend(%s)", [pid])
        await answers(site)


def _some(random: Random, pids: Sequence[int], most: int) -> list[int]:
    return random.sample(pids, min(most, len(pids)))


async def _backends(site: Site, which: str) -> list[int]:
    return sorted(pid for (pid,) in await site.rows(which, _ROLES))


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
