"""The server goes away and comes back, or another takes its place. The scheduler and its worker stay."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from math import log2
from pathlib import Path
from typing import Any

import psycopg
import pytest

from local_stack.ports import LOCALHOST
from tests.e2e.cluster import eventually
from tests.e2e.database_away.conftest import Taken
from tests.e2e.database_away.place import Place, is_told_to_wait, placed
from tests.e2e.database_away.standby import Refusing, Standby

# A loop waits for half of its backoff at least: of 0.2 s, doubled each time, and of 5 s from then on.
_SHORTEST_BACKOFF, _LONGEST_BACKOFF = 0.1, 2.5
# The others ask the database nothing while there is nothing to do.
_ASKING = ("ticker", "reaper", "listener", "sealer", "leases")


@pytest.fixture
async def place(taken: Taken) -> AsyncIterator[Place]:
    async with placed(taken.urls, taken.admin_url) as place:
        yield place


def stop(taken: Taken) -> None:
    """A fast shutdown."""
    taken.server.stop()


def stop_at_once(taken: Taken) -> None:
    """SIGQUIT: as if it had crashed. It recovers at its start."""
    pid = taken.server.pid
    assert pid is not None
    os.kill(pid, signal.SIGQUIT)
    while taken.server.pid is not None:
        time.sleep(0.01)


@pytest.mark.parametrize("stop", [stop, stop_at_once])
async def test_a_server_that_was_stopped_and_started_is_worked_with_again(
    taken: Taken, place: Place, stop: Callable[[Taken], None]
) -> None:
    failed_before, began = place.loop_failures(), time.monotonic()
    await asyncio.to_thread(stop, taken)
    await is_told_to_wait(place.trigger(), "the database cannot be reached")
    await is_told_to_wait(place.get_job(), "the database cannot be reached")
    await place.says("the database cannot be reached")

    async def failures() -> dict[str, int]:
        return {loop: count - failed_before[loop] for loop, count in place.loop_failures().items()}

    # All of them try again and again, each a little later than before.
    failed = await eventually(failures, lambda each: min(each[loop] for loop in _ASKING) >= 4)
    seconds = time.monotonic() - began
    most = 2 + log2(1 + seconds / _SHORTEST_BACKOFF) + seconds / _LONGEST_BACKOFF
    assert max(failed.values()) <= most

    await asyncio.to_thread(taken.server.start)
    await place.goes_on()
    await place.is_ready()
    await place.trigger()
    await place.is_whole()


async def test_another_server_takes_the_address_and_takes_no_changes_for_a_while(
    taken: Taken, place: Place, tmp_path: Path
) -> None:
    taken.proxy.cut()
    with Standby.copied(taken.server) as standby:
        await is_told_to_wait(place.trigger(), "the database cannot be reached")
        taken.proxy.target = (LOCALHOST, standby.port)
        taken.proxy.heal()
        await place.says("the database takes no changes", "standby")
        await is_told_to_wait(place.trigger(), "the database takes no changes", "standby")
        assert (await place.get_job()).name
        standby.promote()
        await place.goes_on()
        await place.is_ready()
        await place.trigger()
        await place.is_whole()
        taken.proxy.cut()


async def test_connections_to_a_server_that_takes_no_changes_are_given_up_for_the_one_that_does(
    taken: Taken, place: Place
) -> None:
    """Nobody cuts them: the address leads to another server while the old one lets them stay."""
    taken.proxy.cut()
    with Standby.copied(taken.server) as standby:
        taken.proxy.target = (LOCALHOST, standby.port)
        taken.proxy.heal()
        await place.says("the database takes no changes")
        await asyncio.to_thread(taken.server.start)
        taken.proxy.target = (LOCALHOST, taken.server.port)
        await place.goes_on()
        await place.is_ready()
        await place.trigger()
        await eventually(standby.is_left_alone)
        await place.is_whole()


@contextmanager
def read_only(admin: psycopg.Connection[Any]) -> Iterator[None]:
    """The server as a whole, for as long as this lasts."""
    admin.execute("alter system set default_transaction_read_only = on")
    admin.execute("select pg_reload_conf()")
    try:
        yield
    finally:
        admin.execute("alter system set default_transaction_read_only = off")
        admin.execute("select pg_reload_conf()")


async def test_a_primary_that_was_made_read_only_and_writable_again(taken: Taken, place: Place) -> None:
    with psycopg.connect(taken.admin_url(), autocommit=True) as admin, read_only(admin):
        # Sessions read the setting each when it suits them: until then calls go through.
        await is_told_to_wait(eventually(place.trigger, lambda _: False), "the database takes no changes")
        await place.says("the database takes no changes", "read-only")
    await place.goes_on()
    await place.is_ready()
    await place.is_whole()


@pytest.mark.parametrize(
    ("sqlstate", "sentence"),
    [
        ("57P03", "the database system is starting up"),
        ("57P03", "the database system is not yet accepting connections"),
        ("53300", "sorry, too many clients already"),
    ],
    ids=["starting", "recovering", "full"],
)
async def test_a_server_that_lets_nobody_in_is_asked_again(
    taken: Taken, place: Place, sqlstate: str, sentence: str
) -> None:
    taken.proxy.cut()
    async with Refusing(sqlstate, sentence) as refusing:
        taken.proxy.target = (LOCALHOST, refusing.port)
        taken.proxy.heal()
        await is_told_to_wait(place.trigger(), "the database cannot be reached")
        await place.says("the database cannot be reached", sentence)
    taken.proxy.target = (LOCALHOST, taken.server.port)
    await place.goes_on()
    await place.is_ready()
    await place.is_whole()
