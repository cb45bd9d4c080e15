"""The audit trail is sealed in order, and whoever changes it afterwards is found."""

from __future__ import annotations

import hashlib
from typing import Any

import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.exc import ProgrammingError

from scheduler_service.domain.audit import EventFilter
from scheduler_service.domain.audit_chain import EMPTY, Head, Problem
from scheduler_service.domain.errors import Forbidden, InvalidInput, NothingToSee
from scheduler_service.store.audit_seals import standing
from scheduler_service.store.database import Database
from scheduler_service.usecases.audit import get_audit_head, list_audit_events, verify_audit_trail
from tests.builders import ADMIN, NOBODY, service, user
from tests.conftest import DatabaseUrls
from tests.store.audit_case import JOB, broken, record, record_many, seal, seal_all, tampering, verify

Hot = psycopg.AsyncConnection[Any]
Admin = psycopg.Connection[Any]
EVENTS = "carillon.audit_events"
SEALS = "carillon.audit_seals"


async def test_each_committed_event_gets_one_seal_in_order(database: Database, hot: Hot, admin: Admin) -> None:
    await record_many(database, 3)
    assert (await verify(database)).unsealed == 3
    assert await seal_all(hot) == 3
    seals = admin.execute(f"select position, event_id from {SEALS} order by position").fetchall()
    ids = [row[0] for row in admin.execute(f"select event_id from {EVENTS} order by event_id")]
    assert seals == list(enumerate(ids, start=1))
    verdict = await verify(database)
    assert (verdict.broken, verdict.complete, verdict.unsealed) == (None, True, 0)
    assert verdict.verified == await get_audit_head(database, ADMIN)
    assert verdict.verified.position == 3
    assert await seal_all(hot) == 0


async def test_an_empty_trail_holds(database: Database) -> None:
    verdict = await verify(database)
    assert (verdict.broken, verdict.verified, verdict.complete) == (None, EMPTY, True)


async def test_a_hash_is_what_docs_security_says(database: Database, hot: Hot, admin: Admin) -> None:
    """By hand, with no code of ours."""
    await record_many(database, 2)
    await seal_all(hot)
    previous = bytes(32)
    for row in admin.execute(
        "select s.hash, s.position::text, trunc(extract(epoch from s.sealed_at) * 1000000)::text, e.event_id::text,"
        " trunc(extract(epoch from e.event_at) * 1000000)::text, principal, action, resource, tenant_id,"
        f" before::text, after::text, request_id, address from {SEALS} s join {EVENTS} e using (event_id) order by 2"
    ).fetchall():
        columns = [b"-," if text is None else f"{len(text.encode())}:{text},".encode() for text in row[1:]]
        previous = hashlib.sha256(previous + b"".join(columns)).digest()
        assert row[0] == previous


async def test_an_event_that_is_committed_late_is_sealed_late(
    database: Database, hot: Hot, admin: Admin, database_urls: DatabaseUrls
) -> None:
    with psycopg.connect(database_urls.admin) as slow:
        slow.execute(
            f"insert into {EVENTS} (event_at, principal, action, resource, request_id, address)"
            " values (now(), 'admin:bob', 'PauseJob', 'x', 'r', '')"
        )
        await record_many(database, 2)
        assert await seal_all(hot) == 2
        assert await broken(database) == ()
        slow.commit()
    assert await seal_all(hot) == 1
    order = admin.execute(f"select event_id from {SEALS} order by position").fetchall()
    assert order[-1][0] < order[0][0]
    for limit in (1, 2, 50_000):
        assert await broken(database, limit=limit) == ()


async def test_one_replica_seals_at_a_time(database: Database, hot: Hot, other: Hot) -> None:
    await record_many(database, 2)
    async with other.transaction():
        assert await seal(other) == 2
        assert await seal(hot) == 0
    assert await seal(hot) == 0
    assert await broken(database) == ()


async def test_a_sealer_that_is_cut_off_leaves_nothing_half_done(database: Database, hot: Hot, other: Hot) -> None:
    await record_many(database, 5)
    async with other.transaction(force_rollback=True):
        assert await seal(other, limit=2) == 2
    assert (await standing(hot)).unsealed == 5
    assert await seal(hot, limit=2) == 2
    assert (await standing(hot)).unsealed == 3
    assert await seal_all(hot) == 3
    assert await broken(database) == ()


