"""Running jobs by hand: all of a call's runs or none, once for a key, once for a request id."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import psycopg
import pytest

from scheduler_service.domain.access import Principal, Scope
from scheduler_service.domain.errors import AlreadyExists, Conflict, Forbidden, InvalidInput, NotFound, NothingToSee
from scheduler_service.domain.names import JobName
from scheduler_service.domain.record import Run
from scheduler_service.domain.run import RunState, TriggerSource, run_name
from scheduler_service.store.database import Database
from scheduler_service.usecases.runs import get_run
from scheduler_service.usecases.trigger import TriggerRequest, trigger_job
from scheduler_service.usecases.wakeups import Topic, Wakeups
from tests import builders
from tests.builders import ADMIN, MadeJob
from tests.conftest import DatabaseUrls

NAME = JobName("email-service", "weekly-digest")

_WAITING = "select count(*) from pg_stat_activity where usename = 'carillon_api' and wait_event_type = 'Lock'"


@pytest.fixture
def job(admin: psycopg.Connection[Any]) -> MadeJob:
    return builders.make_job(admin, labels={"job_type": "email", "team": "crm"}, config={"limit": 10, "dry": False})


async def trigger(database: Database, request: TriggerRequest, principal: Principal = ADMIN) -> list[Run]:
    made: list[Run] = []

    def encode(runs: Sequence[Run]) -> bytes:
        made.extend(runs)
        return b""

    await trigger_job(database, Wakeups(), principal, request, encode)
    return made


async def ids(database: Database, request: TriggerRequest) -> bytes:
    return await trigger_job(database, Wakeups(), ADMIN, request, lambda runs: b",".join(r.run_id.bytes for r in runs))


def live_runs(admin: psycopg.Connection[Any]) -> int:
    row = admin.execute("select count(*) from carillon.live_runs").fetchone()
    assert row is not None
    return int(row[0])


async def test_a_run_by_hand_is_pending_and_takes_after_its_job(database: Database, job: MadeJob) -> None:
    (run,) = await trigger(database, TriggerRequest(NAME))
    assert (run.state, run.trigger, run.tenant, run.triggered_by) == (
        RunState.PENDING,
        TriggerSource.MANUAL,
        "-",
        "admin:alice",
    )
    assert (run.payload, run.labels, run.max_attempts, run.schedule) == (
        {"limit": 10, "dry": False},
        {"job_type": "email", "team": "crm"},
        3,
        "",
    )
    assert run.run_id.version == 7
    assert run.scheduled_for == run.created_at == run.run_after
    assert await get_run(database, ADMIN, run.run_id) == run


async def test_payload_and_labels_are_put_over_the_jobs(database: Database, job: MadeJob) -> None:
    request = TriggerRequest(NAME, payload={"limit": 1, "only": ["a"]}, labels={"team": "ops", "why": "retry"})
    (run,) = await trigger(database, request)
    assert run.payload == {"limit": 1, "dry": False, "only": ["a"]}
    assert run.labels == {"job_type": "email", "team": "ops", "why": "retry"}


async def test_each_tenant_gets_a_run_in_the_requests_order(database: Database, job: MadeJob) -> None:
    tenants = [f"tenant-{n}" for n in reversed(range(1000))]
    runs = await trigger(database, TriggerRequest(NAME, tenants=tenants))
    assert [run.tenant for run in runs] == tenants
    assert len({run.run_id for run in runs}) == 1000


async def test_runs_of_several_tenants_are_answered_without_their_payload(database: Database, job: MadeJob) -> None:
    made = await trigger(database, TriggerRequest(NAME, tenants=["tenant-a", "tenant-b"], payload={"only": ["a"]}))
    assert [run.payload for run in made] == [{}, {}]
    assert (await get_run(database, ADMIN, made[0].run_id)).payload == {"limit": 10, "dry": False, "only": ["a"]}


async def test_what_one_call_may_make_is_bounded(
    database: Database, admin: psycopg.Connection[Any], job: MadeJob
) -> None:
    payload = {"x": "y" * 200 * 1024}
    tenants = [f"tenant-{n}" for n in range(82)]
    with pytest.raises(InvalidInput, match="at most 81 tenants at a time") as refused:
        await trigger(database, TriggerRequest(NAME, payload=payload, tenants=tenants))
    assert [violation.field for violation in refused.value.violations] == ["tenants"]
    assert live_runs(admin) == 0
    assert len(await trigger(database, TriggerRequest(NAME, payload=payload, tenants=tenants[:81]))) == 81


@pytest.mark.parametrize(
    ("asked", "source"),
    [
        ({"test": True}, TriggerSource.TEST),
        ({"test": True, "origin": "ci"}, TriggerSource.TEST),
        ({"origin": "github_actions"}, TriggerSource.EXTERNAL),
    ],
)
async def test_tests_and_other_systems_are_told_apart(
    database: Database, job: MadeJob, asked: dict[str, Any], source: TriggerSource
) -> None:
    (run,) = await trigger(database, TriggerRequest(NAME, **asked))
    assert (run.trigger, run.origin) == (source, asked.get("origin", ""))


async def test_who_may_run_a_job(database: Database, admin: psycopg.Connection[Any], job: MadeJob) -> None:
    (run,) = await trigger(database, TriggerRequest(NAME), builders.service("email-service"))
    assert run.triggered_by == "service:email-service"
    only_reads = builders.service("email-service", scopes=frozenset({Scope.READ}))
    for principal in (only_reads, builders.service("kpi-service"), builders.user("tenant-a")):
        with pytest.raises(Forbidden):
            await trigger(database, TriggerRequest(NAME), principal)
    with pytest.raises(NothingToSee):
        await trigger(database, TriggerRequest(NAME), builders.NOBODY)
    assert live_runs(admin) == 1


async def test_a_paused_job_can_be_run_and_an_archived_one_cannot(
    database: Database, admin: psycopg.Connection[Any], job: MadeJob
) -> None:
    admin.execute("update carillon.jobs set paused_at = now()")
    assert len(await trigger(database, TriggerRequest(NAME))) == 1
    admin.execute("update carillon.jobs set archived_at = now()")
    with pytest.raises(Conflict) as refused:
        await trigger(database, TriggerRequest(NAME))
    assert refused.value.reason == "JOB_ARCHIVED"
    with pytest.raises(NotFound):
        await trigger(database, TriggerRequest(JobName("email-service", "other")))


async def test_a_run_key_is_used_once_for_a_job_and_tenant(
    database: Database, admin: psycopg.Connection[Any], job: MadeJob
) -> None:
    request = TriggerRequest(NAME, tenants=["tenant-a"], run_key="order-1")
    (first,) = await trigger(database, request)
    with pytest.raises(AlreadyExists) as refused:
        await trigger(database, request)
    assert refused.value.reason == "RUN_KEY_TAKEN"
    assert refused.value.metadata["run"] == run_name(first.run_id)
    await trigger(database, TriggerRequest(NAME, tenants=["tenant-b"], run_key="order-1"))
    with pytest.raises(AlreadyExists):
        await trigger(database, TriggerRequest(NAME, tenants=["tenant-c", "tenant-a", "tenant-d"], run_key="order-1"))
    assert live_runs(admin) == 2
    await trigger(database, TriggerRequest(NAME, tenants=["tenant-c"], run_key="order-1"))


async def test_of_two_calls_with_one_run_key_at_once_one_makes_its_runs(
    database: Database, admin: psycopg.Connection[Any], job: MadeJob
) -> None:
    tenants = ["tenant-a", "tenant-b", "tenant-c"]
    calls = [TriggerRequest(NAME, tenants=order, run_key="order-1") for order in (tenants, tenants[::-1])]
    answers = await asyncio.gather(*(trigger(database, call) for call in calls), return_exceptions=True)
    assert sorted(type(answer).__name__ for answer in answers) == ["AlreadyExists", "list"]
    assert live_runs(admin) == 3


async def test_run_keys_are_taken_in_the_order_of_tenants_so_that_calls_never_wait_for_each_other(
    database: Database, database_urls: DatabaseUrls, admin: psycopg.Connection[Any], job: MadeJob
) -> None:
    take = "insert into carillon.run_keys values (%s, %s, 'order-1', gen_random_uuid(), now())"
    with psycopg.connect(database_urls.admin) as rival:
        rival.execute(take, [job.job_id, "tenant-a"])
        request = TriggerRequest(NAME, tenants=["tenant-b", "tenant-a"], run_key="order-1")
        waiting = asyncio.create_task(trigger(database, request))
        async with asyncio.timeout(60):
            while admin.execute(_WAITING).fetchone() == (0,):  # noqa: ASYNC110 - the server has no event for it
                await asyncio.sleep(0)
        rival.execute(take, [job.job_id, "tenant-b"])
    with pytest.raises(AlreadyExists):
        await waiting


async def test_the_same_request_id_gets_the_same_answer(
    database: Database, admin: psycopg.Connection[Any], job: MadeJob
) -> None:
    request = TriggerRequest(NAME, run_key="order-1", request_id="r-1", digest=b"one")
    assert await ids(database, request) == await ids(database, request)
    with pytest.raises(AlreadyExists) as refused:
        await ids(database, TriggerRequest(NAME, request_id="r-1", digest=b"two"))
    assert refused.value.reason == "REQUEST_ID_REUSED"
    assert live_runs(admin) == 1


async def test_request_ids_of_two_callers_are_two(
    database: Database, admin: psycopg.Connection[Any], job: MadeJob
) -> None:
    request = TriggerRequest(NAME, request_id="r-1", digest=b"one")
    await trigger(database, request)
    assert len(await trigger(database, request, builders.service("email-service"))) == 1
    assert live_runs(admin) == 2


async def test_identical_requests_at_once_make_one_run(
    database: Database, admin: psycopg.Connection[Any], job: MadeJob
) -> None:
    request = TriggerRequest(NAME, request_id="r-1", digest=b"one")
    answers = await asyncio.gather(*(ids(database, request) for _ in range(8)))
    assert len(set(answers)) == 1
    assert live_runs(admin) == 1


async def test_what_was_refused_may_be_asked_again(
    database: Database, admin: psycopg.Connection[Any], job: MadeJob
) -> None:
    admin.execute("update carillon.jobs set archived_at = now()")
    request = TriggerRequest(NAME, request_id="r-1", digest=b"one")
    with pytest.raises(Conflict):
        await trigger(database, request)
    admin.execute("update carillon.jobs set archived_at = null")
    assert len(await trigger(database, request)) == 1


@pytest.mark.parametrize(
    ("asked", "fields"),
    [
        ({"tenants": [f"t{n}" for n in range(1001)]}, ["tenants"]),
        ({"tenants": ["ok", "no spaces", "ok"]}, ["tenants[1]", "tenants[2]"]),
        ({"payload": {"x": float("nan")}}, ["payload.x"]),
        ({"payload": {"x": "\0"}}, ["payload.x"]),
        ({"payload": {"x": "y" * 256 * 1024}}, ["payload"]),
        ({"payload": {"x": "y" * (256 * 1024 - 15)}}, ["payload"]),
        ({"payload": {"x": [1e308] * 1000}}, ["payload"]),
        ({"labels": {"a b": "c"}}, ["labels['a b']"]),
        ({"origin": "o" * 64, "run_key": "k" * 201, "request_id": "r" * 65}, ["origin", "run_key", "request_id"]),
        ({"run_key": "nul\0"}, ["run_key"]),
    ],
)
async def test_every_wrong_field_is_named_and_nothing_is_made(
    database: Database, admin: psycopg.Connection[Any], job: MadeJob, asked: dict[str, Any], fields: list[str]
) -> None:
    with pytest.raises(InvalidInput) as refused:
        await trigger(database, TriggerRequest(NAME, **asked))
    assert [violation.field for violation in refused.value.violations] == fields
    assert live_runs(admin) == 0


async def test_workers_and_watchers_are_woken(database: Database, job: MadeJob) -> None:
    wakeups = Wakeups()
    listeners = [wakeups.listen(topic) for topic in (Topic.PENDING, Topic.RUNS)]
    await trigger_job(database, wakeups, ADMIN, TriggerRequest(NAME), lambda _runs: b"")
    assert [listener.take() for listener in listeners] == [True, True]
