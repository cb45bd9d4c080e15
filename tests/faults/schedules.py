"""The plan's schedules: put, resumed and paused, and what they must have owed between."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial

from carillon import Client, NotFound

from tests.e2e.cluster import eventually
from tests.faults.evidence import Occurrence
from tests.faults.journal import now
from tests.faults.plan import SCHEDULES, Owing, marker

DEFAULT = "default"
_JOBS = tuple(dict.fromkeys(owing.job for owing in SCHEDULES))


async def put_paused(client: Client) -> None:
    """Puts all of them while their jobs are paused; waits until the jobs are registered."""
    for job in _JOBS:
        await eventually(partial(_is_paused, client, job.path))
    for owing in SCHEDULES:
        config = {"marker": marker(owing.job.path, owing.tenant)}
        cron = f"@every {owing.seconds}s"
        await client.put_schedule(owing.job.path, tenant=owing.tenant, cron=cron, time_zone="UTC", config=config)


async def resume(client: Client) -> dict[str, datetime]:
    """Lets them owe. Answers from when on each job's surely do."""
    resumed = {}
    for job in _JOBS:
        await client.resume_job(job.path)
        resumed[job.path] = now()
    return resumed


async def pause(client: Client) -> dict[str, datetime]:
    """They owe no more. Answers up to when each job's surely did."""
    paused = {}
    for job in _JOBS:
        paused[job.path] = now()
        await client.pause_job(job.path)
    return paused


def occurrences(resumed: Mapping[str, datetime], paused: Mapping[str, datetime]) -> Iterator[Occurrence]:
    """What the plan says that they owe."""
    for owing in SCHEDULES:
        path = owing.job.path
        for instant in _instants(owing, resumed[path], paused[path]):
            yield Occurrence(path, owing.tenant, DEFAULT, instant, overlap_may_skip=owing.job.overlap == "skip")


async def _is_paused(client: Client, job: str) -> bool:
    with suppress(NotFound):
        await client.pause_job(job)
        return True
    return False


def _instants(owing: Owing, since: datetime, until: datetime) -> Iterator[datetime]:
    first = int(since.timestamp() // owing.seconds + 1) * owing.seconds
    for seconds in range(first, int(until.timestamp()) + 1, owing.seconds):
        yield datetime.fromtimestamp(seconds, UTC)
