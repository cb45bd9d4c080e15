"""`make bench-failover`: how long it takes until work goes on after a worker, a scheduler or PostgreSQL was ended.

Real processes are ended by signals, at chance moments; the instants are those of the database's records, on one machine
with one clock. Beside each figure stands what is promised (see docs/reliability.md), where something is.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import tempfile
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import median
from uuid import UUID

from carillon import CarillonError
from rich.console import Console
from rich.table import Table

from benchmarks.failover_site import FailoverSite, Server, server_of_its_own, site
from benchmarks.failover_worker import BEAT
from benchmarks.place import now
from tests.e2e.cluster import eventually

WORKERS = ("worker-1", "worker-2")
SHORT_LEASE, SHORT_HEARTBEAT = 6.0, 1.0

_LEASE, _HEARTBEAT = 30.0, 5.0
_AFTER_LEASE = 5.0  # L3
_TICKED = 1.0  # L1
_STARTED = 1.0  # L2
_LOOKED_AT = timedelta(seconds=5)
"""Of the occurrences after a scheduler was killed."""
_PATIENCE = 120.0
_MOST_SECONDS_AWAY = 8.0

_SECOND_ATTEMPT = """
select a.finished_at, r.started_at from carillon.runs r join carillon.attempts a using (run_id)
where r.run_id = %s and a.attempt = 1
"""
_BEATS_OPEN = "select count(*) from carillon.live_runs where schedule_id is not null and scheduled_for <= %s"
_BEATS = """
select scheduled_for, created_at, started_at from carillon.runs
where schedule_id is not null and scheduled_for between %s and %s order by created_at
"""
_FIRST_TICK = """
select min(created_at) from (
  select created_at, schedule_id from carillon.live_runs union all select created_at, schedule_id from carillon.runs
) made where schedule_id is not null and created_at > %s
"""
_FIRST_END = "select min(finished_at) from carillon.runs where finished_at > %s"


@dataclass(frozen=True)
class Figure:
    """What is measured, in seconds. `promise`: at most so many; None where nothing is promised."""

    key: str
    says: str
    promise: float | None


Seen = dict[str, float]


@dataclass(frozen=True)
class Part:
    """What is broken, and what is measured then. `settings`: of the schedulers."""

    name: str
    workers: Sequence[str]
    settings: Mapping[str, float]
    figures: Sequence[Figure]
    round: Callable[[FailoverSite, float], Awaitable[Seen]]


async def worker_killed(place: FailoverSite, heartbeat: float) -> Seen:
    """SIGKILL, at some moment between two heartbeats."""
    held = await place.hold()
    await asyncio.sleep(random.uniform(0, heartbeat))
    killed = now()
    await place.cluster.kill(held.worker)
    return await _after_the_loss(place, held.run_id, held.worker, killed)


async def worker_left(place: FailoverSite, _heartbeat: float) -> Seen:
    """SIGTERM. The worker gives its runs no time: what is measured is Goodbye, not somebody's grace."""
    held = await place.hold()
    told = now()
    await place.cluster.terminate(held.worker)
    return await _after_the_loss(place, held.run_id, held.worker, told)


async def _after_the_loss(place: FailoverSite, run_id: UUID, worker: str, since: datetime) -> Seen:
    held = await place.started(run_id, 2)
    place.let_go(held.run_id)
    await place.ended(held.run_id)
    ((freed, started),) = await place.server.rows(_SECOND_ATTEMPT, held.run_id)
    await place.start_worker(worker)
    return {"pending": _seconds(freed - since), "started": _seconds(started - since)}


async def replica_killed(place: FailoverSite, _heartbeat: float) -> Seen:
    """SIGKILL to the scheduler that the only worker is connected to, while the worker has a result to report."""
    held = await place.hold()
    await asyncio.sleep(random.random())
    killed = now()
    await place.cluster.kill(held.replica)
    place.let_go(held.run_id)
    accepted = await place.ended(held.run_id)
    until = killed + _LOOKED_AT
    await eventually(lambda: _all_ended(place, until), seconds=_PATIENCE)
    beats = await place.server.rows(_BEATS, killed - timedelta(seconds=1), until)
    made = [created_at for _, created_at, _ in beats]
    await place.cluster.start_scheduler(held.replica)
    return {
        "hole": max(_seconds(after - before) for before, after in pairwise(made)),
        "tick": max(_seconds(created_at - due) for due, created_at, _ in beats),
        "start": max(_seconds(started_at - due) for due, _, started_at in beats),
        "accepted": _seconds(accepted - killed),
    }


async def database_away(place: FailoverSite, _heartbeat: float) -> Seen:
    """An immediate stop, and a start after some seconds. Counted from when the server takes connections."""
    gone = await place.server.stop_at_once()
    await asyncio.sleep(random.uniform(1, _MOST_SECONDS_AWAY))
    asking = asyncio.ensure_future(_first_answer(place))
    back = await place.server.start()
    first_tick, first_end = [
        await eventually(partial(_first, place, what, gone), seconds=_PATIENCE) for what in (_FIRST_TICK, _FIRST_END)
    ]
    answered = await asking
    await place.all_ready()
    assert first_tick is not None
    assert first_end is not None
    return {"tick": _seconds(first_tick - back), "end": _seconds(first_end - back), "call": _seconds(answered - back)}


async def _first_answer(place: FailoverSite) -> datetime:
    """When a call that reads the database is answered."""
    while True:
        try:
            await place.client.get_job(BEAT)
            return now()
        except CarillonError:
            await asyncio.sleep(0.02)


