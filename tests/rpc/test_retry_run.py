"""RetryRun over a real server: the new run, what is refused, and who is."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import psycopg
import pytest
from carillon.v1 import run_pb2
from carillon.v1 import run_service_pb2 as pb

from scheduler_service.domain.run import RunState, run_name
from tests import builders
from tests.builders import MadeJob
from tests.rpc.test_runs_and_trigger import ADMIN, SERVICE, USER, Api, admin, api, details, job

__all__ = ["admin", "api", "job"]


def failed_run(admin: psycopg.Connection[Any], job: MadeJob, **columns: Any) -> str:
    return run_name(builders.make_ended_run(admin, job, RunState.FAILED, tenant="tenant-a", **columns))


async def refused(api: Api, request: pb.RetryRunRequest, caller: Any = ADMIN) -> tuple[grpc.StatusCode, str, str]:
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await api.runs.RetryRun(request, metadata=caller)
    return error.value.code(), details(error.value)[0].reason, str(error.value.details())


async def test_a_failed_run_is_tried_again_and_everybody_sees_which_one_it_was(
    api: Api, admin: psycopg.Connection[Any], job: MadeJob
) -> None:
    name = failed_run(admin, job, payload={"limit": 2**60 + 1, "rate": 0.1}, labels={"why": "test"}, origin="ci")
    old = (await api.runs.GetRun(pb.GetRunRequest(name=name), metadata=ADMIN)).run
    run = (await api.runs.RetryRun(pb.RetryRunRequest(name=name), metadata=ADMIN)).run
    assert (run.retry_of, run.state, run.triggered_by) == (name, run_pb2.RUN_STATE_PENDING, "admin:alice")
    assert run.trigger_source == run_pb2.TRIGGER_SOURCE_MANUAL
    for field in ("job", "tenant", "payload", "labels", "origin", "scheduled_time"):
        assert getattr(run, field) == getattr(old, field), field
    for caller in (ADMIN, SERVICE, USER):
        assert (await api.runs.GetRun(pb.GetRunRequest(name=run.name), metadata=caller)).run == run
        listed = (await api.runs.ListRuns(pb.ListRunsRequest(), metadata=caller)).runs
        assert {each.name: each.retry_of for each in listed} == {run.name: name, name: ""}
        async with asyncio.timeout(60):
            watched = await anext(aiter(api.runs.WatchRuns(pb.WatchRunsRequest(run=run.name), metadata=caller)))
        assert watched.run == run
    old.retried_by = run.name
    assert (await api.runs.GetRun(pb.GetRunRequest(name=name), metadata=ADMIN)).run == old


async def test_asked_again_it_answers_the_same_run(api: Api, admin: psycopg.Connection[Any], job: MadeJob) -> None:
    request = pb.RetryRunRequest(name=failed_run(admin, job), request_id="r-1")
    first = await api.runs.RetryRun(request, metadata=ADMIN)
    assert await api.runs.RetryRun(request, metadata=ADMIN) == first
    assert await api.runs.RetryRun(pb.RetryRunRequest(name=request.name), metadata=ADMIN) == first
    request.name = failed_run(admin, job)
    code, reason, _ = await refused(api, request)
    assert (code, reason) == (grpc.StatusCode.ALREADY_EXISTS, "REQUEST_ID_REUSED")


async def test_what_is_live_or_completed_or_archived_is_refused_with_a_reason(
    api: Api, admin: psycopg.Connection[Any], job: MadeJob
) -> None:
    failed = failed_run(admin, job)
    live = run_name(builders.make_live_run(admin, job))
    completed = run_name(builders.make_ended_run(admin, job))
    precondition = grpc.StatusCode.FAILED_PRECONDITION
    for name, expected in ((live, "RUN_LIVE"), (completed, "RUN_COMPLETED")):
        assert (await refused(api, pb.RetryRunRequest(name=name)))[:2] == (precondition, expected)
    admin.execute("update carillon.jobs set archived_at = now()")
    assert (await refused(api, pb.RetryRunRequest(name=failed)))[:2] == (precondition, "JOB_ARCHIVED")
    assert admin.execute("select count(*) from carillon.retries").fetchone() == (0,)


async def test_only_admins_may_and_the_others_are_told_so(
    api: Api, admin: psycopg.Connection[Any], job: MadeJob
) -> None:
    request = pb.RetryRunRequest(name=failed_run(admin, job))
    for caller in (SERVICE, USER):
        code, reason, words = await refused(api, request, caller)
        assert (code, reason) == (grpc.StatusCode.PERMISSION_DENIED, "NOT_ALLOWED")
        assert "may not try runs again; that needs a JWT with the admin role" in words
    assert (await refused(api, request, ()))[0] is grpc.StatusCode.UNAUTHENTICATED
    assert admin.execute("select count(*) from carillon.retries").fetchone() == (0,)


async def test_wrong_fields_are_named(api: Api, job: MadeJob) -> None:
    for request, field in (
        (pb.RetryRunRequest(name="runs/x"), "name"),
        (pb.RetryRunRequest(), "name"),
        (pb.RetryRunRequest(name="runs/0193f0a0-0000-7000-8000-000000000000", request_id="r" * 65), "request_id"),
    ):
        code, _, words = await refused(api, request)
        assert (code, words.partition(":")[0]) == (grpc.StatusCode.INVALID_ARGUMENT, field)
    missing = pb.RetryRunRequest(name="runs/0193f0a0-0000-7000-8000-000000000000")
    assert (await refused(api, missing))[0] is grpc.StatusCode.NOT_FOUND
