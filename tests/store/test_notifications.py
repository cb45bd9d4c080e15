"""One replica's wake-ups reach the others, and not itself a second time."""

from __future__ import annotations

import asyncio
from typing import Any

import psycopg
import pytest

from scheduler_service.loops.notifier import Listener, Teller
from scheduler_service.store.database import Database
from scheduler_service.store.notifications import hear, listen
from scheduler_service.usecases.wakeups import Topic, Wakeups
from tests.store.engine_case import Connection

Admin = psycopg.Connection[Any]
PATIENCE = 60


class Replica:
    """The two loops of one replica, stepped by hand once they listen."""

    def __init__(self, database: Database, connection: Connection) -> None:
        self.wakeups = Wakeups()
        self.teller = Teller(database.hot_connection, self.wakeups)
        self.listener = Listener(database.hot_connection, self.wakeups, self.teller)
        self.told = {topic: self.wakeups.listen(topic) for topic in Topic}
        self.connection = connection

    def heard(self) -> set[Topic]:
        return {topic for topic, wakeup in self.told.items() if wakeup.take()}

    async def hears(self, *topics: Topic) -> set[Topic]:
        """All that it has heard once it has heard of these. A step ends after a second also without a word."""
        heard = self.heard()
        async with asyncio.timeout(PATIENCE):
            while not heard.issuperset(topics):
                await self.listener.step(self.connection)
                heard |= self.heard()
        return heard


async def test_a_wake_up_reaches_another_replica_once_and_names_only_its_topic(
    database: Database, hot: Connection, other: Connection
) -> None:
    async with (
        await database.hot_connection() as telling,
        await database.hot_connection() as answering,
        await database.hot_connection() as outside,
    ):
        here, there = Replica(database, hot), Replica(database, other)
        await listen(outside)
        hearing = [asyncio.create_task(each.listener.step(each.connection)) for each in (here, there)]
        for each in (here, there):
            assert await each.told[Topic.RUNS].wait(PATIENCE), "who begins to listen is woken for what it missed"
            each.heard()
        for _ in range(3):
            here.wakeups.wake(Topic.PENDING)
        here.wakeups.wake(Topic.SCHEDULES)
        assert here.heard() == {Topic.PENDING, Topic.SCHEDULES}
        assert await here.teller.step(telling)
        assert not await here.teller.step(telling)
        await asyncio.wait_for(asyncio.gather(*hearing), PATIENCE)
        assert await there.hears(Topic.PENDING, Topic.SCHEDULES) == {Topic.PENDING, Topic.SCHEDULES}
        assert sorted(topic for topic, _ in await hear(outside, PATIENCE)) == ["pending", "schedules"]
        # What is told later is heard later: of its own there is nothing to come any more.
        there.wakeups.wake(Topic.CANCELS)
        assert await there.teller.step(answering)
        assert await here.hears(Topic.CANCELS) == {Topic.CANCELS}


async def test_what_could_not_be_told_is_told_later(database: Database, hot: Connection, other: Connection) -> None:
    here = Replica(database, hot)
    await listen(other)
    here.wakeups.wake(Topic.CANCELS)
    await hot.close()
    with pytest.raises(psycopg.OperationalError):
        await here.teller.step(hot)
    async with await database.hot_connection() as again:
        assert await here.teller.step(again)
    assert [topic for topic, _ in await hear(other, PATIENCE)] == ["cancels"]
