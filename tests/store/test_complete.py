"""Results end runs: once, under their fence, and acknowledged only when they are committed."""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from scheduler_service.domain.attempt import AttemptRef, ItemResult, Verdict
from scheduler_service.domain.record import ItemCounts
from scheduler_service.store.claim import claim
from scheduler_service.usecases.wakeups import Topic
from tests.builders import make_live_run
from tests.store.complete_case import CLAIMED_AT, NOW, Admin, Case
from tests.store.engine_case import START, Connection, rows


@pytest.fixture
def case(admin: Admin, hot: Connection) -> Case:
    return Case(admin, hot)


async def test_a_completed_run_is_recorded_whole(case: Case, admin: Admin) -> None:
    (ref,) = await case.claimed(payload={"n": 1}, labels={"job_type": "mail"}, triggered_by="admin:alice", origin="cli")
    result = case.result(
        ref, duration=2.5, items=ItemCounts(3, 2, 1), metrics='{"sent": 2, "µ": "\\\\ \\""}', metadata='{"batch": "x"}'
    )
    assert await case.report(result) == [Verdict.ACCEPTED]
    assert rows(admin, "select count(*) from carillon.live_runs") == [(0,)]
    (row,) = rows(
        admin,
        "select state::text, attempt, claim_id, worker, started_at, finished_at, duration, items_processed,"
        " items_succeeded, items_failed, metrics, metadata, error, payload, labels, triggered_by, origin"
        " from carillon.runs",
    )
    assert row == (
        *("COMPLETED", 1, ref.claim_id, "w", NOW - timedelta(seconds=2.5), NOW, timedelta(seconds=2.5), 3, 2, 1),
        *({"sent": 2, "µ": '\\ "'}, {"batch": "x"}, None, {"n": 1}, {"job_type": "mail"}, "admin:alice", "cli"),
    )


async def test_no_attempt_starts_before_it_was_handed_over(case: Case, admin: Admin) -> None:
    (ref,) = await case.claimed()
    await case.report(case.result(ref, duration=3600.0))
    assert rows(admin, "select started_at, duration from carillon.runs") == [(CLAIMED_AT, timedelta(hours=1))]


async def test_a_result_with_an_old_claim_is_refused(case: Case, admin: Admin) -> None:
    (old,) = await case.claimed()
    admin.execute(
        "update carillon.live_runs set session_id = null, claim_id = null, claimed_at = null, deadline = null"
    )
    (new,) = await case.claim()
    assert await case.report(case.result(old)) == [Verdict.STALE]
    assert case.states() == {}
    assert await case.report(case.result(new)) == [Verdict.ACCEPTED]


async def test_old_and_new_claim_in_one_group_are_told_apart(case: Case, admin: Admin) -> None:
    (old,) = await case.claimed()
    admin.execute(
        "update carillon.live_runs set session_id = null, claim_id = null, claimed_at = null, deadline = null"
    )
    (new,) = await case.claim()
    assert await case.report(case.result(old), case.result(new)) == [Verdict.RUN_ENDED, Verdict.ACCEPTED]


async def test_the_identical_result_twice_is_accepted_twice_and_recorded_once(case: Case, admin: Admin) -> None:
    (ref,) = await case.claimed()
    assert await case.report(case.result(ref), case.result(ref)) == [Verdict.ACCEPTED, Verdict.ACCEPTED]
    assert await case.report(case.result(ref)) == [Verdict.ACCEPTED]
    assert await case.report(case.result(ref, duration=0.75)) == [Verdict.RUN_ENDED]
    assert rows(admin, "select count(*), sum(runs)::int from carillon.runs, carillon.job_stats") == [(1, 1)]


async def test_a_result_from_a_session_that_has_gone_does_not_count(case: Case, admin: Admin) -> None:
    (ref,) = await case.claimed()
    admin.execute("delete from carillon.sessions")
    assert await case.report(case.result(ref)) == [Verdict.STALE]
    assert case.states() == {}


async def test_a_result_of_nothing_is_unknown(case: Case) -> None:
    assert await case.report(case.result(AttemptRef(uuid4(), 1, 1))) == [Verdict.UNKNOWN]


