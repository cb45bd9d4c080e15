"""Clients that call without a pause, while something is done to their connections."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from uuid import UUID

from carillon import Client

from tests.security.schedulers import admin

JOB = "email-service/weekly-digest"
OFTEN = {"triggers_per_second": 10_000}
"""A setting of the schedulers that bear it."""


@dataclass
class Calling:
    """`made`: the runs that the callers were told of. `answered`: their calls."""

    made: list[UUID] = field(default_factory=list)
    answered: int = 0
    stopping: bool = False

    async def call_on(self, target: str) -> None:
        async with Client(target, token=admin()) as client:
            while not self.stopping:
                [run] = await client.trigger_job(JOB)
                self.made.append(UUID(run.name.removeprefix("runs/")))
                await client.get_run(run.name)
                await client.get_job(JOB)
                self.answered += 3
                await asyncio.sleep(0.01)


@asynccontextmanager
async def calling(*targets: str) -> AsyncIterator[Calling]:
    """One on each of these targets, as long as the block lasts. Errors: of any call."""
    calls = Calling()
    async with asyncio.TaskGroup() as group:
        for target in targets:
            group.create_task(calls.call_on(target))
        yield calls
        calls.stopping = True
