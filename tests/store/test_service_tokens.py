"""Service tokens in the database: what operators do with them, and what a replica makes of them."""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import replace
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from typer.testing import CliRunner

from scheduler_service.__main__ import cli
from scheduler_service.domain.access import ANONYMOUS, Kind, Origin, Principal, Scope
from scheduler_service.domain.credentials import ALL_SCOPES, WORK_ONLY, parse_service_tokens
from scheduler_service.domain.errors import (
    Conflict,
    Forbidden,
    InvalidInput,
    NotFound,
    Unauthenticated,
    Unavailable,
)
from scheduler_service.identity.service_tokens import LONGEST_AWAY_SECONDS, ServiceTokens, StoredTokens
from scheduler_service.store.database import Database
from scheduler_service.usecases.service_tokens import (
    IssuedToken,
    create_token,
    list_tokens,
    revoke_token,
    rotate_token,
)
from tests.conftest import DatabaseUrls
from tests.rpc.work.rig import Clock

ROOT = Principal(Kind.OPERATOR, name="root", origin=Origin("host", "request-1", "tokens create"))
DAY = timedelta(days=1)
_WAITING = "select count(*) from pg_locks where not granted"
Hot = psycopg.AsyncConnection[Any]
Admin = psycopg.Connection[Any]


class Replica:
    """What one replica knows of tokens. Its clock is stepped."""

    def __init__(self, hot: Hot, configured: str = "") -> None:
        self.clock = Clock()
        self.stored = StoredTokens(self.clock)
        self.tokens = ServiceTokens(parse_service_tokens(configured), self.stored)
        self._hot = hot

    async def look(self, after: float = 0.0) -> None:
        self.clock.now += after
        await self.stored.step(self._hot)

    def accepts(self, token: str) -> bool:
        try:
            self.tokens.principal(token)
        except Unauthenticated:
            return False
        return True


@pytest.fixture
def replica(hot: Hot) -> Replica:
    return Replica(hot)


async def create(database: Database, service: str = "email-service", **how: Any) -> IssuedToken:
    scopes = how.pop("scopes", WORK_ONLY if service == "*" else ALL_SCOPES)
    return await create_token(database, ROOT, service, scopes, **how)


def last_use(admin: Admin, token: IssuedToken) -> Any:
    row = admin.execute(
        "select last_used_at from carillon.service_tokens where token_id = %s", [token.record.token_id]
    ).fetchone()
    assert row is not None
    return row[0]


def writes(admin: Admin) -> int:
    """How often rows of the table were written."""
    row = admin.execute("select sum(xmin::text::bigint)::bigint from carillon.service_tokens").fetchone()
    assert row is not None
    return int(row[0])


async def test_a_created_token_is_its_service_with_its_scopes(database: Database, replica: Replica) -> None:
    issued = await create(database, scopes=frozenset({Scope.READ}))
    await replica.look()
    principal = replica.tokens.principal(issued.reveal())
    assert principal == Principal(
        Kind.SERVICE, name=issued.record.token_id, service="email-service", scopes=frozenset({Scope.READ})
    )
    worker = replica.tokens
    everyone = await create(database, "*")
    await replica.look()
    assert worker.principal(everyone.reveal()).kind is Kind.WORKER


async def test_only_the_hash_of_256_random_bits_is_kept(database: Database, admin: Admin) -> None:
    issued = await create(database)
    secret = issued.reveal().partition(".")[2]
    assert len(secret) == 43  # 32 bytes in base64
    row = admin.execute("select t::text, secret_hash from carillon.service_tokens t").fetchone()
    assert row is not None
    assert row[1] == hashlib.sha256(secret.encode()).digest()
    events = admin.execute("select string_agg(e::text, '') from carillon.audit_events e").fetchone()
    assert secret not in f"{row[0]} {events} {issued!r}"


@pytest.mark.parametrize("wrong", ["{id}", "{id}.", "{id}.{secret}x", "{id}.{secret} ", "x{id}.{secret}", ".{secret}"])
async def test_nothing_but_the_token_itself_is_accepted(database: Database, replica: Replica, wrong: str) -> None:
    issued = await create(database)
    await replica.look()
    token_id, _, secret = issued.reveal().partition(".")
    with pytest.raises(Unauthenticated) as refused:
        replica.tokens.principal(wrong.format(id=token_id, secret=secret))
    assert (refused.value.reason, secret in refused.value.message) == ("CREDENTIALS_INVALID", False)
    assert replica.accepts(issued.reveal())


