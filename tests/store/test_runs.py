"""Reading runs from the database: live and ended as one, for each caller what is theirs."""

from __future__ import annotations

import tracemalloc
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import psycopg
import pytest
from sqlalchemy import text

from scheduler_service.domain.access import Principal
from scheduler_service.domain.record import Run, RunError
from scheduler_service.domain.run import RunState, TriggerSource, id_floor
from scheduler_service.domain.run_filter import RunFilter
from scheduler_service.store import runs as store
from scheduler_service.store.database import Database
from tests import builders
from tests.builders import ADMIN, NOBODY, MadeJob

START = datetime.now(UTC) - timedelta(hours=1)


@pytest.fixture
def job(admin: psycopg.Connection[Any]) -> MadeJob:
    return builders.make_job(admin)


async def get(database: Database, run_id: UUID, principal: Principal = ADMIN) -> Run | None:
    async with database.acting_for(principal) as tx:
        return await store.get_run(tx, run_id)


async def listed(
    database: Database,
    wanted: RunFilter | None = None,
    *,
    principal: Principal = ADMIN,
    jobs: list[MadeJob] | None = None,
    before: UUID | None = None,
    limit: int = 100,
) -> list[UUID]:
    job_ids = None if jobs is None else [job.job_id for job in jobs]
    async with database.acting_for(principal) as tx:
        page = await store.list_runs(tx, wanted or RunFilter(), job_ids, before=before, limit=limit)
    return [run.run_id for run in page.runs]


async def test_a_pending_a_running_and_an_ended_run_are_read_alike(
    database: Database, admin: psycopg.Connection[Any], job: MadeJob
) -> None:
    pending = builders.make_live_run(admin, job)
    running = builders.make_live_run(admin, job, labels={"brand": "x"}, payload={"n": 2**60})
    builders.claim(admin, running, builders.make_session(admin, "worker-7"))
    ended = builders.make_ended_run(admin, job, RunState.FAILED, error={"code": "HTTP_STATUS", "message": "503"})

    run = await get(database, pending)
    assert run is not None
    assert (run.state, run.worker, run.started_at, run.service, run.job) == (
        RunState.PENDING,
        "",
        None,
        "email-service",
        "weekly-digest",
    )
    run = await get(database, running)
    assert run is not None
    assert (run.state, run.worker, run.labels, run.payload["n"]) == (
        RunState.RUNNING,
        "worker-7",
        {"brand": "x"},
        2**60,
    )
    run = await get(database, ended)
    assert run is not None
    assert (run.state, run.duration, run.error) == (
        RunState.FAILED,
        timedelta(seconds=1),
        RunError("HTTP_STATUS", "503"),
    )


async def test_a_scheduled_run_names_its_schedule(
    database: Database, admin: psycopg.Connection[Any], job: MadeJob
) -> None:
    schedule_id = builders.make_schedule(admin, job, "morning", "brand-a", time_zone="Asia/Kolkata")
    local = datetime(2026, 3, 1, 9)  # noqa: DTZ001 - a local time has no zone in itself
    columns: dict[str, Any] = {
        "schedule_id": schedule_id,
        "revision": 4,
        "scheduled_local": local,
        "time_zone": "Asia/Kolkata",
    }
    run = await get(database, builders.make_live_run(admin, job, tenant="brand-a", trigger="SCHEDULE", **columns))
    assert run is not None
    assert (run.schedule, run.revision, run.tenant, run.scheduled_local, run.time_zone, run.trigger) == (
        "morning",
        4,
        "brand-a",
        local,
        "Asia/Kolkata",
        TriggerSource.SCHEDULE,
    )


async def test_every_caller_sees_what_is_theirs_and_nothing_else(
    database: Database, admin: psycopg.Connection[Any], job: MadeJob
) -> None:
    hidden_job = builders.make_job(admin, "kpi-service", "sync", tenant_schedules=False)
    system = builders.make_ended_run(admin, job)
    of_a = builders.make_ended_run(admin, job, tenant="tenant-a")
    of_b = builders.make_live_run(admin, job, tenant="tenant-b")
    hidden = builders.make_ended_run(admin, hidden_job, tenant="tenant-a")
    sees = {
        ADMIN: {system, of_a, of_b, hidden},
        builders.service("email-service"): {system, of_a, of_b},
        builders.service("kpi-service"): {hidden},
        builders.service("other-service"): set(),
        builders.user("tenant-a"): {of_a},
        builders.user("tenant-b"): {of_b},
        builders.user("-"): set(),
        NOBODY: set(),
    }
    for principal, expected in sees.items():
        assert set(await listed(database, principal=principal)) == expected, principal
        for run_id in (system, of_a, of_b, hidden):
            found = await get(database, run_id, principal)
            assert (found is not None) == (run_id in expected), (principal, run_id)


