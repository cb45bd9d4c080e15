"""A worker that stood still past its lease: stopped by the system, or blocked by a handler."""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from carillon.execution import Completed, Run
from carillon.v1 import work_pb2

if TYPE_CHECKING:
    from tests.rpc.client.conftest import Recorder, ScriptedScheduler, ScriptedStream

LEASE = 2.0

# Its handler ends while the process is stopped: what it comes to is there when the process goes on.
WORKER = """
import asyncio, sys, time
from carillon.execution import Completed
from carillon.session import WorkerSession

class Executor:
    routes = ("handler/kpi-service/sync",)

    async def execute(self, assignment, run):
        until = time.monotonic() + float(sys.argv[2])
        try:
            while time.monotonic() < until:
                run.progress(1, 2)
                await asyncio.sleep(0.001)
        except asyncio.CancelledError:
            print("interrupted", flush=True)
            raise
        print("ended", flush=True)
        return Completed()

asyncio.run(WorkerSession(target=sys.argv[1], token="t.secret", executors=[Executor()], name="frozen").run())
"""


class Clock:
    """The time that passed, and what the test adds to it: then it passed while nothing ran."""

    def __init__(self) -> None:
        self.added = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self.added


@pytest.fixture
async def clock() -> Clock:
    return Clock()


async def begun_anew(scheduler: ScriptedScheduler, before: work_pb2.Hello) -> ScriptedStream:
    """The stream of the next session, which holds nothing."""
    stream = await scheduler.next_stream()
    hello = await stream.next("hello")
    assert hello.session_id != before.session_id
    assert not hello.held_claims
    stream.welcome()
    return stream


@pytest.mark.parametrize("first", ["result", "item", "heartbeat", "assignment", "end_of_stream"])
async def test_what_comes_first_after_the_pause_finds_the_lease_over(
    scheduler: ScriptedScheduler,
    executor: Recorder,
    start_session: Any,
    new_run: Any,
    in_time: Any,
    clock: Clock,
    first: str,
) -> None:
    goes_on, ends = asyncio.Event(), asyncio.Event()

    async def work(run: Run) -> Completed:
        await goes_on.wait()
        with run.item("a@example.com"):
            pass
        await ends.wait()
        return Completed()

    executor.act = work
    start_session(clock=clock)
    stream = await scheduler.next_stream()
    hello = await stream.next("hello")
    stream.welcome(lease=30, heartbeat=0.05 if first == "heartbeat" else 30)
    await stream.answer_heartbeat()
    stream.assign(new_run(1), claim=4)
    run = await in_time(executor.started.get())
    assert [start.attempt.claim_id for start in (await stream.next("starts")).starts] == [4]

    clock.added = 60.0
    if first in ("result", "item"):
        goes_on.set()
    if first == "result":
        ends.set()
    elif first == "assignment":
        stream.assign(new_run(2), claim=5)
    elif first == "end_of_stream":
        stream.end(grpc.StatusCode.UNAVAILABLE, "going away")
    after = await begun_anew(scheduler, hello)
    assert run.cancelled or executor.ended == 1
    assert await after.credit(2) == 2
    for seen in (stream.seen, after.seen):
        assert "results" not in seen
        assert "items" not in seen
    assert executor.started.empty()


async def test_a_pause_within_the_lease_disturbs_nothing(
    scheduler: ScriptedScheduler,
    executor: Recorder,
    start_session: Any,
    new_run: Any,
    in_time: Any,
    clock: Clock,
) -> None:
    executor.act = executor.for_ever
    start_session(clock=clock)
    stream = await scheduler.next_stream()
    stream.welcome(lease=30, heartbeat=30)
    await stream.answer_heartbeat()
    stream.assign(new_run(1), claim=4)
    run = await in_time(executor.started.get())
    clock.added = 20.0
    run.progress(1, 2)
    assert (await stream.next("progress")).reports[0].progress.done == 1
    assert not run.cancelled


@pytest.fixture
async def worker(scheduler: ScriptedScheduler) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", WORKER, scheduler.target, str(LEASE / 2), stdout=asyncio.subprocess.PIPE
    )
    yield process
    process.kill()
    await process.wait()


async def answer_heartbeats(stream: ScriptedStream) -> None:
    """For ever: however long a busy machine takes to come to the run, the lease lasts until then."""
    while True:
        await stream.answer_heartbeat()


async def test_a_stopped_process_claims_nothing_when_it_goes_on(
    scheduler: ScriptedScheduler, worker: asyncio.subprocess.Process, new_run: Any, in_time: Any
) -> None:
    stream = await scheduler.next_stream()
    hello = await stream.next("hello")
    stream.welcome(lease=LEASE, heartbeat=LEASE / 20)
    answering = asyncio.ensure_future(answer_heartbeats(stream))
    stream.assign(new_run(1), claim=4)
    await stream.next("progress")
    worker.send_signal(signal.SIGSTOP)
    answering.cancel()
    await asyncio.sleep(LEASE)  # the time that passes is the fault
    worker.send_signal(signal.SIGCONT)
    after = await begun_anew(scheduler, hello)
    await after.credit(1)
    assert worker.stdout is not None
    assert await in_time(worker.stdout.readline()) in (b"interrupted\n", b"ended\n")
    assert "results" not in stream.seen
    assert "results" not in after.seen
