"""`make simulated-year`: a year of 500 schedules in 40 zones, with changes, pauses, outages and two replicas, held
against an oracle. Exits 0 only if nothing is missing, twice, early or unowed, and each policy was kept."""

from __future__ import annotations

import asyncio
import secrets
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import psycopg
import typer

from local_stack.postgres import ADMIN, EmbeddedPostgres
from scheduler_service.store.logins import API_ROLE, ENGINE_ROLE, Login
from scheduler_service.store.migrations import migrate
from tests.conftest import DatabaseUrls
from tests.simulation.ledger import judge_ledger
from tests.simulation.owed import everything_owed
from tests.simulation.simulation import Simulation, Size
from tests.simulation.verdict import Verdict, judge

_PASSWORD = "only-for-this-simulation"
# It is the logic that is on trial; the soak tries what a crash leaves.
_SETTINGS = {"fsync": "off", "synchronous_commit": "off"}
_MOST_SHOWN = 20


def main(
    schedules: int = typer.Option(500, help="How many schedules."),
    days: int = typer.Option(365, help="For how long, at most 365."),
    seed: int | None = typer.Option(
        None, help="The seed of an earlier simulation, to see it again. Default: a new one."
    ),
    start: str = typer.Option("", help="Its first day, such as 2026-11-01. Default: the first of this month."),
) -> None:
    """Simulates, compares, and says what came of it."""
    today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    began = datetime.fromisoformat(start).replace(tzinfo=UTC) if start else today.replace(day=1)
    size = Size(schedules, days, began, secrets.randbelow(1 << 32) if seed is None else seed)
    _say(f"seed={size.seed} start={began:%Y-%m-%d}: see it again with --seed {size.seed} --start {began:%Y-%m-%d}")
    simulation, verdict = _on_a_database_of_its_own(size)
    _say(", ".join(f"{count} {outcome.lower()}" for outcome, count in sorted(verdict.outcomes.items())))
    wrong = simulation.problems + verdict.wrong
    for sentence in wrong[:_MOST_SHOWN]:
        _say(f"wrong: {sentence}")
    _say(f"{len(wrong)} things are wrong" if wrong else "every policy was kept")
    _say(verdict.line(simulation.diary))
    sys.exit(bool(wrong))


def _on_a_database_of_its_own(size: Size) -> tuple[Simulation, Verdict]:
    with tempfile.TemporaryDirectory(prefix="carillon-simulation-") as folder:
        server = EmbeddedPostgres(Path(folder) / "postgres", settings=_SETTINGS)
        try:
            server.start()
            server.create_database("carillon")
            urls = DatabaseUrls(
                api=server.url(API_ROLE, _PASSWORD), engine=server.url(ENGINE_ROLE, _PASSWORD), admin=server.url(ADMIN)
            )
            migrate(urls.admin, [Login(API_ROLE, urls.api), Login(ENGINE_ROLE, urls.engine)])
            return simulated(urls, size)
        finally:
            server.remove()


def simulated(urls: DatabaseUrls, size: Size) -> tuple[Simulation, Verdict]:
    simulation = Simulation(urls, size, say=_say)
    began = time.monotonic()
    asyncio.run(simulation.run())
    _say(f"simulated in {time.monotonic() - began:.0f} s; walking every minute of every zone")
    owed = everything_owed(simulation.diary, size.start, simulation.now)
    with psycopg.connect(urls.admin, autocommit=True) as admin:
        verdict = judge(admin, simulation.diary, owed)
    _say("reading the ledger")
    asyncio.run(judge_ledger(urls, owed, size.start, simulation.now, verdict))
    return simulation, verdict


def _say(line: str) -> None:
    print(line, flush=True)  # noqa: T201 - what this program is for


if __name__ == "__main__":
    typer.run(main)