async def test_runs_that_a_user_may_not_see_do_not_shorten_its_pages(
    database: Database, admin: psycopg.Connection[Any], job: MadeJob
) -> None:
    hidden_job = builders.make_job(admin, "kpi-service", "sync", tenant_schedules=False)
    mine = builders.make_ended_run(admin, job, tenant="tenant-a", at=START)
    for n in range(3):
        builders.make_ended_run(admin, hidden_job, tenant="tenant-a", at=START + timedelta(seconds=n + 1))
    assert await listed(database, principal=builders.user("tenant-a"), limit=1) == [mine]


async def test_runs_that_end_between_two_pages_are_neither_lost_nor_doubled(
    database: Database, admin: psycopg.Connection[Any], job: MadeJob
) -> None:
    made = [builders.make_live_run(admin, job, at=START + timedelta(seconds=n)) for n in range(6)]
    first = await listed(database, limit=3)
    for run_id in (made[5], made[2], made[0]):
        builders.finish(admin, run_id)
    second = await listed(database, before=first[-1], limit=3)
    assert first + second == made[::-1]


async def test_a_page_says_whether_more_follows(
    database: Database, admin: psycopg.Connection[Any], job: MadeJob
) -> None:
    for n in range(4):
        builders.make_ended_run(admin, job, at=START + timedelta(seconds=n))
    async with database.acting_for(ADMIN) as tx:
        page = await store.list_runs(tx, RunFilter(), None, before=None, limit=3)
        assert (len(page.runs), page.more) == (3, True)
        page = await store.list_runs(tx, RunFilter(), None, before=page.runs[-1].run_id, limit=3)
        assert (len(page.runs), page.more) == (1, False)


async def test_a_page_ends_before_it_is_more_than_a_client_accepts(
    database: Database, admin: psycopg.Connection[Any], job: MadeJob
) -> None:
    payload = {"text": "x" * 250 * 1024}
    made = [builders.make_ended_run(admin, job, at=START + timedelta(seconds=n), payload=payload) for n in range(5)]
    async with database.acting_for(ADMIN) as tx:
        page = await store.list_runs(tx, RunFilter(), None, before=None, limit=5)
        assert ([run.run_id for run in page.runs], page.more) == (made[:-3:-1], True)


async def test_what_does_not_fit_a_page_is_not_read(
    database: Database, admin: psycopg.Connection[Any], job: MadeJob
) -> None:
    payload = {"text": "x" * 250 * 1024}
    for n in range(80):
        builders.make_ended_run(admin, job, at=START + timedelta(seconds=n), payload=payload)
    async with database.acting_for(ADMIN) as tx:
        tracemalloc.start()
        page = await store.list_runs(tx, RunFilter(), None, before=None, limit=1000)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert page.more
    assert peak < 8_000_000  # all of them are 20 MB


async def test_a_single_run_is_shown_however_large(
    database: Database, admin: psycopg.Connection[Any], job: MadeJob
) -> None:
    metadata = {"text": "x" * 1024 * 1024}
    made = [builders.make_ended_run(admin, job, at=START + timedelta(seconds=n), metadata=metadata) for n in range(2)]
    async with database.acting_for(ADMIN) as tx:
        page = await store.list_runs(tx, RunFilter(), None, before=None, limit=5)
        assert ([run.run_id for run in page.runs], page.more) == (made[1:], True)


