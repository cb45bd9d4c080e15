"""Schedulers that are killed, or stand still, between what they did and what was to follow."""

from __future__ import annotations

import asyncio
import signal
from random import Random

from tests.faults.breaking import EVERY_SCHEDULER, Break
from tests.faults.names import ALWAYS
from tests.faults.site import Site

RESTARTED = "scheduler killed"
"""On the way to it."""
_KINDS = {
    "made": "between a run and its schedule's next instant being written, and both committed",
    "claimed": "between a claim's commit and its sending",
    "recorded": "between a result's commit and its acknowledgement",
}
_COMES_TO_IT_WITHIN = 20.0
_TOO_LATE = 1.0  # it may have seen the file just before that was gone


def _break(moment: str, *, killed: bool) -> Break:
    kind = f"scheduler {'killed' if killed else 'frozen'} {_KINDS[moment]}"

    async def do(site: Site, random: Random, _target: str) -> None:
        stopping, other = random.sample(ALWAYS, 2)
        file = site.home / f"{stopping}.stops"
        with site.journal.fault(RESTARTED, stopping, kill=True):
            await site.kill(stopping)
            environment = {"STOPPING_AT": moment, "STOPPING_FILE": str(file)}
            await site.start(stopping, environment, module="tests.faults.stopping_scheduler")
            await site.ready(stopping)
        # Its workers come to the one that is to stop, which does so once: left to go on, it is as any other.
        with site.journal.fault(RESTARTED, other, kill=True):
            await site.kill(other)
            await site.start(other)
            file.touch()
            stopped = await _comes_to_it(site, stopping)
            file.unlink()
            if stopped:
                await _end(site, random, kind, stopping, killed=killed)
            else:
                await asyncio.sleep(_TOO_LATE)
                site.signal(stopping, signal.SIGCONT)
            await site.ready(other)

    return Break((kind,), (EVERY_SCHEDULER,), do)


BREAKS = tuple(_break(moment, killed=killed) for moment in _KINDS for killed in (True, False))


async def _comes_to_it(site: Site, name: str) -> bool:
    try:
        async with asyncio.timeout(_COMES_TO_IT_WITHIN):
            while not site.is_stopped(name):  # noqa: ASYNC110 - another process
                await asyncio.sleep(0.01)
    except TimeoutError:
        return False
    return True


async def _end(site: Site, random: Random, kind: str, name: str, *, killed: bool) -> None:
    if killed:
        await _start_anew(site, kind, name)
        return
    with site.journal.fault(kind, name):
        await asyncio.sleep(random.uniform(2, 9))
        site.signal(name, signal.SIGCONT)
        await site.ready(name)


async def _start_anew(site: Site, kind: str, name: str) -> None:
    with site.journal.fault(kind, name, kill=True):
        await site.kill(name)
        await site.start(name)
        await site.ready(name)
