"""Schedulers, workers and the HTTP service: killed, frozen, restarted too fast, with a wrong clock, with a failing
store."""

from __future__ import annotations

import asyncio
import signal
import time
from contextlib import ExitStack
from datetime import timedelta
from random import Random

from tests.faults.breaking import EVERY_SCHEDULER, Break
from tests.faults.names import ALWAYS, HANDLER_WORKERS, HTTP_WORKER, SCHEDULERS, SERVICE, WORKERS, role
from tests.faults.site import Site

HOUR = timedelta(hours=1)
_THIRD = SCHEDULERS[2]

_PAST_LEASE = "worker frozen past its lease"
_ABOUT_LEASE = "worker frozen about its lease"
_SCHEDULER_FROZEN = "scheduler frozen"
_ALL_KILLED = "every scheduler killed"
_ALL_DOWN = "every scheduler down for 100 occurrences"
_TOO_FAST = "scheduler restarted faster than the interval"
_BESIDE = "scheduler killed beside the only poller"
_ONLY_POLLER = "only poller killed just before due"
_ADDED_KILLED = "scheduler added and killed"
_ADDED_DRAINED = "scheduler added and drained"
_STORE_FAILS = "store calls fail before or after"


def kind_of_kill(name: str) -> str:
    return "worker killed, back under its name" if name == HTTP_WORKER else f"{role(name)} killed"


async def killed(site: Site, random: Random, name: str) -> None:
    """SIGKILL, and started again at once."""
    with site.journal.fault(kind_of_kill(name), name, kill=True):
        await site.kill(name)
        await site.start(name)
        await site.ready(name)


async def frozen_past_its_lease(site: Site, random: Random, name: str) -> None:
    await _frozen(site, _PAST_LEASE, name, random.uniform(8, 12))


async def frozen_about_its_lease(site: Site, random: Random, name: str) -> None:
    """The reaper and the completions race."""
    await _frozen(site, _ABOUT_LEASE, name, random.uniform(5, 6.5))


async def scheduler_frozen(site: Site, random: Random, name: str) -> None:
    await _frozen(site, _SCHEDULER_FROZEN, name, random.uniform(2, 11))


async def all_killed(site: Site, random: Random, _target: str) -> None:
    """At one time, and started again at once."""
    await _all_down(site, _ALL_KILLED, 0.0)


async def all_down(site: Site, random: Random, _target: str) -> None:
    """Past 100 occurrences of all schedules together."""
    await _all_down(site, _ALL_DOWN, 26.0)


async def restarted_too_fast(site: Site, random: Random, name: str) -> None:
    """Again and again, faster than schedules are due."""
    for _ in range(4):
        with site.journal.fault(_TOO_FAST, name, kill=True):
            await site.kill(name)
            await site.start(name)
            await asyncio.sleep(random.uniform(0.1, 0.9))
    with site.journal.fault(_TOO_FAST, name, kill=True):
        await site.kill(name)
        await site.start(name)
        await site.ready(name)


async def only_poller_killed(site: Site, random: Random, _target: str) -> None:
    """Of the schedulers one is left, and is killed just before a second begins."""
    *others, last = random.sample(site.schedulers(), len(site.schedulers()))
    with ExitStack() as faults:
        for name in others:
            faults.enter_context(site.journal.fault(_BESIDE, name, kill=True))
            await site.kill(name)
        await asyncio.sleep(random.uniform(1, 2))
        await asyncio.sleep(-time.time() % 1 - random.uniform(0.01, 0.08) + 1)
        faults.enter_context(site.journal.fault(_ONLY_POLLER, last, kill=True))
        await site.kill(last)
        await _start_always(site)


async def one_more_killed(site: Site, random: Random, name: str) -> None:
    """A replica is added, and removed by force."""
    await _added(site, random, name)
    with site.journal.fault(_ADDED_KILLED, name, kill=True):
        await site.kill(name)


