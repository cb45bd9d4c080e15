"""`make bench-access`: what row level security costs, on the hot path and on an API read, measured in turns."""

from __future__ import annotations

import argparse
import asyncio
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping
from statistics import median
from urllib.parse import urlsplit, urlunsplit
from uuid import UUID

from psycopg import sql
from rich.console import Console
from rich.table import Table

from benchmarks.place import Place, fresh_place
from benchmarks.scenarios import Starts, drain
from benchmarks.stack import EngineAlone
from operations import logs, memory
from scheduler_service.domain.access import Kind, Principal, Scope
from scheduler_service.domain.names import ScheduleParent
from scheduler_service.domain.run_filter import RunFilter
from scheduler_service.store.database import Database
from scheduler_service.usecases.runs import get_run, list_runs
from scheduler_service.usecases.schedules import list_schedules

CALLERS = {
    "admin": Principal(Kind.ADMIN, name="alice"),
    "service": Principal(Kind.SERVICE, name="bench-1", service="bench", scopes=frozenset({Scope.READ})),
    "user": Principal(Kind.USER, name="ann", tenant="t1"),
}
TENANTS = 20
# The password is the API login's, so that its URL serves with another name.
_BYPASSING = "bench_bypassing"

_POLICIES = """
select tablename, policyname, cmd from pg_policies
where schemaname = 'carillon' and roles @> '{carillon_engine}' and coalesce(qual, with_check) = 'true'"""
_TABLES = """
select relname from pg_class where relnamespace = 'carillon'::regnamespace and relkind in ('r', 'p')
  and relrowsecurity"""
_ENDED = """
insert into carillon.runs (run_id, job_id, tenant_id, state, trigger, scheduled_for, run_after, created_at, started_at,
  finished_at, duration, triggered_by, origin, labels, payload, attempt, max_attempts)
select overlay(gen_random_uuid()::text placing left(carillon.id_floor(now())::text, 13) from 1)::uuid, %(job_id)s,
  't' || n %% %(tenants)s, 'COMPLETED', 'MANUAL', now(), now(), now(), now(), now(), '1 s', 'bench', '', '{}',
  '{"size": 10}', 1, 3
from generate_series(1, %(count)s) n"""
_TENANT_SCHEDULES = """
insert into carillon.schedules (job_id, tenant_id, schedule, timing, enabled, cron, time_zone, gap, repeat, phase,
  jitter, settled_to, created_at, created_by, updated_at, updated_by)
select %(job_id)s, 't' || n %% %(tenants)s, 's' || n, '{}', true, '0 9 * * *', 'UTC', 'SHIFT', 'FIRST', '0', '0',
  now(), now(), 'bench', now(), 'bench'
from generate_series(1, %(count)s) n"""


class Variants:
    """The engine's policies, as they are and as they might be. Each leaves what `as_it_is` takes back."""

    def __init__(self, place: Place) -> None:
        self._admin = place.admin
        self._policies = self._admin.execute(_POLICIES).fetchall()
        self._tables = [row[0] for row in self._admin.execute(_TABLES).fetchall()]
        self.all: Mapping[str, Callable[[], None]] = {
            "as it is": self.as_it_is,
            "off": self.off,
            "on a setting": self.on_a_setting,
        }

    def as_it_is(self) -> None:
        self._admin.execute("alter role carillon_engine reset carillon.kind")
        self._alter_policies("true")
        self._alter_tables("enable")

    def off(self) -> None:
        self.as_it_is()
        self._alter_tables("disable")

    def on_a_setting(self) -> None:
        self.as_it_is()
        self._admin.execute("alter role carillon_engine set carillon.kind = 'engine'")
        self._alter_policies("current_setting('carillon.kind', true) = 'engine'")

    def _alter_tables(self, verb: str) -> None:
        for table in self._tables:
            statement = f"alter table carillon.{{}} {verb} row level security"
            self._admin.execute(sql.SQL(statement).format(sql.Identifier(table)))

    def _alter_policies(self, condition: str) -> None:
        for table, policy, verb in self._policies:
            using = "" if verb == "INSERT" else f" using ({condition})"
            check = "" if verb in ("SELECT", "DELETE") else f" with check ({condition})"
            statement = f"alter policy {{}} on carillon.{{}}{using}{check}"
            self._admin.execute(sql.SQL(statement).format(sql.Identifier(policy), sql.Identifier(table)))


async def completing(place: Place, rounds: int, count: int) -> dict[str, list[float]]:
    """Runs a second from a backlog, dispatched and completed by the engine alone; the first round does not count."""
    variants, rates = Variants(place), defaultdict[str, list[float]](list)
    for turn in range(rounds + 1):
        for name, apply in variants.all.items():
            apply()
            place.tidy()
            # Anew each time: plans and settings belong to connections.
            starts, stack = Starts(), EngineAlone()
            await stack.start(place, starts.started)
            try:
                rate = await drain(place, starts, count)
            finally:
                await stack.stop()
            if turn:
                rates[name].append(rate)
    variants.as_it_is()
    return rates


