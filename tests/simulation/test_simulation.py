"""A month of the simulated year, and that its judge sees what is wrong."""

from __future__ import annotations

from datetime import UTC, datetime

import psycopg

from tests.builders import rewriting_records
from tests.conftest import DatabaseUrls
from tests.simulation.ledger import judge_ledger
from tests.simulation.owed import everything_owed
from tests.simulation.plan import DAY
from tests.simulation.simulation import Simulation, Size
from tests.simulation.verdict import judge

THIS_MONTH = datetime.now(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)


async def test_a_month_of_changes_pauses_and_outages_accounts_for_every_occurrence(database_urls: DatabaseUrls) -> None:
    said: list[str] = []
    # Whatever the month's days are like, an outage leaves time for others.
    size = Size(30, days=30, start=THIS_MONTH, seed=7, zones=6, changes=60, outages=60, longest_outage=4 * DAY)
    simulation = Simulation(database_urls, size, said.append)
    await simulation.run()
    owed = everything_owed(simulation.diary, size.start, simulation.now)
    with psycopg.connect(database_urls.admin, autocommit=True) as admin:
        verdict = judge(admin, simulation.diary, owed)
    await judge_ledger(database_urls, owed, size.start, simulation.now, verdict)
    assert simulation.problems + verdict.wrong == []
    assert verdict.occurrences > 300
    assert {"COMPLETED", "SKIPPED", "MISSED"} <= verdict.outcomes.keys()
    assert all(simulation.diary.counts[kind] > 2 for kind in ("edits", "pauses", "outages"))


# A run by hand is owed by nobody, and missed by nobody.
_ONE = "(select run_id from carillon.runs where trigger in ('SCHEDULE', 'CATCH_UP') order by run_id limit 1)"
_TAMPERED = {
    "missing": f"delete from carillon.runs where run_id = {_ONE}",
    "twice": f"""
insert into carillon.gaps (schedule_id, first_at, last_at, occurrences, reason, revision, recorded_at)
select schedule_id, scheduled_for, scheduled_for, 1, 'CATCH_UP_NONE', revision, created_at + interval '2 minutes'
from carillon.runs where run_id = {_ONE}""",
    "unowed": f"""
update carillon.runs set scheduled_for = scheduled_for + interval '1 second'
where run_id = {_ONE}""",
    "early": f"""
update carillon.runs set created_at = scheduled_for - interval '1 second'
where run_id = {_ONE}""",
    "skipped": "update carillon.runs set state = 'SKIPPED' where state = 'COMPLETED'",
    "other revision": "update carillon.schedule_revisions set cron = '7 7 7 7 *'",
    "missed": "update carillon.gaps set recorded_at = last_at + interval '59 seconds'",
    "trigger": "update carillon.runs set trigger = 'CATCH_UP' where trigger = 'SCHEDULE'",
}


async def test_the_judge_sees_what_is_wrong(database_urls: DatabaseUrls) -> None:
    size = Size(schedules=8, days=4, start=THIS_MONTH, seed=7, zones=2, changes=100, outages=300)
    simulation = Simulation(database_urls, size, lambda _: None)
    await simulation.run()
    owed = everything_owed(simulation.diary, size.start, simulation.now)
    with psycopg.connect(database_urls.admin, autocommit=True) as admin:
        verdict = judge(admin, simulation.diary, owed)
        assert verdict.wrong == []
        for kind, tamper in _TAMPERED.items():
            with admin.transaction(force_rollback=True), rewriting_records(admin):
                assert admin.execute(tamper.encode()).rowcount > 0, kind
                assert judge(admin, simulation.diary, owed).counts[kind] > 0, kind
        with rewriting_records(admin):
            assert admin.execute("delete from carillon.gaps").rowcount > 0
    await judge_ledger(database_urls, owed, size.start, simulation.now, verdict)
    assert verdict.counts["ledger"] > 0
