"""The worker stream: a real server, a real database, and a worker of bare generated stubs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from datetime import timedelta
from typing import Any
from uuid import uuid4

import grpc
import psycopg
import pytest
from carillon.v1 import run_pb2, work_pb2

from scheduler_service.domain.attempt import AttemptRef
from scheduler_service.rpc.work_outbox import Outbox
from scheduler_service.store.database import Database
from scheduler_service.store.sessions import end_expired_sessions
from scheduler_service.usecases.wakeups import Topic
from tests.builders import MadeJob, connect, make_job, make_live_run, make_session, now
from tests.conftest import DatabaseUrls
from tests.rpc.work_rig import EMAIL_TOKEN, PATIENCE, RawWorker, Replica, a_worker, one, ref, serving, until

LIVE = "select count(*) from carillon.live_runs where session_id is not null"
SESSIONS = "select count(*) from carillon.sessions"


@pytest.fixture
def admin(database_urls: DatabaseUrls) -> Iterator[psycopg.Connection[Any]]:
    with connect(database_urls.admin) as admin:
        yield admin


@pytest.fixture
async def replica(database: Database) -> AsyncIterator[Replica]:
    async with serving(Replica(database)) as replica:
        yield replica


@pytest.fixture
async def worker(replica: Replica) -> AsyncIterator[RawWorker]:
    async with a_worker(replica) as worker:
        yield worker


@pytest.fixture
def job(admin: psycopg.Connection[Any]) -> MadeJob:
    return make_job(admin, endpoint="http://email.example/run")


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
    assert await changed.wait(PATIENCE)
    assert one(admin, "select progress ->> 'message' from carillon.live_runs") == "page 3\ufffd"


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


async def test_a_killed_workers_runs_go_to_another_once_its_lease_is_over(
    worker: RawWorker, replica: Replica, admin: psycopg.Connection[Any], job: MadeJob
) -> None:
    run_id = make_live_run(admin, job)
    free = replica.wakeups.listen(Topic.PENDING)
    await worker.welcomed(credit=1)
    sent = await worker.expect("assignments")
    attempt = ref(run_id.bytes, sent.claim_id)
    await worker.send(starts=work_pb2.Starts(starts=[work_pb2.AttemptStart(attempt=attempt)]))
    await until(lambda: one(admin, "select started_at from carillon.live_runs") is not None)
    await worker.close()
    admin.execute("update carillon.sessions set expires_at = now()")
    assert await free.wait(PATIENCE)
    async with a_worker(replica) as other:
        await other.welcomed(credit=1)
        again = await other.expect("assignments")
        assert (again.assignments[0].run_id, again.assignments[0].attempt) == (run_id.bytes, 2)
        second = ref(run_id.bytes, again.claim_id, attempt=2)
        assert await other.verdict(a_result(attempt)) == work_pb2.RESULT_VERDICT_STALE
        assert await other.verdict(a_result(second)) == work_pb2.RESULT_VERDICT_ACCEPTED
        assert await other.verdict(a_result(attempt)) == work_pb2.RESULT_VERDICT_RUN_ENDED
        assert await other.verdict(a_result(second)) == work_pb2.RESULT_VERDICT_ACCEPTED
    assert one(admin, "select error ->> 'code' from carillon.attempts") == "WORKER_LOST"


async def test_a_heartbeat_is_acknowledged_once_the_lease_is_extended(
    worker: RawWorker, admin: psycopg.Connection[Any]
) -> None:
    await worker.welcomed()
    before = one(admin, "select expires_at from carillon.sessions")
    await worker.beat(1)
    assert (await worker.expect("heartbeat_ack")).sequence == 1
    assert one(admin, "select expires_at from carillon.sessions") > before


async def test_a_heartbeat_of_a_session_that_is_gone_ends_the_stream(
    worker: RawWorker, database: Database, replica: Replica
) -> None:
    await worker.welcomed()
    async with await database.hot_connection() as connection:
        assert len(await end_expired_sessions(connection, now=now() + timedelta(seconds=60))) == 1
    await worker.beat(1)
    code, details = await worker.status()
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert "new session id" in details
    assert len(replica.sessions) == 0


async def test_a_session_that_is_gone_cannot_go_on_with_its_claims(worker: RawWorker) -> None:
    await worker.hello(held=[7])
    code, _ = await worker.status()
    assert code is grpc.StatusCode.FAILED_PRECONDITION


async def test_a_silent_stream_ends_after_the_lease(worker: RawWorker, replica: Replica) -> None:
    await worker.welcomed()
    replica.clock.now += 31
    replica.leases.wakeup.set()
    code, details = await worker.status()
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert "no heartbeat came for 30 s" in details


async def test_a_newer_stream_replaces_an_older_one_here(
    worker: RawWorker, replica: Replica, admin: psycopg.Connection[Any], job: MadeJob
) -> None:
    await worker.welcomed(credit=5)
    async with a_worker(replica, session_id=worker.session_id) as newer:
        await newer.welcomed(credit=5)
        code, _ = await worker.status()
        assert code is grpc.StatusCode.ABORTED
        make_live_run(admin, job)
        replica.wakeups.wake(Topic.PENDING)
        assert len((await newer.expect("assignments")).assignments) == 1
    assert one(admin, "select stream from carillon.sessions") == 2


async def test_an_older_stream_on_another_replica_finds_out_with_its_next_heartbeat(
    worker: RawWorker, database: Database
) -> None:
    await worker.welcomed()
    async with (
        serving(Replica(database)) as other,
        a_worker(other, session_id=worker.session_id) as newer,
    ):
        await newer.welcomed()
        await worker.beat(1)
        code, _ = await worker.status()
        assert code is grpc.StatusCode.ABORTED
        await newer.beat(1)
        await newer.expect("heartbeat_ack")


async def test_a_claim_that_the_worker_does_not_know_is_taken_back(
    worker: RawWorker, replica: Replica, admin: psycopg.Connection[Any], job: MadeJob
) -> None:
    make_live_run(admin, job)
    await worker.welcomed(credit=1)
    sent = await worker.expect("assignments")
    free = replica.wakeups.listen(Topic.PENDING)
    await beat_until_done(worker, 1, [], sent.claim_id)
    assert not free.take(), "the claim may still be on its way to the worker"
    admin.execute("update carillon.live_runs set claimed_at = claimed_at - interval '6 s'")
    await beat_until_done(worker, 3, [sent.claim_id], sent.claim_id)
    assert not free.take()
    await worker.beat(5, held=[sent.claim_id + 1])
    assert await free.wait(PATIENCE)
    assert one(admin, LIVE) == 0
    assert one(admin, "select attempt from carillon.live_runs") == 1


async def test_hello_too_takes_back_what_the_worker_does_not_know(
    worker: RawWorker, replica: Replica, admin: psycopg.Connection[Any], job: MadeJob
) -> None:
    make_live_run(admin, job)
    await worker.welcomed(credit=1)
    await worker.expect("assignments")
    admin.execute("update carillon.live_runs set claimed_at = claimed_at - interval '6 s'")
    free = replica.wakeups.listen(Topic.PENDING)
    async with a_worker(replica, session_id=worker.session_id) as newer:
        await newer.welcomed()
        assert await free.wait(PATIENCE)
    assert one(admin, LIVE) == 0


async def test_goodbye_frees_at_once_and_charges_only_what_had_started(
    worker: RawWorker, replica: Replica, admin: psycopg.Connection[Any], job: MadeJob
) -> None:
    run_ids = sorted(make_live_run(admin, job) for _ in range(2))
    await worker.welcomed(credit=2)
    await worker.expect("assignments")
    admin.execute("update carillon.live_runs set started_at = claimed_at where run_id = %s", [run_ids[0]])
    await worker.send(goodbye=work_pb2.Goodbye())
    assert (await worker.status())[0] is grpc.StatusCode.OK
    assert one(admin, SESSIONS) == 0
    live = admin.execute("select session_id, attempt, alone from carillon.live_runs order by run_id").fetchall()
    assert live == [(None, 2, True), (None, 1, False)]


async def test_a_closed_stream_frees_nothing(
    worker: RawWorker, replica: Replica, admin: psycopg.Connection[Any], job: MadeJob
) -> None:
    make_live_run(admin, job)
    await worker.welcomed(credit=1)
    await worker.expect("assignments")
    await worker.close()
    await until(lambda: len(replica.sessions) == 0)
    assert one(admin, LIVE) == 1
    assert one(admin, SESSIONS) == 1


async def test_a_worker_that_hangs_up_right_after_goodbye_has_left(
    worker: RawWorker, admin: psycopg.Connection[Any]
) -> None:
    await worker.welcomed()
    await worker.send(goodbye=work_pb2.Goodbye())
    await worker.call.done_writing()
    await until(lambda: one(admin, SESSIONS) == 0)


async def test_drain_asks_the_worker_to_go_and_waits_for_it(worker: RawWorker, replica: Replica) -> None:
    await worker.welcomed(credit=1)
    draining = asyncio.create_task(replica.service.drain(PATIENCE))
    await worker.expect("drain")
    assert replica.sessions.routes() == frozenset()
    await worker.beat(1)
    await worker.expect("heartbeat_ack")
    assert not draining.done()
    await worker.call.done_writing()
    assert (await worker.status())[0] is grpc.StatusCode.OK
    await draining
    async with a_worker(replica) as late:
        await late.hello()
        assert (await late.status())[0] is grpc.StatusCode.UNAVAILABLE


async def test_drain_closes_streams_that_stay(worker: RawWorker, replica: Replica) -> None:
    await worker.welcomed()
    await replica.service.drain(0.0)
    assert (await worker.status())[0] is grpc.StatusCode.UNAVAILABLE


async def test_a_worker_that_does_not_read_is_closed(database: Database) -> None:
    async with (
        serving(Replica(database, new_outbox=lambda: Outbox(most_entries=10))) as replica,
        a_worker(replica) as worker,
    ):
        await worker.welcomed()
        [session] = replica.sessions
        session.outbound.cancel(AttemptRef(uuid4(), 1, 1) for _ in range(11))
        assert len(replica.sessions) == 0
        assert (await worker.status())[0] is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize(
    ("routes", "allowed"),
    [
        (["handler/email-service/weekly-digest"], True),
        (["handler/kpi-service/meta"], False),
        (["http"], False),
        (["handler/email-service/weekly-digest", "http"], False),
    ],
)
async def test_a_token_of_one_service_serves_only_its_handlers(
    replica: Replica, routes: list[str], allowed: bool
) -> None:
    async with a_worker(replica, token=EMAIL_TOKEN) as worker:
        await worker.hello(routes=routes)
        if allowed:
            await worker.expect("welcome")
        else:
            assert (await worker.status())[0] is grpc.StatusCode.PERMISSION_DENIED


async def test_nobody_anonymous_works(replica: Replica) -> None:
    async with a_worker(replica, token="") as worker:
        await worker.hello()
        assert (await worker.status())[0] is grpc.StatusCode.UNAUTHENTICATED


async def test_another_principal_cannot_take_over_a_session(worker: RawWorker, replica: Replica) -> None:
    await worker.welcomed()
    async with a_worker(replica, token=EMAIL_TOKEN, session_id=worker.session_id) as thief:
        await thief.hello(routes=["handler/email-service/weekly-digest"])
        assert (await thief.status())[0] is grpc.StatusCode.FAILED_PRECONDITION
    await worker.beat(1)
    await worker.expect("heartbeat_ack")


HELLO = {"session_id": bytes(16), "worker": "w", "routes": ["http"]}
REF = {"run_id": bytes(16), "attempt": 1, "claim_id": 1}


@pytest.mark.parametrize(
    ("hello", "names"),
    [
        ({"session_id": b"short"}, "hello.session_id"),
        ({"routes": []}, "hello.routes"),
        ({"routes": ["http"] * 1001}, "hello.routes"),
        ({"routes": ["http", "handler/kpi"]}, "hello.routes[1]"),
        ({"routes": ["handler/kpi/a b"]}, "hello.routes[0]"),
        ({"worker": ""}, "hello.worker"),
        ({"worker": "x" * 201}, "hello.worker"),
    ],
)
async def test_a_malformed_hello_is_refused(worker: RawWorker, hello: dict[str, Any], names: str) -> None:
    await worker.send(hello=work_pb2.Hello(**(HELLO | hello)))
    code, details = await worker.status()
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert details.startswith(names)


@pytest.mark.parametrize(
    ("message", "names"),
    [
        ({"hello": HELLO}, "hello"),
        ({"credit": -1}, "credit"),
        ({"credit": 100_001}, "credit"),
        ({"starts": {"starts": [{"attempt": REF | {"run_id": b"1"}}]}}, "attempt"),
        ({"progress": {"reports": [{"attempt": REF | {"claim_id": 0}}]}}, "attempt"),
        ({"items": {"results": [{"attempt": REF | {"attempt": 0}, "key": "a"}]}}, "attempt"),
        ({"results": {"results": [{"attempt": REF}]}}, "results.outcome"),
        ({"results": {"results": [{"attempt": REF, "outcome": 9}]}}, "results.outcome"),
    ],
)
async def test_a_message_against_the_protocol_ends_the_stream(
    worker: RawWorker, message: dict[str, Any], names: str
) -> None:
    await worker.welcomed()
    await worker.send(**message)
    code, details = await worker.status()
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert details.startswith(names)


async def test_the_first_message_must_be_hello(worker: RawWorker) -> None:
    await worker.beat(1)
    code, details = await worker.status()
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert details == "hello: must be the first message of a stream"


async def test_hello_must_come_in_time(database: Database) -> None:
    async with serving(Replica(database, hello_timeout=0.0)) as replica, a_worker(replica) as worker:
        await worker.call.wait_for_connection()
        code, details = await worker.status()
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert details.startswith("hello: did not come within 0 s")


async def test_a_result_of_a_run_that_nobody_knows_is_answered(worker: RawWorker) -> None:
    await worker.welcomed()
    assert await worker.verdict(a_result(ref(uuid4().bytes, 5))) == work_pb2.RESULT_VERDICT_UNKNOWN


async def test_a_worker_cannot_report_for_another_session(
    worker: RawWorker, admin: psycopg.Connection[Any], job: MadeJob
) -> None:
    run_id = make_live_run(admin, job)
    other = make_session(admin)
    admin.execute(
        "update carillon.live_runs set session_id = %s, claim_id = 5, claimed_at = now(), deadline = now()", [other]
    )
    await worker.welcomed()
    assert await worker.verdict(a_result(ref(run_id.bytes, 5))) == work_pb2.RESULT_VERDICT_STALE
    assert one(admin, LIVE) == 1


async def beat_until_done(worker: RawWorker, sequence: int, held: Sequence[int], really: int) -> None:
    """A heartbeat, and all that follows from it: the next one is looked at only after that."""
    await worker.beat(sequence, held)
    await worker.expect("heartbeat_ack")
    await worker.beat(sequence + 1, [really])
    await worker.expect("heartbeat_ack")


def a_result(attempt: work_pb2.AttemptRef, **fields: Any) -> work_pb2.AttemptResult:
    fields.setdefault("outcome", work_pb2.ATTEMPT_OUTCOME_COMPLETED)
    return work_pb2.AttemptResult(attempt=attempt, **fields)