async def reading(place: Place, rounds: int, calls: int) -> dict[tuple[str, str], tuple[float, float]]:
    """Microseconds of a call through the policies, and by a login that bypasses them: medians."""
    run_id = _fill(place)
    database = Database(place.api_url, place.engine_url, pool_size=1)
    bypassing = Database(_bypassing_url(place), place.engine_url, pool_size=1)
    took = defaultdict[tuple[str, str, bool], list[float]](list)
    for turn in range(rounds + 1):
        for caller, principal in CALLERS.items():
            for what, read in _reads(principal, run_id).items():
                for _ in range(calls):
                    for bypasses, on in ((False, database), (True, bypassing)):
                        seconds = await _timed(read, on)
                        if turn:
                            took[what, caller, bypasses].append(seconds)
    await database.close()
    await bypassing.close()
    return {
        (what, caller): (1e6 * median(took[what, caller, False]), 1e6 * median(took[what, caller, True]))
        for what, caller in {(what, caller) for what, caller, _ in took}
    }


def _reads(principal: Principal, run_id: UUID) -> Mapping[str, Callable[[Database], Awaitable[object]]]:
    # Each caller asks for what all of them see, so that the same rows are read with and without policies.
    wanted = RunFilter(service="bench", job="noop", tenant="t1")
    parent = ScheduleParent("bench", "noop", "t1")
    return {
        "GetRun": lambda database: get_run(database, principal, run_id),
        "ListRuns": lambda database: list_runs(database, principal, wanted, size=50),
        "ListSchedules": lambda database: list_schedules(database, principal, parent, size=50),
    }


async def _timed(read: Callable[[Database], Awaitable[object]], database: Database) -> float:
    began = time.perf_counter()
    await read(database)
    return time.perf_counter() - began


def _fill(place: Place) -> UUID:
    """50,000 runs and 2,000 schedules of 20 tenants. Answers one of tenant t1's runs."""
    place.admin.execute("update carillon.jobs set tenant_schedules = true")
    values = {"job_id": place.job_id, "tenants": TENANTS}
    place.admin.execute(_ENDED, values | {"count": 50_000})
    place.admin.execute(_TENANT_SCHEDULES, values | {"count": 2_000})
    place.admin.execute("vacuum analyze")
    row = place.admin.execute("select run_id from carillon.runs where tenant_id = 't1' limit 1").fetchone()
    assert row is not None
    found: UUID = row[0]
    return found


def _bypassing_url(place: Place) -> str:
    parts = urlsplit(place.api_url)
    place.admin.execute(
        sql.SQL("create role {} login bypassrls password {} in role carillon_api").format(
            sql.Identifier(_BYPASSING), sql.Literal(parts.password)
        )
    )
    return urlunsplit(parts._replace(netloc=parts.netloc.replace(str(parts.username), _BYPASSING, 1)))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.access", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="rounds that count (default: 5)")
    parser.add_argument("--runs", type=int, default=20_000, help="runs a round (default: 20,000)")
    parser.add_argument("--calls", type=int, default=100, help="calls a round (default: 100)")
    options = parser.parse_args()
    memory.collect_rarely()
    logs.configure("text", "warning")
    asyncio.run(_bench(options))


async def _bench(options: argparse.Namespace) -> None:
    console = Console()
    with fresh_place() as place:
        with console.status("completing runs"):
            rates = await completing(place, options.rounds, options.runs)
        place.tidy()
        with console.status("reading"):
            reads = await reading(place, options.rounds, options.calls)
    off = median(rates["off"])
    table = Table(title=f"medians of {options.rounds} rounds")
    for column in ("what", "with policies", "without", "ratio of costs"):
        table.add_column(column, justify="left" if column == "what" else "right")
    said = []
    for name in ("as it is", "on a setting"):
        rate = median(rates[name])
        table.add_row(
            f"completing, engine's policies {name} (runs/s)", f"{rate:,.0f}", f"{off:,.0f}", f"{off / rate:.2f}"
        )
        said.append(f"complete_{'true' if name == 'as it is' else 'setting'}={off / rate:.2f}")
    for what, caller in sorted(reads):
        ours, bare = reads[what, caller]
        table.add_row(f"{what} as {caller} (µs)", f"{ours:,.0f}", f"{bare:,.0f}", f"{ours / bare:.2f}")
        said.append(f"{what.lower()}_{caller}={ours / bare:.2f}")
    console.print(table)
    console.print(" ".join(["access:", *said]), soft_wrap=True)


if __name__ == "__main__":
    main()
