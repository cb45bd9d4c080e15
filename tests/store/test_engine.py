"""The loops together: what is due is carried out, with nobody stepping them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import psycopg
import pytest

from scheduler_service.domain.attempt import AttemptRef, ClaimedRun, Result, Verdict
from scheduler_service.engine.sessions import ConnectedSession, Sessions
from scheduler_service.loops.engine import Engine
from scheduler_service.store.database import Database
from scheduler_service.usecases.wakeups import Topic, Wakeups
from tests.builders import MadeJob, make_job, make_live_run, make_schedule, make_session
from tests.store.engine_case import Connection, rows

Admin = psycopg.Connection[Any]


class Worker:
    """A session that completes whatever it is given, and counts what was accepted."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.session: ConnectedSession
        self.sessions: Sessions
        self.carried_out: list[ClaimedRun] = []
        self.accepted = 0
        self.changed = asyncio.Event()

    def assign(self, claim_id: int, runs: Sequence[ClaimedRun], asked_at: float) -> None:
        self.carried_out += runs
        results = [
            Result(AttemptRef(run.run_id, run.attempt, claim_id), self.session.session_id, "COMPLETED", 0.0)
            for run in runs
        ]
        self._engine.completer.submit(results, self.session)

    def acknowledge(self, verdicts: Iterable[tuple[AttemptRef, Verdict]]) -> None:
        answers = [verdict for _, verdict in verdicts]
        assert set(answers) == {Verdict.ACCEPTED}
        self.accepted += len(answers)
        self.sessions.grant(self.session, len(answers))
        self.changed.set()

    def cancel(self, attempts: Iterable[AttemptRef]) -> None:
        raise AssertionError("nobody asked to stop")

    async def has_accepted(self, count: int) -> None:
        async with asyncio.timeout(60):
            while self.accepted < count:
                await self.changed.wait()
                self.changed.clear()


class Replica:
    def __init__(self, database: Database) -> None:
        self.sessions = Sessions(on_credit=lambda: None)
        self.wakeups = Wakeups()
        self.engine = Engine(database, self.sessions, self.wakeups, "replica")

    def worker(self, session_id: UUID, credit: int) -> Worker:
        worker = Worker(self.engine)
        worker.sessions = self.sessions
        worker.session = ConnectedSession(session_id, "w", frozenset({"http"}), 1, worker)
        self.sessions.connect(worker.session)
        self.sessions.grant(worker.session, credit)
        return worker


@asynccontextmanager
async def running(database: Database) -> AsyncIterator[Replica]:
    replica = Replica(database)
    await replica.engine.start()
    try:
        yield replica
    finally:
        await replica.engine.drain()


@pytest.fixture
def job(admin: Admin) -> MadeJob:
    return make_job(admin, overlap="ALLOW_ALL", owed_from=datetime(2020, 1, 1, tzinfo=UTC))


async def test_a_schedule_fires_on_its_second_and_ends_completed(
    admin: Admin, database: Database, job: MadeJob
) -> None:
    now = datetime.now(UTC)
    for number in range(20):
        make_schedule(
            admin,
            job,
            f"s{number}",
            cron="@every 1s",
            settled_to=now,
            next_run_at=now.replace(microsecond=0) + timedelta(seconds=1),
        )
    async with running(database) as replica:
        worker = replica.worker(make_session(admin), credit=100)
        await worker.has_accepted(40)
    made, instants, ended = rows(
        admin,
        "select count(*), count(distinct (schedule_id, scheduled_for)), count(*) filter (where state = 'COMPLETED')"
        " from carillon.runs",
    )[0]
    assert made == instants == ended == len(worker.carried_out) == worker.accepted
    assert rows(admin, "select count(*) from carillon.live_runs") == [(0,)]


async def test_a_backlog_drains_through_little_credit(admin: Admin, database: Database, job: MadeJob) -> None:
    for _ in range(50):
        make_live_run(admin, job)
    async with running(database) as replica:
        worker = replica.worker(make_session(admin), credit=3)
        await worker.has_accepted(50)