async def test_a_failure_is_tried_again_and_then_ends_the_run(case: Case, admin: Admin) -> None:
    told = case.wakeups.listen(Topic.PENDING)
    admin.execute("update carillon.jobs set retry_delay = '5 minutes'")
    (ref,) = await case.claimed(max_attempts=2)
    assert await case.report(case.failure(ref)) == [Verdict.ACCEPTED]
    assert told.take()
    (row,) = rows(
        admin,
        "select attempt, run_after, claim_id, session_id, started_at, first_started_at, run_deadline,"
        " last_error ->> 'code' from carillon.live_runs",
    )
    began = NOW - timedelta(seconds=0.5)
    assert row == (2, NOW + timedelta(minutes=5), None, None, None, began, began + timedelta(hours=24), "HTTP_STATUS")
    assert rows(
        admin, "select attempt, started_at, finished_at, worker, error ->> 'detail' from carillon.attempts"
    ) == [(1, began, NOW, "w", "oh no")]
    assert await case.report(case.failure(ref)) == [Verdict.ACCEPTED]
    assert await case.report(case.result(ref)) == [Verdict.STALE]
    made = await claim(case.hot, case.session.session_id, ["http"], 1, NOW + timedelta(minutes=5))
    assert made is not None
    last = AttemptRef(ref.run_id, 2, made.claim_id)
    assert await case.report(case.failure(last)) == [Verdict.ACCEPTED]
    assert rows(admin, "select state::text, attempt, error ->> 'message' from carillon.runs") == [
        ("FAILED", 2, "the target answered 500")
    ]
    assert await case.report(case.failure(ref)) == [Verdict.ACCEPTED]


async def test_a_returned_run_is_free_again_and_not_charged(case: Case, admin: Admin) -> None:
    told = case.wakeups.listen(Topic.PENDING)
    (ref,) = await case.claimed()
    assert await case.report(case.result(ref, outcome="RETURNED", duration=None)) == [Verdict.ACCEPTED]
    assert told.take()
    assert rows(admin, "select attempt, session_id, run_after from carillon.live_runs") == [(1, None, START)]
    assert rows(admin, "select count(*) from carillon.attempts") == [(0,)]


async def test_an_attempt_that_had_started_cannot_be_returned_at_no_charge(case: Case, admin: Admin) -> None:
    """Or a worker could have it for ever."""
    (ref,) = await case.claimed()
    admin.execute("update carillon.live_runs set started_at = claimed_at")
    returned = case.result(ref, outcome="RETURNED", duration=None)
    assert await case.report(returned) == [Verdict.ACCEPTED]
    assert rows(admin, "select attempt, session_id, run_after from carillon.live_runs") == [(2, None, NOW)]
    assert rows(admin, "select attempt, error ->> 'code', error ->> 'message' from carillon.attempts") == [
        (1, "WORKER_LEFT", "the worker gave back attempt 1 after it had started")
    ]
    assert await case.report(returned) == [Verdict.ACCEPTED], "sent again"
    admin.execute("update carillon.live_runs set max_attempts = 2")
    made = await claim(case.hot, case.session.session_id, ["http"], 1, NOW)
    assert made is not None
    admin.execute("update carillon.live_runs set started_at = claimed_at")
    last = case.result(AttemptRef(ref.run_id, 2, made.claim_id), outcome="RETURNED", duration=None)
    assert await case.report(last) == [Verdict.ACCEPTED]
    assert rows(admin, "select state::text, error ->> 'code' from carillon.runs") == [("FAILED", "WORKER_LEFT")]
    assert await case.report(last) == [Verdict.ACCEPTED], "sent again"


@pytest.mark.parametrize(
    ("outcome", "state"),
    [("COMPLETED", "COMPLETED"), ("FAILED", "CANCELLED"), ("CANCELLED", "CANCELLED"), ("RETURNED", "CANCELLED")],
)
async def test_after_a_cancel_request_only_completion_counts_as_such(
    case: Case, admin: Admin, outcome: str, state: str
) -> None:
    (ref,) = await case.claimed()
    admin.execute("update carillon.live_runs set cancel_requested_at = %s", [NOW])
    assert await case.report(case.result(ref, outcome=outcome)) == [Verdict.ACCEPTED]
    assert case.states() == {ref.run_id: state}
    other = "FAILED" if outcome == "COMPLETED" else "COMPLETED"
    late = Verdict.RUN_ENDED if state == "COMPLETED" else Verdict.RUN_CANCELLED
    assert await case.report(case.result(ref, outcome=other)) == [late]


async def test_a_stop_that_nobody_asked_for_is_a_failure(case: Case, admin: Admin) -> None:
    (ref,) = await case.claimed(max_attempts=1)
    await case.report(case.result(ref, outcome="CANCELLED"))
    assert case.states() == {ref.run_id: "FAILED"}