async def test_a_row_that_is_in_the_queue_again_stops_nothing(database: Database, hot: Hot, admin: Admin) -> None:
    await record_many(database, 2)
    await seal_all(hot)
    admin.execute(f"insert into carillon.audit_unsealed select event_id from {EVENTS}")
    await record_many(database, 1)
    assert await seal_all(hot) == 1
    assert await broken(database) == ()
    assert (await standing(hot)).unsealed == 0


async def test_verifying_goes_on_from_call_to_call(database: Database, hot: Hot, admin: Admin) -> None:
    await record_many(database, 7)
    await seal_all(hot)
    first = await verify_audit_trail(database, ADMIN, limit=3)
    assert (first.broken, first.verified.position, first.complete) == (None, 3, False)
    second = await verify_audit_trail(database, ADMIN, after=first.verified, limit=3)
    assert (second.verified.position, second.complete) == (6, False)
    last = await verify_audit_trail(database, ADMIN, after=second.verified, limit=3)
    assert (last.verified, last.complete) == (await get_audit_head(database, ADMIN), True)


CHANGES = {
    "who": "principal = 'admin:mallory'",
    "what": "action = 'ResumeJob'",
    "to what": "resource = resource || 'x'",
    "whose": "tenant_id = 'acme'",
    "before": "before = '{}'",
    "after": "after = jsonb_set(after, '{b}', '1.5')",  # 1.50 before: another text of the same number
    "nothing after": "after = null",
    "when": "event_at = event_at + interval '1 microsecond'",
    "request": "request_id = ''",
    "from where": "address = ''",
    "moved between columns": "principal = principal || left(action, 1), action = substr(action, 2)",
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
async def test_a_changed_event_is_found(database: Database, hot: Hot, admin: Admin, change: str) -> None:
    await record_many(database, 3)
    admin.execute("alter table carillon.audit_events disable trigger user")
    admin.execute(f"update {EVENTS} set after = jsonb_set(after, '{{b}}', '1.50')".encode())
    await seal_all(hot)
    assert await broken(database) == ()
    with tampering(admin):
        done = admin.execute(
            f"update {EVENTS} set {change} where event_id = (select event_id from {SEALS} where position = 2)".encode()
        )
        assert done.rowcount == 1
    problem, position, event_id = await broken(database)
    assert (problem, position) == (Problem.CHANGED, 2)
    assert (event_id,) == admin.execute(f"select event_id from {SEALS} where position = 2").fetchone()


@pytest.mark.parametrize("change", ["hash = sha256(hash)", "sealed_at = sealed_at - interval '1 day'"])
async def test_a_changed_seal_is_found(database: Database, hot: Hot, admin: Admin, change: str) -> None:
    await record_many(database, 3)
    await seal_all(hot)
    with tampering(admin):
        admin.execute(f"update {SEALS} set {change} where position = 2".encode())
    assert (await broken(database))[:2] == (Problem.CHANGED, 2)


async def test_a_removed_event_is_found(database: Database, hot: Hot, admin: Admin) -> None:
    await record_many(database, 3)
    await seal_all(hot)
    with tampering(admin):
        admin.execute(f"delete from {EVENTS} where event_id = (select event_id from {SEALS} where position = 2)")
    assert (await broken(database))[:2] == (Problem.EVENT_MISSING, 2)


async def test_an_event_that_is_removed_before_its_seal_is_found(database: Database, hot: Hot, admin: Admin) -> None:
    await record_many(database, 3)
    with tampering(admin):
        row = admin.execute(f"delete from {EVENTS} where resource = '{JOB}-1' returning event_id").fetchone()
    assert await seal_all(hot) == 2
    assert row is not None
    assert await broken(database) == (Problem.EVENT_MISSING, 0, row[0])


@pytest.mark.parametrize("gone", [1, 2])
async def test_a_removed_seal_is_found(database: Database, hot: Hot, admin: Admin, gone: int) -> None:
    await record_many(database, 3)
    await seal_all(hot)
    with tampering(admin):
        admin.execute(f"delete from {SEALS} where position = {gone}".encode())
    assert await broken(database) == (Problem.SEAL_MISSING, gone, 0)


async def test_an_event_that_is_removed_with_its_seal_is_found(database: Database, hot: Hot, admin: Admin) -> None:
    await record_many(database, 4)
    await seal_all(hot)
    with tampering(admin):
        admin.execute(f"delete from {EVENTS} where event_id = (select event_id from {SEALS} where position = 2)")
        admin.execute(f"delete from {SEALS} where position = 2")
        admin.execute(f"update {SEALS} set position = position - 1 where position = 3")
        admin.execute(f"update {SEALS} set position = position - 1 where position = 4")
    assert (await broken(database))[:2] == (Problem.CHANGED, 2)


async def test_a_swapped_pair_is_found(database: Database, hot: Hot, admin: Admin) -> None:
    await record_many(database, 4)
    await seal_all(hot)
    with tampering(admin):
        admin.execute(f"update {SEALS} set position = position + 10 where position in (2, 3)")
        admin.execute(f"update {SEALS} set position = 15 - position where position in (12, 13)")
        assert admin.execute(f"select count(*) from {SEALS} where position in (2, 3)").fetchone() == (2,)
    assert (await broken(database))[:2] == (Problem.CHANGED, 2)


async def test_two_events_whose_contents_are_swapped_are_found(database: Database, hot: Hot, admin: Admin) -> None:
    await record_many(database, 3)
    await seal_all(hot)
    ids = [row[0] for row in admin.execute(f"select event_id from {SEALS} order by position")]
    with tampering(admin):
        admin.execute(
            f"update {EVENTS} a set resource = b.resource, after = b.after from {EVENTS} b"
            " where a.event_id + b.event_id = %s and a.event_id <> b.event_id",
            [ids[0] + ids[1]],
        )
    assert await broken(database) == (Problem.CHANGED, 1, ids[0])


def remove_tail(admin: Admin, upto: int) -> None:
    admin.execute(f"delete from {EVENTS} e using {SEALS} s where s.event_id = e.event_id and position > %s", [upto])
    admin.execute(f"delete from {SEALS} where position > %s", [upto])


async def test_a_removed_tail_is_found_by_whoever_knows_a_head(database: Database, hot: Hot, admin: Admin) -> None:
    await record_many(database, 5)
    await seal_all(hot)
    head = await get_audit_head(database, ADMIN)
    with tampering(admin):
        remove_tail(admin, 3)
    assert await broken(database) == ()
    assert await broken(database, (head,)) == (Problem.HEAD_MISSING, 5, 0)
    assert await broken(database, (head,), limit=2) == (Problem.HEAD_MISSING, 5, 0)


async def test_a_trail_that_is_emptied_is_found_by_whoever_knows_a_head(
    database: Database, hot: Hot, admin: Admin
) -> None:
    await record_many(database, 5)
    await seal_all(hot)
    head = await get_audit_head(database, ADMIN)
    with tampering(admin):
        remove_tail(admin, 0)
    assert await broken(database, (head,)) == (Problem.HEAD_MISSING, 5, 0)
    assert (await broken(database, after=head))[0] is Problem.HEAD_MISSING


async def test_seals_that_are_removed_at_the_end_leave_events_that_show_it(
    database: Database, hot: Hot, admin: Admin
) -> None:
    await record_many(database, 5)
    await seal_all(hot)
    with tampering(admin):
        admin.execute(f"delete from {SEALS} where position = 5")
    assert (await broken(database))[0] is Problem.NOT_SEALED


@pytest.mark.parametrize("limit", [2, 50_000])
async def test_a_tail_that_is_written_anew_is_found_by_whoever_knows_a_head(
    database: Database, hot: Hot, admin: Admin, limit: int
) -> None:
    """Sealed again, so that the chain itself holds."""
    await record_many(database, 5)
    await seal_all(hot)
    head = await get_audit_head(database, ADMIN)
    with tampering(admin):
        admin.execute(f"insert into carillon.audit_unsealed select event_id from {SEALS} where position > 3")
        admin.execute(f"update {EVENTS} set principal = 'admin:bob' where event_id in (table carillon.audit_unsealed)")
        admin.execute(f"delete from {SEALS} where position > 3")
    assert await seal_all(hot) == 2
    assert await broken(database) == ()
    problem, position, _ = await broken(database, (head,), limit=limit)
    assert (problem, position) == (Problem.HEAD_MISSING, 5)
    assert (await broken(database, after=head))[0] is Problem.HEAD_MISSING


async def test_heads_from_any_time_hold_as_long_as_nobody_tampers(database: Database, hot: Hot) -> None:
    heads = [await get_audit_head(database, ADMIN)]
    for count in (1, 3, 2):
        await record_many(database, count)
        await seal_all(hot)
        heads.append(await get_audit_head(database, ADMIN))
    assert [head.position for head in heads] == [0, 1, 4, 6]
    for limit in (1, 2, 3, 100):
        assert await broken(database, tuple(heads), limit=limit) == ()
    for after in heads:
        assert (await verify(database, heads, after)).broken is None


@pytest.mark.parametrize("limit", [1, 2, 3, 50_000])
@pytest.mark.parametrize("event_id", [-7, 12_000, None], ids=["before all", "after all", "a gap between"])
async def test_an_event_that_was_slipped_in_is_found(
    database: Database, hot: Hot, admin: Admin, event_id: int | None, limit: int
) -> None:
    await record_many(database, 2)
    row = admin.execute(f"select nextval(pg_get_serial_sequence('{EVENTS}', 'event_id'))").fetchone()
    await record_many(database, 2)
    await seal_all(hot)
    assert row is not None
    event_id = event_id or row[0]
    with tampering(admin):
        admin.execute(
            f"insert into {EVENTS} (event_id, event_at, principal, action, resource, request_id, address)"
            " overriding system value values (%s, now(), 'admin:alice', 'PauseJob', 'x', '', '')",
            [event_id],
        )
    assert await broken(database, limit=limit) == (Problem.NOT_SEALED, 0, event_id)


async def test_an_event_that_waits_for_its_seal_for_too_long_is_reported(
    database: Database, hot: Hot, admin: Admin
) -> None:
    await record_many(database, 1)
    assert await broken(database) == ()
    with tampering(admin):
        admin.execute(f"update {EVENTS} set event_at = now() - interval '61 seconds'")
    assert (await broken(database))[0] is Problem.NOT_SEALED
    assert (await standing(hot)).oldest > 60
    await seal_all(hot)
    assert await broken(database) == ()


async def test_only_admins_verify(database: Database) -> None:
    for caller, refusal in ((user("acme"), Forbidden), (service("email-service"), Forbidden), (NOBODY, NothingToSee)):
        with pytest.raises(refusal):
            await verify_audit_trail(database, caller)
        with pytest.raises(refusal):
            await get_audit_head(database, caller)
        with pytest.raises(refusal):
            await list_audit_events(database, caller, EventFilter())


@pytest.mark.parametrize("head", [Head(-1, b""), Head(3, b"short"), Head(0, bytes(32)), Head(3, b"")])
async def test_a_head_that_is_none_is_refused(database: Database, head: Head) -> None:
    with pytest.raises(InvalidInput) as refused:
        await verify_audit_trail(database, ADMIN, [head])
    assert refused.value.violations[0].field.startswith("known_heads[0].")
    with pytest.raises(InvalidInput) as refused:
        await verify_audit_trail(database, ADMIN, after=head)
    assert refused.value.violations[0].field.startswith("after.")


async def test_nobody_queues_an_event_by_hand(database: Database) -> None:
    """It would stand there for ever, and verifying complain of it."""
    with pytest.raises(ProgrammingError, match="row-level security"):
        async with database.acting_for(ADMIN) as tx:
            await tx.connection.execute(text("insert into carillon.audit_unsealed values (4711)"))


async def test_a_call_that_changes_nothing_records_nothing(database: Database, admin: Admin) -> None:
    await record(database)
    assert admin.execute(f"select count(*) from {EVENTS}").fetchone() == (0,)
