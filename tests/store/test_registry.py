"""Registration: a service's whole manifest, compared with what is there."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest
from sqlalchemy import text
from sqlalchemy.exc import ProgrammingError

from scheduler_service.domain.errors import Conflict, Forbidden, InvalidInput, NotFound
from scheduler_service.domain.job import (
    HttpTarget,
    JobOverrides,
    JobSpec,
    Manifest,
    Policies,
    RetryPolicy,
    Target,
    TimingSpec,
)
from scheduler_service.usecases import jobs, registry
from scheduler_service.usecases.registry import ChangeKind
from tests.builders import ADMIN, MadeJob, claim, make_live_run, make_session, service
from tests.store.definitions_case import (
    DIGEST,
    EMAIL,
    HOUR,
    MINUTE,
    START,
    Scheduler,
    digest,
    every,
    kinds,
    own,
)

CREATED, UPDATED, UNCHANGED, REMOVED = ChangeKind


async def test_new_jobs_are_created_and_armed(scheduler: Scheduler) -> None:
    registration = await scheduler.register(digest(timing=every("10m")), digest("by-hand"))
    assert kinds(registration) == {"weekly-digest": CREATED, "by-hand": CREATED}
    assert [change.job.next_run_at for change in registration.changes] == [START + 10 * MINUTE, None]
    assert (await scheduler.get(own())).revision == 1


async def test_the_same_manifest_again_writes_nothing(scheduler: Scheduler) -> None:
    manifest = [digest(timing=every("10m"), config={"flag": True, "n": 1.5}), digest("by-hand")]
    await scheduler.register(*manifest)
    before = scheduler.contents()
    scheduler.database.now += HOUR
    assert set(kinds(await scheduler.register(*manifest)).values()) == {UNCHANGED}
    assert scheduler.contents() == before


async def test_a_newer_generation_of_the_same_jobs_changes_nothing_else(scheduler: Scheduler) -> None:
    await scheduler.register(digest(timing=every("10m")), generation=1)
    registration = await scheduler.register(digest(timing=every("10m")), generation=2)
    assert kinds(registration) == {"weekly-digest": UNCHANGED}
    assert (registration.generation, registration.changes[0].job.generation) == (2, 2)
    assert (await scheduler.get(own())).revision == 1


async def test_true_instead_of_1_is_a_change(scheduler: Scheduler) -> None:
    await scheduler.register(digest(config={"flag": 1}))
    registration = await scheduler.register(digest(config={"flag": True}))
    assert registration.changes[0].changed_fields == ["config"]


async def test_validate_only_answers_the_same_and_writes_nothing(scheduler: Scheduler) -> None:
    await scheduler.register(digest(timing=every("10m")), digest("old"))
    before = scheduler.contents()
    manifest = [digest(timing=every("5m"), description="new"), digest("added", timing=every("1h"))]
    scheduler.database.now += 11 * MINUTE
    foretold = await scheduler.register(*manifest, validate_only=True, generation=7)
    assert scheduler.contents() == before
    done = await scheduler.register(*manifest, generation=7)
    assert kinds(foretold) == kinds(done) == {"weekly-digest": UPDATED, "added": CREATED, "old": REMOVED}
    assert [c.changed_fields for c in foretold.changes] == [c.changed_fields for c in done.changes]
    assert [c.job.next_run_at for c in foretold.changes] == [c.job.next_run_at for c in done.changes]
    assert foretold.generation == done.generation == 7


async def test_one_refusal_lists_everything_that_is_wrong_and_changes_nothing(scheduler: Scheduler) -> None:
    await scheduler.register(digest())
    before = scheduler.contents()
    with pytest.raises(InvalidInput) as refused:
        await scheduler.register(
            digest("Bad Name", timing=TimingSpec(cron="0 22-2 * * *", time_zone="Mars/Olympus")),
            digest(policies=Policies(attempt_timeout=timedelta(0), retry=RetryPolicy(max_attempts=101))),
            digest(config={"a": [1, {"b": float("nan")}], "c": "x\0"}),
            JobSpec("nowhere"),
            digest("phased", timing=TimingSpec(cron="0 9 * * *", phase=MINUTE, jitter=2 * HOUR)),
            digest("labelled", labels={"a b": "x", "ok": "v" * 257}),
            base_url="ftp://files",
        )
    assert {violation.field for violation in refused.value.violations} == {
        "jobs[0].job",
        "jobs[0].timing.cron",
        "jobs[0].timing.time_zone",
        "jobs[1].policies.attempt_timeout",
        "jobs[1].policies.retry.max_attempts",
        "jobs[2].job",
        "jobs[2].config.a[1].b",
        "jobs[2].config.c",
        "jobs[3].target",
        "jobs[4].timing.phase",
        "jobs[4].timing.jitter",
        "jobs[5].labels['a b']",
        "jobs[5].labels['ok']",
        "base_url",
    }
    assert scheduler.contents() == before


async def test_a_path_needs_a_base_url_and_follows_it(scheduler: Scheduler) -> None:
    spec = digest(target=Target(http=HttpTarget("/run")))
    with pytest.raises(InvalidInput, match="base_url"):
        await scheduler.register(spec)
    await scheduler.register(spec, base_url="http://one:1/")
    registration = await scheduler.register(spec, base_url="http://two:2")
    assert registration.changes[0].changed_fields == ["target.http.endpoint"]
    assert scheduler.admin.execute("select endpoint from carillon.jobs").fetchall() == [("http://two:2/run",)]


async def test_a_generation_that_would_shut_the_service_out_is_refused(scheduler: Scheduler) -> None:
    for generation in (-1, 2**63 - 1):
        with pytest.raises(InvalidInput, match="generation: "):
            await scheduler.register(digest(), generation=generation)
    nanoseconds = int(START.timestamp() * 10**9)
    assert (await scheduler.register(digest(), generation=nanoseconds)).generation == nanoseconds


async def test_an_older_generation_is_refused_and_an_equal_one_accepted(scheduler: Scheduler) -> None:
    await scheduler.register(digest(), generation=5)
    await scheduler.register(digest(description="still 5"), generation=5)
    with pytest.raises(Conflict, match="older deploy") as refused:
        await scheduler.register(generation=4)
    assert (refused.value.reason, refused.value.metadata["generation"]) == ("STALE_GENERATION", "5")


async def test_removing_more_than_half_has_to_be_meant(scheduler: Scheduler) -> None:
    await scheduler.register(*(digest(f"job-{n}") for n in range(4)))
    with pytest.raises(Conflict, match="3 of the 4") as refused:
        await scheduler.register(digest("job-0"))
    assert refused.value.reason == "MASS_REMOVAL"
    half = await scheduler.register(digest("job-0"), digest("job-1"))
    assert list(kinds(half).values()).count(REMOVED) == 2
    renamed = await scheduler.register(digest("job-2"))
    assert list(kinds(renamed).values()).count(REMOVED) == 2  # one or two jobs may be renamed at will


async def test_an_empty_manifest_has_to_be_meant(scheduler: Scheduler) -> None:
    await scheduler.register(digest())
    with pytest.raises(Conflict, match="1 of the 1") as refused:
        await scheduler.register()
    assert refused.value.reason == "MASS_REMOVAL"


async def test_a_mass_removal_that_is_meant_is_done(scheduler: Scheduler) -> None:
    await scheduler.register(*(digest(f"job-{n}") for n in range(4)))
    registration = await scheduler.register(allow_mass_removal=True)
    assert set(kinds(registration).values()) == {REMOVED}


async def test_what_an_operator_overrode_survives_and_shows(scheduler: Scheduler) -> None:
    await scheduler.register(digest(timing=every("10m"), config={"limit": 5, "to": "all"}))
    await scheduler.override(JobOverrides(timing=every("30m"), config={"limit": 1}), "timing.cron", "config")
    registration = await scheduler.register(digest(timing=every("20m"), config={"limit": 9, "to": "all"}), generation=2)
    (change,) = registration.changes
    assert change.changed_fields == ["timing.cron", "config"]
    assert change.overridden_fields == ["timing.cron", "config.limit"]
    effective = change.job.in_force("UTC")
    assert (effective.timing.cron, effective.config) == ("@every 30m", {"limit": 1, "to": "all"})
    assert (await scheduler.get(own())).in_force.cron == "@every 30m"


async def test_a_job_that_is_removed_owes_nothing_more_and_its_pending_runs_are_cancelled(
    scheduler: Scheduler,
) -> None:
    await scheduler.register(digest(timing=every("10m")), digest("stays"))
    job_id = scheduler.admin.execute("select job_id from carillon.jobs where job = 'weekly-digest'").fetchone()
    assert job_id
    made = MadeJob(job_id[0], "email-service", "weekly-digest")
    pending = make_live_run(scheduler.admin, made, at=START)
    running = make_live_run(scheduler.admin, made, at=START)
    claim(scheduler.admin, running, make_session(scheduler.admin))
    await scheduler.register(digest("stays"))
    ended = scheduler.admin.execute("select run_id, state::text, error ->> 'code' from carillon.runs").fetchall()
    assert ended == [(pending, "CANCELLED", "JOB_REMOVED")]
    assert scheduler.admin.execute("select run_id from carillon.live_runs").fetchall() == [(running,)]
    await scheduler.tick_until(START + HOUR, 10 * MINUTE)
    assert scheduler.fired() == []


async def test_a_job_that_comes_back_owes_from_then_on(scheduler: Scheduler) -> None:
    await scheduler.register(digest(timing=every("10m")))
    await scheduler.register(allow_mass_removal=True)
    scheduler.database.now += HOUR + MINUTE
    registration = await scheduler.register(digest(timing=every("10m")))
    assert kinds(registration) == {"weekly-digest": CREATED}
    assert registration.changes[0].job.next_run_at == START + HOUR + 10 * MINUTE
    await scheduler.tick_until(START + HOUR + 15 * MINUTE)
    assert [instant for instant, _ in scheduler.fired()] == [START + HOUR + 10 * MINUTE]


async def test_removing_one_job_twice_changes_nothing_the_second_time(scheduler: Scheduler) -> None:
    await scheduler.register(digest(), digest("stays"))
    removed = await registry.remove_job(scheduler.database, scheduler.wakeups, EMAIL, DIGEST)
    assert removed.archived_at == START
    before = scheduler.contents()
    scheduler.database.now += HOUR
    again = await registry.remove_job(scheduler.database, scheduler.wakeups, EMAIL, DIGEST)
    assert (again.archived_at, scheduler.contents()) == (START, before)


async def test_replicas_that_register_at_once_follow_each_other(scheduler: Scheduler) -> None:
    manifest = [digest(f"job-{n}", timing=every("10m")) for n in range(20)]
    both = await asyncio.gather(*(scheduler.register(*manifest) for _ in range(4)))
    assert sorted({tuple(set(kinds(each).values())) for each in both}) == [(CREATED,), (UNCHANGED,)]
    assert scheduler.admin.execute("select count(*) from carillon.schedules").fetchone() == (20,)


async def test_replicas_that_add_the_same_jobs_at_once_follow_each_other(scheduler: Scheduler) -> None:
    await scheduler.register(digest())
    manifest = [digest(), *(digest(f"job-{n}", timing=every("10m")) for n in range(20))]
    all_of_them = await asyncio.gather(*(scheduler.register(*manifest) for _ in range(4)))
    assert sorted(kinds(each)["job-7"] for each in all_of_them) == [CREATED, UNCHANGED, UNCHANGED, UNCHANGED]


async def test_deploys_that_change_jobs_at_once_do_not_lock_each_other_out(scheduler: Scheduler) -> None:
    names = [f"job-{n}" for n in range(20)]
    await scheduler.register(*(digest(name, timing=every("10m")) for name in names))
    one = [digest(name, timing=every("20m")) for name in names]
    other = [digest(name, timing=every("30m")) for name in reversed(names)]
    await asyncio.gather(
        scheduler.register(*one), scheduler.register(*other), scheduler.register(*one), scheduler.register(*other)
    )
    crons = scheduler.admin.execute("select distinct cron, revision from carillon.schedules").fetchall()
    assert len(crons) == 1, "each deploy was carried out as a whole"


async def test_a_manifest_of_a_thousand_jobs_is_registered_and_changed(scheduler: Scheduler) -> None:
    first = await scheduler.register(*(digest(f"job-{n}", timing=every("10m")) for n in range(1000)))
    assert [change.kind for change in first.changes] == [CREATED] * 1000
    second = await scheduler.register(*(digest(f"job-{n}", timing=every("20m")) for n in range(1000)))
    assert [change.kind for change in second.changes] == [UPDATED] * 1000
    revisions = scheduler.admin.execute("select count(*), min(revision), max(revision) from carillon.schedules")
    assert revisions.fetchone() == (1000, 2, 2)
    with pytest.raises(InvalidInput, match="at most 1,000"):
        await scheduler.register(*(digest(f"job-{n}") for n in range(1001)))


async def test_only_the_service_itself_registers(scheduler: Scheduler) -> None:
    manifest = Manifest("email-service", jobs=(digest(),))
    for stranger in (ADMIN, service("kpi-service"), service("email-service", scopes=frozenset())):
        with pytest.raises(Forbidden):
            await registry.register_jobs(scheduler.database, scheduler.wakeups, stranger, manifest)


async def test_another_services_job_is_neither_visible_nor_writable(scheduler: Scheduler) -> None:
    await scheduler.register(digest(timing=every("10m")))
    kpi = service("kpi-service")
    with pytest.raises(Forbidden):
        await jobs.get_job(scheduler.database, kpi, DIGEST)
    async with scheduler.database.acting_for(kpi) as tx:  # what the use case forbids, the database does as well
        for table in ("services", "jobs", "schedules", "schedule_revisions"):
            rows = await tx.connection.execute(text(f"select * from carillon.{table}"))
            assert rows.all() == []
        changed = await tx.connection.execute(text("update carillon.jobs set config = '{}'"))
        assert changed.rowcount == 0
    with pytest.raises(ProgrammingError, match="row-level security"):
        async with scheduler.database.acting_for(kpi) as tx:
            await tx.connection.execute(
                text(
                    "insert into carillon.jobs (service, job, declared, route, overlap, attempt_timeout, run_timeout,"
                    " cancel_grace, max_attempts, retry_delay, tenant_schedules, labels, config, generation, owed_from,"
                    " created_at, updated_at) select service, 'stolen', '{}', 'http', 'SKIP', '1h', '1h', '1s', 1,"
                    " '1s', true, '{}', '{}', 0, now(), now(), now() from (values ('email-service')) v(service)"
                )
            )


async def test_an_unknown_job_cannot_be_removed(scheduler: Scheduler) -> None:
    with pytest.raises(NotFound):
        await registry.remove_job(scheduler.database, scheduler.wakeups, EMAIL, DIGEST)
    assert scheduler.admin.execute("select count(*) from carillon.services").fetchone() == (0,)
