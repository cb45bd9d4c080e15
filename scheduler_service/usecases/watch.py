"""Watching runs change.

A watcher looks again when it is woken (at once by its own replica, soon by others), or after a second at most. Looks
are short transactions of the caller's; none is open while the watcher waits for a change or for its client. A watcher
that looks at much looks less often, so that it never takes more than a tenth of one connection.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from itertools import islice
from uuid import UUID

from scheduler_service.domain.access import Action, Principal, Resource, require
from scheduler_service.domain.errors import NotFound, Unavailable
from scheduler_service.domain.names import JobName, ScheduleName
from scheduler_service.domain.record import Run
from scheduler_service.domain.run import EPOCH
from scheduler_service.domain.watching import OVERLAP, Watched
from scheduler_service.store import runs as run_store
from scheduler_service.store import watch as store
from scheduler_service.store.database import Database, Transaction
from scheduler_service.store.watch import Scope
from scheduler_service.usecases.wakeups import Topic, Wakeups

# Runs are read whole this many at a time; each may have half a megabyte.
_BATCH = 50


@dataclass(frozen=True, slots=True)
class Pace:
    """How often a watcher looks, in seconds: after a change no sooner than `pause` since its last look, without one
    every `poll`."""

    pause: float = 0.2
    poll: float = 1.0
    share: float = 0.1

    def rest(self, look_seconds: float) -> float:
        """How long to rest after a look that took so long."""
        return max(self.pause, look_seconds / self.share) - look_seconds


@dataclass(slots=True)
class _Watch:
    """One watcher: for whom, of what, and what it was sent."""

    database: Database
    principal: Principal
    scope: Scope
    watched: Watched

    async def changes(self) -> list[UUID]:
        async with self.database.acting_for(self.principal) as tx:
            return self.watched.changed(await store.look(tx, self.scope, self.watched.since))

    async def news(self, run_ids: list[UUID]) -> list[Run]:
        async with self.database.acting_for(self.principal) as tx:
            found = await run_store.get_runs(tx, run_ids)
        for run_id in run_ids:
            if run_id not in found:
                self.watched.forget(run_id)
        return [found[run_id] for run_id in run_ids if run_id in found and self.watched.is_news(found[run_id])]


async def watch_runs(
    database: Database,
    wakeups: Wakeups,
    principal: Principal,
    target: JobName | ScheduleName | UUID,
    *,
    pace: Pace | None = None,
) -> AsyncGenerator[Run, None]:
    """First each live run of a job or schedule (or this one run, live or ended), then each run that changed, without
    end; the watch of one run ends with its outcome. Every outcome comes exactly once, also of runs that began and
    ended between two looks.

    Errors: NotFound; Unavailable when this replica goes; the driver's, once the database is gone.
    """
    pace = pace or Pace()
    wakeup = wakeups.listen(Topic.RUNS)
    watch = await _begin(database, principal, target)
    while True:
        began = time.monotonic()
        changed = iter(await watch.changes())
        looked = time.monotonic() - began
        while batch := list(islice(changed, _BATCH)):
            for run in await watch.news(batch):
                yield run
                if watch.scope.is_one_run and not run.state.is_live:
                    return
        await asyncio.sleep(began + looked + pace.rest(looked) - time.monotonic())
        await wakeup.wait(pace.poll)
        if wakeups.ending:
            raise Unavailable("this replica goes; watch again, and another one answers", retry_after=0.0)


async def _begin(database: Database, principal: Principal, target: JobName | ScheduleName | UUID) -> _Watch:
    async with database.acting_for(principal) as tx:
        scope = await _scope(tx, principal, target)
        # One run is sent even if it ended long ago; of others, what ended before is no news.
        watched = Watched(since=EPOCH if scope.is_one_run else tx.now - OVERLAP)
        if not scope.is_one_run:
            watched.pass_over(await store.look(tx, scope, watched.since))
    return _Watch(database, principal, scope, watched)


async def _scope(tx: Transaction, principal: Principal, target: JobName | ScheduleName | UUID) -> Scope:
    if isinstance(target, UUID):
        require(principal, Action.READ)
        if await run_store.get_run(tx, target) is not None:
            return Scope("run_id", target)
    elif isinstance(target, JobName):
        require(principal, Action.READ, Resource(service=target.service))
        for job_id in await run_store.jobs_of(tx, target.service, target.job):
            return Scope("job_id", job_id)
    else:
        require(principal, Action.READ, Resource(service=target.job.service, tenant=target.tenant))
        if (schedule_id := await store.find_schedule(tx, target)) is not None:
            return Scope("schedule_id", schedule_id)
    raise NotFound("there is nothing of that name, or it is not yours to see")