async def test_a_run_that_another_replica_made_pending_is_handed_out_at_once(
    admin: Admin, database: Database, job: MadeJob
) -> None:
    async with running(database) as here, running(database) as there:
        worker = there.worker(make_session(admin), credit=1)
        await worker.has_accepted(0)
        make_live_run(admin, job)
        here.wakeups.wake(Topic.PENDING)
        await worker.has_accepted(1)


async def test_two_replicas_carry_out_each_occurrence_once(admin: Admin, database: Database, job: MadeJob) -> None:
    now = datetime.now(UTC)
    for number in range(50):
        make_schedule(admin, job, f"s{number}", cron="@every 1s", settled_to=now, next_run_at=now)
    async with AsyncExitStack() as stack:
        replicas = [await stack.enter_async_context(running(database)) for _ in range(2)]
        workers = [replica.worker(make_session(admin), credit=30) for replica in replicas]
        await asyncio.gather(*(worker.has_accepted(20) for worker in workers))
    carried_out = [run.run_id for worker in workers for run in worker.carried_out]
    assert len(set(carried_out)) == len(carried_out)
    assert rows(admin, "select count(*) from carillon.runs where state <> 'COMPLETED'") == [(0,)]


async def test_the_loops_get_over_a_lost_database(admin: Admin, database: Database, job: MadeJob) -> None:
    async with running(database) as replica:
        worker = replica.worker(make_session(admin), credit=5)
        make_live_run(admin, job)
        replica.wakeups.wake(Topic.PENDING)
        await worker.has_accepted(1)
        admin.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity where usename = 'carillon_engine'"
            " and datname = current_database()"
        )
        for _ in range(3):
            make_live_run(admin, job)
        replica.wakeups.wake(Topic.PENDING)
        await worker.has_accepted(4)
        assert {name for name, loop in replica.engine.health().items() if not loop["running"]} == set()


async def test_draining_commits_what_was_reported_and_hands_out_nothing_more(
    admin: Admin, database: Database, job: MadeJob
) -> None:
    async with running(database) as replica:
        worker = replica.worker(make_session(admin), credit=100)
        await replica.engine.stop_handing_out()
        for _ in range(5):
            make_live_run(admin, job)
        replica.wakeups.wake(Topic.PENDING)
        assert (worker.carried_out, len(replica.engine.completer)) == ([], 0)
        session = worker.session.session_id
        made = admin.execute(
            "update carillon.live_runs set session_id = %s, claim_id = 7, claimed_at = now(), deadline = now()"
            " returning run_id",
            [session],
        ).fetchall()
        results = [Result(AttemptRef(run_id, 1, 7), session, "COMPLETED", 0.0) for (run_id,) in made]
        replica.engine.completer.submit(results, worker.session)
    assert worker.accepted == 5
    assert not any(loop["running"] for loop in replica.engine.health().values())


async def test_keeping_house_folds_counts_and_forgets_old_requests(admin: Admin, hot: Connection, job: MadeJob) -> None:
    from scheduler_service.engine.housekeeping import CHORES, Housekeeping

    columns = "runs, timed, total_duration, longest_duration, items_processed, items_succeeded, items_failed"
    for longest in (1, 3, 2):
        admin.execute(
            f"insert into carillon.job_stats (job_id, hour, state, {columns}, last_finished_at) values"
            " (%s, '2026-01-01', 'COMPLETED', 2, 2, '4 s', make_interval(secs => %s), 1, 1, 0, now())",
            [job.job_id, longest],
        )
    for age in (1, 30):
        admin.execute(
            "insert into carillon.requests values ('p', %s, '', '', now() - make_interval(hours => %s))",
            [str(age), age],
        )
    housekeeping = Housekeeping()
    while await housekeeping.step(hot, 0.0):
        pass
    assert housekeeping.next_at() == min(period for _, _, period in CHORES)
    assert rows(admin, f"select {columns} from carillon.job_stats") == [
        (6, 6, timedelta(seconds=12), timedelta(seconds=3), 3, 3, 0)
    ]
    assert rows(admin, "select request_id from carillon.requests") == [("1",)]
