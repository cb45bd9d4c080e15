"""Schedulers, workers and the HTTP service: killed, frozen, restarted too fast, with a wrong clock, with a failing
store."""

from __future__ import annotations

import asyncio
import signal
import time
from contextlib import ExitStack
from datetime import timedelta
from random import Random

from tests.faults.breaking import EVERY_SCHEDULER, Break, touches
from tests.faults.site import ALWAYS, HANDLER_WORKERS, HTTP_WORKER, SCHEDULERS, SERVICE, WORKERS, Site

HOUR = timedelta(hours=1)
_THIRD = SCHEDULERS[2]


async def killed(site: Site, random: Random, name: str) -> None:
    """SIGKILL, and started again at once."""
    role = name.rstrip("-0123456789")
    kind = "worker killed, back under its name" if name == HTTP_WORKER else f"{role} killed"
    with site.journal.fault(kind, name, kill=True, touches=touches(name)):
        await site.kill(name)
        await site.start(name)
        await site.ready(name)


async def frozen_past_its_lease(site: Site, random: Random, name: str) -> None:
    await _frozen(site, "worker frozen past its lease", name, random.uniform(8, 12))


async def frozen_about_its_lease(site: Site, random: Random, name: str) -> None:
    """The reaper and the completions race."""
    await _frozen(site, "worker frozen about its lease", name, random.uniform(5, 6.5))


async def scheduler_frozen(site: Site, random: Random, name: str) -> None:
    await _frozen(site, "scheduler frozen", name, random.uniform(2, 11))


async def all_killed(site: Site, random: Random, _target: str) -> None:
    """At one time, and started again at once."""
    await _all_down(site, "every scheduler killed", 0.0)


async def all_down(site: Site, random: Random, _target: str) -> None:
    """Past 100 occurrences of all schedules together."""
    await _all_down(site, "every scheduler down for 100 occurrences", 26.0)


async def restarted_too_fast(site: Site, random: Random, name: str) -> None:
    """Again and again, faster than schedules are due."""
    for _ in range(4):
        with site.journal.fault("scheduler restarted faster than the interval", name, kill=True):
            await site.kill(name)
            await site.start(name)
            await asyncio.sleep(random.uniform(0.1, 0.9))
    with site.journal.fault("scheduler restarted faster than the interval", name, kill=True):
        await site.kill(name)
        await site.start(name)
        await site.ready(name)


async def only_poller_killed(site: Site, random: Random, _target: str) -> None:
    """Of the schedulers one is left, and is killed just before a second begins."""
    *others, last = random.sample(site.schedulers(), len(site.schedulers()))
    with ExitStack() as faults:
        for name in others:
            faults.enter_context(site.journal.fault("scheduler killed beside the only poller", name, kill=True))
            await site.kill(name)
        await asyncio.sleep(random.uniform(1, 2))
        await asyncio.sleep(-time.time() % 1 - random.uniform(0.01, 0.08) + 1)
        faults.enter_context(site.journal.fault("only poller killed just before due", last, kill=True))
        await site.kill(last)
        await _start_always(site)


async def one_more(site: Site, random: Random, name: str) -> None:
    """A replica is added, and removed in order or by force."""
    await site.start(name)
    await site.ready(name)
    await asyncio.sleep(random.uniform(4, 12))
    if random.random() < 0.5:
        with site.journal.fault("scheduler added and killed", name, kill=True):
            await site.kill(name)
    else:
        with site.journal.fault("scheduler added and drained", name):
            await site.terminate(name)


async def drained(site: Site, random: Random, name: str) -> None:
    """SIGTERM, as a deploy sends it."""
    with site.journal.fault(f"{name.rstrip('-0123456789')} drained", name, touches=touches(name)):
        await site.terminate(name)
        await site.start(name)
        await site.ready(name)


async def moved_clock(site: Site, random: Random, name: str) -> None:
    """Begins an hour off, and jumps to an hour off on the other side. The right one comes with its next start."""
    shift = random.choice((HOUR, -HOUR))
    site.clock.move(shift)
    with site.journal.fault("clock an hour off", name, kill=True, touches=touches(name)):
        await site.kill(name)
        await site.start(name, site.environment_of_moved_clock())
        await site.ready(name)
    await asyncio.sleep(random.uniform(2, 6))
    with site.journal.fault("clock jumps by two hours", name, touches=touches(name)):
        site.clock.move(-shift)
    await asyncio.sleep(random.uniform(2, 6))


async def failing_store(site: Site, random: Random, name: str) -> None:
    """Of the store's calls some fail before, and some after they are done."""
    environment = {"FAILING_STORE_SEED": str(random.random()), "FAILING_STORE_SHARE": str(random.choice((0.01, 0.05)))}
    with site.journal.fault("store calls fail before or after", name, kill=True):
        await site.kill(name)
        await site.start(name, environment, failing=True)
        await asyncio.sleep(random.uniform(8, 16))
    with site.journal.fault("scheduler killed", name, kill=True):
        await site.kill(name)
        await site.start(name)
        await site.ready(name)


KILLED = (*WORKERS, SERVICE, *ALWAYS)
"""What may be killed at any time, one by one."""
BREAKS = (
    Break("past lease", WORKERS, frozen_past_its_lease),
    Break("about lease", HANDLER_WORKERS, frozen_about_its_lease),
    Break("frozen scheduler", ALWAYS, scheduler_frozen),
    Break("all killed", (EVERY_SCHEDULER,), all_killed),
    Break("all down", (EVERY_SCHEDULER,), all_down),
    Break("restarts", ALWAYS, restarted_too_fast),
    Break("only poller", (EVERY_SCHEDULER,), only_poller_killed),
    Break("one more", (_THIRD,), one_more),
    Break("drained scheduler", ALWAYS, drained),
    Break("drained worker", WORKERS, drained),
    Break("scheduler's clock", ALWAYS, moved_clock),
    Break("worker's clock", WORKERS, moved_clock),
    Break("failing store", ALWAYS, failing_store),
)


async def _frozen(site: Site, kind: str, name: str, seconds: float) -> None:
    with site.journal.fault(kind, name, touches=touches(name)):
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