async def one_more_drained(site: Site, random: Random, name: str) -> None:
    """A replica is added, and removed in order."""
    await _added(site, random, name)
    with site.journal.fault(_ADDED_DRAINED, name):
        await site.terminate(name)


async def drained(site: Site, random: Random, name: str) -> None:
    """SIGTERM, as a deploy sends it."""
    with site.journal.fault(f"{role(name)} drained", name):
        await site.terminate(name)
        await site.start(name)
        await site.ready(name)


async def moved_clock(site: Site, random: Random, name: str) -> None:
    """Begins an hour off, and jumps to an hour off on the other side. The right one comes with its next start."""
    shift = random.choice((HOUR, -HOUR))
    site.clock.move(shift)
    with site.journal.fault(f"{role(name)}'s clock an hour off", name, kill=True):
        await site.kill(name)
        await site.start(name, site.environment_of_moved_clock())
        await site.ready(name)
    await asyncio.sleep(random.uniform(2, 6))
    with site.journal.fault(f"{role(name)}'s clock jumps by two hours", name):
        site.clock.move(-shift)
    await asyncio.sleep(random.uniform(2, 6))


async def failing_store(site: Site, random: Random, name: str) -> None:
    """Of the store's calls some fail before, and some after they are done."""
    environment = {"FAILING_STORE_SEED": str(random.random()), "FAILING_STORE_SHARE": str(random.choice((0.01, 0.05)))}
    with site.journal.fault(_STORE_FAILS, name, kill=True):
        await site.kill(name)
        await site.start(name, environment, module="tests.faults.failing_scheduler")
        await asyncio.sleep(random.uniform(8, 16))
    with site.journal.fault("scheduler killed", name, kill=True):
        await site.kill(name)
        await site.start(name)
        await site.ready(name)


KILLED = (*WORKERS, SERVICE, *ALWAYS)
"""What may be killed at any time, one by one."""
BREAKS = (
    Break((_PAST_LEASE,), WORKERS, frozen_past_its_lease),
    Break((_ABOUT_LEASE,), HANDLER_WORKERS, frozen_about_its_lease),
    Break((_SCHEDULER_FROZEN,), ALWAYS, scheduler_frozen),
    Break((_ALL_KILLED,), (EVERY_SCHEDULER,), all_killed),
    Break((_ALL_DOWN,), (EVERY_SCHEDULER,), all_down),
    Break((_TOO_FAST,), ALWAYS, restarted_too_fast),
    Break((_BESIDE, _ONLY_POLLER), (EVERY_SCHEDULER,), only_poller_killed),
    Break((_ADDED_KILLED,), (_THIRD,), one_more_killed),
    Break((_ADDED_DRAINED,), (_THIRD,), one_more_drained),
    Break(("scheduler drained",), ALWAYS, drained),
    Break(("worker drained",), WORKERS, drained),
    Break(("scheduler's clock an hour off", "scheduler's clock jumps by two hours"), ALWAYS, moved_clock),
    Break(("worker's clock an hour off", "worker's clock jumps by two hours"), WORKERS, moved_clock),
    Break((_STORE_FAILS,), ALWAYS, failing_store),
)


async def _added(site: Site, random: Random, name: str) -> None:
    await site.start(name)
    await site.ready(name)
    await asyncio.sleep(random.uniform(4, 12))


async def _frozen(site: Site, kind: str, name: str, seconds: float) -> None:
    with site.journal.fault(kind, name):
        site.signal(name, signal.SIGSTOP)
        try:
            await asyncio.sleep(seconds)
        finally:
            site.signal(name, signal.SIGCONT)
        await site.ready(name)


async def _all_down(site: Site, kind: str, seconds: float) -> None:
    with ExitStack() as faults:
        for name in site.schedulers():
            faults.enter_context(site.journal.fault(kind, name, kill=True))
            await site.kill(name)
        await asyncio.sleep(seconds)
        await _start_always(site)


async def _start_always(site: Site) -> None:
    for name in ALWAYS:
        await site.start(name)
    for name in ALWAYS:
        await site.ready(name)
