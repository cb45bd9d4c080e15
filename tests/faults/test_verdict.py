"""The soak's judge is worth something only if it sees what is wrong."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest

from scheduler_service.domain.run import RunState
from tests import builders
from tests.conftest import DatabaseUrls
from tests.faults.verdict import judge

SECOND = timedelta(seconds=1)
RESUMED = builders.now().replace(microsecond=500_000) - 10 * SECOND
FIRST = RESUMED.replace(microsecond=0) + SECOND


class Case:
    """One schedule that owed three occurrences, each a completed run whose effect `worker-1` wrote."""

    def __init__(self, admin: psycopg.Connection[Any], folder: Path) -> None:
        self.admin = admin
        self.job = builders.make_job(admin, owed_from=RESUMED, paused_at=FIRST + 2.5 * SECOND)
        self.schedule = builders.make_schedule(admin, self.job, tenant="tenant-1")
        self.effects = {name: folder / name for name in ("worker-1", "worker-2")}
        for number in range(3):
            self.do("worker-1", self.record(number))

    def record(self, number: int, state: RunState = RunState.COMPLETED) -> str:
        instant = FIRST + number * SECOND
        columns = {"schedule_id": self.schedule, "revision": 1, "scheduled_for": instant, "trigger": "SCHEDULE"}
        return str(builders.make_ended_run(self.admin, self.job, state, tenant="tenant-1", at=instant, **columns))

    def do(self, worker: str, run: str) -> None:
        with self.effects[worker].open("a") as file:
            file.write(f"{run} 1\n")

    def last_done(self) -> str:
        return self.effects["worker-1"].read_text().split()[-2]


@pytest.fixture
def case(database_urls: DatabaseUrls, tmp_path: Path) -> Iterator[Case]:
    with builders.connect(database_urls.admin) as admin:
        yield Case(admin, tmp_path)


def test_one_completed_run_with_one_effect_for_each_occurrence_passes(case: Case) -> None:
    verdict = judge(case.admin, case.effects)
    assert verdict.passes
    assert verdict.line(3).startswith("soak: schedules=1 seconds=3 occurrences=3 runs=3 completed=3 missing=0 twice=0")


def test_an_occurrence_without_a_run_is_seen(case: Case) -> None:
    case.admin.execute("update carillon.jobs set paused_at = paused_at + interval '2 seconds'")
    verdict = judge(case.admin, case.effects)
    assert (verdict.records.missing, verdict.passes) == (2, False)


def test_a_second_run_of_an_occurrence_is_seen(case: Case) -> None:
    case.do("worker-1", case.record(1))
    verdict = judge(case.admin, case.effects)
    assert (verdict.records.twice, verdict.passes) == (1, False)


def test_a_run_that_was_not_owed_is_seen(case: Case) -> None:
    case.do("worker-1", case.record(7))
    verdict = judge(case.admin, case.effects)
    assert (verdict.records.surplus, verdict.passes) == (1, False)


def test_a_run_that_failed_or_still_lives_is_seen(case: Case) -> None:
    case.admin.execute("update carillon.jobs set paused_at = paused_at + interval '1 second'")
    case.record(3, RunState.FAILED)
    builders.make_live_run(case.admin, case.job)
    verdict = judge(case.admin, case.effects)
    assert (verdict.records.completed, verdict.records.live, verdict.passes) == (3, 1, False)


def test_an_effect_without_a_run_and_a_run_without_an_effect_are_seen(case: Case) -> None:
    case.effects["worker-1"].write_text("0190f0f0-0000-7000-8000-000000000000 1\n")
    verdict = judge(case.admin, case.effects)
    assert (verdict.effects.without_run, verdict.effects.runs_without, verdict.passes) == (1, 3, False)


def test_a_repeated_effect_is_explained_only_by_the_kill(case: Case) -> None:
    case.do("worker-2", case.last_done())
    assert not judge(case.admin, case.effects).passes
    assert judge(case.admin, case.effects, killed=["worker-1"]).passes
    case.do("worker-2", case.last_done())
    assert judge(case.admin, case.effects, killed=["worker-1"]).effects.unexplained_repeats == 1


def test_a_line_that_was_cut_off_by_the_kill_is_no_effect(case: Case) -> None:
    file = case.effects["worker-1"]
    file.write_text(file.read_text()[:-3])
    assert judge(case.admin, case.effects).effects.runs_without == 1
