"""A schedule that cannot be evaluated is set aside with its reason, stops nobody, and comes back once it is mended."""

from __future__ import annotations

import importlib.resources
from collections.abc import Iterator
from pathlib import Path

import pytest

from scheduler_service.domain.job import JobOverrides
from scheduler_service.domain.ledger import Outcome
from scheduler_service.domain.names import ScheduleParent
from scheduler_service.domain.timing import zones
from scheduler_service.usecases import schedules
from tests.builders import ADMIN
from tests.store.definitions_case import MINUTE, START, Scheduler, digest, every, own
from tests.store.ledger_case import ALLOW_ALL, read


@pytest.fixture
def spoilt_zone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A zone whose rules cannot be read: its file was cut short."""
    name = "Europe/Vaduz"
    file = tmp_path / "zoneinfo" / name
    file.parent.mkdir(parents=True)
    file.write_bytes(b"TZif2")
    zones.zone("UTC")
    with monkeypatch.context() as patched:
        patched.setattr(importlib.resources, "files", lambda _package: tmp_path)
        yield name


SPOILT = {
    "a cron text that is none": ("cron = '* * nonsense'", "it has 3 fields"),
    "no field at all": ("cron = '@every'", "interval"),
    "a date that never comes": ("cron = '0 0 30 2 *'", "day of month"),
    "a zone that has gone": ("cron = '* * * * *', time_zone = 'Mars/Olympus'", "Mars/Olympus"),
    "a zone file that is cut short": ("cron = '* * * * *', time_zone = 'Europe/Vaduz'", "Europe/Vaduz"),
}


@pytest.mark.parametrize(("spoil", "said"), SPOILT.values(), ids=SPOILT)
@pytest.mark.usefixtures("spoilt_zone")
async def test_what_cannot_be_evaluated_is_set_aside_and_comes_back(
    scheduler: Scheduler, spoil: str, said: str
) -> None:
    await scheduler.register(digest(timing=every("10m"), policies=ALLOW_ALL), digest("sound", timing=every("10m")))
    whose = "from carillon.jobs j where j.job_id = s.job_id and j.job = 'weekly-digest'"
    scheduler.admin.execute(f"update carillon.schedules s set {spoil} {whose}".encode())

    await scheduler.tick_until(START + 25 * MINUTE)

    listed, _ = await schedules.list_schedules(scheduler.database, ADMIN, ScheduleParent())
    reasons = {schedule.name.job.job: schedule.set_aside_reason for schedule in listed}
    assert reasons["weekly-digest"]
    assert said in reasons["weekly-digest"]
    assert reasons["sound"] == ""
    made = scheduler.admin.execute(
        "select job, count(*) from carillon.jobs left join (select job_id from carillon.live_runs union all"
        " select job_id from carillon.runs) r using (job_id) where r.job_id is not null group by job"
    ).fetchall()
    assert [job for job, _ in made] == ["sound"]

    await scheduler.override(JobOverrides(timing=every("20m")), "timing")
    await scheduler.tick_until(START + 65 * MINUTE)
    assert (await scheduler.get(own())).set_aside_reason == ""
    entries = await read(scheduler)
    assert entries[0].outcome in (Outcome.MISSED, Outcome.UNACCOUNTED)
    assert entries[-1].outcome is Outcome.PENDING
    assert sum(each.owed.count for each in entries if each.outcome is Outcome.PENDING) == 2
