"""A fault run from its beginning to its judgement: start, load and break, heal, drain, gather, judge."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
from carillon import Client

from local_stack.postgres import ADMIN, EmbeddedPostgres
from scheduler_service.store.logins import API_ROLE, ENGINE_ROLE, Login
from scheduler_service.store.migrations import migrate
from tests import canary
from tests.conftest import DatabaseUrls
from tests.faults import schedules
from tests.faults.calls import token
from tests.faults.case import Allowances, Case
from tests.faults.evidence import Evidence
from tests.faults.gathering import gather
from tests.faults.load import Load
from tests.faults.logs import unforeseen
from tests.faults.nemesis import Nemesis
from tests.faults.plan import Plan
from tests.faults.site import Site
from tests.pgbouncer import NoPgBouncer, Program, find_pgbouncer
from tests.ports import lasting_port

Say = Callable[[str], None]

_SAY_EVERY = 15.0
_DONE_BEFORE_PAUSE = 3.0


class NotDrained(Exception):
    """Everything was whole again, and calls were still not answered; the text says which."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a fault run left. `table`: how many faults of each kind there were. `unforeseen`: errors in logs that no
    fault explains."""

    evidence: Evidence
    table: str
    unforeseen: Sequence[str]

    def figures(self) -> str:
        """What was exercised, in one line for each table of the database."""
        evidence = self.evidence
        states = Counter(each.state for each in evidence.records)
        repeats = len(evidence.effects) - len({each.run_id for each in evidence.effects})
        calls = Counter(f"{each.what} {each.answer}" for each in evidence.calls)
        errors = Counter(each.error_code for each in evidence.attempts)
        case = Case(evidence, Allowances())
        completed = [each for each in evidence.effects if each.outcome == "COMPLETED"]
        untouched = sum(not case.touched(each) for each in completed)
        return "\n".join(
            (
                f"  occurrences {len(evidence.occurrences)}; runs {len(evidence.records)}: {_counts(states)}",
                f"  effects {len(evidence.effects)}, of these {repeats} in a further attempt",
                f"  completed effects {len(completed)}, {untouched} out of reach of every fault: not to be repeated",
                f"  attempts that ended no run {len(evidence.attempts)}: {_counts(errors)}",
                f"  calls {len(evidence.calls)}: {_counts(calls)}",
                f"  probes of tenants {evidence.notes['probes']}; foreign answers {len(evidence.foreign)}",
            )
        )


class FaultRun:
    """On one site, once."""

    def __init__(self, site: Site, plan: Plan, say: Say) -> None:
        self._site = site
        self._plan = plan
        self._say = say

    async def run(self) -> Outcome:
        """Errors: NotReady, NotDrained, LocalStackError if a process ended by itself; alone or in an ExceptionGroup."""
        watching = asyncio.ensure_future(self._site.cluster.processes.watch())
        working = asyncio.ensure_future(self._run())
        try:
            await asyncio.wait({watching, working}, return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                watching.result()
            return await working
        finally:
            for task in (watching, working):
                task.cancel()
            await asyncio.gather(watching, working, return_exceptions=True)

    async def _run(self) -> Outcome:
        site, plan = self._site, self._plan
        await site.start_all()
        self._say(f"schedulers, workers, service and {len(site.links)} proxies are up; seed {plan.seed}")
        jwt = token(site.cluster.secrets.jwt_secret, sub="operator", role="admin")
        async with Client(site.cluster.target, token=jwt) as operator:
            await schedules.put_paused(operator)
            resumed = await schedules.resume(operator)
            async with Load(site, plan.seed) as load:
                await self._load_and_break(load)
                await self._heal(load)
            paused = await schedules.pause(operator)
        live = await self._drain()
        self._say(f"drained; {live} live" if live else "drained: nothing is live")
        return await self._gather(resumed, paused)

    async def _load_and_break(self, load: Load) -> None:
        until = time.monotonic() + self._plan.seconds
        nemesis = Nemesis(self._site, self._plan, self._say)
        others = [asyncio.ensure_future(each) for each in (load.run(), self._keep_saying(until))]
        breaking = asyncio.ensure_future(nemesis.run(until))
        try:
            await asyncio.wait({breaking, *others}, return_when=asyncio.FIRST_COMPLETED)
            for task in (breaking, *others):
                if task.done():
                    task.result()
        finally:
            for task in (breaking, *others):
                task.cancel()
            await asyncio.gather(breaking, *others, return_exceptions=True)

    async def _heal(self, load: Load) -> None:
        self._site.clock.move(timedelta())
        self._site.heal_links()
        await self._site.all_ready()
        self._say("all is whole; calls without an answer are repeated")
        try:
            await asyncio.wait_for(load.finish(), self._plan.drain)
        except TimeoutError:
            raise NotDrained(f"calls were not answered within {self._plan.drain:g} s after all was whole") from None
        await asyncio.sleep(_DONE_BEFORE_PAUSE)

    async def _drain(self) -> int:
        """Waits until nothing is live, as long as the plan lets it. Answers how many still are."""
        until = time.monotonic() + self._plan.drain
        while (live := await self._count("carillon.live_runs")) and time.monotonic() < until:  # noqa: ASYNC110
            await asyncio.sleep(0.5)
        return live

    async def _gather(self, resumed: dict[str, datetime], paused: dict[str, datetime]) -> Outcome:
        owed = list(schedules.occurrences(resumed, paused))
        journal = self._site.journal
        notes = {"seed": str(self._plan.seed), "probes": str(journal.probes)}
        evidence = await gather(self._site, owed, self._plan.grace, notes)
        return Outcome(evidence, journal.table(), unforeseen((self._site.home / "logs").glob("*.log")))

    async def _keep_saying(self, until: float) -> None:
        journal = self._site.journal
        while True:
            await asyncio.sleep(_SAY_EVERY)
            left = max(0.0, until - time.monotonic())
            try:
                counts = [await self._count(f"carillon.{table}") for table in ("runs", "live_runs")]
                said = f"{counts[0]} recorded, {counts[1]} live"
            except psycopg.OperationalError:
                said = "the database does not say"
            broken = ", ".join(journal.open) or "nothing"
            self._say(
                f"{left:.0f} s left: {said}; {len(journal.faults)} faults, {journal.kills} kills; broken: {broken}"
            )

    async def _count(self, table: str) -> int:
        ((count,),) = await self._site.rows(f"select count(*) from {table}")
        return int(count)


def _counts(counts: Counter[Any]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.most_common()) or "none"


def _pgbouncer() -> Program | None:
    try:
        return find_pgbouncer()
    except NoPgBouncer:
        return None


@asynccontextmanager
async def site_of_its_own(home: Path, plan: Plan, *, keep_database: bool = False) -> AsyncIterator[Site]:
    """With a PostgreSQL of its own in `home`, on a port that it keeps when it is restarted, and PgBouncer where it is
    to be had. Nothing of it is left running, and its data only with `keep_database`."""
    server = EmbeddedPostgres(home / "postgres", port=lasting_port())
    try:
        await asyncio.to_thread(server.start)
        server.create_database("carillon")
        password = canary.secret("database")
        urls = DatabaseUrls(
            api=server.url(API_ROLE, password), engine=server.url(ENGINE_ROLE, password), admin=server.url(ADMIN)
        )
        await asyncio.to_thread(migrate, urls.admin, [Login(API_ROLE, urls.api), Login(ENGINE_ROLE, urls.engine)])
        async with Site(home, server, urls, plan, await asyncio.to_thread(_pgbouncer)) as site:
            yield site
    finally:
        await asyncio.to_thread(server.stop if keep_database else server.remove)
