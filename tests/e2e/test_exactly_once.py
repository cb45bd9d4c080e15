"""The soak in small: what `make soak` shows in a minute, in seconds."""

from __future__ import annotations

from pathlib import Path

from tests.conftest import DatabaseUrls
from tests.faults.soak import Plan, Soak

PLAN = Plan(schedules=200, seconds=8, kill=True, lease_seconds=8, heartbeat_seconds=0.5)


async def test_each_occurrence_is_one_completed_run_though_a_worker_and_a_scheduler_are_killed(
    database_urls: DatabaseUrls, tmp_path: Path
) -> None:
    progress: list[str] = []
    verdict = await Soak(tmp_path, database_urls, PLAN, progress.append).run()
    assert verdict.passes, "\n".join([*progress, verdict.details(), verdict.line(PLAN.seconds)])
    assert verdict.records.schedules == PLAN.schedules
    assert verdict.records.occurrences >= PLAN.schedules * (PLAN.seconds - 1)
    assert verdict.effects.repeats > 0, "the kill hit no run between its effect and its result"