async def test_a_revoked_token_stops_with_the_next_look(database: Database, replica: Replica) -> None:
    issued, other = await create(database), await create(database)
    await replica.look()
    principal = replica.tokens.principal(issued.reveal())
    await revoke_token(database, ROOT, issued.record.token_id)
    await replica.look()
    assert not replica.accepts(issued.reveal())
    assert not replica.tokens.holds(principal)
    assert replica.accepts(other.reveal())


async def test_a_token_expires_by_the_databases_clock_and_between_two_looks(
    database: Database, replica: Replica
) -> None:
    issued = await create(database, lifetime=timedelta(hours=1))
    await replica.look()
    principal = replica.tokens.principal(issued.reveal())
    replica.clock.now += 3_590
    assert replica.tokens.holds(principal)
    replica.clock.now += 10
    assert not replica.tokens.holds(principal)
    assert not replica.accepts(issued.reveal())


async def test_an_expiry_that_is_set_later_is_known_before_it_comes(
    database: Database, admin: Admin, replica: Replica
) -> None:
    issued = await create(database)
    await replica.look()
    admin.execute("update carillon.service_tokens set expires_at = clock_timestamp() + interval '10 minutes'")
    await replica.look()
    assert replica.accepts(issued.reveal())
    replica.clock.now += 600
    assert not replica.accepts(issued.reveal())


async def test_what_has_expired_is_not_even_read(database: Database, admin: Admin, replica: Replica) -> None:
    issued = await create(database, lifetime=DAY)
    await replica.look()
    admin.execute("update carillon.service_tokens set expires_at = clock_timestamp()")
    await replica.look()
    assert (len(replica.stored), replica.accepts(issued.reveal())) == (0, False)


async def test_until_the_table_was_read_only_configured_tokens_count(database: Database, hot: Hot) -> None:
    replica = Replica(hot, "email-service=configured.0123456789abcdef")
    issued = await create(database)
    assert replica.accepts("configured.0123456789abcdef")
    with pytest.raises(Unavailable):
        replica.tokens.principal(issued.reveal())


async def test_without_the_database_the_last_list_goes_on_for_an_hour(database: Database, replica: Replica) -> None:
    issued = await create(database)
    await replica.look()
    principal = replica.tokens.principal(issued.reveal())
    replica.clock.now += LONGEST_AWAY_SECONDS
    assert replica.accepts(issued.reveal())
    replica.clock.now += 1
    with pytest.raises(Unavailable):
        replica.tokens.principal(issued.reveal())
    assert not replica.tokens.holds(principal)
    await replica.look()
    assert replica.tokens.holds(principal)


async def test_a_configured_token_goes_before_one_of_the_table_with_its_id(database: Database, hot: Hot) -> None:
    issued = await create(database, "kpi-service")
    token_id = issued.record.token_id
    replica = Replica(hot, f"email-service={token_id}.0123456789abcdef")
    await replica.look()
    assert not replica.accepts(issued.reveal())
    assert replica.tokens.principal(f"{token_id}.0123456789abcdef").service == "email-service"
    await revoke_token(database, ROOT, token_id)
    await replica.look()
    assert replica.accepts(f"{token_id}.0123456789abcdef")


async def test_callers_without_a_token_hold_whatever_their_name(replica: Replica) -> None:
    for principal in (ANONYMOUS, Principal(Kind.ADMIN, name="alice"), Principal(Kind.WORKER, name="worker-1.internal")):
        assert replica.tokens.holds(principal)


