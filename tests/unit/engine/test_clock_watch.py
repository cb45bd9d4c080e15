"""Whether a lease is over is the database's clock to say, unless it jumped just now."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from structlog.testing import capture_logs

from scheduler_service.engine.clock_watch import CLOCK_TOLERANCE, LONGEST_SUSPENSION, ClockWatch

LEASE = 30.0
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


class Clocks:
    """A watch, asked each second by both clocks. `database` and `here` are how far each has come."""

    def __init__(self) -> None:
        self.watch = ClockWatch(LEASE)
        self.database = self.here = 0.0

    def pass_(self, seconds: float, *, database: float | None = None) -> bool:
        """Time passes, here and (unless it says otherwise) there. Answers whether the watch trusts."""
        self.here += seconds
        self.database += seconds if database is None else database
        return self.watch.trusts(NOON + timedelta(seconds=self.database), self.here)


@pytest.fixture
def clocks() -> Clocks:
    clocks = Clocks()
    assert clocks.pass_(0)
    assert clocks.pass_(1)
    return clocks


def test_a_replica_that_was_stopped_goes_on_at_once(clocks: Clocks) -> None:
    """SIGSTOP and SIGCONT: both clocks went on, and what is over is over."""
    assert clocks.pass_(300)
    assert clocks.pass_(1)


@pytest.mark.parametrize("jump", [3600.0, -3600.0, CLOCK_TOLERANCE + 0.1])
def test_after_a_jump_nothing_is_reaped_for_one_lease(clocks: Clocks, jump: float) -> None:
    """Also a machine that was suspended: its monotonic clock stood, and the database's did not."""
    assert not clocks.pass_(1, database=1 + jump)
    trusted = [clocks.pass_(1) for _ in range(35)]
    assert trusted == [False] * 29 + [True] * 6


def test_a_stop_between_the_two_looks_at_the_clocks_costs_a_lease_and_no_more(clocks: Clocks) -> None:
    assert not clocks.pass_(60, database=0)
    assert not clocks.pass_(1, database=61)
    assert not clocks.pass_(29)
    assert clocks.pass_(1)


def test_small_differences_are_no_jump(clocks: Clocks) -> None:
    assert all(clocks.pass_(1, database=1 + offset) for offset in (1.9, -1.9, 0.5, 1.9))


@pytest.mark.parametrize("each", [1, 10, 29])
def test_a_clock_that_keeps_jumping_does_not_suspend_reaping_for_ever(clocks: Clocks, each: int) -> None:
    trusted_at = []
    with capture_logs() as logs:
        for second in range(1, 300):
            if clocks.pass_(1, database=1 + (5.0 if second % each == 0 else 0.0)):
                trusted_at.append(second)
    suspended = [later - earlier - 1 for earlier, later in pairwise(trusted_at)]
    assert len(trusted_at) >= 2
    assert max(suspended) <= LONGEST_SUSPENSION * LEASE
    assert [line["log_level"] for line in logs][:2] == ["warning", "error"]


def test_it_is_said_once_for_each_suspension(clocks: Clocks) -> None:
    with capture_logs() as logs:
        for _ in range(10):
            clocks.pass_(1, database=100)
        for _ in range(40):
            clocks.pass_(1)
        clocks.pass_(1, database=100)
    assert [line["log_level"] for line in logs] == ["warning", "warning"]


def test_one_that_starts_trusts_once_it_has_watched_for_a_while() -> None:
    """The clock may have jumped just before its first look."""
    clocks = Clocks()
    clocks.watch = ClockWatch(LEASE, settle=10.0)
    assert [clocks.pass_(1) for _ in range(12)] == [False] * 10 + [True] * 2


def test_a_jump_while_one_starts_costs_a_lease_nevertheless() -> None:
    clocks = Clocks()
    clocks.watch = ClockWatch(LEASE, settle=10.0)
    clocks.pass_(1)
    assert not clocks.pass_(1, database=100)
    assert [clocks.pass_(1) for _ in range(31)] == [False] * 29 + [True] * 2
