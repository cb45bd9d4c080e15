"""Records stay as they were written, whoever asks; only two audited functions let aged ones go."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import psycopg
import pytest

from scheduler_service.domain.run import RunState
from scheduler_service.engine.housekeeping import Housekeeping
from scheduler_service.store.partitions import drop_partitions
from tests import builders
from tests.builders import MadeJob, connect, days_ago
from tests.conftest import DatabaseUrls
from tests.security.months import make_month, partitions
from tests.security.sql_case import ALL_POWERFUL, CALLERS, Connection, acting, fill, logins

RECORDS = (
    *("runs", "attempts", "items", "gaps", "remedies", "schedule_revisions", "job_changes"),
    *("audit_events", "audit_seals"),
)
BECOMING = (
    *("set local role carillon_admin", "set local role carillon_owner"),
    "set local session_replication_role = replica",
)
SENTENCE = "is a record of what happened: its rows are never changed or removed"


@pytest.fixture
def admin(database_urls: DatabaseUrls) -> Iterator[Connection]:
    with connect(database_urls.admin) as connection:
        yield connection


@pytest.fixture
async def engine(database_urls: DatabaseUrls) -> Any:
    async with await psycopg.AsyncConnection.connect(database_urls.engine, autocommit=True) as connection:
        yield connection


@pytest.fixture
def job(admin: Connection) -> MadeJob:
    return builders.make_job(admin)


def records(admin: Connection) -> list[str]:
    """The tables above, and every partition of theirs."""
    parts = admin.execute("select inhrelid::regclass::text from pg_inherits join pg_class on oid = inhrelid"
                          " where relkind = 'r' and relnamespace = 'carillon'::regnamespace")  # fmt: skip
    return [f"carillon.{table}" for table in RECORDS] + [name for (name,) in parts]


def events(admin: Connection) -> list[tuple[Any, ...]]:
    return admin.execute(
        "select principal, action, resource, before from carillon.audit_events order by event_id"
    ).fetchall()


@pytest.mark.parametrize("verb", ["update {0} set {1} = {1}", "delete from {0}", "truncate {0} cascade"])
def test_a_record_is_changed_by_nobody_not_even_a_superuser(admin: Connection, verb: str) -> None:
    with logins(admin):
        fill(admin)
    tables = records(admin)
    assert len(tables) > len(RECORDS) + 12
    for table in tables:
        column = "hash" if table.endswith("seals") else "action" if table.endswith("events") else "job_id"
        column = "schedule_id" if table.split(".")[1] in ("gaps", "remedies", "schedule_revisions") else column
        for becoming in BECOMING:
            with admin.transaction(force_rollback=True):
                admin.execute(becoming.encode())
                with pytest.raises(psycopg.errors.InsufficientPrivilege, match=SENTENCE) as refused:
                    admin.execute(verb.format(table, column).encode())
            assert refused.value.diag.message_primary == f"{table} {SENTENCE}"
            assert "clear_payloads" in str(refused.value.diag.message_hint)


@pytest.mark.parametrize("becoming", ["set local role", "set local session authorization"])
def test_becoming_the_role_that_clears_is_not_enough(admin: Connection, job: MadeJob, becoming: str) -> None:
    run = builders.make_ended_run(admin, job)
    builders.make_item(admin, run, job, "k")
    month = f"{builders.now():%Y_%m}"
    for statement in (
        *("update carillon.runs set payload = '{}'", "update carillon.attempts set error = '{}'"),
        *("delete from carillon.items", f"delete from carillon.items_{month}"),
    ):
        with admin.transaction(force_rollback=True):
            admin.execute(f"grant update, delete on carillon.items_{month} to carillon_retention".encode())
            admin.execute(f"{becoming} carillon_retention".encode())
            with pytest.raises(psycopg.errors.InsufficientPrivilege, match=SENTENCE):
                admin.execute(statement.encode())


AUDITED = "insert into carillon.audit_events ({}) overriding system value values ({})"
EVENT = {
    "principal": "'admin:alice'",
    "action": "'PauseJob'",
    "resource": "'services/a/jobs/b'",
    "before": "'{}'",
    "after": "'{}'",
    "request_id": "'r'",
    "address": "'local'",
}


def insert_event(admin: Connection, **columns: str) -> int:
    event = EVENT | columns
    return admin.execute(AUDITED.format(", ".join(event), ", ".join(event.values())).encode()).rowcount


@pytest.mark.parametrize("caller", ["admin", "engine"])
def test_nobody_says_an_events_id_or_time(admin: Connection, caller: str) -> None:
    with acting(admin, CALLERS[caller]):
        assert insert_event(admin) == 1
        for column, value in (("event_id", "4711"), ("event_at", "now() - interval '1 day'")):
            with pytest.raises(psycopg.errors.InsufficientPrivilege), admin.transaction():
                insert_event(admin, **{column: value})


@pytest.mark.parametrize(
    "column",
    [
        *({"event_at": "'infinity'"}, {"event_at": "'-infinity'"}),
        *({name: "to_jsonb(repeat('x', 8388607))"} for name in ("before", "after")),
        *({name: "repeat('x', 65536)"} for name in ("principal", "action", "resource", "request_id", "address")),
    ],
    ids=lambda column: next(iter(column)),
)
def test_an_event_that_could_not_be_sealed_is_refused(admin: Connection, column: dict[str, str]) -> None:
    with pytest.raises(psycopg.errors.CheckViolation):
        insert_event(admin, **column)


def test_what_is_no_event_cannot_wait_for_its_seal(admin: Connection) -> None:
    """Inside a trigger of one's own, which is as deep as ours."""
    with acting(admin, CALLERS["admin"]):
        insert_event(admin)
        admin.execute("create temp table bait (id bigint)")
        admin.execute(
            "create function pg_temp.queue() returns trigger language plpgsql as"
            " 'begin insert into carillon.audit_unsealed values (new.id); return null; end'"
        )
        admin.execute(
            "create trigger queue after insert on bait for each row execute function pg_temp.queue()",
        )
        for forged in (-5, 1_000_000):
            with pytest.raises(psycopg.errors.ForeignKeyViolation), admin.transaction():
                admin.execute("insert into bait values (%s)", [forged])