async def _first(place: FailoverSite, query: str, since: datetime) -> datetime | None:
    ((at,),) = await place.server.rows(query, since)
    assert at is None or isinstance(at, datetime)
    return at


async def _all_ended(place: FailoverSite, until: datetime) -> bool:
    """Whether all that is due up to then is, and has ended."""
    ((live,),) = await place.server.rows(_BEATS_OPEN, until)
    ((ahead,),) = await place.server.rows(_FIRST_TICK, until)
    return not live and ahead is not None


def _seconds(span: timedelta) -> float:
    """At least 0: what was first may have been there a moment before it was looked for."""
    return max(0.0, span.total_seconds())


def _lost(lease: float) -> list[Figure]:
    promise = lease + _AFTER_LEASE
    return [
        Figure("pending", "its run is pending again", promise),
        Figure("started", "it has started elsewhere", promise + _STARTED),
    ]


_SHORT = {"lease_seconds": SHORT_LEASE, "heartbeat_seconds": SHORT_HEARTBEAT}
PARTS = (
    Part("worker_killed", WORKERS, {}, _lost(_LEASE), worker_killed),
    Part("worker_killed_short", WORKERS, _SHORT, _lost(SHORT_LEASE), worker_killed),
    Part("worker_left", WORKERS, {}, _lost(0.0), worker_left),
    Part(
        "scheduler_killed",
        WORKERS[:1],
        {},
        [
            Figure("hole", "longest time between two ticks, one each second", 1.0 + _TICKED),
            Figure("tick", "what is due is a run, at the latest after", _TICKED),
            Figure("start", "it has started, at the latest after", _TICKED + _STARTED),
            Figure("accepted", "its worker's result is accepted by the other", None),
        ],
        replica_killed,
    ),
    Part(
        "database_back",
        WORKERS[:1],
        {},
        [
            Figure("tick", "the first tick", _TICKED),
            Figure("end", "the first completion", _TICKED + _STARTED),
            Figure("call", "the first call is answered", None),
        ],
        database_away,
    ),
)
_SAYS = {
    "worker_killed": f"worker killed (lease {_LEASE:g} s, heartbeat {_HEARTBEAT:g} s)",
    "worker_killed_short": f"worker killed (lease {SHORT_LEASE:g} s, heartbeat {SHORT_HEARTBEAT:g} s)",
    "worker_left": "worker ended in order (SIGTERM, Goodbye)",
    "scheduler_killed": "scheduler killed, of two",
    "database_back": f"PostgreSQL back, after an immediate stop and 1 to {_MOST_SECONDS_AWAY:g} s",
}


def main() -> None:
    names = [part.name for part in PARTS]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.failover", description=__doc__)
    parser.add_argument("--part", choices=names, action="append", help="what to measure (default: all)")
    parser.add_argument("--rounds", type=int, default=5, help="of each part (default: 5)")
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error("--rounds must be at least 1")
    console = Console()
    parts = [part for part in PARTS if not options.part or part.name in options.part]
    with tempfile.TemporaryDirectory(prefix="carillon-failover-") as home, server_of_its_own(Path(home)) as server:
        seen = asyncio.run(_bench(Path(home), server, parts, options.rounds, console))
    console.print(_table(parts, seen, options.rounds))
    console.print(_summary(parts, seen, options.rounds), soft_wrap=True, highlight=False)


async def _bench(
    home: Path, server: Server, parts: Sequence[Part], rounds: int, console: Console
) -> dict[str, list[Seen]]:
    seen: dict[str, list[Seen]] = {}
    for part in parts:
        heartbeat = part.settings.get("heartbeat_seconds", _HEARTBEAT)
        async with site(home / part.name, server, part.workers, part.settings) as place:
            seen[part.name] = []
            for number in range(1, rounds + 1):
                found = await part.round(place, heartbeat)
                seen[part.name].append(found)
                said = ", ".join(f"{key} {seconds:.2f} s" for key, seconds in found.items())
                console.print(f"{part.name} {number}/{rounds}: {said}", soft_wrap=True, highlight=False)
    return seen


def _table(parts: Sequence[Part], seen: Mapping[str, list[Seen]], rounds: int) -> Table:
    table = Table(title=f"seconds, in {rounds} rounds each; ratio: the worst beside the promise")
    for column in ("after", "until", "median", "worst", "promise", "ratio"):
        table.add_column(column, justify="left" if column in ("after", "until") else "right")
    for part in parts:
        for place, figure in enumerate(part.figures):
            all_of_it = [found[figure.key] for found in seen[part.name]]
            promised = ("", "")
            if figure.promise is not None:
                promised = (f"{figure.promise:g}", f"{max(all_of_it) / figure.promise:.2f}")
            after = "" if place else _SAYS[part.name]
            table.add_row(after, figure.says, f"{median(all_of_it):.2f}", f"{max(all_of_it):.2f}", *promised)
    return table


def _summary(parts: Sequence[Part], seen: Mapping[str, list[Seen]], rounds: int) -> str:
    """One line for machines: each figure's median and worst, in seconds."""
    said = [f"rounds={rounds}"]
    for part in parts:
        for figure in part.figures:
            all_of_it = [found[figure.key] for found in seen[part.name]]
            name = f"{part.name}_{figure.key}"
            said += [f"{name}={median(all_of_it):.2f}", f"{name}_worst={max(all_of_it):.2f}"]
    return " ".join(["failover:", *said])


if __name__ == "__main__":
    main()
