"""Trying an ended run again by hand: a run like it, which waits its turn."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, timedelta
from uuid import UUID

import pytest

from scheduler_service.domain.access import ANONYMOUS, Principal
from scheduler_service.domain.errors import (
    Conflict,
    Forbidden,
    InvalidInput,
    NotFound,
    NothingToSee,
    Unauthenticated,
)
from scheduler_service.domain.job import Policies, TimingSpec
from scheduler_service.domain.ledger import Outcome
from scheduler_service.domain.overlap import Overlap
from scheduler_service.domain.run import RunState, TriggerSource, run_name
from scheduler_service.domain.run_filter import RunFilter
from scheduler_service.domain.schedule import ScheduleSpec
from scheduler_service.store.runs import get_runs
from scheduler_service.usecases import deleting, registry
from scheduler_service.usecases.run_schedule import RunScheduleRequest, run_schedule
from scheduler_service.usecases.runs import get_run, list_runs
from scheduler_service.usecases.stats import get_job_stats
from scheduler_service.usecases.wakeups import Topic
from tests import builders
from tests.builders import ADMIN, days_ago, make_job, service, user
from tests.conftest import DatabaseUrls
from tests.store.definitions_case import DIGEST, EMAIL, HOUR, MINUTE, START, TENANT_USER, Scheduler
from tests.store.ledger_case import read
from tests.store.pausing_case import job, unaccounted
from tests.store.retry_case import (
    ACME,
    DUE,
    begin,
    end,
    ended,
    failed_occurrence,
    retries,
    retry,
    the_job,
)
from tests.store.test_waiting import SECOND, held, until_it_waits


@pytest.fixture
async def scheduler(scheduler: Scheduler) -> Scheduler:
    return await begin(scheduler)


def live(scheduler: Scheduler) -> list[tuple[str, bool]]:
    """The live runs' triggers, and whether they wait for their turn; the one with the turn first."""
    return scheduler.admin.execute(
        "select trigger::text, blocked from carillon.live_runs order by blocked, trigger, run_id"
    ).fetchall()


async def refusal(scheduler: Scheduler, run_id: UUID, *, by: Principal = ADMIN) -> Conflict:
    with pytest.raises(Conflict) as refused:
        await retry(scheduler, run_id, by=by)
    assert retries(scheduler) == {}
    return refused.value


async def test_a_retry_is_about_what_the_run_was_about_and_behaves_as_the_job_does_now(scheduler: Scheduler) -> None:
    failed = ended(
        scheduler,
        tenant="acme",
        at=days_ago(1),
        trigger="EXTERNAL",
        origin="github_actions",
        labels={"why": "test"},
        payload={"limit": 2**60 + 1, "rate": 0.1},
        attempt=3,
        metrics={"n": 1},
        metadata={"m": 1},
    )
    scheduler.admin.execute("update carillon.jobs set attempt_timeout = '7 min', max_attempts = 9")
    listeners = [scheduler.wakeups.listen(topic) for topic in (Topic.PENDING, Topic.RUNS)]
    old = await get_run(scheduler.database, ADMIN, failed)
    run = await retry(scheduler, failed)
    assert (run.state, run.trigger, run.attempt, run.max_attempts) == (RunState.PENDING, TriggerSource.MANUAL, 1, 9)
    assert (run.tenant, run.origin, run.labels) == ("acme", "github_actions", {"why": "test"})
    assert (run.payload, run.metrics, run.metadata) == ({"limit": 2**60 + 1, "rate": 0.1}, {}, {})
    assert (run.triggered_by, run.retry_of, run.error) == ("admin:alice", failed, None)
    assert (run.scheduled_for, run.run_after, run.created_at) == (old.scheduled_for, START, START)
    assert (run.run_id.version, run.schedule, run.blocked) == (7, "", False)
    timeout = "select attempt_timeout from carillon.live_runs"
    assert scheduler.admin.execute(timeout).fetchone() == (timedelta(minutes=7),)
    assert await get_run(scheduler.database, ADMIN, failed) == replace(old, retried_by=run.run_id)
    assert [listener.take() for listener in listeners] == [True, True]


@pytest.mark.parametrize("state", [RunState.FAILED, RunState.CANCELLED, RunState.SKIPPED])
async def test_all_that_ended_without_success_can_be_tried_again(scheduler: Scheduler, state: RunState) -> None:
    assert (await retry(scheduler, ended(scheduler, state))).state is RunState.PENDING


@pytest.mark.parametrize("trigger", [TriggerSource.TEST, TriggerSource.MANUAL])
async def test_a_retry_of_a_test_is_a_test_and_stays_outside_statistics(
    scheduler: Scheduler, trigger: TriggerSource
) -> None:
    run = await retry(scheduler, ended(scheduler, trigger=trigger))
    assert (run.trigger, run.retry_of is None) == (trigger, False)
    end(scheduler, run, RunState.COMPLETED)
    stats = await get_job_stats(scheduler.database, ADMIN, DIGEST, since=START - HOUR, until=START + HOUR)
    counted = {} if trigger is TriggerSource.TEST else {RunState.FAILED: 1, RunState.COMPLETED: 1}
    assert {state: runs for state, runs in stats.counts.items() if runs} == counted


