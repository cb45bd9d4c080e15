"""What a replica remembers of the users' table: for how long, for how many, and while the database is away."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import psycopg
import pytest

from scheduler_service.domain.access import Kind, Principal
from scheduler_service.domain.errors import Unavailable
from scheduler_service.domain.user import Role, User
from scheduler_service.identity.users import UserDirectory

ALICE = User("alice", Role.ADMIN)
BOB = User("bob", Role.USER, "acme")
ADMIN = Principal(Kind.ADMIN, name="alice")


@dataclass
class Table:
    """What the database says, and how often it was asked. `now` is the directory's clock."""

    users: dict[str, User] = field(default_factory=lambda: {"alice": ALICE, "bob": BOB})
    asked: int = 0
    is_away: bool = False
    now: float = 1000.0

    async def ask(self, subject: str) -> User | None:
        self.asked += 1
        await asyncio.sleep(0)
        if self.is_away:
            raise psycopg.OperationalError("away")
        return self.users.get(subject)

    def directory(self, most: int = 100) -> UserDirectory:
        return UserDirectory(self.ask, clock=lambda: self.now, most=most)


async def settled() -> None:
    """Lets what was begun beside it come to its end."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_an_answer_counts_for_five_seconds() -> None:
    table = Table()
    directory = table.directory()
    assert await directory.find("alice") == ALICE
    table.users.clear()
    table.now += 4.9
    assert await directory.find("alice") == ALICE
    table.now += 0.1
    assert await directory.find("alice") is None
    assert table.asked == 2


async def test_nobody_is_remembered_too() -> None:
    table = Table()
    directory = table.directory()
    for _ in range(3):
        assert await directory.find("nobody") is None
    assert table.asked == 1


async def test_many_calls_of_one_subject_ask_once() -> None:
    table = Table()
    directory = table.directory()
    assert await asyncio.gather(*(directory.find("alice") for _ in range(100))) == [ALICE] * 100
    assert table.asked == 1


async def test_the_last_answer_goes_on_for_a_minute_while_the_database_is_away() -> None:
    table = Table()
    directory = table.directory()
    await directory.find("alice")
    table.is_away = True
    table.now += 59.9
    assert await directory.find("alice") == ALICE
    with pytest.raises(Unavailable):
        await directory.find("bob")
    table.now += 0.1
    with pytest.raises(Unavailable):
        await directory.find("alice")
    table.is_away = False
    table.now += 1
    assert await directory.find("alice") == ALICE


async def test_a_database_that_is_away_is_asked_once_in_a_second() -> None:
    table = Table(is_away=True)
    directory = table.directory()
    for _ in range(10):
        with pytest.raises(Unavailable):
            await directory.find("alice")
    assert table.asked == 1


async def test_it_remembers_so_many_subjects_and_forgets_who_was_not_seen_for_longest() -> None:
    table = Table()
    directory = table.directory(most=2)
    for subject in ("alice", "bob", "alice", "nobody"):
        await directory.find(subject)
    assert table.asked == 3
    await directory.find("alice")
    assert table.asked == 3
    await directory.find("bob")
    assert table.asked == 4


async def test_an_open_stream_learns_that_its_caller_is_something_else_now() -> None:
    table = Table()
    directory = table.directory()
    await directory.find("alice")
    assert directory.still_is(ADMIN)
    for now_is in (User("alice", Role.USER, "acme"), None):
        table.users = {"alice": now_is} if now_is else {}
        table.now += 5
        directory.still_is(ADMIN)
        await settled()
        assert not directory.still_is(ADMIN)


async def test_an_open_stream_goes_on_for_a_minute_while_the_database_is_away_as_calls_do() -> None:
    table = Table()
    directory = table.directory()
    await directory.find("alice")
    table.is_away = True
    for _ in range(59):
        table.now += 1
        assert directory.still_is(ADMIN)
        await settled()
    table.now += 1
    assert not directory.still_is(ADMIN)
    with pytest.raises(Unavailable):
        await directory.find("alice")


async def test_who_was_forgotten_is_not_what_it_was() -> None:
    assert not Table().directory().still_is(ADMIN)


async def test_who_has_a_stream_open_is_not_forgotten_for_others() -> None:
    table = Table()
    directory = table.directory(most=2)
    await directory.find("alice")
    for number in range(10):
        await directory.find(f"caller-{number}")
        assert directory.still_is(ADMIN)


async def test_users_who_stay_what_they_are() -> None:
    table = Table()
    directory = table.directory()
    for subject, principal in (
        ("alice", ADMIN),
        ("bob", Principal(Kind.USER, name="bob", tenant="acme")),
        ("nobody", Principal(Kind.USER, name="nobody")),
    ):
        await directory.find(subject)
        assert directory.still_is(principal)
    assert not directory.still_is(Principal(Kind.USER, name="bob", tenant="globex"))
    assert not directory.still_is(Principal(Kind.USER, name="bob"))
    assert not directory.still_is(Principal(Kind.USER, name="nobody", tenant="acme"))
