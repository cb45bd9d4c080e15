"""The parts of a fault run that could make it see nothing, or something else than what happened."""

from __future__ import annotations

import asyncio
import socket
import struct
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any
from uuid import UUID

import psycopg
import pytest

from scheduler_service.store.claim import claim
from scheduler_service.store.database import Database
from tests import builders
from tests.conftest import DatabaseUrls
from tests.faults.effects import EffectFile, read_effects
from tests.faults.failing_scheduler import FailingStore
from tests.faults.journal import Journal
from tests.faults.logs import unforeseen
from tests.faults.nemesis import BREAKS
from tests.faults.plan import SCHEDULES, STEADY
from tests.faults.proxy import FaultProxy
from tests.faults.schedules import occurrences
from tests.faults.stopping_scheduler import MOMENTS, Moment, StoppingStore

RUN = UUID(int=7)
NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)


def test_an_effect_without_its_end_line_has_no_end_and_a_torn_line_is_none(tmp_path: Path) -> None:
    file = EffectFile(tmp_path, "worker-1")
    before = datetime.now(UTC)
    done = file.begin(RUN, 1, STEADY.path, "tenant-a", "m", NOON)
    file.end(done, "COMPLETED")
    file.begin(RUN, 2, STEADY.path, "tenant-a", "m", NOON)
    with next(tmp_path.iterdir()).open("a") as torn:
        torn.write('{"number": 3, "run": ')
    first, second = read_effects(tmp_path)
    assert (first.attempt, first.outcome, second.attempt, second.ended) == (1, "COMPLETED", 2, None)
    assert first.ended is not None
    assert before - timedelta(seconds=1) < first.began <= first.ended < datetime.now(UTC) + timedelta(seconds=1)


def test_the_plan_owes_each_whole_multiple_after_the_resume_and_up_to_the_pause() -> None:
    since = {owing.job.path: NOON for owing in SCHEDULES}
    until = {job: NOON + timedelta(seconds=10.5) for job in since}
    owed = list(occurrences(since, until))
    for owing in SCHEDULES:
        instants = [each.instant for each in owed if (each.job, each.tenant) == (owing.job.path, owing.tenant)]
        assert instants == [NOON + timedelta(seconds=at) for at in range(owing.seconds, 11, owing.seconds)]


def test_a_fault_is_noted_though_what_it_broke_is_never_whole_again() -> None:
    journal = Journal()

    def never_whole() -> None:
        with journal.fault("kind", "worker-1", kill=True):
            assert journal.open[0].startswith("kind worker-1")
            raise TimeoutError

    with pytest.raises(TimeoutError):
        never_whole()
    with journal.fault("to be a deadlock", "postgres", cuts_nothing=True) as fault:
        fault.kind = "deadlock"
    assert [(each.kind, each.kill, each.touches) for each in journal.faults] == [
        ("kind", True, frozenset({"worker-1"})),
        ("deadlock", False, frozenset()),
    ]
    assert journal.open == []


def test_every_kind_of_break_is_named_once() -> None:
    kinds = [kind for each in BREAKS for kind in each.kinds]
    assert len(set(kinds)) == len(kinds) > 50


async def test_a_connection_that_its_server_resets_ends_for_the_client_too() -> None:
    async def reset(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()

    server = await asyncio.start_server(reset, "127.0.0.1", 0)
    with FaultProxy(("127.0.0.1", server.sockets[0].getsockname()[1])) as proxy:
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(reader.read(), 10)
        writer.close()
        assert proxy.connections == 0
    server.close()


@pytest.mark.parametrize("done", [False, True], ids=["before", "after"])
async def test_a_store_call_fails_before_it_is_sent_or_after_it_is_committed(
    database: Database, database_urls: DatabaseUrls, done: bool
) -> None:
    connection = await database.hot_connection()
    cursor = connection.cursor()
    execute = FailingStore(_Drawn([0.0, 1.0] if not done else [1.0, 0.0]), 0.5).wrap(psycopg.AsyncCursor.execute)
    with pytest.raises(psycopg.OperationalError, match="carried out" if done else "not sent"):
        await execute(cursor, "insert into carillon.pulses values ('replica', 'loop', now())")
    assert connection.closed
    with psycopg.connect(database_urls.admin) as admin:
        assert admin.execute("select count(*) from carillon.pulses").fetchone() == (int(done),)


@pytest.mark.parametrize("committed", [False, True], ids=["before", "after"])
async def test_a_scheduler_stops_itself_before_or_after_the_commit_and_only_once(
    database: Database, database_urls: DatabaseUrls, monkeypatch: pytest.MonkeyPatch, committed: bool
) -> None:
    seen: list[tuple[Any, ...] | None] = []

    def stop() -> None:
        with psycopg.connect(database_urls.admin) as admin:
            seen.append(admin.execute("select count(*) from carillon.pulses").fetchone())

    armed = False
    store = StoppingStore(Moment("insert into carillon.pulses", committed), lambda: armed, stop)
    for owner, name in ((psycopg.AsyncCursor, "execute"), (psycopg.AsyncTransaction, "__aexit__")):
        monkeypatch.setattr(owner, name, store.wrap(getattr(owner, name)))
    async with await database.hot_connection() as connection:
        for loop in ("not armed", "first", "second"):
            async with connection.transaction():
                await connection.execute("select 1")
                await connection.execute("insert into carillon.pulses values ('replica', %s, now())", [loop])
            armed = True
    assert seen == [(1 + committed,)]


async def test_a_scheduler_stops_with_a_claim_and_not_where_there_was_none(
    database: Database, database_urls: DatabaseUrls, monkeypatch: pytest.MonkeyPatch
) -> None:
    stops: list[int] = []
    store = StoppingStore(MOMENTS["claimed"], lambda: True, lambda: stops.append(1))
    monkeypatch.setattr(psycopg.AsyncCursor, "execute", store.wrap(psycopg.AsyncCursor.execute))
    async with await database.hot_connection() as connection:
        with builders.connect(database_urls.admin) as admin:
            session, job = builders.make_session(admin), builders.make_job(admin)
            nothing = await claim(connection, session, ["http"], 9)
            assert nothing is not None
            assert (len(nothing.runs), stops) == (0, [])
            builders.make_live_run(admin, job)
            found = await claim(connection, session, ["http"], 9)
    assert found is not None
    assert (len(found.runs), stops) == (1, [1])


def test_what_has_a_traceback_in_a_log_is_unforeseen_and_what_says_that_the_database_is_away_is_not(
    tmp_path: Path,
) -> None:
    away = '{"event": "the loop failed and tries again", "error": "AdminShutdown: terminating connection"}'
    fault = '{"event": "failed", "exception": [{"exc_type": "KeyError", "exc_value": "7"}]}'
    (tmp_path / "scheduler-1.log").write_text(f"{away}\n{fault}\n{fault}\n")
    (tmp_path / "worker-1.log").write_text("Traceback (most recent call last):\n  File 1\nValueError: no\n")
    assert unforeseen(tmp_path.iterdir()) == [
        "scheduler-1: failed: KeyError: 7 (2 times)",
        "worker-1: ValueError: no (1 times)",
    ]


class _Drawn(Random):
    """Draws what it is told."""

    def __init__(self, numbers: list[float]) -> None:
        super().__init__()
        self._numbers = iter(numbers)

    def random(self) -> float:
        return next(self._numbers)
