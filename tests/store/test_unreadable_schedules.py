"""Schedules and jobs of which a hand in the database has made what cannot be read or written: set aside, each alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from structlog.testing import capture_logs

from scheduler_service.domain.repairs import Repair
from scheduler_service.engine.missing_partitions import MissingPartitions
from scheduler_service.engine.rearming import Rearming
from scheduler_service.engine.repairs import Repairs
from scheduler_service.engine.tick import NobodySeated, Ticked, seconds_to_next, tick
from scheduler_service.engine.unarmed import Unarmed
from tests.builders import MadeJob, make_live_run
from tests.store.engine_case import SECOND, START, Connection, every, job_of, rows
from tests.store.test_rearming import NEW_YORK, NEWER, nine_in_new_york

Admin = psycopg.Connection[Any]
DUE = START + 10 * SECOND

UNREADABLE = {
    "it stands at the end of time": "update carillon.schedules s set settled_to = 'infinity'",
    "it stands before all time": "update carillon.schedules s set settled_to = '-infinity'",
    "its phase is of ages": "update carillon.schedules s set phase = '3000000 years'",
    "its jitter is of ages": "update carillon.schedules s set jitter = '3000000 years'",
    "its job's window is of ages": "update carillon.jobs s set catch_up_window = '3000000 years'",
}
unreadable = pytest.mark.parametrize("spoil", UNREADABLE.values(), ids=UNREADABLE)


@pytest.fixture
def job(admin: Admin) -> MadeJob:
    return job_of(admin)


@pytest.fixture
def bad_job(admin: Admin) -> MadeJob:
    return job_of(admin, "bad")


def spoil_job(admin: Admin, bad_job: MadeJob, spoil: str) -> None:
    """In spite of what the database refuses."""
    for table in ("jobs", "schedules"):
        checks = rows(
            admin,
            "select conname from pg_constraint where conrelid = %s::regclass and contype = 'c'",
            f"carillon.{table}",
        )
        for (name,) in checks:
            admin.execute(f"alter table carillon.{table} drop constraint {name}".encode())
    admin.execute(f"{spoil} where s.job_id = %s".encode(), [bad_job.job_id])


@contextmanager
def refusing(admin: Admin, table: str, condition: str) -> Iterator[None]:
    """The table refuses such rows, with an error of whoever made the trigger."""
    admin.execute(
        (
            "create function carillon.refuse() returns trigger language plpgsql as $$ begin"
            " raise exception 'no, thank you' using errcode = 'XX000'; end $$;"
            f" create trigger refuse before insert or update on carillon.{table} for each row when ({condition})"
            " execute function carillon.refuse()"
        ).encode()
    )
    yield
    admin.execute(f"drop trigger refuse on carillon.{table}; drop function carillon.refuse()".encode())


def runs_of(admin: Admin, job: MadeJob) -> int:
    ((runs,),) = rows(admin, "select count(*) from carillon.live_runs where job_id = %s", job.job_id)
    return int(runs)


def reason(admin: Admin, schedule: int) -> str | None:
    ((next_run_at, why),) = rows(
        admin, "select next_run_at::text, set_aside_reason from carillon.schedules where schedule_id = %s", schedule
    )
    assert (next_run_at is None) == (why is not None)
    assert why is None or isinstance(why, str)
    return why


async def step(connection: Connection, **more: Any) -> Ticked:
    return await tick(connection, NobodySeated(), now=DUE, **more)


@unreadable
async def test_one_that_cannot_be_read_is_set_aside_and_stops_nobody(
    admin: Admin, hot: Connection, job: MadeJob, bad_job: MadeJob, spoil: str
) -> None:
    good = [every(admin, job, schedule=f"s{number}") for number in range(6)]
    bad = every(admin, bad_job)
    spoil_job(admin, bad_job, spoil)
    ticked = await step(hot)
    assert (ticked.schedules, ticked.pending, runs_of(admin, job)) == (7, 6, 6)
    assert reason(admin, bad)
    assert [reason(admin, each) for each in good] == [None] * 6
    assert not (await step(hot)).schedules


async def test_what_is_late_or_only_recent_is_looked_through_as_well(
    admin: Admin, hot: Connection, job: MadeJob, bad_job: MadeJob
) -> None:
    every(admin, job)
    late = every(admin, job, schedule="late", next_run_at=START - 600 * SECOND)
    bad = every(admin, bad_job)
    spoil_job(admin, bad_job, UNREADABLE["its phase is of ages"])
    await step(hot, only_recent=True)
    assert (runs_of(admin, job), bool(reason(admin, bad))) == (1, True)
    assert rows(admin, "select schedule_id from carillon.schedules where next_run_at < %s", START) == [(late,)]


@pytest.mark.parametrize("due", ["infinity", "-infinity"])
async def test_an_instant_without_end_keeps_nobody_from_asking_what_is_due_next(
    admin: Admin, hot: Connection, job: MadeJob, due: str
) -> None:
    every(admin, job, next_run_at=due)
    assert await seconds_to_next(hot) == float(due.replace("infinity", "inf"))


async def test_one_that_cannot_be_written_is_set_aside_whatever_the_error(
    admin: Admin, hot: Connection, job: MadeJob
) -> None:
    good = [every(admin, job, schedule=f"s{number}") for number in range(4)]
    bad = [every(admin, job, schedule=f"t{number}", tenant="evil") for number in range(2)]
    with refusing(admin, "live_runs", "new.tenant_id = 'evil'"):
        assert (await step(hot)).pending == 4
    assert ["no, thank you" in (reason(admin, each) or "") for each in bad] == [True, True]
    assert [reason(admin, each) for each in good] == [None] * 4


async def test_what_no_job_can_write_is_no_fault_of_theirs(
    admin: Admin, hot: Connection, job: MadeJob, bad_job: MadeJob
) -> None:
    schedules = [every(admin, job), every(admin, bad_job)]
    with refusing(admin, "live_runs", "true"), pytest.raises(psycopg.errors.InternalError_):
        await step(hot)
    assert [reason(admin, each) for each in schedules] == [None, None]
    assert (await step(hot)).pending == 2


async def test_for_want_of_a_month_of_the_record_nothing_is_set_aside(
    admin: Admin, hot: Connection, job: MadeJob
) -> None:
    skipping = job_of(admin, "skipping", overlap="SKIP")
    busy, free = every(admin, skipping), every(admin, job)
    make_live_run(admin, skipping, at=START, schedule_id=busy, revision=1, exclusive=True, trigger="SCHEDULE")
    for table in ("items", "attempts", "runs"):
        admin.execute(f"drop table carillon.{table}_{START:%Y_%m}".encode())
    assert (await step(hot)).schedules == 1
    assert runs_of(admin, job) == 1, "what needs no record does not wait for it"
    with pytest.raises(psycopg.errors.CheckViolation):
        await step(hot)
    assert [reason(admin, each) for each in (busy, free)] == [None, None]
    # As the loops tick: they make the month.
    repairs = Repairs("replica-1")
    ticked = await step(hot, partitions=MissingPartitions(repairs, lambda: 0.0))
    assert (ticked.made.skipped, repairs.counts) == (1, {Repair.PARTITION_MISSING: 1})


async def test_one_that_cannot_even_be_set_aside_stops_nobody(admin: Admin, hot: Connection, job: MadeJob) -> None:
    every(admin, job)
    bad = every(admin, job, schedule="bad", tenant="evil")
    with refusing(admin, "schedules", "new.tenant_id = 'evil'"), capture_logs() as logs:
        assert (await step(hot)).schedules == 1
        assert (await step(hot)).schedules == 0, "and is no work, or the loop would not rest"
    assert runs_of(admin, job) == 1
    assert "a schedule cannot even be set aside" in [line["event"] for line in logs]
    await step(hot)
    assert (runs_of(admin, job), reason(admin, bad)) == (2, None)


async def test_apart_no_more_runs_are_made_at_once_than_together(
    admin: Admin, hot: Connection, bad_job: MadeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scheduler_service.engine.tick.MOST_RUNS", 3)
    job = job_of(admin, catch_up="ALL", overlap="ALLOW_ALL")
    for number in range(6):
        every(admin, job, schedule=f"s{number}")
    every(admin, bad_job, next_run_at=START)
    spoil_job(admin, bad_job, UNREADABLE["its phase is of ages"])
    ticked = await step(hot)
    assert (ticked.pending, ticked.full) == (3, True)
    assert (await step(hot)).pending == 3


class TestArmingAnew:
    @unreadable
    async def test_one_that_cannot_be_read_keeps_no_other_from_a_new_release(
        self, admin: Admin, hot: Connection, job: MadeJob, bad_job: MadeJob, spoil: str
    ) -> None:
        wrong = NEW_YORK | {"next_run_at": START + 1800 * SECOND}
        good = [every(admin, job, schedule=f"s{number}", **wrong) for number in range(3)]
        bad = every(admin, bad_job, **wrong)
        spoil_job(admin, bad_job, spoil)
        rearming = Rearming(NEWER)
        with capture_logs() as logs:
            while await rearming.step(hot, 0.0):
                pass
        armed = rows(admin, "select distinct next_run_at from carillon.schedules where schedule_id = any(%s)", good)
        assert armed == [(nine_in_new_york(),)]
        assert rows(admin, "select version from carillon.time_zone_rules") == [(NEWER,)]
        (line,) = (line for line in logs if line["log_level"] == "error")
        assert (line["count"], line["schedule_ids"]) == (1, [bad])
        assert rearming.next_at() == 3_600

    async def test_one_that_was_set_aside_for_it_keeps_no_other_from_coming_back(
        self, admin: Admin, hot: Connection, job: MadeJob, bad_job: MadeJob
    ) -> None:
        aside: dict[str, Any] = {"set_aside_reason": "no zone", "next_run_at": None}
        good = every(admin, job, **aside)
        bad = every(admin, bad_job, **aside)
        spoil_job(admin, bad_job, UNREADABLE["its phase is of ages"])
        rearming = Rearming()
        while await rearming.step(hot, 0.0):
            pass
        assert (reason(admin, good), reason(admin, bad)) == (None, "no zone")

    async def test_one_that_is_not_armed_and_cannot_be_read_is_set_aside(
        self, admin: Admin, hot: Connection, job: MadeJob, bad_job: MadeJob
    ) -> None:
        good, bad = every(admin, job, next_run_at=None), every(admin, bad_job, next_run_at=None)
        spoil_job(admin, bad_job, UNREADABLE["its phase is of ages"])
        assert await Unarmed().step(hot, 0.0)
        assert (reason(admin, good), bool(reason(admin, bad))) == (None, True)