async def test_the_retry_of_an_occurrence_is_of_it_and_what_the_schedule_holds_now_is_not_its_payload(
    scheduler: Scheduler,
) -> None:
    failed = await failed_occurrence(scheduler)
    old = await get_run(scheduler.database, ADMIN, failed)
    await scheduler.put(ACME, ScheduleSpec(config={"limit": 9}, labels={}), "config", "labels")
    run = await retry(scheduler, failed)
    assert (run.payload, run.labels, run.schedule, run.revision) == ({"limit": 2}, {"brand_id": "b"}, "daily", 1)
    same = ("scheduled_for", "scheduled_local", "time_zone", "payload", "labels", "tenant", "revision")
    assert [getattr(run, name) for name in same] == [getattr(old, name) for name in same]
    kept = "select fold, tzdata from carillon.{} where run_id = %s"
    fold, tzdata = (
        scheduler.admin.execute(kept.format(table).encode(), [run_id]).fetchone()
        for table, run_id in (("runs", failed), ("live_runs", run.run_id))
    )
    assert fold == tzdata


async def test_the_ledger_says_that_the_occurrence_failed_and_what_became_of_it_afterwards(
    scheduler: Scheduler,
) -> None:
    run = await retry(scheduler, await failed_occurrence(scheduler))
    scheduler.database.now = DUE + SECOND
    seen = []
    for state in (RunState.PENDING, RunState.COMPLETED):
        if state is RunState.COMPLETED:
            end(scheduler, run, state)
        (entry,) = await read(scheduler, ACME)
        assert entry.remedy is not None
        seen.append((entry.outcome, entry.remedy.run_id, entry.remedy.state, entry.remedy.remedied))
    assert seen == [
        (Outcome.FAILED, run.run_id, RunState.PENDING, 0),
        (Outcome.FAILED, run.run_id, RunState.COMPLETED, 1),
    ]
    assert await unaccounted(scheduler) == []


async def test_the_retry_of_a_run_by_hand_is_no_occurrences_remedy(scheduler: Scheduler) -> None:
    wanted = RunScheduleRequest(ACME)
    answer = await run_schedule(scheduler.database, scheduler.wakeups, ADMIN, wanted, lambda run: run.run_id.bytes)
    failed = end(scheduler, UUID(bytes=answer))
    run = await retry(scheduler, failed)
    assert (run.schedule, run.retry_of, run.scheduled_for.astimezone(UTC)) == ("daily", failed, START)
    assert scheduler.admin.execute("select count(*) from carillon.remedies").fetchone() == (0,)


async def test_it_runs_at_once_unless_another_run_of_the_schedule_has_the_turn(scheduler: Scheduler) -> None:
    failed = await failed_occurrence(scheduler)
    run = await retry(scheduler, failed)
    assert (run.blocked, live(scheduler)) == (False, [("MANUAL", False)])
    end(scheduler, run)
    await scheduler.tick_until(DUE + 10 * MINUTE)
    run = await retry(scheduler, failed)
    assert (run.blocked, live(scheduler)) == (True, [("SCHEDULE", False), ("MANUAL", True)])
    followed = "select trigger::text from carillon.live_runs where followed"
    assert scheduler.admin.execute(followed).fetchall() == [("SCHEDULE",)]


async def test_an_occurrence_that_comes_due_while_a_retry_is_live_waits_and_is_not_skipped(
    scheduler: Scheduler,
) -> None:
    await retry(scheduler, await failed_occurrence(scheduler))
    await scheduler.tick_until(DUE + 10 * MINUTE)
    assert live(scheduler) == [("MANUAL", False), ("SCHEDULE", True)]
    assert await unaccounted(scheduler) == []


async def test_where_runs_may_overlap_no_retry_waits(scheduler: Scheduler) -> None:
    first = await failed_occurrence(scheduler)
    await scheduler.tick_until(DUE + 10 * MINUTE)
    ((second,),) = scheduler.admin.execute("select run_id from carillon.live_runs").fetchall()
    end(scheduler, second)
    await scheduler.register(job(timing=TimingSpec(), policies=Policies(overlap=Overlap.ALLOW_ALL)), generation=1)
    assert [(await retry(scheduler, each)).blocked for each in (first, second)] == [False, False]


async def test_what_is_live_or_completed_is_not_tried_again(scheduler: Scheduler) -> None:
    pending = builders.make_live_run(scheduler.admin, the_job(scheduler), at=START)
    refused = await refusal(scheduler, pending)
    assert (refused.reason, "has not ended (PENDING)" in refused.message) == ("RUN_LIVE", True)
    end(scheduler, pending, RunState.COMPLETED)
    refused = await refusal(scheduler, pending)
    assert (refused.reason, "TriggerJob" in refused.message) == ("RUN_COMPLETED", True)
    with pytest.raises(NotFound):
        await retry(scheduler, UUID(int=0))


