"""Replicas say when their loops last did their work, and find a loop that works nowhere."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from structlog.testing import capture_logs

from scheduler_service.engine.pulses import IDLE_SECONDS, PERIOD, LoopState, Pulses
from tests.store.engine_case import Connection, rows

Admin = psycopg.Connection[Any]
SLOWEST = 20.0
"""Seconds that a busy machine may take for a step."""
REAPER = LoopState("reaper", running=True, idle=0.0)
TICKER = LoopState("ticker", running=True, idle=0.0)


class Replica:
    """One replica's pulse, whose own clock the test steps, and whose loops are as it says."""

    def __init__(self, name: str, *states: LoopState) -> None:
        self.now = 0.0
        self.states = list(states)
        self.pulses = Pulses(name, lambda: self.states, clock=lambda: self.now)

    async def step(self, connection: Connection, at: float = 0.0) -> None:
        self.now = at
        assert not await self.pulses.step(connection)


def beats(admin: Admin) -> list[tuple[str, str]]:
    return rows(admin, "select replica, loop from carillon.pulses order by 1, 2")


def age(admin: Admin, replica: str, by: timedelta) -> None:
    admin.execute("update carillon.pulses set beat_at = beat_at - %s where replica = %s", [by, replica])


async def test_all_loops_of_a_replica_beat_in_one_write_each_five_seconds(admin: Admin, hot: Connection) -> None:
    one = Replica("one", REAPER, TICKER, LoopState("sealer", running=True, idle=None))
    await one.step(hot)
    assert beats(admin) == [("one", "reaper"), ("one", "ticker")]
    admin.execute("delete from carillon.pulses")
    await one.step(hot, PERIOD - 0.1)
    assert beats(admin) == []
    assert one.pulses.seconds_to_next() == pytest.approx(0.1)
    await one.step(hot, PERIOD)
    assert beats(admin) == [("one", "reaper"), ("one", "ticker")]


async def test_a_beat_is_as_old_as_the_loop_has_been_idle(admin: Admin, hot: Connection) -> None:
    one, two = Replica("one", replace(REAPER, idle=40.0)), Replica("two", replace(REAPER, idle=15.0))
    await one.step(hot)
    assert 40 <= one.pulses.idle["reaper"] < 40 + SLOWEST
    await two.step(hot)
    await one.step(hot, PERIOD)
    assert 15 <= one.pulses.idle["reaper"] < 15 + SLOWEST


async def test_replicas_that_are_gone_for_a_day_are_forgotten(admin: Admin, hot: Connection) -> None:
    await Replica("gone", REAPER).step(hot)
    await Replica("away", REAPER).step(hot)
    age(admin, "gone", timedelta(hours=25))
    age(admin, "away", timedelta(hours=23))
    await Replica("one", REAPER).step(hot)
    assert beats(admin) == [("away", "reaper"), ("one", "reaper")]


async def test_a_loop_that_works_nowhere_is_said_once_and_again_when_it_works(admin: Admin, hot: Connection) -> None:
    one = Replica("one", replace(REAPER, idle=IDLE_SECONDS + 1), TICKER)
    await Replica("two", replace(REAPER, idle=IDLE_SECONDS + 30), TICKER).step(hot)
    with capture_logs() as logs:
        await one.step(hot)
        await one.step(hot, PERIOD)
        assert [(line["log_level"], line["loop"]) for line in logs] == [("critical", "reaper")]
        await Replica("two", REAPER, TICKER).step(hot)
        await one.step(hot, 2 * PERIOD)
    assert [line["log_level"] for line in logs] == ["critical", "info"]


async def test_a_loop_that_never_worked_counts_as_idle_since_the_replica_looks(hot: Connection) -> None:
    one = Replica("one", LoopState("reaper", running=True, idle=None), TICKER)
    with capture_logs() as logs:
        for at in (0.0, 30.0, IDLE_SECONDS):
            await one.step(hot, at)
        assert logs == []
        await one.step(hot, IDLE_SECONDS + PERIOD)
    assert [line["loop"] for line in logs] == ["reaper"]
    assert one.pulses.idle["reaper"] == IDLE_SECONDS + PERIOD


async def test_a_replica_gives_way_for_a_loop_that_is_dead_here_and_works_elsewhere(hot: Connection) -> None:
    one, two = Replica("one", REAPER, TICKER), Replica("two", REAPER, TICKER)
    await two.step(hot)
    await one.step(hot)
    assert (one.pulses.problem(), one.pulses.warning()) == (None, None)
    stuck = replace(REAPER, idle=IDLE_SECONDS + 1, error="OperationalError: no")
    one.states = [stuck, TICKER]
    await one.step(hot, PERIOD)
    said = "loop reaper of this replica has done nothing for over 60 s; OperationalError: no"
    assert (one.pulses.problem(), one.pulses.warning()) == (said, said)
    one.states = [replace(REAPER, running=False), TICKER]
    assert one.pulses.problem() == "loop reaper of this replica has ended"
    one.states = [REAPER, TICKER]
    assert one.pulses.problem() is None


async def test_a_replica_serves_on_where_no_other_does_better_and_says_so(admin: Admin, hot: Connection) -> None:
    one, two = Replica("one", REAPER), Replica("two", REAPER)
    await two.step(hot)
    age(admin, "two", timedelta(seconds=IDLE_SECONDS + 10))
    one.states = [replace(REAPER, idle=IDLE_SECONDS + 1)]
    await one.step(hot)
    assert one.pulses.problem() is None
    assert one.pulses.warning() == "loop reaper of this replica has done nothing for over 60 s"


async def test_for_a_loop_that_is_not_essential_nobody_gives_way(hot: Connection) -> None:
    one = Replica("one", REAPER)
    await Replica("two", REAPER).step(hot)
    one.states = [replace(REAPER, idle=IDLE_SECONDS + 1, essential=False)]
    await one.step(hot)
    assert one.pulses.problem() is None
    assert one.pulses.warning() is not None


async def test_what_was_seen_long_ago_is_not_acted_upon(hot: Connection) -> None:
    one = Replica("one", REAPER)
    await Replica("two", REAPER).step(hot)
    one.states = [replace(REAPER, idle=IDLE_SECONDS + 1)]
    await one.step(hot)
    assert one.pulses.problem() is not None
    assert one.pulses.idle.keys() == {"reaper"}
    one.now = 31.0
    assert one.pulses.problem() is None, "the database is away: that is said already"
    assert one.pulses.idle == {}


async def test_a_beat_from_the_future_says_nothing(admin: Admin, hot: Connection) -> None:
    await Replica("two", REAPER).step(hot)
    age(admin, "two", -timedelta(hours=1))
    one = Replica("one", replace(REAPER, idle=IDLE_SECONDS + 1))
    await one.step(hot)
    assert one.pulses.idle["reaper"] > IDLE_SECONDS