def test_an_event_waits_for_its_seal_also_of_a_replica(admin: Connection) -> None:
    with admin.transaction():
        admin.execute("set local session_replication_role = replica")
        insert_event(admin)
    assert admin.execute("select count(*) from carillon.audit_unsealed").fetchone() == (1,)


def test_partitions_of_months_to_come_are_kept_as_well(admin: Connection) -> None:
    admin.execute("select carillon.create_partitions(9)")
    latest = max(name for name in partitions(admin) if name.startswith("items_"))
    for becoming in BECOMING:
        with admin.transaction(force_rollback=True):
            admin.execute(becoming.encode())
            with pytest.raises(psycopg.errors.InsufficientPrivilege, match=f"carillon.{latest} {SENTENCE}"):
                admin.execute(f"truncate carillon.{latest}".encode())


def test_a_schedule_does_not_take_its_history_away(admin: Connection, job: MadeJob) -> None:
    schedule = builders.make_schedule(admin, job)
    admin.execute("insert into carillon.gaps values (%s, now(), now(), 1, 'CATCH_UP_NONE', 1, now())", [schedule])
    with pytest.raises(psycopg.errors.InsufficientPrivilege, match=SENTENCE):
        admin.execute("delete from carillon.schedules where schedule_id = %s", [schedule])


async def test_old_months_are_dropped_the_oldest_first_and_it_is_on_record(
    admin: Connection, engine: psycopg.AsyncConnection[Any], job: MadeJob
) -> None:
    before = partitions(admin)
    old, older = make_month(admin, 4), make_month(admin, 5)
    builders.make_ended_run(admin, job, at=old)
    assert await drop_partitions(engine, older_than=timedelta(days=36_000)) == 0
    assert await drop_partitions(engine, older_than=timedelta(days=30)) == 6
    assert partitions(admin) == before
    assert events(admin) == [
        (
            "role:carillon_engine",
            "DropPartitions",
            f"partitions/{month:%Y-%m}",
            {"tables": [f"{table}_{month:%Y_%m}" for table in ("items", "attempts", "runs")]},
        )
        for month in (older, old)
    ]


async def test_a_month_that_a_live_run_needs_is_spared_until_it_has_ended(
    admin: Connection, engine: psycopg.AsyncConnection[Any], job: MadeJob
) -> None:
    needed, other = make_month(admin, 4), make_month(admin, 5)
    run = builders.make_live_run(admin, job, at=needed)
    assert await drop_partitions(engine, older_than=timedelta(days=30)) == 3
    assert f"runs_{needed:%Y_%m}" in partitions(admin)
    assert f"runs_{other:%Y_%m}" not in partitions(admin)
    builders.finish(admin, run, RunState.CANCELLED)
    assert await drop_partitions(engine, older_than=timedelta(days=30)) == 3


async def test_this_month_and_the_one_before_stay_however_it_is_asked(
    admin: Connection, engine: psycopg.AsyncConnection[Any]
) -> None:
    there = partitions(admin)
    assert await drop_partitions(engine, older_than=timedelta(days=30)) == 0
    assert partitions(admin) == there
    for too_short in ("29 days", "-1 day"):
        with pytest.raises(psycopg.errors.InvalidParameterValue, match="must be at least 30 days"):
            await engine.execute("select carillon.drop_partitions(%s::interval)", [too_short])
    with pytest.raises(psycopg.errors.InvalidParameterValue, match="older_than is null"):
        await engine.execute("select carillon.drop_partitions(null)")


