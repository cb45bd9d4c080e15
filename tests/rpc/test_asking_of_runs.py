"""What a person asks of a run, over real gRPC: why it does not run, what became of it, and why the next attempt comes
then."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import psycopg
import pytest
from carillon.v1 import job_service_pb2, run_pb2, work_pb2
from carillon.v1 import run_service_pb2 as pb
from google.protobuf.duration_pb2 import Duration

from scheduler_service.domain.run import RunState, run_name
from scheduler_service.store.database import Database
from tests import builders
from tests.builders import MadeJob
from tests.rpc.test_runs_and_trigger import ADMIN, SERVICE, USER, Api, admin, api, job
from tests.rpc.work.rig import RawWorker, Replica, a_result, a_worker, ref, serving

__all__ = ["admin", "api", "job"]

Admin = psycopg.Connection[Any]
HOUR = timedelta(hours=1)


async def get(api: Api, name: str, caller: Any = ADMIN) -> run_pb2.Run:
    return (await api.runs.GetRun(pb.GetRunRequest(name=name), metadata=caller)).run


async def trigger(api: Api, job: MadeJob, **fields: Any) -> run_pb2.Run:
    request = job_service_pb2.TriggerJobRequest(name=job.name, **fields)
    (run,) = (await api.jobs.TriggerJob(request, metadata=ADMIN)).runs
    return run


async def test_a_pending_run_says_why_it_does_not_run(api: Api, admin: Admin, job: MadeJob) -> None:
    assert (await trigger(api, job)).pending_reason == run_pb2.PENDING_REASON_NO_WORKER
    session = builders.make_session(admin)
    made = await trigger(api, job)
    assert made.pending_reason == run_pb2.PENDING_REASON_READY
    schedule = builders.make_schedule(admin, job, tenant="tenant-a")
    turn: dict[str, Any] = {"schedule_id": schedule, "revision": 1, "exclusive": True, "blocked": True}
    kept, route = builders.make_session(admin), "handler/email-service/digest"
    admin.execute("update carillon.sessions set routes = %s where session_id = %s", [[route], kept])
    builders.claim(admin, builders.make_live_run(admin, job, route=route, alone=True), kept)
    expected = {
        builders.make_live_run(admin, job, tenant="tenant-a", **fields): reason
        for reason, fields in (
            (run_pb2.PENDING_REASON_BLOCKED, turn),
            (run_pb2.PENDING_REASON_NOT_DUE, {"run_after": builders.now() + HOUR}),
            (run_pb2.PENDING_REASON_RETRY_DELAY, {"run_after": builders.now() + HOUR, "attempt": 2}),
            (run_pb2.PENDING_REASON_NO_WORKER, {"route": "grpc"}),
            (run_pb2.PENDING_REASON_ALONE, {"alone": True}),
            (run_pb2.PENDING_REASON_BEHIND_ALONE, {"route": route}),
            (run_pb2.PENDING_REASON_READY, {}),
        )
    }
    for caller in (ADMIN, SERVICE, USER):
        request = pb.ListRunsRequest(tenant="tenant-a", states=[run_pb2.RUN_STATE_PENDING])
        listed = (await api.runs.ListRuns(request, metadata=caller)).runs
        assert {run.name: run.pending_reason for run in listed} == {run_name(key): why for key, why in expected.items()}
        for run_id, reason in expected.items():
            assert (await get(api, run_name(run_id), caller)).pending_reason == reason
            watching = api.runs.WatchRuns(pb.WatchRunsRequest(run=run_name(run_id)), metadata=caller)
            assert (await anext(aiter(watching))).run.pending_reason == reason
            watching.cancel()
    taken = next(iter(expected))
    admin.execute("update carillon.live_runs set blocked = false, exclusive = false where run_id = %s", [taken])
    builders.claim(admin, taken, session)
    assert (await get(api, run_name(taken))).pending_reason == run_pb2.PENDING_REASON_UNSPECIFIED


async def test_an_ended_run_says_what_became_of_it(api: Api, admin: Admin, job: MadeJob) -> None:
    name = run_name(builders.make_ended_run(admin, job, RunState.FAILED, tenant="tenant-a"))
    assert (await get(api, name)).retried_by == ""
    retry = (await api.runs.RetryRun(pb.RetryRunRequest(name=name), metadata=ADMIN)).run
    for caller in (ADMIN, SERVICE, USER):
        assert (await get(api, name, caller)).retried_by == retry.name
        listed = (await api.runs.ListRuns(pb.ListRunsRequest(), metadata=caller)).runs
        assert {run.name: run.retried_by for run in listed} == {name: retry.name, retry.name: ""}


@pytest.mark.parametrize(
    ("wish", "reason"),
    [
        ({}, "600 s after attempt 1, by the job's retry policy"),
        ({"retry_after": Duration(seconds=120)}, "120 s after attempt 1, as the target asked"),
    ],
    ids=["policy", "target"],
)
async def test_a_run_that_waits_for_its_next_attempt_says_why_it_comes_then(
    api: Api, job: MadeJob, database: Database, wish: dict[str, Any], reason: str
) -> None:
    made = await trigger(api, job)
    async with serving(Replica(database)) as replica, a_worker(replica) as worker:
        await fail(worker, wish)
        run = await get(api, made.name)
    assert (run.state, run.pending_reason) == (run_pb2.RUN_STATE_PENDING, run_pb2.PENDING_REASON_RETRY_DELAY)
    assert (run.retry_reason, run.error.message, run.error.detail) == (reason, "it is down", "at line 1")
    (attempt,) = (await api.runs.ListAttempts(pb.ListAttemptsRequest(name=made.name), metadata=ADMIN)).attempts
    assert (attempt.retry_reason, attempt.error) == (reason, run.error)


async def fail(worker: RawWorker, wish: dict[str, Any]) -> None:
    """Has the worker take one run, and fail."""
    await worker.welcomed(credit=1)
    sent = await worker.expect("assignments")
    result = a_result(
        ref(sent.assignments[0].run_id, sent.claim_id),
        outcome=work_pb2.ATTEMPT_OUTCOME_FAILED,
        error=run_pb2.RunError(code="HTTP_503", message="it is down", detail="at line 1"),
        following=work_pb2.Following(**wish) if wish else None,
    )
    assert await worker.verdict(result) == work_pb2.RESULT_VERDICT_ACCEPTED
