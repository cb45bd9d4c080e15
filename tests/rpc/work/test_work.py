"""The worker stream: a real server, a real database, and a worker of bare generated stubs."""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from uuid import uuid4

import psycopg
from carillon.v1 import run_pb2, work_pb2

from scheduler_service.usecases.wakeups import Topic
from tests.builders import MadeJob, make_job, make_live_run, now
from tests.rpc.work.rig import (
    LIVE,
    PATIENCE,
    RawWorker,
    Replica,
    a_result,
    one,
    ref,
    until,
)


async def test_a_worker_is_welcomed(worker: RawWorker, replica: Replica, admin: psycopg.Connection[Any]) -> None:
    await worker.hello(routes=["http", "handler/kpi/meta"])
    welcome = await worker.expect("welcome")
    assert (welcome.lease.seconds, welcome.heartbeat_interval.seconds, welcome.replica) == (30, 5, "replica-1")
    assert one(admin, "select routes from carillon.sessions") == ["handler/kpi/meta", "http"]
    assert replica.sessions.routes() == {"http", "handler/kpi/meta"}


async def test_a_run_goes_to_the_worker_and_its_result_is_recorded(
    worker: RawWorker, replica: Replica, admin: psycopg.Connection[Any], job: MadeJob
) -> None:
    run_id = make_live_run(admin, job, tenant="brand-7", payload={"week": 7}, labels={"job_type": "email"})
    await worker.welcomed(credit=10)
    sent = await worker.expect("assignments")
    [assignment] = sent.assignments
    assert assignment.run_id == run_id.bytes
    assert (assignment.job, assignment.tenant) == ("services/email-service/jobs/weekly-digest", "brand-7")
    assert (assignment.endpoint, assignment.payload_json) == ("http://email.example/run", '{"week": 7}')
    assert (assignment.attempt, assignment.max_attempts, dict(assignment.labels)) == (1, 3, {"job_type": "email"})
    assert (assignment.attempt_timeout.seconds, assignment.cancel_grace.seconds) == (3600, 30)
    assert assignment.trigger_source == run_pb2.TRIGGER_SOURCE_MANUAL
    assert abs(assignment.scheduled_time.ToDatetime(now().tzinfo) - now()) < timedelta(minutes=1)

    attempt = ref(run_id.bytes, sent.claim_id)
    items = [work_pb2.ItemResult(attempt=attempt, key="a@example.org", succeeded=True)]
    await worker.send(items=work_pb2.ItemResults(results=items))
    await worker.send(results=work_pb2.Results(results=[a_result(attempt, metrics_json='{"sent": 1}')]))
    [ack] = (await worker.expect("result_acks")).acks
    assert (ack.attempt, ack.verdict) == (attempt, work_pb2.RESULT_VERDICT_ACCEPTED)
    assert one(admin, "select metrics from carillon.runs where state = 'COMPLETED'") == {"sent": 1}
    assert one(admin, "select key from carillon.items") == "a@example.org"


async def test_credit_limits_what_is_sent(
    worker: RawWorker, replica: Replica, admin: psycopg.Connection[Any], job: MadeJob
) -> None:
    for _ in range(5):
        make_live_run(admin, job)
    await worker.welcomed(credit=2)
    assert len((await worker.expect("assignments")).assignments) == 2
    await worker.send(credit=1)
    assert len((await worker.expect("assignments")).assignments) == 1
    assert one(admin, LIVE) == 3


async def test_a_start_and_progress_are_kept(
    worker: RawWorker, replica: Replica, admin: psycopg.Connection[Any], job: MadeJob
) -> None:
    make_live_run(admin, job)
    changed = replica.wakeups.listen(Topic.RUNS)
    await worker.welcomed(credit=1)
    sent = await worker.expect("assignments")
    attempt = ref(sent.assignments[0].run_id, sent.claim_id)
    await worker.send(starts=work_pb2.Starts(starts=[work_pb2.AttemptStart(attempt=attempt)]))
    await until(lambda: one(admin, "select started_at from carillon.live_runs") is not None)
    progress = run_pb2.Progress(done=3, total=10, message="page 3\0")
    report = work_pb2.AttemptProgress(attempt=attempt, progress=progress)
    changed.take()
    await worker.send(progress=work_pb2.ProgressReports(reports=[report]))
    await until(lambda: one(admin, "select progress ->> 'message' from carillon.live_runs") == "page 3\ufffd")
    assert await changed.wait(PATIENCE)


async def test_bad_json_fails_its_attempt_and_not_its_neighbours(
    worker: RawWorker, replica: Replica, admin: psycopg.Connection[Any]
) -> None:
    job = make_job(admin)
    for _ in range(4):
        make_live_run(admin, job)
    await worker.welcomed(credit=4)
    sent = await worker.expect("assignments")
    attempts = [ref(assignment.run_id, sent.claim_id) for assignment in sent.assignments]
    results = [
        a_result(attempts[0], metrics_json='{"a": "\\u0000"}'),
        a_result(attempts[1], metadata_json='{"a": NaN}'),
        a_result(attempts[2], items=run_pb2.ItemCounts(processed=-1)),
        a_result(attempts[3], metrics_json='{"fine": "\\u00e4"}'),
    ]
    await worker.send(results=work_pb2.Results(results=results))
    acks = (await worker.expect("result_acks")).acks
    assert {ack.verdict for ack in acks} == {work_pb2.RESULT_VERDICT_ACCEPTED}
    ended = admin.execute("select state, error ->> 'code', count(*)::int from carillon.runs group by 1, 2").fetchall()
    assert sorted(ended) == [("COMPLETED", None, 1), ("FAILED", "BAD_RESULT", 3)]


async def test_a_cancelled_run_is_stopped_and_ends_cancelled(
    worker: RawWorker, replica: Replica, admin: psycopg.Connection[Any], job: MadeJob
) -> None:
    make_live_run(admin, job)
    await worker.welcomed(credit=1)
    sent = await worker.expect("assignments")
    attempt = ref(sent.assignments[0].run_id, sent.claim_id)
    admin.execute("update carillon.live_runs set cancel_requested_at = now()")
    replica.wakeups.wake(Topic.CANCELS)
    assert list((await worker.expect("cancel")).attempts) == [attempt]
    cancelled = a_result(attempt, outcome=work_pb2.ATTEMPT_OUTCOME_CANCELLED)
    await worker.send(results=work_pb2.Results(results=[cancelled]))
    await worker.expect("result_acks")
    assert one(admin, "select state from carillon.runs") == "CANCELLED"


async def test_a_result_of_a_run_that_nobody_knows_is_answered(worker: RawWorker) -> None:
    await worker.welcomed()
    assert await worker.verdict(a_result(ref(uuid4().bytes, 5))) == work_pb2.RESULT_VERDICT_UNKNOWN
