"""Jobs in a thread of their own, and the example without any framework."""

from __future__ import annotations

import asyncio
import json
import threading
from pathlib import Path

import pytest
from carillon import Jobs
from carillon.background import Background

from tests.rpc.client.conftest import ScriptedScheduler, run_to_assign, soon
from tests.rpc.integrations.conftest import NOBODY, Programs, registered

ENDS_AFTER_ITS_RUN = """
import threading
from carillon import Jobs
from carillon.background import Background

jobs = Jobs("kpi-service")
handled = threading.Event()

@jobs.handler("sync")
def sync() -> None:
    handled.set()

Background(jobs).start()
handled.wait()
"""


@pytest.fixture
def jobs(scheduler: ScriptedScheduler) -> Jobs:
    return Jobs("kpi-service", target=scheduler.target, token="t.secret")


async def test_a_thread_registers_and_carries_out_handlers_until_it_is_stopped(
    scheduler: ScriptedScheduler, jobs: Jobs
) -> None:
    threads: list[str] = []

    @jobs.handler("sync")
    async def sync() -> None:
        threads.append(threading.current_thread().name)

    background = Background(jobs)
    background.start()
    background.start()  # does nothing
    stream = await scheduler.next_stream()
    stream.welcome()
    await stream.credit(1)
    stream.assign(run_to_assign())
    stream.acknowledge(await stream.next("results"))
    assert (await registered(scheduler)).service == "kpi-service"
    await soon(asyncio.gather(stream.next("goodbye"), asyncio.to_thread(background.stop)))
    assert threads == ["carillon"]
    assert "carillon" not in [thread.name for thread in threading.enumerate()]
    assert (scheduler.registrations.qsize(), scheduler.streams.qsize()) == (0, 0)


async def test_it_may_be_started_again(scheduler: ScriptedScheduler, jobs: Jobs) -> None:
    jobs.endpoint("digest", "http://kpi/digest")
    background = Background(jobs)
    for _ in range(2):
        await asyncio.to_thread(background.start)
        assert (await registered(scheduler)).service == "kpi-service"
        await asyncio.to_thread(background.stop)
    await asyncio.to_thread(background.stop)  # does nothing


async def test_a_start_does_not_wait_for_the_scheduler() -> None:
    jobs = Jobs("kpi-service", target=NOBODY)
    jobs.endpoint("digest", "http://kpi/digest")
    with Background(jobs):
        assert "carillon" in [thread.name for thread in threading.enumerate()]
    assert "carillon" not in [thread.name for thread in threading.enumerate()]


async def test_a_program_that_ends_has_its_results_recorded_and_says_goodbye(
    scheduler: ScriptedScheduler, programs: Programs
) -> None:
    running = asyncio.create_task(programs.run("-W", "error", "-c", ENDS_AFTER_ITS_RUN))
    stream = await scheduler.next_stream()
    stream.welcome()
    await stream.credit(1)
    stream.assign(run_to_assign())
    stream.acknowledge(await stream.next("results"))
    await stream.next("goodbye")
    assert await soon(running) == ""


async def test_the_asyncio_example_registers_works_and_ends_in_order(
    scheduler: ScriptedScheduler, programs: Programs, tmp_path: Path
) -> None:
    await programs.start("-m", "examples.asyncio_service")
    stream = await scheduler.next_stream()
    stream.welcome()
    await stream.credit(1)
    payload = json.dumps({"folders": [str(tmp_path), str(tmp_path / "nothing")]})
    stream.assign(run_to_assign(job="services/asyncio-service/jobs/disk-usage", payload_json=payload))
    [result] = (results := await stream.next("results")).results
    stream.acknowledge(results)
    assert (result.items.succeeded, result.items.failed) == (1, 1)
    assert [job.job for job in (await registered(scheduler)).jobs] == ["disk-usage"]
    ending = asyncio.create_task(programs.processes.end("program"))
    await stream.next("goodbye")
    assert await soon(ending) == 0


async def test_the_script_says_which_folder_it_needs_and_that_nobody_is_there(programs: Programs) -> None:
    assert "say which folder" in await programs.run_in_vain("-m", "examples.script")
    said = await programs.run_in_vain("-m", "examples.script", "/", CARILLON_TARGET=NOBODY)
    assert said.startswith("UNAVAILABLE: ")
