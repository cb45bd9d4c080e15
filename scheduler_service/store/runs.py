"""Reading runs, live and ended together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import text

from scheduler_service.domain.fields import compact_json
from scheduler_service.domain.record import Run
from scheduler_service.domain.run import EPOCH, RunState, id_floor
from scheduler_service.domain.run_filter import RunFilter
from scheduler_service.store.database import Transaction
from scheduler_service.store.run_rows import (
    ENDED_COLUMNS,
    LIVE_COLUMNS,
    all_of,
    run_of,
    size_of,
    visible_to,
    with_names,
)

# A gRPC client accepts messages of 4 MiB unless told otherwise.
_MAX_PAGE_BYTES = 3_500_000
_ROWS_AT_A_TIME = 25


@dataclass(frozen=True, slots=True)
class RunPage:
    """Some runs, newest first, and whether older ones follow."""

    runs: Sequence[Run]
    more: bool


async def get_run(tx: Transaction, run_id: UUID) -> Run | None:
    """One run, live or ended; None if it is not there or not the caller's. Touches one partition."""
    one = all_of(["r.run_id = :run_id", *visible_to(tx.principal)])
    statement = with_names(
        f"select {LIVE_COLUMNS} from carillon.live_runs r where {one}"
        f" union all select {ENDED_COLUMNS} from carillon.runs r where {one}"
    )
    row = (await tx.connection.execute(text(statement), {"run_id": run_id})).one_or_none()
    return await run_of(tx, row) if row is not None else None


async def get_runs(tx: Transaction, run_ids: Iterable[UUID], *, with_payloads: bool = True) -> dict[UUID, Run]:
    """Those of these runs that are there and the caller's, if need be with empty payloads. Touches their partitions
    only."""
    mine = all_of(visible_to(tx.principal))
    wanted = "unnest(cast(:run_ids as uuid[])) as wanted (run_id)"
    statement = with_names(
        f"select {LIVE_COLUMNS} from {wanted} join carillon.live_runs r using (run_id) where {mine}"
        f" union all select {ENDED_COLUMNS} from {wanted} join carillon.runs r using (run_id) where {mine}",
        payload="r.payload" if with_payloads else "'{}'",
    )
    rows = await tx.connection.execute(text(statement), {"run_ids": list(run_ids)})
    return {row.run_id: await run_of(tx, row) for row in rows}


async def jobs_of(tx: Transaction, service: str, job: str) -> list[int]:
    """The job of a service that the caller may see, or all of them (`service` empty: of all services; `job` empty:
    all jobs), archived ones too."""
    rows = await tx.connection.execute(
        text(
            "select job_id from carillon.jobs"
            " where (:service = '' or service = :service) and (:job = '' or job = :job) order by job_id"
        ),
        {"service": service, "job": job},
    )
    return list(rows.scalars())


async def list_runs(
    tx: Transaction, wanted: RunFilter, job_ids: Sequence[int] | None, *, before: UUID | None, limit: int
) -> RunPage:
    """The newest runs that match, older than `before`; `job_ids` None means of any job. A page ends early rather
    than grow beyond what a client accepts."""
    statement, values = _list_statement(tx, wanted, job_ids, before)
    runs: list[Run] = []
    room = _MAX_PAGE_BYTES
    # Through a cursor: of what does not fit, the database unpacks nothing and sends little.
    cautiously = text(statement).execution_options(max_row_buffer=_ROWS_AT_A_TIME)
    async with tx.connection.stream(cautiously, values | {"limit": limit + 1}) as rows:
        async for row in rows:
            room -= size_of(row)
            if len(runs) == limit or (runs and room < 0):
                return RunPage(runs, more=True)
            runs.append(await run_of(tx, row))
    return RunPage(runs, more=False)


def _list_statement(
    tx: Transaction, wanted: RunFilter, job_ids: Sequence[int] | None, before: UUID | None
) -> tuple[str, dict[str, Any]]:
    conditions, values = _conditions(wanted, before)
    conditions += visible_to(tx.principal)
    values |= {"job_ids": list(job_ids or []), "outcomes": sorted(wanted.outcomes)}
    halves = []
    if wanted.live_states:
        live = [*conditions, *_LIVE_CONDITIONS.get(wanted.live_states, [])]
        halves.append(_newest(LIVE_COLUMNS, "carillon.live_runs", live, each_job=job_ids is not None))
    if wanted.outcomes:
        ended = [*conditions, *(["r.state = any(cast(:outcomes as carillon.outcome[]))"] if wanted.states else [])]
        halves.append(_newest(ENDED_COLUMNS, "carillon.runs", ended, each_job=job_ids is not None))
    page = " union all ".join(f"({half})" for half in halves)
    return with_names(f"select * from ({page}) r order by r.run_id desc limit :limit"), values


_LIVE_CONDITIONS = {
    frozenset({RunState.PENDING}): ["r.claim_id is null"],
    frozenset({RunState.RUNNING}): ["r.claim_id is not null"],
}


def _newest(columns: str, table: str, conditions: list[str], *, each_job: bool) -> str:
    """The newest rows of one table that match. Of several jobs, the newest of each are merged: each is the end of one
    index range, where `job_id = any(...)` would sort everything."""
    if not each_job:
        return f"select {columns} from {table} r where {all_of(conditions)} order by r.run_id desc limit :limit"
    of_one_job = all_of(["r.job_id = wanted.job_id", *conditions])
    return (
        f"select {columns} from unnest(cast(:job_ids as bigint[])) as wanted (job_id) cross join lateral ("
        f"select * from {table} r where {of_one_job} order by r.run_id desc limit :limit) r"
        " order by r.run_id desc limit :limit"
    )


def _conditions(wanted: RunFilter, before: UUID | None) -> tuple[list[str], dict[str, Any]]:
    """What holds for both tables. Literal conditions repeat those of partial indexes, which the planner could not
    prove from a parameter."""
    conditions: list[str] = []
    values: dict[str, Any] = {}
    if wanted.tenant:
        conditions += ["r.tenant_id = :tenant", *(["r.tenant_id <> '-'"] if wanted.tenant != "-" else [])]
        values["tenant"] = wanted.tenant
    if wanted.labels:
        conditions += ["r.labels @> cast(:labels as jsonb)", "r.labels <> '{}'"]
        values["labels"] = compact_json(dict(wanted.labels))
    if wanted.triggers:
        conditions.append("r.trigger = any(cast(:triggers as carillon.trigger_source[]))")
        values["triggers"] = sorted(wanted.triggers)
    if wanted.origin:
        conditions.append("r.origin = :origin")
        values["origin"] = wanted.origin
    if wanted.since is not None:
        conditions.append("r.run_id >= :since")
        values["since"] = _floor(wanted.since)
    ceilings = [*([_floor(wanted.until)] if wanted.until is not None else []), *([before] if before else [])]
    if ceilings:
        conditions.append("r.run_id < :before")
        values["before"] = min(ceilings)
    return conditions, values


def _floor(instant: datetime) -> UUID:
    # No run is of a time before the epoch.
    return id_floor(max(instant, EPOCH))