async def test_dropping_gives_way_to_a_reader_and_comes_back(
    admin: Connection, engine: psycopg.AsyncConnection[Any], job: MadeJob
) -> None:
    make_month(admin, 4)
    locked = "select count(*) from pg_locks where relation = 'carillon.live_runs'::regclass and mode = 'ShareLock'"
    with admin.transaction():
        admin.execute("lock table carillon.runs in access share mode")
        dropping = asyncio.create_task(drop_partitions(engine, older_than=timedelta(days=30)))
        while not dropping.done():
            # Nobody who makes or ends a run waits behind it meanwhile.
            assert admin.execute(locked).fetchone() == (0,)
            await asyncio.sleep(0.01)
        assert await dropping == 0
    assert await drop_partitions(engine, older_than=timedelta(days=30)) == 3


async def test_a_replica_drops_what_the_setting_says_and_nothing_without_it(
    admin: Connection, engine: psycopg.AsyncConnection[Any]
) -> None:
    name = f"runs_{make_month(admin, 4):%Y_%m}"
    for retention in (None, timedelta(days=400)):
        await keep_house(Housekeeping(retention), engine)
        assert name in partitions(admin)
    await keep_house(Housekeeping(timedelta(days=30)), engine)
    assert name not in partitions(admin)


async def keep_house(housekeeping: Housekeeping, engine: psycopg.AsyncConnection[Any]) -> None:
    while await housekeeping.step(engine, 0.0):
        pass


def test_payloads_are_cleared_of_one_job_up_to_an_instant(admin: Connection, job: MadeJob) -> None:
    error = {"code": "HANDLER_ERROR", "message": "no such user: jane@example.com", "detail": "jane"}
    given: dict[str, Any] = {"payload": {"to": "jane"}, "metadata": {"to": "jane"}}
    other = builders.make_job(admin, "kpi-service", "sync")
    old = builders.make_ended_run(admin, job, RunState.FAILED, at=days_ago(2), error=error, items_processed=1, **given)
    fresh = builders.make_ended_run(admin, job, at=days_ago(0.5), **given)
    others = builders.make_ended_run(admin, other, at=days_ago(2), **given)
    live = builders.make_live_run(admin, job, at=days_ago(2))
    for run, owner in ((old, job), (fresh, job), (others, other), (live, job)):
        builders.make_item(admin, run, owner, "jane@example.com")
        builders.make_attempt(admin, run, owner, 1, error=error)

    clear = "select carillon.clear_payloads('email-service/weekly-digest', %s)"
    with acting(admin, CALLERS["engine"]):
        assert admin.execute(clear, [days_ago(1.1)]).fetchone() == (1,)
    assert admin.execute(clear, [days_ago(1.1)]).fetchone() == (1,)
    row = admin.execute(
        "select payload, metadata, error ->> 'code', error::text ~ 'jane', state::text, items_processed"
        " from carillon.runs where run_id = %s",
        [old],
    ).fetchone()
    assert row == ({}, {}, "HANDLER_ERROR", False, "FAILED", 1)
    kept = "select run_id from carillon.{} where {} order by run_id"
    for table, holds in (("runs", "payload <> '{}'"), ("items", "true"), ("attempts", "error::text ~ 'jane'")):
        found = {run for (run,) in admin.execute(kept.format(table, holds).encode())}
        assert found == {fresh, others} | ({live} if table != "runs" else set()), table
    (event,) = events(admin)
    assert event[:3] == ("role:carillon_admin", "ClearPayloads", "services/email-service/jobs/weekly-digest")
    assert {name: event[3][name] for name in ("runs", "attempts", "items")} == {"runs": 1, "attempts": 1, "items": 1}
    # Nothing is left to clear, and so nothing to put on record.
    assert admin.execute(clear, [days_ago(1.1)]).fetchone() == (0,)
    assert len(events(admin)) == 1


def test_clearing_says_what_it_cannot_do(admin: Connection, job: MadeJob) -> None:
    with pytest.raises(psycopg.errors.InvalidParameterValue, match="at least a day ago"):
        admin.execute("select carillon.clear_payloads('email-service/weekly-digest', now())")
    with pytest.raises(psycopg.errors.NoDataFound, match="there is no job weekly-digest; write service/job"):
        admin.execute("select carillon.clear_payloads('weekly-digest', now() - interval '2 days')")


def test_no_setting_gives_the_rights_or_the_name_of_another(admin: Connection, job: MadeJob) -> None:
    run = builders.make_ended_run(admin, job, at=days_ago(2), payload={"to": "jane"})
    for caller in ("admin", "operator", "service"):
        with acting(admin, CALLERS[caller]), pytest.raises(psycopg.errors.InsufficientPrivilege):
            admin.execute("select carillon.clear_payloads('email-service/weekly-digest', now() - interval '1 day')")
    with admin.transaction():
        for name, value in ALL_POWERFUL.items():
            admin.execute("select set_config(%s, %s, true)", [name, value])
        admin.execute("set local session authorization carillon_engine")
        admin.execute("select carillon.clear_payloads('email-service/weekly-digest', now() - interval '1 day')")
    assert [principal for principal, *_ in events(admin)] == ["role:carillon_engine"]
    assert admin.execute("select payload from carillon.runs where run_id = %s", [run]).fetchone() == ({},)
