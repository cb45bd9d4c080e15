"""The state machine itself: its steps, when it looks at what must hold, and how it ends."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Coroutine, Sequence
from datetime import datetime, timedelta
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from scheduler_service.domain.attempt import AttemptOutcome
from scheduler_service.domain.job import Policies
from scheduler_service.domain.names import JobName
from scheduler_service.domain.timing import CatchUp
from tests.store.model_fleet import Fleet, some_of
from tests.store.model_invariants import Kept, check, live_runs
from tests.store.model_ledger import Ledger
from tests.store.model_operator import TENANTS, Operator
from tests.store.model_remedies import Remedies
from tests.store.model_steps import (
    ANYTHING,
    BITS,
    CATCH_UP,
    CREDIT,
    DECLARED,
    FEW,
    JOB,
    OUTCOME,
    PICK,
    POLICIES,
    START,
    TIMING,
    happens,
)
from tests.store.model_worker import Referee, Worker
from tests.store.model_world import SECOND, Replica, World

LOOK_EACH, JUDGE_EACH = 5, 30
MINUTE = timedelta(minutes=1)
DRAINS = 40  # in which no run ends: more than any delay and timeout takes


class Machine(RuleBasedStateMachine):
    """Steps act only where there is something to act on; `did` counts those that did."""

    world: World
    did: Counter[str]

    def __init__(self) -> None:
        super().__init__()
        self.world.begin()
        self.operator = Operator(self.world)
        self.fleet = Fleet(self.world, Referee(self.world))
        self.remedies = Remedies(self.world, self.operator)
        self.ledger = Ledger(self.world, self.operator.history)
        self.kept: Kept = {}
        self.steps = 0

    def do(self, doing: Coroutine[Any, Any, object]) -> None:
        """A step. It counts unless it answers False: there was nothing to do it with."""
        if self.world.run(doing) is not False:
            self.did[sys._getframe(1).f_code.co_name] += 1

    @initialize(start=START, declared=DECLARED, credit=CREDIT)
    def register(self, start: datetime, declared: Sequence[tuple[Policies, str]], credit: int) -> None:
        self.world.begin_at(start)
        self.do(self.operator.register_first(declared))
        for replica in self.world.replicas:
            self.do(self.fleet.begin(replica, credit))

    @happens(10, who=PICK, limit=st.sampled_from((1, 3, 500)), sends=st.sampled_from((True, True, True, False)))
    def tick(self, who: int, limit: int, sends: bool) -> None:
        """Not `sends`: the replica forgets what it has just put into workers' hands."""
        self.do(self.fleet.tick(self._replica(who), limit=limit, sends=sends))

    @happens(4, seconds=st.sampled_from((1, 2, 7, 29, 31)))
    def wait_in_silence(self, seconds: int) -> None:
        """Nobody's lease is extended."""
        self.do(self._wait(seconds * SECOND, []))

    @happens(20, minutes=st.sampled_from((2, 0.5, 1, 6, 11, 40, 130)), silent=FEW, forgotten=FEW)
    def wait(self, minutes: float, silent: int, forgotten: int) -> None:
        """Some workers keep their leases; of these, some have never got what they were handed."""
        self.do(self._wait(minutes * MINUTE, some_of(self.fleet.workers, ~silent), forgotten))

    async def _wait(self, time: timedelta, heard_of: Sequence[Worker], forgotten: int = 0) -> None:
        self.world.pass_time(time)
        await self.fleet.beat(heard_of, forgotten)

    @happens(3, forgotten=FEW)
    def beat(self, forgotten: int) -> None:
        self.do(self.fleet.beat(self.fleet.workers, forgotten))

    @happens(4)
    def tick_both(self) -> None:
        self.do(self.world.both(self.world.tick))

    @happens(8, who=PICK)
    def dispatch(self, who: int) -> None:
        self.do(self.fleet.dispatch(self._replica(who)))

    @happens(5)
    def dispatch_both(self) -> None:
        self.do(self.world.both(self.fleet.dispatch))

    @happens(4, who=PICK)
    def reap(self, who: int) -> None:
        self.do(self.fleet.reap(self._replica(who)))

    @happens(4)
    def reap_both(self) -> None:
        self.do(self.world.both(self.fleet.reap))

    @happens(3, who=PICK)
    def tick_while_the_other_reaps(self, who: int) -> None:
        self.do(self.world.at_once(self.world.tick(self._replica(who)), self.fleet.reap(self._replica(who + 1))))

    @happens(5, who=PICK, credit=CREDIT)
    def begin_session(self, who: int, credit: int) -> None:
        self.do(self.fleet.begin(self._replica(who), credit))

    @happens(3, pick=PICK, who=PICK, credit=CREDIT)
    def reconnect(self, pick: int, who: int, credit: int) -> None:
        self.do(self.fleet.reconnect(pick, self._replica(who), credit))

    @happens(2, pick=PICK)
    def cut_off(self, pick: int) -> None:
        self.do(self.fleet.cut_off(pick))

    @happens(2, pick=PICK)
    def say_goodbye(self, pick: int) -> None:
        self.do(self.fleet.leave(pick))

    @happens(6, pick=PICK, credit=CREDIT)
    def grant(self, pick: int, credit: int) -> None:
        self.do(self.fleet.grant(pick, credit))

    @happens(8, pick=PICK, bits=BITS)
    def start(self, pick: int, bits: int) -> None:
        self.do(self.fleet.start(pick, bits))

    @happens(3, pick=PICK, done=st.integers(0, 10))
    def progress(self, pick: int, done: int) -> None:
        self.do(self.fleet.progress(pick, done))

    @happens(16, pick=PICK, bits=BITS, outcome=OUTCOME, twice=st.booleans(), items=st.integers(0, 3))
    def finish(self, pick: int, bits: int, outcome: AttemptOutcome, twice: bool, items: int) -> None:
        self.do(self.fleet.finish(pick, bits, outcome, twice=twice, items=items))

    @happens(5, pick=PICK, which=PICK, altered=st.booleans())
    def repeat(self, pick: int, which: int, altered: bool) -> None:
        self.do(self.fleet.repeat(pick, which, altered=altered))

    @happens(5, pick=PICK, which=PICK, outcome=OUTCOME)
    def report_late(self, pick: int, which: int, outcome: AttemptOutcome) -> None:
        self.do(self.fleet.report_late(pick, which, outcome))

    @happens(4, pick=PICK, which=PICK, forged=st.booleans())
    def report_anothers(self, pick: int, which: int, forged: bool) -> None:
        self.do(self.fleet.report_anothers(pick, which, forged=forged))

    @happens(2, job=JOB, altered=POLICIES)
    def alter_policies(self, job: JobName, altered: Policies) -> None:
        self.do(self.operator.alter_policies(job, altered))

    @happens(2, job=JOB, timing=TIMING)
    def alter_timing(self, job: JobName, timing: str) -> None:
        self.do(self.operator.alter_timing(job, timing))

    @happens(1, job=JOB, policy=CATCH_UP)
    def hold_job(self, job: JobName, policy: CatchUp) -> None:
        self.do(self.operator.hold_job(job, policy))

    @happens(1, job=JOB)
    def archive_job(self, job: JobName) -> None:
        self.do(self.operator.archive(job))

    @happens(3, pick=PICK, timing=TIMING)
    def declare_again(self, pick: int, timing: str) -> None:
        self.do(self.operator.declare_again(pick, timing))

    @happens(2, job=JOB, tenant=st.sampled_from(TENANTS), timing=TIMING)
    def put_schedule(self, job: JobName, tenant: str, timing: str) -> None:
        self.do(self.operator.put_schedule(job, tenant, timing))

    @happens(2, pick=PICK, policy=CATCH_UP)
    def hold_schedule(self, pick: int, policy: CatchUp) -> None:
        self.do(self.operator.hold_schedule(pick, policy))

    @happens(1, pick=PICK)
    def switch_schedule(self, pick: int) -> None:
        self.do(self.operator.switch(pick))

    @happens(1, pick=PICK)
    def delete_schedule(self, pick: int) -> None:
        self.do(self.operator.delete(pick))

    @happens(2, pick=PICK)
    def run_schedule(self, pick: int) -> None:
        self.do(self.operator.run_now(pick))

    @happens(
        4, job=JOB, tenants=st.sampled_from(((), TENANTS[:1], TENANTS)), key=st.sampled_from(("", "", "key-1", "key-2"))
    )
    def trigger(self, job: JobName, tenants: tuple[str, ...], key: str) -> None:
        self.do(self.operator.trigger(job, tenants, key))

    @happens(5, pick=PICK, ended=st.booleans())
    def cancel(self, pick: int, ended: bool) -> None:
        self.do(self.operator.cancel(pick, ended=ended))

    @happens(5, pick=PICK, key=st.sampled_from(("", "", "", "key-1", "key-2")), completed=FEW)
    def retry_run(self, pick: int, key: str, completed: int) -> None:
        self.do(self.remedies.retry(pick, key, also_completed=completed > 0))

    @happens(
        2,
        job=JOB,
        tenant=st.sampled_from(("-", *TENANTS, "*")),
        ago=st.sampled_from((0, 0, 7, 60, 200)),
        length=st.sampled_from((4, 12, 30)),
        counted_first=st.sampled_from((False, False, True)),
    )
    def backfill_job(self, job: JobName, tenant: str, ago: int, length: int, counted_first: bool) -> None:
        doing = self.remedies.backfill(job, tenant, ago * MINUTE, length * MINUTE, counted_first=counted_first)
        self.do(doing)

    @rule(chosen=ANYTHING)
    def then(self, chosen: tuple[str, dict[str, Any]]) -> None:
        name, drawn = chosen
        getattr(self, name)(**drawn)

    @invariant()
    def what_must_hold_holds(self) -> None:
        self.steps += 1
        if self.steps % LOOK_EACH == 0:
            check(self.world.admin, self.kept)
        if self.steps % JUDGE_EACH == 0:
            self.ledger.check()
            self.remedies.check()

    def teardown(self) -> None:
        if sys.exception() is None and self.operator.registered:
            self.world.run(self._heal_and_drain())

    async def _heal_and_drain(self) -> None:
        """Nobody is heard of again but one worker; every job is paused, which settles what is owed. Then nothing stays
        live beyond its delays and timeouts."""
        await self.operator.pause_all()
        live, drains = live_runs(self.world.admin), 0
        while live and drains < DRAINS:
            self.world.pass_time(11 * MINUTE)
            await self.world.both(self.fleet.reap)
            await self.fleet.finish_all()
            left = live_runs(self.world.admin)
            live, drains = left, drains + 1 if len(left) == len(live) else 0
        assert not live, f"L4: these stay live: {live}"
        check(self.world.admin, self.kept)
        self.remedies.check()
        self.did["occurrences"] += await self.ledger.check_all()
        self.did["retried"] += self.remedies.retried
        self.did["filled"] += self.remedies.filled
        self.did["alone"] += len(self.fleet.alone)

    def _replica(self, who: int) -> Replica:
        return self.world.replicas[who % len(self.world.replicas)]