async def test_each_filter_narrows_the_list(database: Database, admin: psycopg.Connection[Any], job: MadeJob) -> None:
    other = builders.make_job(admin, "kpi-service", "sync")
    pending = builders.make_live_run(admin, job, at=START, labels={"brand": "x", "kind": "mail"})
    running = builders.make_live_run(admin, job, at=START + timedelta(minutes=1), tenant="tenant-a")
    builders.claim(admin, running, builders.make_session(admin))
    failed = builders.make_ended_run(
        admin, job, RunState.FAILED, at=START + timedelta(minutes=2), labels={"brand": "x"}, trigger="SCHEDULE"
    )
    external = builders.make_ended_run(
        admin, other, at=START + timedelta(minutes=3), tenant="tenant-a", trigger="EXTERNAL", origin="github_actions"
    )
    by_state = {
        frozenset({RunState.PENDING}): [pending],
        frozenset({RunState.RUNNING}): [running],
        frozenset({RunState.RUNNING, RunState.PENDING}): [running, pending],
        frozenset({RunState.FAILED}): [failed],
        frozenset({RunState.COMPLETED, RunState.PENDING}): [external, pending],
        frozenset({RunState.SKIPPED}): [],
    }
    for states, expected in by_state.items():
        assert await listed(database, RunFilter(states=states)) == expected, states
    assert await listed(database, RunFilter(tenant="tenant-a")) == [external, running]
    assert await listed(database, RunFilter(tenant="-")) == [failed, pending]
    assert await listed(database, RunFilter(labels={"brand": "x"})) == [failed, pending]
    assert await listed(database, RunFilter(labels={"brand": "x", "kind": "mail"})) == [pending]
    assert await listed(database, RunFilter(triggers=frozenset({TriggerSource.SCHEDULE}))) == [failed]
    assert await listed(database, RunFilter(origin="github_actions")) == [external]
    assert await listed(database, RunFilter(), jobs=[other]) == [external]
    assert await listed(database, RunFilter(), jobs=[job, other]) == [external, failed, running, pending]
    assert await listed(database, RunFilter(), jobs=[]) == []
    window = RunFilter(since=START + timedelta(minutes=1), until=START + timedelta(minutes=3))
    assert await listed(database, window) == [failed, running]
    assert await listed(database, RunFilter(since=datetime(1960, 1, 1, tzinfo=UTC), until=START)) == []


async def test_several_jobs_page_as_one_list(database: Database, admin: psycopg.Connection[Any], job: MadeJob) -> None:
    jobs = [job, builders.make_job(admin, job="second"), builders.make_job(admin, job="third")]
    made = [builders.make_ended_run(admin, jobs[n % 3], at=START + timedelta(seconds=n)) for n in range(7)]
    first = await listed(database, jobs=jobs, limit=4)
    assert first + await listed(database, jobs=jobs, before=first[-1], limit=4) == made[::-1]


async def test_jobs_of_a_service_are_those_that_the_caller_sees(
    database: Database, admin: psycopg.Connection[Any], job: MadeJob
) -> None:
    second = builders.make_job(admin, job="second")
    other = builders.make_job(admin, "kpi-service", "sync")
    async with database.acting_for(ADMIN) as tx:
        assert await store.jobs_of(tx, "email-service", "") == [job.job_id, second.job_id]
        assert await store.jobs_of(tx, "email-service", "second") == [second.job_id]
    async with database.acting_for(builders.service("kpi-service")) as tx:
        assert await store.jobs_of(tx, "", "") == [other.job_id]
        assert await store.jobs_of(tx, "email-service", "") == []


async def test_one_look_at_a_run_touches_one_partition(
    database: Database, admin: psycopg.Connection[Any], job: MadeJob
) -> None:
    at = builders.now()
    run_id = builders.make_ended_run(admin, job, at=at)
    touched = text(
        "select distinct c.relname from pg_locks l join pg_class c on c.oid = l.relation"
        " where l.pid = pg_backend_pid() and c.relname ~ '^runs_[0-9]{4}_[0-9]{2}$'"
    )
    async with database.acting_for(ADMIN) as tx:
        assert await store.get_run(tx, run_id) is not None
        assert list((await tx.connection.execute(touched)).scalars()) == [f"runs_{at:%Y_%m}"]


async def test_a_number_beyond_every_double_spoils_nothing(
    database: Database, admin: psycopg.Connection[Any], job: MadeJob
) -> None:
    run_id = builders.make_ended_run(admin, job)
    admin.execute("alter table carillon.runs disable trigger user")
    admin.execute("""update carillon.runs set metrics = '{"big": 1e5000, "small": 1.5}' where run_id = %s""", [run_id])
    run = await get(database, run_id)
    assert run is not None
    assert run.metrics["small"] == 1.5
    assert run.metrics["big"].startswith("10000")


async def test_several_runs_are_read_at_once(database: Database, admin: psycopg.Connection[Any], job: MadeJob) -> None:
    live, ended = builders.make_live_run(admin, job), builders.make_ended_run(admin, job)
    async with database.acting_for(ADMIN) as tx:
        assert set(await store.get_runs(tx, [live, ended, id_floor(START)])) == {live, ended}
        assert await store.get_runs(tx, []) == {}
