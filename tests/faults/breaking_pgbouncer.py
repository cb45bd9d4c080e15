"""PgBouncer, by which one of the schedulers has its database: killed, restarted, frozen, paused."""

from __future__ import annotations

import asyncio
import signal
from random import Random

from tests.faults.breaking import Break
from tests.faults.names import BEHIND, PGBOUNCER
from tests.faults.site import Site

KILLED = "PgBouncer killed"
_RESTARTED = "PgBouncer restarted"
_FROZEN = "PgBouncer frozen"
_PAUSED = "PgBouncer paused"


async def killed(site: Site, _random: Random, _target: str) -> None:
    """SIGKILL, and started again at once."""
    with site.journal.fault(KILLED, PGBOUNCER, kill=True):
        await site.kill(PGBOUNCER)
        await _start(site)


async def restarted(site: Site, random: Random, _target: str) -> None:
    """SIGTERM: it hangs up on everybody."""
    with site.journal.fault(_RESTARTED, PGBOUNCER):
        await site.terminate(PGBOUNCER)
        await asyncio.sleep(random.uniform(0, 2))
        await _start(site)


async def frozen(site: Site, random: Random, _target: str) -> None:
    await _between(site, random, _FROZEN, signal.SIGSTOP, signal.SIGCONT)


async def paused(site: Site, random: Random, _target: str) -> None:
    """As PAUSE on its console: transactions end, and no other begins, while clients are kept."""
    await _between(site, random, _PAUSED, signal.SIGUSR1, signal.SIGUSR2)


BREAKS = (
    Break((_RESTARTED,), (PGBOUNCER,), restarted),
    Break((_FROZEN,), (PGBOUNCER,), frozen),
    Break((_PAUSED,), (PGBOUNCER,), paused),
)


async def _between(site: Site, random: Random, kind: str, begin: signal.Signals, end: signal.Signals) -> None:
    with site.journal.fault(kind, PGBOUNCER):
        site.signal(PGBOUNCER, begin)
        try:
            await asyncio.sleep(random.uniform(2, 9))
        finally:
            site.signal(PGBOUNCER, end)
        await site.settled(BEHIND)


async def _start(site: Site) -> None:
    await site.start(PGBOUNCER)
    await site.ready(PGBOUNCER)
    await site.settled(BEHIND)
