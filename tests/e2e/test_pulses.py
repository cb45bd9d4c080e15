"""Real replicas tell each other that their loops work."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import psycopg

from local_stack.ports import LOCALHOST
from tests.builders import connect
from tests.conftest import DatabaseUrls
from tests.e2e.cluster import Cluster, Scheduler, eventually, fetch

LOOPS = {
    *("ticker", "second ticker", "completer", "teller", "listener", "housekeeper"),
    *("leases", "reports", "service tokens", "reaper", "sealer", "readiness"),
}
_IDLE = re.compile(r'^carillon_loop_idle_everywhere_seconds\{loop="([^"]+)"\} (\S+)$', re.MULTILINE)


def beats(admin: psycopg.Connection[Any]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for replica, loop in admin.execute("select replica, loop from carillon.pulses").fetchall():
        found.setdefault(replica, set()).add(loop)
    return found


async def idle(scheduler: Scheduler) -> dict[str, float]:
    _, shown = await fetch(f"http://{LOCALHOST}:{scheduler.metrics_port}/metrics")
    return {loop: float(seconds) for loop, seconds in _IDLE.findall(shown)}


async def test_every_loop_of_every_replica_beats(database_urls: DatabaseUrls, tmp_path: Path) -> None:
    with connect(database_urls.admin) as admin:
        async with Cluster(tmp_path, database_urls) as cluster:
            one = await cluster.start_scheduler("one")
            await cluster.start_scheduler("two")

            async def told() -> dict[str, set[str]]:
                return beats(admin)

            await eventually(told, lambda found: found == {"one": LOOPS, "two": LOOPS})
            await eventually(lambda: idle(one), lambda shown: shown.keys() == LOOPS and max(shown.values()) < 60)
            readyz = f"http://{LOCALHOST}:{one.metrics_port}/readyz"
            await eventually(lambda: fetch(readyz), lambda said: said == (200, "serving\n"))
