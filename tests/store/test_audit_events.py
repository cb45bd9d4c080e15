"""Each change leaves one event with what it was before and after; what changes nothing leaves none."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import psycopg
import pytest

from scheduler_service.domain.audit import Event, EventFilter, differing, made
from scheduler_service.domain.backfill import Backfill
from scheduler_service.domain.errors import Conflict, InvalidInput
from scheduler_service.domain.job import NO_OVERRIDES, JobOverrides, TimingSpec
from scheduler_service.domain.names import BackfillName
from scheduler_service.domain.run import run_name
from scheduler_service.domain.schedule import ScheduleSpec
from scheduler_service.domain.timing import CatchUp
from scheduler_service.store.database import Database
from scheduler_service.usecases import backfill, cancel, deleting, jobs, registry, run_schedule, tenants, trigger
from scheduler_service.usecases.audit import list_audit_events
from tests import builders
from tests.builders import ADMIN
from tests.store.audit_case import JOB, events, record, record_many, recorded, seal_all
from tests.store.definitions_case import DIGEST, EMAIL, HOUR, START, TENANT_USER, Scheduler, digest, every, for_tenant
from tests.store.pausing_case import pause, pause_job, resume, resume_job

ACME = for_tenant("acme")


def told(found: Sequence[Event]) -> list[tuple[str, Any, Any]]:
    return [(event.resource, event.before, event.after) for event in found]


@pytest.mark.parametrize(
    ("before", "after", "differences"),
    [
        ({}, {}, ({}, {})),
        ({"a": 1}, {"a": 1}, ({}, {})),
        ({"a": 1, "b": 2}, {"a": 1, "b": 3}, ({"b": 2}, {"b": 3})),
        ({"a": 1}, {"b": 2}, ({"a": 1}, {"b": 2})),
        ({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}}, ({"a": {"c": 2}}, {"a": {"c": 3}})),
        ({"a": {"b": 1}}, {"a": {}}, ({"a": {"b": 1}}, {"a": {}})),
        ({"a": {"b": 1}}, {"a": 1}, ({"a": {"b": 1}}, {"a": 1})),
        ({"a": [1, 2]}, {"a": [1, 3]}, ({"a": [1, 2]}, {"a": [1, 3]})),
        ({"a": 1}, {"a": True}, ({"a": 1}, {"a": True})),
        ({"a": None}, {}, ({"a": None}, {})),
    ],
)
def test_only_what_differs_is_kept(before: Any, after: Any, differences: Any) -> None:
    assert differing(before, after) == differences


async def test_a_registration_leaves_an_event_for_each_job_it_changes(scheduler: Scheduler) -> None:
    names = [f"services/email-service/jobs/{job}" for job in ("a", "b", "c")]
    async with recorded(scheduler.database) as added:
        await scheduler.register(digest("a"), digest("b", timing=every("1h")), digest("c"))
    assert [(event.resource, event.before) for event in added] == [(name, None) for name in names]
    assert added[1].after is not None
    assert added[1].after["declared"]["timing"] == {"cron": "@every 1h"}
    assert added[1].after["endpoint"] == "http://email-service/run"

    async with recorded(scheduler.database) as added:
        await scheduler.register(digest("a"), digest("b", timing=every("2h")), allow_mass_removal=True)
    changed, removed = added
    assert changed.before == {"declared": {"timing": {"cron": "@every 1h"}}}
    assert changed.after == {"declared": {"timing": {"cron": "@every 2h"}}}
    assert (removed.resource, removed.after) == (names[2], None)
    assert removed.before is not None
    assert removed.before["declared"]["job"] == "c"

    async with recorded(scheduler.database) as added:
        await scheduler.register(digest("a"), digest("b", timing=every("2h")))
        await scheduler.register(digest("a"), digest("new"), validate_only=True)
        with pytest.raises(Conflict):
            await scheduler.register()
        with pytest.raises(InvalidInput):
            await scheduler.register(digest("a"), digest("a"))
    assert added == []


async def test_a_new_generation_and_base_url_are_the_services_change(scheduler: Scheduler) -> None:
    await scheduler.register(digest())
    async with recorded(scheduler.database) as added:
        await scheduler.register(digest(), generation=7, base_url="http://email")
    assert told(added) == [
        (
            "services/email-service",
            {"base_url": "", "generation": 0},
            {"base_url": "http://email", "generation": 7},
        )
    ]


async def test_removing_a_job_leaves_what_it_was(scheduler: Scheduler) -> None:
    await scheduler.register(digest())
    async with recorded(scheduler.database) as added:
        for _ in range(2):
            await registry.remove_job(scheduler.database, scheduler.wakeups, EMAIL, DIGEST)
    (event,) = added
    assert (event.resource, event.after, event.principal) == (JOB, None, "service:email-service")


async def test_overrides_are_told_as_far_as_they_changed(scheduler: Scheduler) -> None:
    await scheduler.register(digest(timing=every("1h")))
    async with recorded(scheduler.database) as added:
        await scheduler.override(JobOverrides(timing=every("2h"), config={"limit": 1}), "timing.cron", "config")
        await scheduler.override(JobOverrides(timing=every("3h")), "timing.cron")
        await scheduler.override(JobOverrides(timing=every("3h")), "timing.cron")
        with pytest.raises(InvalidInput):
            await scheduler.override(JobOverrides(timing=TimingSpec(cron="never")), "timing.cron")
        for _ in range(2):
            await jobs.reset_job_overrides(scheduler.database, scheduler.wakeups, ADMIN, DIGEST)
    two, three = ({"cron": f"@every {hours}h"} for hours in (2, 3))
    config = {"limit": 1}
    assert told(added) == [
        (JOB, {"overrides": {"timing": {}, "config": {}}}, {"overrides": {"timing": two, "config": config}}),
        (JOB, {"overrides": {"timing": two}}, {"overrides": {"timing": three}}),
        (JOB, {"overrides": {"timing": three, "config": config}}, {"overrides": {"timing": {}, "config": {}}}),
    ]
    assert NO_OVERRIDES.config == {}


async def test_pausing_and_resuming_tell_what_was_caught_up(scheduler: Scheduler) -> None:
    await scheduler.register(digest(timing=every("10m"), tenant_schedules=True))
    await scheduler.put(ACME, ScheduleSpec())
    for halt, go_on, resource in (
        (lambda: pause_job(scheduler), lambda **how: resume_job(scheduler, CatchUp.LATEST, **how), JOB),
        (lambda: pause(scheduler, ACME), lambda **how: resume(scheduler, ACME, CatchUp.LATEST, **how), str(ACME)),
    ):
        async with recorded(scheduler.database) as added:
            await halt()
            await halt()
            await scheduler.tick_until(scheduler.database.now + HOUR)
            await go_on(validate_only=True)
            await go_on()
            await go_on()
        halted, resumed = added
        assert told([halted]) == [(resource, {"paused": False}, {"paused": True})]
        assert (resumed.resource, resumed.before) == (resource, {"paused": True})
        assert resumed.after is not None
        assert resumed.after.keys() == {"paused", "catch_up", "caught_up_runs", "missed_occurrences"}
        assert resumed.after["caught_up_runs"] > 0
        assert halted.tenant == resumed.tenant == ("acme" if resource == str(ACME) else "")
    async with recorded(scheduler.database) as added:
        await pause_job(scheduler)
        await resume_job(scheduler)
    assert added[-1].after == {"paused": False}


async def test_schedules_that_are_put_and_deleted(scheduler: Scheduler) -> None:
    await scheduler.register(digest(timing=every("1h"), tenant_schedules=True))
    async with recorded(scheduler.database) as added:
        await scheduler.put(ACME, ScheduleSpec(timing=every("2h")), by=TENANT_USER)
        await scheduler.put(ACME, ScheduleSpec(timing=every("2h")))
        await scheduler.put(ACME, ScheduleSpec(enabled=False), "enabled")
        await deleting.delete_schedule(scheduler.database, scheduler.wakeups, ADMIN, ACME)
    spec = {"timing": {"cron": "@every 2h"}, "enabled": True, "config": {}, "labels": {}}
    assert told(added) == [
        (str(ACME), None, spec),
        (str(ACME), {"enabled": True}, {"enabled": False}),
        (str(ACME), spec | {"enabled": False}, None),
    ]
    assert [(event.principal, event.tenant) for event in added] == [
        ("user:user-of-acme", "acme"),
        ("admin:alice", "acme"),
        ("admin:alice", "acme"),
    ]


async def test_a_tenant_that_is_put_and_removed(scheduler: Scheduler) -> None:
    await scheduler.register(digest(timing=every("1h"), tenant_schedules=True))
    names = [for_tenant("acme", name) for name in ("one", "two")]
    for name in names:
        await scheduler.put(name, ScheduleSpec())
    async with recorded(scheduler.database) as added:
        for zone in ("Asia/Tokyo", "Asia/Tokyo", "Europe/Paris"):
            await tenants.put_tenant(scheduler.database, scheduler.wakeups, ADMIN, "acme", zone)
        for _ in range(2):
            await deleting.remove_tenant(scheduler.database, scheduler.wakeups, ADMIN, "acme")
    spec = {"timing": {}, "enabled": True, "config": {}, "labels": {}}
    assert told(added) == [
        ("tenants/acme", None, {"time_zone": "Asia/Tokyo"}),
        ("tenants/acme", {"time_zone": "Asia/Tokyo"}, {"time_zone": "Europe/Paris"}),
        *((str(name), spec, None) for name in names),
        ("tenants/acme", {"time_zone": "Europe/Paris"}, None),
    ]
    assert {event.tenant for event in added} == {"acme"}


async def test_running_by_hand_tells_what_was_run_but_not_the_payloads_values(scheduler: Scheduler) -> None:
    await scheduler.register(digest(timing=every("1h"), tenant_schedules=True))
    await scheduler.put(ACME, ScheduleSpec())
    payload = {"token": "canary-4711", "ä": 1}
    async with recorded(scheduler.database) as added:
        for tenants_named in (["acme", "globex"], ["acme"], []):
            request = trigger.TriggerRequest(
                DIGEST,
                payload,
                tenants_named,
                {"why": "test"},
                run_key=str(len(tenants_named)),
                request_id=f"r{len(tenants_named)}",
            )
            for _ in range(2):
                await trigger.trigger_job(scheduler.database, scheduler.wakeups, ADMIN, request, lambda runs: b"")
        await run_schedule.run_schedule(
            scheduler.database,
            scheduler.wakeups,
            TENANT_USER,
            run_schedule.RunScheduleRequest(ACME, payload),
            lambda run: b"",
        )
    both, one, system, scheduled = added
    assert both.after is not None
    assert (both.resource, both.before, both.tenant) == (JOB, None, "")
    assert both.after["tenants"] == ["acme", "globex"]
    assert (both.after["labels"], both.after["trigger"], both.after["run_key"]) == ({"why": "test"}, "MANUAL", "2")
    assert both.after["payload"] == {"bytes": 30, "keys": ["token", "ä"]}
    runs = [
        run_name(row[0]) for row in scheduler.admin.execute("select run_id from carillon.live_runs order by run_id")
    ]
    assert sorted(name for event in added for name in (event.after or {})["runs"]) == sorted(runs)
    assert (one.tenant, system.tenant) == ("acme", "")
    assert (scheduled.resource, scheduled.tenant) == (str(ACME), "acme")
    assert "canary" not in str(scheduler.admin.execute("select e::text from carillon.audit_events e").fetchall())


async def test_a_run_for_many_tenants_leaves_events_that_stay_small(scheduler: Scheduler) -> None:
    await scheduler.register(digest(timing=every("1h"), tenant_schedules=True))
    tenants_named = [f"t{number:03}" + "x" * 124 for number in range(450)]
    async with recorded(scheduler.database) as added:
        request = trigger.TriggerRequest(DIGEST, {}, tenants_named)
        await trigger.trigger_job(scheduler.database, scheduler.wakeups, ADMIN, request, lambda runs: b"")
    documents = [event.after or {} for event in added]
    assert [len(document["runs"]) for document in documents] == [200, 200, 50]
    assert [tenant for document in documents for tenant in document["tenants"]] == tenants_named
    live = scheduler.admin.execute("select run_id from carillon.live_runs").fetchall()
    assert {run for document in documents for run in document["runs"]} == {run_name(row[0]) for row in live}
    assert max(len(str(document)) for document in documents) < 48 * 1024


async def test_cancelling_a_run(database: Database, admin: psycopg.Connection[Any], scheduler: Scheduler) -> None:
    job = builders.make_job(admin)
    pending, running = (builders.make_live_run(admin, job, tenant="acme") for _ in range(2))
    builders.claim(admin, running, builders.make_session(admin))
    async with recorded(database) as added:
        for run_id in (pending, running):
            await cancel.cancel_run(database, scheduler.wakeups, ADMIN, run_id, "wrong list")
        await cancel.cancel_run(database, scheduler.wakeups, ADMIN, running, "again")
        with pytest.raises(Conflict):
            await cancel.cancel_run(database, scheduler.wakeups, ADMIN, pending)
    why = {"reason": "wrong list"}
    assert told(added) == [
        (run_name(pending), {"state": "PENDING"}, {"state": "CANCELLED"} | why),
        (run_name(running), {"cancel_requested": False}, {"cancel_requested": True} | why),
    ]
    assert {event.tenant for event in added} == {"acme"}


async def test_backfills(scheduler: Scheduler) -> None:
    await scheduler.register(digest(timing=every("1h")))
    await scheduler.tick_until(START + 3 * HOUR, HOUR)
    names: list[BackfillName] = []

    def encode(made: Backfill) -> bytes:
        names.extend([made.name] if made.name else [])
        return b""

    async with recorded(scheduler.database) as added:
        for validate_only in (True, False):
            request = backfill.BackfillRequest(DIGEST, START - timedelta(hours=5), START, validate_only=validate_only)
            await backfill.backfill_job(scheduler.database, scheduler.wakeups, ADMIN, request, encode)
        (name,) = names
        for _ in range(2):
            await backfill.cancel_backfill(scheduler.database, scheduler.wakeups, ADMIN, name, "wrong range")
    filled, cancelled = added
    assert (filled.resource, filled.before) == (str(name), None)
    assert filled.after is not None
    assert (filled.after["occurrences"], filled.after["runs"], filled.after["tenant"]) == (5, 5, "-")
    assert filled.after["since"] == (START - timedelta(hours=5)).isoformat()
    assert told([cancelled]) == [
        (str(name), {"cancelled": False}, {"cancelled": True, "reason": "wrong range", "ended_runs": 5})
    ]


async def test_filters_add_up_and_end_at_a_path_boundary(database: Database) -> None:
    tree = ["services/a", "services/a/jobs/x", "services/a/jobs/x/tenants/t/schedules/s", "services/ab", "services/a-b"]
    await record(database, *(made(resource, {}, tenant="t" if "/t/" in resource else "") for resource in tree))
    assert [event.resource for event in await events(database, resource="services/a")] == tree[:3]
    assert [event.resource for event in await events(database, resource="services/a/jobs")] == tree[1:3]
    assert [event.resource for event in await events(database, resource="services/a/jobs/x")] == tree[1:3]
    assert [event.resource for event in await events(database, resource="services/%")] == []
    assert [event.resource for event in await events(database, tenant="t")] == [tree[2]]
    assert len(await events(database, principal="admin:alice", action="PauseJob", request_id="request-1")) == 5
    for nothing in ({"principal": "admin:bob"}, {"action": "ResumeJob"}, {"request_id": "request-2"}):
        assert await events(database, **nothing) == []
    second = (await events(database))[1].event_at
    assert [event.resource for event in await events(database, since=second)] == tree[1:]
    assert [event.resource for event in await events(database, until=second)] == tree[:1]


async def test_a_page_goes_on_where_the_one_before_ended(database: Database, hot: psycopg.AsyncConnection[Any]) -> None:
    await record_many(database, 7)
    await seal_all(hot)
    seen: list[Event] = []
    token = ""
    while True:
        page, token = await list_audit_events(database, ADMIN, EventFilter(), size=3, token=token)
        seen += page
        await record_many(database, 1)
        if not token:
            break
    assert [event.position for event in seen] == [7, 6, 5, 4, 3, 2, 1]
    assert [event.resource for event in seen] == [f"{JOB}-{place}" for place in range(6, -1, -1)]


async def test_a_page_ends_before_it_is_too_large_for_a_client(database: Database) -> None:
    large = {"x": "y" * 250_000}
    await record(database, *(made(f"{JOB}-{place}", large) for place in range(6)))
    page, token = await list_audit_events(database, ADMIN, EventFilter())
    assert len(page) == 2
    rest, _ = await list_audit_events(database, ADMIN, EventFilter(), token=token)
    assert rest[0].event_id == page[-1].event_id - 1


async def test_a_token_of_another_list_or_caller_is_refused(database: Database) -> None:
    await record_many(database, 3)
    _, token = await list_audit_events(database, ADMIN, EventFilter(), size=1)
    for wanted in (EventFilter(action="PauseJob"), EventFilter(resource="services/a")):
        with pytest.raises(InvalidInput, match="page_token"):
            await list_audit_events(database, ADMIN, wanted, size=1, token=token)


async def test_filters_that_find_nothing_by_mistake_are_refused(database: Database) -> None:
    for wanted in (
        EventFilter(resource="services/a/"),
        EventFilter(since=START, until=START),
        EventFilter(action="\0"),
    ):
        with pytest.raises(InvalidInput):
            await list_audit_events(database, ADMIN, wanted)
