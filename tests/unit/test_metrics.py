"""What a replica shows Prometheus is what its parts say."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
from prometheus_client import CollectorRegistry

from scheduler_service.engine.leases import Leases
from scheduler_service.engine.pulses import LoopState, Pulses
from scheduler_service.engine.reap import Cancels, Reaped, Reaper
from scheduler_service.engine.sealing import Sealing
from scheduler_service.engine.sessions import Sessions
from scheduler_service.engine.tick import NOTHING
from scheduler_service.loops.engine import Engine
from scheduler_service.loops.reaper import ReaperLoop
from scheduler_service.metrics import ReplicaMetrics
from scheduler_service.store.buffering import KeptOut
from scheduler_service.store.database import Database
from scheduler_service.store.settle import Made
from scheduler_service.usecases.wakeups import Wakeups

NOWHERE = "postgresql://nobody@localhost/nowhere"


class Replica:
    """The parts that are measured, never started."""

    def __init__(self, database: Database) -> None:
        wakeups, sessions = Wakeups(), Sessions(on_credit=lambda: None)
        self.ready = False
        self.engine = Engine(database, sessions, wakeups, "replica")
        leases = Leases(database, sessions, wakeups, replica="replica")
        reaper = Reaper(sessions, leases, wakeups)
        self.reaper = ReaperLoop(database.hot_connection, reaper, Cancels(sessions), wakeups)
        self.registry = CollectorRegistry()
        loops = (*self.engine.loops, self.reaper)
        self.states: list[LoopState] = []
        self.pulses = Pulses("replica", lambda: self.states)
        ReplicaMetrics(sessions, self.engine, self.reaper, loops, lambda: self.ready, Sealing(), self.pulses).register(
            self.registry
        )

    def shows(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(f"carillon_{name}", labels)


@pytest.fixture
async def replica() -> AsyncIterator[Replica]:
    database = Database(NOWHERE, NOWHERE)
    yield Replica(database)
    await database.close()


async def test_readiness_is_asked_at_each_scrape(replica: Replica) -> None:
    assert replica.shows("ready") == 0
    replica.ready = True
    assert replica.shows("ready") == 1


async def test_ends_are_counted_whoever_ended_the_run(replica: Replica) -> None:
    replica.engine.completer.ended.update({"COMPLETED": 7, "FAILED": 2})
    replica.reaper.total += Reaped(sessions=1, freed=4, charged=3, failed=5, cancelled=6)
    replica.engine.ticks.add(replace(NOTHING, schedules=12, made=Made(9, kept_out=KeptOut(skipped=3))))
    ended = {state: replica.shows("runs_ended_total", state=state) for state in ("COMPLETED", "FAILED", "CANCELLED")}
    assert ended == {"COMPLETED": 7, "FAILED": 7, "CANCELLED": 6}
    assert replica.shows("runs_ended_total", state="SKIPPED") == 3
    assert (replica.shows("runs_made_total"), replica.shows("ticks_total")) == (9, 1)
    assert replica.shows("sessions_lost_total") == 1
    reaped = {became: replica.shows("runs_reaped_total", became=became) for became in ("freed", "charged", "failed")}
    assert reaped == {"freed": 4, "charged": 3, "failed": 5}


async def test_the_audit_trail_shows_what_was_set_aside_and_nothing_that_nobody_saw(replica: Replica) -> None:
    assert replica.shows("audit_set_aside") == 0
    assert replica.shows("audit_oldest_unsealed_seconds") is None


async def test_every_loop_has_its_figures_and_outcomes_begin_at_zero(replica: Replica) -> None:
    for loop in (*replica.engine.loops, replica.reaper):
        assert replica.shows("loop_idle_seconds", loop=loop.name) == float("inf")
        assert replica.shows("loop_failures_total", loop=loop.name) == 0
    for state in ("COMPLETED", "FAILED", "CANCELLED", "SKIPPED"):
        assert replica.shows("runs_ended_total", state=state) == 0


async def test_a_backlog_that_nobody_counted_is_not_shown_as_empty(replica: Replica) -> None:
    assert replica.shows("live_runs", state="PENDING") is None
