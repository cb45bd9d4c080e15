"""Leases over the real stream: heartbeats, newer streams, Goodbye, drain, and what is taken back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import grpc
import psycopg
from carillon.v1 import work_pb2

from scheduler_service.rpc.work_outbox import Outbox
from scheduler_service.store.database import Database
from scheduler_service.store.sessions import end_expired_sessions
from scheduler_service.usecases.wakeups import Topic
from tests.builders import MadeJob, make_live_run, now
from tests.rpc.work.rig import (
    LIVE,
    PATIENCE,
    SESSIONS,
    RawWorker,
    Replica,
    a_claimed_run,
    a_result,
    a_worker,
    one,
    ref,
    serving,
    until,
)


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
    await worker.beat(1)
    await worker.expect("heartbeat_ack")  # nobody else holds the row now
    async with await database.hot_connection() as connection:
        assert len(await end_expired_sessions(connection, now=now() + timedelta(seconds=60))) == 1
    await worker.beat(2)
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
    sent = await worker.expect("assignments")
    await beat_until_done(worker, 1, [], sent.claim_id)
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
    assert live == [(None, 2, False), (None, 1, False)]


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
    async with a_worker(replica) as late:  # refused before it can say anything
        assert (await late.status())[0] is grpc.StatusCode.UNAVAILABLE


async def test_a_worker_that_says_hello_while_the_drain_begins_is_asked_to_go_too(database: Database) -> None:
    draining: list[asyncio.Future[None]] = []

    def meanwhile() -> Outbox:
        draining.append(asyncio.ensure_future(replica.service.drain(PATIENCE)))
        return Outbox()

    async with serving(Replica(database, new_outbox=meanwhile)) as replica, a_worker(replica) as worker:
        await worker.welcomed(credit=1)
        await worker.expect("drain")
        assert replica.sessions.routes() == frozenset()
        await worker.call.done_writing()
        assert (await worker.status())[0] is grpc.StatusCode.OK
        await asyncio.gather(*draining)


async def test_drain_closes_streams_that_stay(worker: RawWorker, replica: Replica) -> None:
    await worker.welcomed()
    await replica.service.drain(0.0)
    assert (await worker.status())[0] is grpc.StatusCode.UNAVAILABLE


async def test_a_worker_that_does_not_read_is_closed(database: Database) -> None:
    async with (
        serving(Replica(database, new_outbox=lambda: Outbox(most_bytes=4 * 1024 * 1024))) as replica,
        a_worker(replica) as worker,
    ):
        await worker.welcomed()
        [session] = replica.sessions

        def is_closed_when_it_gets_more() -> bool:
            session.outbound.assign(7, [a_claimed_run("x" * 256 * 1024)], time.monotonic())
            return len(replica.sessions) == 0

        worker.reads.clear()
        await until(is_closed_when_it_gets_more)
        worker.reads.set()
        assert (await worker.status())[0] is grpc.StatusCode.UNAVAILABLE


async def beat_until_done(worker: RawWorker, sequence: int, held: Sequence[int], really: int) -> None:
    """A heartbeat, and all that follows from it: the next one is looked at only after that."""
    await worker.beat(sequence, held)
    await worker.expect("heartbeat_ack")
    await worker.beat(sequence + 1, [really])
    await worker.expect("heartbeat_ack")
