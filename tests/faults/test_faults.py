"""A part of `make faults`: what that shows in a quarter of an hour, in about two minutes."""

from __future__ import annotations

from pathlib import Path

from tests.faults.breaking_transactions import NO_DEADLOCK
from tests.faults.checker import Thresholds, judge
from tests.faults.fault_run import FaultRun, site_of_its_own
from tests.faults.nemesis import KINDS
from tests.faults.plan import Plan
from tests.faults.site import ENDED_BY_ITSELF

PLAN = Plan(seconds=60, seed=1, storm=42, calm=16)
ENOUGH = Thresholds(musts=200, overlapped=0.3, kills=12)


async def test_nothing_is_lost_or_twice_though_everything_is_broken(tmp_path: Path) -> None:
    said: list[str] = []
    async with site_of_its_own(tmp_path, PLAN) as site:
        outcome = await FaultRun(site, PLAN, said.append).run()
    judgement = judge(outcome.evidence, ENOUGH)
    story = "\n".join([*said, outcome.table, outcome.figures(), *judgement.reasons, judgement.line()])
    assert judgement.verdict == "pass", story
    assert not outcome.unforeseen, "\n".join(outcome.unforeseen)
    assert {each.kind for each in outcome.evidence.faults} <= KINDS | {NO_DEADLOCK, ENDED_BY_ITSELF}