@pytest.mark.parametrize(
    "poison",
    [
        {"metrics": "{not json"},
        {"metadata": '{"nul": "\\u0000"}'},
        {"metrics": "\0"},
        {"items": ItemCounts(2**70, 0, 0)},
        {"duration": float("nan")},
    ],
)
async def test_one_bad_value_ends_only_its_own_run(case: Case, admin: Admin, poison: dict[str, Any]) -> None:
    refs = await case.claimed(9)
    bad = refs[4]
    results = [case.result(ref, **(poison if ref is bad else {})) for ref in refs]
    assert await case.report(*results) == [Verdict.ACCEPTED] * 9
    states = case.states()
    assert states.pop(bad.run_id) == "FAILED"
    assert set(states.values()) == {"COMPLETED"}
    assert len(states) == 8
    assert rows(admin, "select error ->> 'code' from carillon.runs where state = 'FAILED'") == [("BAD_RESULT",)]
    assert await case.report(results[4]) == [Verdict.ACCEPTED]


async def test_outcomes_mix_in_one_group(case: Case, admin: Admin) -> None:
    done, failed, returned, gone = await case.claimed(4)
    results = [
        case.result(done),
        case.failure(failed),
        case.result(returned, outcome="RETURNED"),
        case.result(AttemptRef(gone.run_id, 1, gone.claim_id + 1)),
    ]
    assert await case.report(*results) == [*[Verdict.ACCEPTED] * 3, Verdict.STALE]
    assert case.states() == {done.run_id: "COMPLETED"}
    assert dict(rows(admin, "select run_id, attempt from carillon.live_runs")) == {
        failed.run_id: 2,
        returned.run_id: 1,
        gone.run_id: 1,
    }


async def test_nothing_is_acknowledged_or_half_done_when_the_commit_fails(
    case: Case, admin: Admin, other: Connection
) -> None:
    done, failed = await case.claimed(2)
    case.completer.submit([case.result(done), case.failure(failed)], case.session)
    admin.execute("alter table carillon.attempts add constraint cut check (false) not valid")
    admin.execute("select pg_terminate_backend(%s)", [case.hot.info.backend_pid])
    with pytest.raises(psycopg.OperationalError):
        await case.completer.step(case.hot, now=NOW)
    assert (case.received.answers, case.states(), len(case.completer)) == ([], {}, 2)
    admin.execute("alter table carillon.attempts drop constraint cut")
    assert await case.completer.step(other, now=NOW)
    assert case.received.answers == [Verdict.ACCEPTED] * 2
    assert (case.states(), len(case.completer)) == ({done.run_id: "COMPLETED"}, 0)


async def test_items_are_committed_before_the_result_that_followed_them(case: Case, admin: Admin) -> None:
    (ref,) = await case.claimed()
    case.completer.submit_items(
        [ItemResult(ref, case.session.session_id, f"user-{n}", succeeded=n != 2, error="") for n in range(3)],
        case.session,
    )
    assert await case.report(case.result(ref)) == [Verdict.ACCEPTED]
    assert rows(admin, "select key from carillon.items where succeeded order by key") == [("user-0",), ("user-1",)]


async def test_one_bad_item_is_left_out_alone(case: Case, admin: Admin) -> None:
    (ref,) = await case.claimed()
    keys = ["a", "b" * 300, "c"]
    items = [ItemResult(ref, case.session.session_id, key, succeeded=True) for key in keys]
    case.completer.submit_items(items, case.session)
    await case.completer.step(case.hot, now=NOW)
    assert rows(admin, "select key from carillon.items order by key") == [("a",), ("c",)]


async def test_a_live_run_that_has_a_record_already_is_removed(case: Case, admin: Admin) -> None:
    (ref,) = await case.claimed()
    await case.report(case.result(ref))
    again = make_live_run(admin, case.job, at=START, run_id=ref.run_id)
    assert again == ref.run_id
    (second,) = await case.claim()
    assert await case.report(case.result(second)) == [Verdict.RUN_ENDED]
    assert rows(admin, "select count(*) from carillon.live_runs") == [(0,)]


async def test_completion_touches_no_index_on_sessions_of_live_runs(case: Case, admin: Admin) -> None:
    """The planner once walked the session's runs for each result: many runs in one session stay cheap."""
    refs = await case.claimed(300)
    admin.execute("select pg_stat_reset()")
    await case.report(*(case.result(ref) for ref in refs))
    admin.execute("select pg_stat_force_next_flush()")
    await case.hot.execute("select pg_stat_force_next_flush()")
    await case.hot.execute("select 1")
    ((scans,),) = rows(admin, "select idx_scan from pg_stat_user_indexes where indexrelname = 'live_runs_held'")
    assert scans == 0
