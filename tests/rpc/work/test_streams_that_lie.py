"""What the scheduler makes of streams that are older, or deader, than they look."""

from __future__ import annotations

from typing import Any

import psycopg
from carillon.v1 import work_pb2

from scheduler_service.domain.returns import MOST_SENT_IN_VAIN
from scheduler_service.store.database import Database
from scheduler_service.usecases.wakeups import Topic
from tests.builders import MadeJob, make_live_run
from tests.rpc.work.rig import LIVE, RawWorker, Replica, a_result, a_worker, one, ref, serving, until

Admin = psycopg.Connection[Any]


async def test_a_run_that_never_arrives_is_charged_only_after_five_times(
    worker: RawWorker, replica: Replica, admin: Admin, job: MadeJob
) -> None:
    make_live_run(admin, job)
    await worker.welcomed(credit=100)
    attempts = []
    for sequence in range(MOST_SENT_IN_VAIN + 2):
        sent = await worker.expect("assignments")
        attempts.append(sent.assignments[0].attempt)
        # Earlier lists without this claim, such as the Hello's, are looked at before this one: on a busy machine late.
        await worker.beat(2 * sequence + 1, held=[sent.claim_id])
        await worker.expect("heartbeat_ack")
        admin.execute("update carillon.live_runs set claimed_at = claimed_at - interval '6 s'")
        await worker.beat(2 * sequence + 2, held=[])
        await worker.expect("heartbeat_ack")
        [told] = (await worker.expect("cancel")).attempts
        assert (told.attempt, told.claim_id) == (attempts[-1], sent.claim_id), "it may have arrived nevertheless"
    assert attempts == [1] * (MOST_SENT_IN_VAIN + 1) + [2]
    assert one(admin, "select error ->> 'code' from carillon.attempts") == "WORKER_LOST"


async def test_an_older_streams_late_heartbeat_extends_nothing(
    worker: RawWorker, database: Database, admin: Admin
) -> None:
    await worker.welcomed()
    async with serving(Replica(database)) as other, a_worker(other, session_id=worker.session_id) as newer:
        await newer.welcomed()
        await newer.beat(1)
        await newer.expect("heartbeat_ack")
        before = one(admin, "select (expires_at, heartbeat_at)::text from carillon.sessions")
        await worker.beat(1)
        assert "newer stream" in (await worker.status())[1]
        assert one(admin, "select (expires_at, heartbeat_at)::text from carillon.sessions") == before


async def test_a_replica_claims_nothing_for_a_session_that_went_elsewhere(
    worker: RawWorker, replica: Replica, database: Database, admin: Admin, job: MadeJob
) -> None:
    await worker.welcomed(credit=5)
    await worker.beat(1)
    await worker.expect("heartbeat_ack")  # the Hello is dealt with, too: nothing looks at the session's row any more
    [believed] = replica.sessions
    async with serving(Replica(database)) as other, a_worker(other, session_id=worker.session_id) as newer:
        await newer.welcomed()
        make_live_run(admin, job)
        replica.wakeups.wake(Topic.PENDING)
        await until(lambda: believed.credit == 0)
        assert one(admin, LIVE) == 0
        await newer.send(credit=1)
        sent = await newer.expect("assignments")
        assert await newer.verdict(a_result(ref(sent.assignments[0].run_id, sent.claim_id))) == (
            work_pb2.RESULT_VERDICT_ACCEPTED
        )


async def test_a_worker_that_is_not_heard_gets_nothing_until_it_is(
    worker: RawWorker, replica: Replica, admin: Admin, job: MadeJob
) -> None:
    await worker.welcomed(credit=5)
    [session] = replica.sessions
    replica.clock.now += 11  # of a lease of 30 s
    replica.leases.wakeup.set()
    await until(lambda: session.quiet)
    make_live_run(admin, job)
    async with a_worker(replica) as other:
        await other.welcomed(credit=1)
        await other.expect("assignments")
        make_live_run(admin, job)
        replica.wakeups.wake(Topic.PENDING)
        await worker.beat(1)
        kinds = {await worker.kind() for _ in range(2)}
        assert kinds == {"heartbeat_ack", "assignments"}


async def test_a_worker_is_asked_for_another_stream_when_its_own_is_old(
    database: Database, admin: Admin, job: MadeJob
) -> None:
    async with serving(Replica(database, stream_age=1.0)) as replica, a_worker(replica) as worker:
        await worker.welcomed(credit=5)
        await worker.expect("drain")
        [session] = replica.sessions
        assert session.leaving
        make_live_run(admin, job)
        replica.wakeups.wake(Topic.PENDING)
        async with a_worker(replica, session_id=worker.session_id) as newer:
            await newer.welcomed(credit=5)
            kinds = {await newer.kind() for _ in range(2)}
            assert kinds == {"assignments", "drain"}, "its own age is counted anew"