async def test_a_run_of_an_archived_job_is_not_tried_again(scheduler: Scheduler) -> None:
    failed = ended(scheduler)
    await registry.remove_job(scheduler.database, scheduler.wakeups, EMAIL, DIGEST)
    assert (await refusal(scheduler, failed)).reason == "JOB_ARCHIVED"


@pytest.mark.parametrize("how", ["schedule", "tenant"])
async def test_a_run_of_a_deleted_schedule_is_not_tried_again(scheduler: Scheduler, how: str) -> None:
    failed = await failed_occurrence(scheduler)
    if how == "schedule":
        await deleting.delete_schedule(scheduler.database, scheduler.wakeups, ADMIN, ACME)
    else:
        await deleting.remove_tenant(scheduler.database, scheduler.wakeups, ADMIN, "acme")
    refused = await refusal(scheduler, failed)
    assert (refused.reason, "was deleted" in refused.message) == ("CONFLICT", True)


async def test_a_run_whose_payload_was_cleared_is_not_tried_again(scheduler: Scheduler) -> None:
    failed = ended(scheduler, at=days_ago(2), payload={"to": "jane"})
    empty = ended(scheduler, at=days_ago(0.5), payload={})
    clear = "select carillon.clear_payloads('email-service/weekly-digest', %s)"
    assert scheduler.admin.execute(clear, [days_ago(1.1)]).fetchone() == (1,)
    refused = await refusal(scheduler, failed)
    assert (refused.reason, "TriggerJob" in refused.message) == ("CONFLICT", True)
    assert (await retry(scheduler, empty)).payload == {}


async def test_a_payload_that_is_cleared_while_the_call_waits_is_not_taken_for_an_empty_one(
    scheduler: Scheduler, database_urls: DatabaseUrls
) -> None:
    ((schedule_id,),) = scheduler.admin.execute(
        "select schedule_id from carillon.schedules where schedule = 'daily'"
    ).fetchall()
    failed = ended(scheduler, at=days_ago(2), payload={"to": "jane"}, schedule_id=schedule_id, revision=1)
    with held(database_urls, "schedules"):
        retrying = asyncio.create_task(refusal(scheduler, failed))
        await until_it_waits(retrying, scheduler.admin)
        clear = "select carillon.clear_payloads('email-service/weekly-digest', %s)"
        assert scheduler.admin.execute(clear, [days_ago(1.1)]).fetchone() == (1,)
    assert "TriggerJob" in (await retrying).message
    assert (live(scheduler), retries(scheduler)) == ([], {})


async def test_who_may_try_a_run_again(scheduler: Scheduler) -> None:
    failed = await failed_occurrence(scheduler)
    for principal, error, words in (
        (TENANT_USER, Forbidden, "may not try runs again; that needs a JWT with the admin role"),
        (EMAIL, Forbidden, "may not try runs again; that needs a JWT with the admin role"),
        (user(""), NothingToSee, "not yours to see"),
        (ANONYMOUS, Unauthenticated, "needs credentials"),
    ):
        with pytest.raises(error, match=words):
            await retry(scheduler, failed, by=principal)
    assert retries(scheduler) == {}


async def test_a_request_id_that_is_too_long_is_named(scheduler: Scheduler) -> None:
    with pytest.raises(InvalidInput) as refused:
        await retry(scheduler, ended(scheduler), request_id="r" * 65)
    assert [violation.field for violation in refused.value.violations] == ["request_id"]
    assert retries(scheduler) == {}


async def test_each_retry_and_nothing_else_leaves_an_event(scheduler: Scheduler) -> None:
    failed = await failed_occurrence(scheduler)
    run = await retry(scheduler, failed)
    await retry(scheduler, failed)
    events = scheduler.admin.execute(
        "select principal, tenant_id, before, after from carillon.audit_events where resource = %s", [run_name(failed)]
    ).fetchall()
    assert events == [("admin:alice", "acme", None, {"runs": [run_name(run.run_id)]})]


async def test_whoever_may_see_a_run_sees_which_one_it_tries_again(scheduler: Scheduler) -> None:
    failed = await failed_occurrence(scheduler)
    run = await retry(scheduler, failed)
    make_job(scheduler.admin, "kpi-service", "sync")
    for state in (RunState.PENDING, RunState.COMPLETED):
        if state is RunState.COMPLETED:
            end(scheduler, run, state)
        for principal in (ADMIN, EMAIL, TENANT_USER):
            got = await get_run(scheduler.database, principal, run.run_id)
            assert (got.state, got.retry_of) == (state, failed), principal
            page = await list_runs(scheduler.database, principal, RunFilter())
            assert [(each.run_id, each.retry_of) for each in page.runs if each.retry_of] == [(run.run_id, failed)]
            # As WatchRuns reads those that changed.
            async with scheduler.database.acting_for(principal) as tx:
                assert {key: each.retry_of for key, each in (await get_runs(tx, [failed, run.run_id])).items()} == {
                    failed: None,
                    run.run_id: failed,
                }
    for principal in (service("kpi-service"), user("globex")):
        async with scheduler.database.acting_for(principal) as tx:
            seen = await (await tx.driver_connection()).execute("select count(*) from carillon.retries")
            assert await seen.fetchone() == (0,), principal