async def test_use_is_written_at_most_once_a_minute_by_all_replicas(
    database: Database, admin: Admin, hot: Hot, other: Hot
) -> None:
    issued, idle = await create(database), await create(database)
    replica, second = Replica(hot), Replica(other)
    await replica.look()
    await second.look()
    assert last_use(admin, issued) is None
    for _ in range(1_000):
        replica.tokens.principal(issued.reveal())
    await replica.look(after=0.5)
    used_at = last_use(admin, issued)
    assert used_at is not None
    assert last_use(admin, idle) is None
    before = writes(admin)
    for _ in range(59):
        replica.tokens.principal(issued.reveal())
        second.tokens.principal(issued.reveal())
        await replica.look(after=1)
        await second.look(after=1)
    assert writes(admin) == before
    # An hour passes for the database; the second replica tries again as soon as its own minute is over.
    admin.execute("update carillon.service_tokens set last_used_at = last_used_at - interval '1 hour'")
    for each in (replica, second):
        each.tokens.principal(issued.reveal())
        await each.look(after=60)
    assert used_at - last_use(admin, issued) < timedelta(minutes=2)


async def test_an_open_stream_is_use(database: Database, admin: Admin, replica: Replica) -> None:
    issued = await create(database)
    await replica.look()
    principal = replica.tokens.principal(issued.reveal())
    await replica.look()
    admin.execute("update carillon.service_tokens set last_used_at = last_used_at - interval '1 hour'")
    long_ago = last_use(admin, issued)
    replica.clock.now += 60
    assert replica.tokens.holds(principal)
    await replica.look()
    assert last_use(admin, issued) - long_ago > timedelta(minutes=59)


async def test_a_look_reads_the_rows_only_if_they_changed(
    database: Database, admin: Admin, hot: Hot, replica: Replica
) -> None:
    issued = await create(database)
    await replica.look()
    principal = replica.tokens.principal(issued.reveal())
    known = replica.stored._tokens
    await replica.look()
    assert last_use(admin, issued) is not None
    assert replica.stored._tokens is known
    await create(database)
    await replica.look()
    assert len(replica.stored) == 2
    assert replica.tokens.holds(principal)


async def test_rotation_leaves_two_that_count_then_one(database: Database, replica: Replica) -> None:
    overlap = timedelta(minutes=30)
    first = await create(database, scopes=frozenset({Scope.READ}), lifetime=90 * DAY, description="in the mailer")
    second, old = await rotate_token(database, ROOT, first.record.token_id, overlap)
    assert second.record == replace(
        first.record,
        token_id=second.record.token_id,
        created_at=second.record.created_at,
        expires_at=second.record.created_at + 90 * DAY,
        replaces=first.record.token_id,
    )
    assert old.expires_at == second.record.created_at + overlap
    assert await list_tokens(database, ROOT) == [old, second.record]
    await replica.look()
    assert (replica.accepts(first.reveal()), replica.accepts(second.reveal())) == (True, True)
    replica.clock.now += overlap.total_seconds()
    assert (replica.accepts(first.reveal()), replica.accepts(second.reveal())) == (False, True)


async def test_rotation_never_lengthens_a_token(database: Database) -> None:
    first = await create(database, lifetime=DAY)
    _, old = await rotate_token(database, ROOT, first.record.token_id, 2 * DAY)
    assert old.expires_at == first.record.expires_at
    with pytest.raises(InvalidInput, match="between 0 and 30 days"):
        await rotate_token(database, ROOT, first.record.token_id, 31 * DAY)


async def test_at_most_two_of_a_chain_count(database: Database) -> None:
    first = await create(database)
    second, _ = await rotate_token(database, ROOT, first.record.token_id, DAY)
    with pytest.raises(Conflict, match=f"rotate {second.record.token_id}, which took its place"):
        await rotate_token(database, ROOT, first.record.token_id, DAY)
    with pytest.raises(Conflict, match=f"wait, or revoke {first.record.token_id}"):
        await rotate_token(database, ROOT, second.record.token_id, DAY)
    await revoke_token(database, ROOT, first.record.token_id)
    third, _ = await rotate_token(database, ROOT, second.record.token_id, DAY)
    assert third.record.replaces == second.record.token_id


async def test_of_two_who_rotate_at_once_one_is_refused(database: Database, admin: Admin) -> None:
    first = await create(database)
    with admin.transaction():
        admin.execute("select from carillon.service_tokens for update")
        both = [asyncio.ensure_future(rotate_token(database, ROOT, first.record.token_id, DAY)) for _ in range(2)]
        async with asyncio.timeout(60):
            while admin.execute(_WAITING).fetchone() != (2,):  # noqa: ASYNC110  # nothing announces it
                await asyncio.sleep(0.01)
    outcomes = await asyncio.gather(*both, return_exceptions=True)
    assert sorted(type(each).__name__ for each in outcomes) == ["Conflict", "tuple"]
    assert len(await list_tokens(database, ROOT)) == 2


