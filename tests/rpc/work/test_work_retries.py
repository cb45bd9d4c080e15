"""A job's retry policy, from its declaration over gRPC to when its failed run is due again."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import grpc
import psycopg
import pytest
from carillon.v1 import job_pb2, job_service_pb2, registry_service_pb2, run_pb2, work_pb2
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask

from tests.rpc.test_definitions import ADMIN, JOB, Stubs, digest, reason_and_fields, stubs
from tests.rpc.work.rig import RawWorker, Replica, a_result, one, ref

__all__ = ["stubs"]

Admin = psycopg.Connection[Any]
HOUR = Duration(seconds=3600)
SLOW = job_pb2.RetryPolicy(delay=HOUR)
ACCEPTED = work_pb2.RESULT_VERDICT_ACCEPTED


def seconds(number: float) -> Duration:
    duration = Duration()
    duration.FromTimedelta(timedelta(seconds=number))
    return duration


def policy(**fields: Any) -> job_pb2.JobSpec:
    return digest(policies=job_pb2.Policies(retry=job_pb2.RetryPolicy(**fields)))


async def fail(
    stubs: Stubs, worker: RawWorker, replica: Replica, code: str = "HTTP_503", **wish: Any
) -> work_pb2.AttemptResult:
    """Has the job run once, and its first attempt fail."""
    await stubs.jobs.TriggerJob(job_service_pb2.TriggerJobRequest(name=JOB), metadata=ADMIN)
    await worker.welcomed(credit=1)
    sent = await worker.expect("assignments")
    result = a_result(
        ref(sent.assignments[0].run_id, sent.claim_id),
        outcome=work_pb2.ATTEMPT_OUTCOME_FAILED,
        error=run_pb2.RunError(code=code, message="it is down", detail="at line 1"),
        following=work_pb2.Following(**wish) if wish else None,
    )
    assert await worker.verdict(result) == ACCEPTED
    return result


def waits(admin: Admin) -> timedelta:
    """Between the end of the failed attempt and when its run is due again."""
    (found,) = admin.execute(
        "select l.run_after - a.finished_at from carillon.live_runs l join carillon.attempts a using (run_id)"
        " where l.attempt = 2"
    ).fetchone() or (None,)
    assert isinstance(found, timedelta)
    return found


async def override(stubs: Stubs, retry: job_pb2.RetryPolicy, *paths: str) -> job_pb2.Job:
    request = job_service_pb2.UpdateJobRequest(
        name=JOB,
        overrides=job_pb2.JobOverrides(policies=job_pb2.Policies(retry=retry)),
        update_mask=FieldMask(paths=[f"policies.retry.{path}" for path in paths]),
    )
    return (await stubs.jobs.UpdateJob(request, metadata=ADMIN)).job


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (policy(), timedelta(minutes=10)),
        (policy(delay=HOUR), timedelta(hours=1)),
        (policy(delay=HOUR, max_delay=seconds(90.5)), timedelta(seconds=90.5)),
        (policy(delay=HOUR, multiplier=3), timedelta(hours=1)),
        (policy(delay=HOUR, never_retry=job_pb2.ErrorCodes(codes=["HTTP_4*", "NO_USER"])), timedelta(hours=1)),
    ],
    ids=["default", "delay", "longest", "multiplier", "other-codes"],
)
async def test_a_declared_policy_says_how_long_a_failed_run_waits(
    stubs: Stubs, worker: RawWorker, replica: Replica, admin: Admin, spec: job_pb2.JobSpec, expected: timedelta
) -> None:
    await stubs.register(spec)
    await fail(stubs, worker, replica)
    assert waits(admin) == expected


async def test_the_second_delay_is_multiplied(stubs: Stubs, worker: RawWorker, replica: Replica, admin: Admin) -> None:
    await stubs.register(policy(delay=HOUR, multiplier=2.5))
    await fail(stubs, worker, replica)
    admin.execute("update carillon.live_runs set run_after = now()")
    await worker.send(credit=1)
    replica.sessions.on_credit()
    sent = await worker.expect("assignments")
    second = ref(sent.assignments[0].run_id, sent.claim_id, attempt=2)
    assert await worker.verdict(a_result(second, outcome=work_pb2.ATTEMPT_OUTCOME_FAILED)) == ACCEPTED
    waited = one(
        admin,
        "select l.run_after - a.finished_at from carillon.live_runs l join carillon.attempts a using (run_id)"
        " where a.attempt = 2",
    )
    assert waited == timedelta(hours=2.5)


async def test_jitter_takes_off_a_share_and_no_more(
    stubs: Stubs, worker: RawWorker, replica: Replica, admin: Admin
) -> None:
    await stubs.register(policy(delay=HOUR, jitter=0.5))
    await fail(stubs, worker, replica)
    assert timedelta(minutes=30) <= waits(admin) < timedelta(hours=1)


async def test_a_code_that_never_retry_names_ends_the_run(
    stubs: Stubs, worker: RawWorker, replica: Replica, admin: Admin
) -> None:
    await stubs.register(policy(never_retry=job_pb2.ErrorCodes(codes=["HTTP_5*"])))
    result = await fail(stubs, worker, replica)
    row = admin.execute("select state::text, attempt, error from carillon.runs").fetchone()
    assert row is not None
    assert (row[0], row[1], row[2]["code"]) == ("FAILED", 1, "HTTP_503")
    assert row[2]["detail"] == "at line 1\nnot tried again: HTTP_5* stands in its job's never_retry"
    assert await worker.verdict(result) == ACCEPTED, "sent again, it gets the same answer"


@pytest.mark.parametrize(
    ("wish", "expected"),
    [
        ({"retry_after": seconds(1.5)}, timedelta(seconds=1.5)),
        ({"retry_after": seconds(0)}, timedelta(0)),
        ({"retry_after": seconds(86_400)}, timedelta(hours=2)),
    ],
    ids=["sooner", "at-once", "beyond-the-longest"],
)
async def test_a_target_asks_for_another_delay(
    stubs: Stubs, worker: RawWorker, replica: Replica, admin: Admin, wish: dict[str, Any], expected: timedelta
) -> None:
    await stubs.register(policy(delay=HOUR, max_delay=seconds(7200)))
    await fail(stubs, worker, replica, **wish)
    assert waits(admin) == expected


async def test_a_target_asks_for_no_retry(stubs: Stubs, worker: RawWorker, replica: Replica, admin: Admin) -> None:
    await stubs.register(policy(delay=HOUR))
    result = await fail(stubs, worker, replica, no_retry=True)
    assert one(admin, "select error ->> 'detail' from carillon.runs where state = 'FAILED'") == (
        "at line 1\nnot tried again: the target asked for that"
    )
    assert await worker.verdict(result) == ACCEPTED
    result.ClearField("following")
    assert await worker.verdict(result) == work_pb2.RESULT_VERDICT_RUN_ENDED, "without its wish it is another result"


async def test_each_field_is_overridden_by_itself_and_shown(
    stubs: Stubs, worker: RawWorker, replica: Replica, admin: Admin
) -> None:
    declared = policy(delay=HOUR, multiplier=2, never_retry=job_pb2.ErrorCodes(codes=["HTTP_5*"]))
    await stubs.register(declared, generation=1)
    none = job_pb2.RetryPolicy(never_retry=job_pb2.ErrorCodes(), multiplier=9)
    job = await override(stubs, none, "never_retry")
    assert job.overrides.policies.retry == job_pb2.RetryPolicy(never_retry=job_pb2.ErrorCodes())
    job = await override(stubs, job_pb2.RetryPolicy(max_delay=seconds(60), jitter=0), "max_delay", "jitter")
    assert job.effective.policies.retry == job_pb2.RetryPolicy(
        max_attempts=3, delay=HOUR, multiplier=2, max_delay=seconds(60), jitter=0, never_retry=job_pb2.ErrorCodes()
    )
    (again,) = (await stubs.register(declared, generation=2)).changes
    assert (again.kind, list(again.overridden_fields)) == (
        registry_service_pb2.CHANGE_KIND_UNCHANGED,
        ["policies.retry.never_retry"],
    )
    await fail(stubs, worker, replica)
    assert waits(admin) == timedelta(seconds=60)
    job = await override(stubs, job_pb2.RetryPolicy(), "never_retry", "max_delay", "jitter")
    assert not job.overrides.HasField("policies")
    assert one(admin, "select never_retry from carillon.jobs") == ["HTTP_5*"]


async def test_a_manifest_of_before_there_were_such_policies_is_unchanged(stubs: Stubs, admin: Admin) -> None:
    await stubs.register(policy(max_attempts=5, delay=HOUR), generation=1)
    columns = "retry_multiplier, retry_max_delay, retry_jitter, never_retry"
    stored = admin.execute(f"select {columns}, declared #> '{{policies,retry}}' from carillon.jobs".encode()).fetchone()
    assert stored == (1, timedelta(days=7), 0, [], {"max_attempts": 5, "delay": 3600})
    (again,) = (await stubs.register(policy(max_attempts=5, delay=HOUR), generation=2)).changes
    assert again.kind == registry_service_pb2.CHANGE_KIND_UNCHANGED
    minus_zero = policy(max_attempts=5, delay=HOUR, jitter=-0.0)
    kinds = [(await stubs.register(minus_zero, generation=number)).changes[0].kind for number in (3, 4)]
    assert kinds == [registry_service_pb2.CHANGE_KIND_UPDATED, registry_service_pb2.CHANGE_KIND_UNCHANGED]


async def test_a_wrong_policy_is_refused_field_by_field(stubs: Stubs) -> None:
    wrong = policy(
        multiplier=float("nan"),
        max_delay=seconds(-1),
        jitter=float("inf"),
        never_retry=job_pb2.ErrorCodes(codes=["HTTP_404", "*", "no"]),
    )
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await stubs.register(wrong)
    assert sorted(reason_and_fields(refused.value)[1]) == [
        "jobs[0].policies.retry.jitter",
        "jobs[0].policies.retry.max_delay",
        "jobs[0].policies.retry.multiplier",
        "jobs[0].policies.retry.never_retry.codes[1]",
        "jobs[0].policies.retry.never_retry.codes[2]",
    ]
