"""What follows a failed attempt, as its job's policy and its target say, and beside what else is committed."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from scheduler_service.domain.attempt import Verdict
from scheduler_service.domain.record import ItemCounts, RunError
from scheduler_service.domain.retry import Following
from scheduler_service.domain.run import RunState
from scheduler_service.store.database import Database
from scheduler_service.usecases import runs
from tests.builders import ADMIN, make_attempt, make_ended_run, make_item
from tests.store.complete_case import NOW, Admin, Case
from tests.store.engine_case import SECOND, START, Connection, rows


@pytest.fixture
def case(admin: Admin, hot: Connection) -> Case:
    return Case(admin, hot)


# Each policy's column of the job, and when a run that failed at NOW is due again.
POLICIES: list[tuple[str, timedelta]] = [
    ("retry_delay = '5 minutes'", timedelta(minutes=5)),
    ("retry_delay = '5 minutes', retry_max_delay = '2 minutes'", timedelta(minutes=2)),
    ("retry_delay = '0 s'", timedelta(0)),
    ("retry_delay = '1 minute', retry_multiplier = 10", timedelta(minutes=1)),
    ("never_retry = '{HTTP_404}'", timedelta(minutes=10)),
]


@pytest.mark.parametrize(("columns", "delay"), POLICIES, ids=[columns for columns, _ in POLICIES])
async def test_a_failure_waits_as_its_jobs_policy_says(
    case: Case, admin: Admin, columns: str, delay: timedelta
) -> None:
    (ref,) = await case.claimed()
    admin.execute(f"update carillon.jobs set {columns}".encode())  # after the run was made: it counts all the same
    await case.report(case.failure(ref))
    assert rows(admin, "select attempt, run_after from carillon.live_runs") == [(2, NOW + delay)]


async def test_what_never_retry_names_ends_the_run_at_its_first_attempt_and_says_so(case: Case, admin: Admin) -> None:
    admin.execute("update carillon.jobs set never_retry = '{NO_USER,HTTP_*}'")
    (ref,) = await case.claimed()
    result = case.failure(ref)
    assert await case.report(result) == [Verdict.ACCEPTED]
    assert rows(admin, "select state::text, attempt, error ->> 'code', error ->> 'detail' from carillon.runs") == [
        ("FAILED", 1, "HTTP_STATUS", "oh no\nnot tried again: HTTP_* stands in its job's never_retry")
    ]
    assert await case.report(result) == [Verdict.ACCEPTED], "known again, whatever its record says beside it"


async def test_each_further_delay_is_longer_and_jitter_takes_of_it(case: Case, admin: Admin) -> None:
    admin.execute(
        "update carillon.jobs set retry_delay = '100 s', retry_multiplier = 3, retry_max_delay = '500 s',"
        " retry_jitter = 0.5"
    )
    refs = await case.claimed(20, max_attempts=4)
    for longest in (100, 300, 500):
        await case.report(*map(case.failure, refs))
        delays = {(at - NOW).total_seconds() for (at,) in rows(admin, "select run_after from carillon.live_runs")}
        assert len(delays) == 20
        assert longest / 2 <= min(delays) < max(delays) <= longest
        assert max(delays) - min(delays) > longest / 10
        admin.execute("update carillon.live_runs set run_after = %s", [START])
        refs = await case.claim()


async def test_a_target_says_what_follows_its_failure(case: Case, admin: Admin) -> None:
    admin.execute("update carillon.jobs set retry_max_delay = '1 hour'")
    final, soon, late, last = await case.claimed(4)
    admin.execute("update carillon.live_runs set max_attempts = 1 where run_id = %s", [last.run_id])
    wishes = {
        final: Following(no_retry=True),
        soon: Following(retry_after=SECOND),
        late: Following(retry_after=timedelta(days=3)),
        last: Following(retry_after=SECOND),
    }
    assert (
        await case.report(*(case.failure(ref, following=wish) for ref, wish in wishes.items()))
        == [Verdict.ACCEPTED] * 4
    )
    assert case.states() == {final.run_id: "FAILED", last.run_id: "FAILED"}
    details = dict(rows(admin, "select run_id, error ->> 'detail' from carillon.runs"))
    assert details[final.run_id] == "oh no\nnot tried again: the target asked for that"
    assert details[last.run_id] == "oh no"
    assert dict(rows(admin, "select run_id, run_after from carillon.live_runs")) == {
        soon.run_id: NOW + SECOND,
        late.run_id: NOW + timedelta(hours=1),
    }
    assert await case.report(case.failure(soon)) == [Verdict.STALE], "without its wish it is another result"


async def test_a_run_that_waits_for_its_retry_has_no_more_time_than_any_other(case: Case, admin: Admin) -> None:
    (ref,) = await case.claimed(run_timeout=timedelta(minutes=1))
    await case.report(case.failure(ref, following=Following(retry_after=timedelta(hours=1))))
    began = NOW - timedelta(seconds=0.5)
    assert rows(admin, "select run_deadline from carillon.live_runs") == [(began + timedelta(minutes=1),)]


@pytest.mark.parametrize("poison", ["completed", "failed", "ended", "returned"])
async def test_one_bad_value_among_failures_and_retries_ends_only_its_own_run(
    case: Case, admin: Admin, poison: str
) -> None:
    refs = await case.claimed(12)
    done, again, ended, returned = refs[:3], refs[3:6], refs[6:9], refs[9:]
    bad = {"completed": done, "failed": again, "ended": ended, "returned": returned}[poison][1]
    results = [
        *(case.result(ref) for ref in done),
        *(case.failure(ref) for ref in again),
        *(case.failure(ref, following=Following(no_retry=True)) for ref in ended),
        *(case.result(ref, outcome="RETURNED", duration=None) for ref in returned),
    ]
    (number,) = (number for number, result in enumerate(results) if result.ref is bad)
    results[number] = replace(results[number], items=ItemCounts(2**70, 0, 0), error=RunError("E", "nul \0"))
    assert await case.report(*results) == [Verdict.ACCEPTED] * 12
    wanted = {ref.run_id: "COMPLETED" for ref in done} | {ref.run_id: "FAILED" for ref in [*ended, bad]}
    assert case.states() == wanted
    assert rows(admin, "select run_id from carillon.runs where error ->> 'code' = 'BAD_RESULT'") == [(bad.run_id,)]
    live = dict(rows(admin, "select run_id, attempt from carillon.live_runs where session_id is null"))
    assert live == {
        **{ref.run_id: 2 for ref in again if ref is not bad},
        **{ref.run_id: 1 for ref in returned if ref is not bad},
    }
    assert rows(admin, "select count(*) from carillon.attempts") == [(len(again) - (poison == "failed"),)]
    # A result of a returned run leaves nothing behind to be known by.
    known = [result for result in results if result.ref not in returned or result.ref is bad]
    assert await case.report(*known) == [Verdict.ACCEPTED] * len(known)
    assert case.states() == wanted


async def test_what_a_run_that_ended_while_it_waited_had_done_is_shown(
    case: Case, admin: Admin, database: Database
) -> None:
    error = {"code": "RUN_TIMEOUT", "message": "the run took longer than its timeout", "detail": ""}
    run_id = make_ended_run(
        admin, case.job, RunState.FAILED, attempt=2, worker="", started_at=None, duration=None, error=error
    )
    make_attempt(admin, run_id, case.job, 1)
    make_item(admin, run_id, case.job, "user-1")
    (attempt,) = await runs.list_attempts(database, ADMIN, run_id)
    assert attempt.error is not None
    assert (attempt.attempt, attempt.worker, attempt.error.message) == (1, "worker-1", "attempt 1 failed")
    assert [item.key for item in (await runs.list_items(database, ADMIN, run_id)).items] == ["user-1"]
