"""`make bench-failover` in short: it breaks what it says, waits until work goes on, and says how long that took."""

from __future__ import annotations

import asyncio
import re
import sys

from benchmarks.failover import PARTS
from tests.e2e.cluster import ROOT, environment_without_carillon

SHORT = ("worker_left", "scheduler_killed", "database_back")


async def test_it_says_how_soon_work_goes_on() -> None:
    said = await _run("--rounds", "1", *(word for part in SHORT for word in ("--part", part)))
    progress = [line.split(" 1/1: ")[0] for line in said if " 1/1: " in line]
    assert progress == list(SHORT)
    assert any("promise" in line and "ratio" in line for line in said), said
    figures = dict(re.findall(r"(\w+)=([\d.]+)", said[-1]))
    assert said[-1].startswith("failover: rounds=1 ")
    assert set(figures) == {"rounds"} | {
        f"{part.name}_{figure.key}{which}"
        for part in PARTS
        if part.name in SHORT
        for figure in part.figures
        for which in ("", "_worst")
    }
    # Schedules are due each second: two ticks in one second would be no hole at all.
    assert float(figures["scheduler_killed_hole"]) > 0.5
    assert float(figures["worker_left_started"]) >= float(figures["worker_left_pending"])


async def test_a_part_that_is_not_there_is_named() -> None:
    process = await _process("--part", "all_of_it")
    _, errors = await process.communicate()
    assert process.returncode == 2
    assert "invalid choice: 'all_of_it'" in errors.decode()


async def _run(*options: str) -> list[str]:
    process = await _process(*options)
    try:
        out, errors = await process.communicate()
    finally:
        if process.returncode is None:
            process.terminate()
            await process.wait()
    assert process.returncode == 0, errors.decode()
    return out.decode().splitlines()


async def _process(*options: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "benchmarks.failover", *options),
        cwd=ROOT,
        env=environment_without_carillon(),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