async def test_what_counts_no_longer_is_not_rotated_and_nothing_is_revoked_twice(
    database: Database, admin: Admin
) -> None:
    revoked, expired = await create(database), await create(database, lifetime=DAY)
    await revoke_token(database, ROOT, revoked.record.token_id)
    admin.execute("update carillon.service_tokens set expires_at = clock_timestamp() where expires_at is not null")
    for token, says in ((revoked, "was revoked; create another"), (expired, "has expired; create another")):
        with pytest.raises(Conflict, match=says):
            await rotate_token(database, ROOT, token.record.token_id, DAY)
    with pytest.raises(Conflict, match="was revoked before, by operator:root"):
        await revoke_token(database, ROOT, revoked.record.token_id)
    for change in (revoke_token(database, ROOT, "nobody"), rotate_token(database, ROOT, "nobody", DAY)):
        with pytest.raises(NotFound, match="no service token with the id 'nobody'"):
            await change


def test_a_list_does_not_steer_the_terminal(
    monkeypatch: pytest.MonkeyPatch, database_urls: DatabaseUrls, admin: Admin
) -> None:
    admin.execute(
        "insert into carillon.service_tokens"
        " (token_id, service, scopes, secret_hash, description, created_at, created_by)"
        " values ('t1', '*', '{work}', %s, %s, now(), %s)",
        [bytes(32), "\x1b]0;x\x07", "by\u202ehand"],
    )
    monkeypatch.setenv("CARILLON_DATABASE_URL", database_urls.api)
    listed = CliRunner().invoke(cli, ["tokens", "list"])
    assert (listed.exit_code, "\ufffd]0;x\ufffd" in listed.stdout, "by\ufffdhand" in listed.stdout) == (0, True, True)


@pytest.mark.parametrize(
    ("service", "how", "field"),
    [
        ("Email", {}, "service"),
        ("*", {"scopes": ALL_SCOPES}, "scopes"),
        ("email-service", {"scopes": frozenset()}, "scopes"),
        ("email-service", {"lifetime": timedelta()}, "expires"),
        ("email-service", {"lifetime": timedelta(days=3_650, seconds=1)}, "expires"),
        ("email-service", {"lifetime": timedelta.max}, "expires"),
        ("email-service", {"description": "x" * 201}, "description"),
        ("email-service", {"description": "a\nb"}, "description"),
    ],
)
async def test_what_no_token_can_be_is_refused(
    database: Database, service: str, how: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidInput) as refused:
        await create(database, service, **how)
    assert [violation.field for violation in refused.value.violations] == [field]


@pytest.mark.parametrize("kind", [kind for kind in Kind if kind is not Kind.OPERATOR])
async def test_only_operators_manage_tokens(database: Database, kind: Kind) -> None:
    caller = Principal(kind, name="x", service="email-service", tenant="acme", scopes=ALL_SCOPES)
    with pytest.raises((Forbidden, Unauthenticated)):
        await create_token(database, caller, "email-service", ALL_SCOPES)
    with pytest.raises((Forbidden, Unauthenticated)):
        await list_tokens(database, caller)


async def test_every_change_is_in_the_audit_trail(database: Database, admin: Admin) -> None:
    first = (await create(database)).record.token_id
    second = (await rotate_token(database, ROOT, first, DAY))[0].record.token_id
    await revoke_token(database, ROOT, second)
    with pytest.raises(Conflict):
        await revoke_token(database, ROOT, second)
    events = admin.execute(
        "select principal, resource, before is null, after ->> 'revoked_at' is not null, after ->> 'expires_at' is not"
        " null, request_id, address from carillon.audit_events order by event_id"
    ).fetchall()
    by = ("request-1", "host")
    assert events == [
        ("operator:root", f"serviceTokens/{first}", True, False, False, *by),
        ("operator:root", f"serviceTokens/{first}", False, False, True, *by),
        ("operator:root", f"serviceTokens/{second}", True, False, False, *by),
        ("operator:root", f"serviceTokens/{second}", False, True, False, *by),
    ]
