"""`python -m benchmarks.recovery`: how long a week's outage takes to settle, in how much memory, and who waits for it.

Two engines, in one process, find every schedule overdue; 1,000 others come due each second meanwhile, and a worker says
when it has each of their runs. What was recorded is compared with what PostgreSQL says was owed. Ends with exit code 1
if a schedule's runs and gaps are not that.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from dataclasses import dataclass
from datetime import timedelta
from statistics import median, quantiles

import psutil
from rich.console import Console

from benchmarks.overdue import Found, Overdue
from benchmarks.place import Place, fresh_place, now
from benchmarks.scenarios import Starts
from benchmarks.stack import EngineAlone, Started
from operations import memory
from scheduler_service.engine.rearming import Rearming
from scheduler_service.store.database import Database

_LOOK = 0.05
_MEGABYTE = 1 << 20

_EACH_SECOND = """
insert into carillon.schedules (job_id, tenant_id, schedule, timing, enabled, cron, time_zone, gap, repeat, phase,
  jitter, settled_to, next_run_at, created_at, created_by, updated_at, updated_by)
select %(job_id)s, '-', 'each-second-' || n, '{}', true, '@every 1s', 'UTC', 'SHIFT', 'FIRST', '0', '0', %(since)s,
  %(since)s + interval '1 s', now(), 'bench', now(), 'bench'
from generate_series(1, %(count)s) n"""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.recovery", description=__doc__)
    parser.add_argument("--schedules", type=int, default=100_000, help="overdue schedules (default: 100,000)")
    parser.add_argument("--expressions", type=int, default=10_000, help="that differ (default: 10,000)")
    parser.add_argument("--each-second", type=int, default=1_000, help="others, due each second (default: 1,000)")
    options = parser.parse_args()
    memory.collect_rarely()
    with fresh_place() as place:
        sys.exit(asyncio.run(_bench(place, options)))


async def _bench(place: Place, options: argparse.Namespace) -> int:
    console = Console()
    with console.status(f"settling {options.schedules:,} that are due on time"):
        on_time = await _on_time(place, options.schedules)
    place.admin.execute("truncate carillon.live_runs")
    place.tidy()
    overdue = Overdue(place)
    with console.status(f"making {options.schedules:,} that are overdue by a week"):
        overdue.make(options.schedules, options.expressions)
    with console.status("settling them"):
        recovery = await _recover(place, overdue, options.each_second)
    with console.status("comparing the records with what was owed"):
        found = overdue.found(recovery.began)
    with console.status("computing next times again, as for a new tzdata"):
        rearming = await _rearm(place)
    console.print(_report(recovery, found, on_time, rearming), soft_wrap=True)
    return 0 if found.wrong == 0 and found.schedules == options.schedules else 1


async def _on_time(place: Place, count: int) -> float:
    """Seconds to settle so many schedules that are due at one instant, by the same engines, with nobody to work."""
    with place.admin.transaction():
        place.schedules(count, now().replace(microsecond=0))
    place.admin.execute("analyze carillon.schedules")
    engines = await _two_engines(place, lambda _: None)
    began = time.perf_counter()
    place.tell("schedules")
    while not _nothing_is_due(place):  # noqa: ASYNC110 - the database tells nobody
        await asyncio.sleep(_LOOK)
    took = time.perf_counter() - began
    await _stop(engines)
    return took


@dataclass(frozen=True)
class Recovery:
    """What was measured. `cpu`: seconds of this process, which on a busy machine say more. Memory in bytes, resident:
    before, the most, and afterwards."""

    began: object
    seconds: float
    cpu: float
    memory: tuple[int, int, int]
    delays: list[float]


async def _recover(place: Place, overdue: Overdue, each_second: int) -> Recovery:
    starts = Starts()
    process = psutil.Process()
    before = most = process.memory_info().rss
    cpu = time.process_time()
    began, started_at = now(), time.perf_counter()
    # The first come due when the engines have just begun.
    since = (began + timedelta(seconds=1)).replace(microsecond=0)
    place.admin.execute(_EACH_SECOND, {"job_id": place.job_id, "since": since, "count": each_second})
    engines = await _two_engines(place, starts.started)
    while not overdue.is_settled():
        most = max(most, process.memory_info().rss)
        await asyncio.sleep(_LOOK)
    took = time.perf_counter() - started_at
    delays = list(starts.delays)
    await _stop(engines)
    return Recovery(began, took, time.process_time() - cpu, (before, most, process.memory_info().rss), delays)


async def _rearm(place: Place) -> float:
    """Schedules a second whose next time is computed again because tzdata is newer, by one replica."""
    place.admin.execute("delete from carillon.time_zone_rules")
    rearming = Rearming()
    row = place.admin.execute("select count(*) from carillon.schedules where time_zone <> 'UTC'").fetchone()
    assert row is not None
    async with await Database(place.api_url, place.engine_url).hot_connection() as connection:
        began = time.perf_counter()
        while await rearming.step(connection, 0.0):
            pass
        return int(row[0]) / (time.perf_counter() - began)


async def _two_engines(place: Place, started: Started) -> list[EngineAlone]:
    engines = [EngineAlone(), EngineAlone()]
    for engine in engines:
        await engine.start(place, started)
    return engines


async def _stop(engines: list[EngineAlone]) -> None:
    for engine in engines:
        await engine.stop()


def _nothing_is_due(place: Place) -> bool:
    row = place.admin.execute("select min(next_run_at) > now() from carillon.schedules").fetchone()
    return row is not None and row[0]


def _report(recovery: Recovery, found: Found, on_time: float, rearming: float) -> str:
    before, most, after = (each / _MEGABYTE for each in recovery.memory)
    ordered = [1e3 * each for each in recovery.delays]
    return "\n".join(
        [
            f"{found.schedules:,} schedules overdue by a week: {found.runs:,} runs made, {found.missed:,} missed;"
            f" {found.wrong} wrong",
            f"settled in {recovery.seconds:.1f} s, {recovery.cpu:.1f} s of it CPU time of this process; as many on"
            f" time take {on_time:.1f} s",
            f"resident memory: {before:.0f} MB before, {most:.0f} MB at most, {after:.0f} MB afterwards",
            f"{len(ordered):,} runs came due meanwhile; a worker had them after p50 {median(ordered):.0f} ms,"
            f" p99 {quantiles(ordered, n=100)[98]:.0f} ms, at most {max(ordered):.0f} ms",
            f"next times computed again for a new tzdata: {rearming:,.0f} schedules a second",
            f"recovery: seconds={recovery.seconds:.1f} cpu_seconds={recovery.cpu:.1f} on_time_seconds={on_time:.1f}"
            f" ratio={recovery.seconds / on_time:.2f} peak_mb={most - before:.0f}"
            f" p50_ms={median(ordered):.0f} p99_ms={quantiles(ordered, n=100)[98]:.0f} max_ms={max(ordered):.0f}"
            f" rearm_per_second={rearming:.0f} wrong={found.wrong}",
        ]
    )


if __name__ == "__main__":
    main()
