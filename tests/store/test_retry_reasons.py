"""A run that waits for its next attempt, and the attempt before, say what decided when that one comes; an occurrence
that was skipped late says how late."""

from __future__ import annotations

from datetime import timedelta
from uuid import UUID

import pytest

from scheduler_service.domain.overlap import SKIPPED
from scheduler_service.domain.record import RunError
from scheduler_service.domain.retry import Following
from scheduler_service.store.database import Database
from scheduler_service.usecases.runs import get_run, list_attempts
from tests.builders import ADMIN
from tests.store.complete_case import WRONG, Admin, Case
from tests.store.engine_case import SECOND, Connection, rows
from tests.store.turns_case import Begin, reaper_of


@pytest.fixture
def case(admin: Admin, hot: Connection) -> Case:
    return Case(admin, hot)


async def told(database: Database, run_id: UUID) -> list[RunError | None]:
    """What the run says, and its attempts."""
    attempts = await list_attempts(database, ADMIN, run_id)
    return [(await get_run(database, ADMIN, run_id)).error, *(attempt.error for attempt in attempts)]


@pytest.mark.parametrize(
    ("following", "reason"),
    [
        (None, "600 s after attempt 1, by the job's retry policy"),
        (Following(retry_after=30 * SECOND), "30 s after attempt 1, as the target asked"),
        (
            Following(retry_after=timedelta(hours=2)),
            "3600 s after attempt 1, as the target asked: it asked for 7200 s, and the job's max_delay allows no more",
        ),
    ],
    ids=["policy", "target", "target, cut off"],
)
async def test_a_failed_attempt_says_when_the_next_one_comes_and_why(
    case: Case, admin: Admin, database: Database, following: Following | None, reason: str
) -> None:
    admin.execute("update carillon.jobs set retry_max_delay = '1 hour'")
    (ref,) = await case.claimed()
    result = case.failure(ref, following=following)
    await case.report(result)
    assert await told(database, ref.run_id) == [WRONG.retried(reason)] * 2
    before = rows(admin, "select * from carillon.live_runs"), rows(admin, "select * from carillon.attempts")
    await case.report(result)
    assert (rows(admin, "select * from carillon.live_runs"), rows(admin, "select * from carillon.attempts")) == before


async def test_each_attempt_keeps_its_own_and_an_ended_run_has_none(
    case: Case, admin: Admin, database: Database
) -> None:
    admin.execute("update carillon.jobs set retry_delay = '0 s', retry_multiplier = 2")
    (ref,) = await case.claimed(max_attempts=3)
    run_id = ref.run_id
    for wish in (Following(retry_after=timedelta(0)), None, None):
        await case.report(case.failure(ref, following=wish))
        admin.execute("update carillon.live_runs set run_after = created_at")
        ref = next(iter(await case.claim()), ref)
    assert [error and error.retry for error in await told(database, run_id)] == [
        "",
        "0 s after attempt 1, as the target asked",
        "0 s after attempt 2, by the job's retry policy",
        "",
    ]


async def test_a_run_that_is_at_work_again_still_says_it(case: Case, admin: Admin, database: Database) -> None:
    (ref,) = await case.claimed()
    await case.report(case.failure(ref))
    admin.execute("update carillon.live_runs set run_after = created_at")
    assert len(await case.claim()) == 1
    run = await get_run(database, ADMIN, ref.run_id)
    assert run.error is not None
    assert (run.attempt, run.error.retry) == (2, "600 s after attempt 1, by the job's retry policy")


async def test_what_a_lost_worker_had_says_that_it_comes_at_once(
    begin: Begin, admin: Admin, database: Database, hot: Connection
) -> None:
    case = begin("SKIP")
    await case.tick(1)
    ref = await case.claim_one()
    admin.execute("update carillon.live_runs set started_at = claimed_at, first_started_at = claimed_at")
    admin.execute("update carillon.sessions set expires_at = %s", [case.at(2)])
    await reaper_of(case, database).step(hot, now=case.at(3))
    run_error, attempt_error = await told(database, ref.run_id)
    assert run_error is not None
    assert attempt_error == run_error
    assert (run_error.code, run_error.retry) == (
        "WORKER_LOST",
        "at once, since the attempt before it ended with its worker",
    )


class TestOccurrencesThatWereSkipped:
    async def test_in_time_they_say_only_why(self, begin: Begin, admin: Admin) -> None:
        case = begin("SKIP")
        await case.tick(1)
        await case.tick(2)
        assert rows(admin, "select error ->> 'message' from carillon.runs") == [(SKIPPED.message,)]

    async def test_after_an_outage_each_says_how_late(self, begin: Begin, admin: Admin) -> None:
        case = begin("SKIP")
        ticked = await case.tick(4.15)  # the first is a run, and all were due within the last minute
        assert (ticked.made.live, ticked.made.skipped) == (1, 3)
        late = "no scheduler came to it until {} s after it was due"
        assert rows(
            admin, "select trigger::text, error ->> 'code', error ->> 'message' from carillon.runs order by run_id"
        ) == [
            ("SCHEDULE", "OVERLAP", f"{SKIPPED.message}; {late.format(22)}"),
            ("SCHEDULE", "OVERLAP", f"{SKIPPED.message}; {late.format(12)}"),
            ("SCHEDULE", "OVERLAP", SKIPPED.message),
        ]
