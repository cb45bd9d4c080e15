"""Handlers under test: carried out as a worker does it, with no server and no database.

    outcome = await testing.run(jobs, "meta-sync", payload={"brands": ["acme"]})
    assert outcome.state == "COMPLETED"

    outcome = await testing.run(jobs, "meta-sync", cancel_when=lambda run: run.items.processed == 2)
    assert outcome.state == "CANCELLED"

    async with testing.running(jobs, "meta-sync") as tested:  # step by step
        await reached.wait()
        tested.time_out()
        assert (await tested.outcome()).error_code == "ATTEMPT_TIMEOUT"

The code that decodes payloads, calls handlers, stops them and words their results is the worker's own. Beyond it lies
the scheduler: whether a failure is tried again (`outcome.retry` and `outcome.retry_after` are what the handler asked
for) is its decision, a retry is another call with `attempt=2`, and of a run that was asked to stop the scheduler
records a failure as `CANCELLED`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from carillon.testing.assignment import RunOptions, assignment_for, handler_of
from carillon.testing.outcome import ItemOutcome, Outcome, Progress
from carillon.testing.run_under_test import Condition, RunUnderTest

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from carillon.jobs import Jobs

__all__ = ["ItemOutcome", "Outcome", "Progress", "RunOptions", "RunUnderTest", "run", "run_blocking", "running"]


async def run(
    jobs: Jobs,
    job: str,
    payload: Mapping[str, object] | None = None,
    *,
    cancel_when: Condition | None = None,
    time_out_when: Condition | None = None,
    **options: Unpack[RunOptions],
) -> Outcome:
    """One attempt at a run of `job`, up to its end.

    payload: laid over the job's `config`, key by key, as the scheduler does it. cancel_when: the run is asked to stop
    as soon as this holds; time_out_when: its attempt is out of time then. Both look at the `Run` once the handler waits
    for the first time or ends, and after each progress and item; the next `run.check()` sees it. options: `RunOptions`.

    What the handler raises is in the outcome. Raises ValueError or TypeError for a job or payload that could not be;
    what `cancel_when` and `time_out_when` raise.
    """
    async with running(
        jobs, job, payload, cancel_when=cancel_when, time_out_when=time_out_when, **options
    ) as under_test:
        return await under_test.outcome()


def run_blocking(
    jobs: Jobs,
    job: str,
    payload: Mapping[str, object] | None = None,
    *,
    cancel_when: Condition | None = None,
    time_out_when: Condition | None = None,
    **options: Unpack[RunOptions],
) -> Outcome:
    """`run`, for tests without asyncio. Raises RuntimeError where an event loop is running."""
    return asyncio.run(run(jobs, job, payload, cancel_when=cancel_when, time_out_when=time_out_when, **options))


@asynccontextmanager
async def running(
    jobs: Jobs,
    job: str,
    payload: Mapping[str, object] | None = None,
    *,
    cancel_when: Condition | None = None,
    time_out_when: Condition | None = None,
    **options: Unpack[RunOptions],
) -> AsyncIterator[RunUnderTest]:
    """An attempt at a run of `job` that has begun, for tests that steer it. As `run`; what still goes on at the end
    of the block is stopped."""
    assignment = assignment_for(jobs, job, payload or {}, options)
    under_test = RunUnderTest(assignment, handler_of(jobs, job), cancel_when, time_out_when)
    try:
        await under_test.begin()
        yield under_test
    finally:
        await under_test.close()
