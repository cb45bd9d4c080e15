"""A good history on which one thing is to be spoilt: what there is to choose from, and the history with a change."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from random import Random
from typing import Any, TypeVar
from uuid import UUID

from tests.faults.case import Allowances, Case, Kind, is_owed
from tests.faults.evidence import Effect, Evidence, Fault, Record
from tests.faults.outcomes import result_of

Thing = TypeVar("Thing")
Apply = TypeVar("Apply", bound="Callable[[Bench], Evidence]")
SECOND = timedelta(seconds=1)


class Mutations(dict[str, tuple[Kind, Callable[["Bench"], Evidence]]]):
    """What can be wrong with a history, by name: what the checker must call it, and how it is done."""

    def of(self, kind: Kind) -> Callable[[Apply], Apply]:
        """Makes a function one of them, under its name."""

        def register(apply: Apply) -> Apply:
            self[apply.__name__.removeprefix("_")] = kind, apply
            return apply

        return register


@dataclass
class Bench:
    """A good history, and a choice of what to spoil in it."""

    good: Evidence
    random: Random

    def __post_init__(self) -> None:
        self.case = Case(self.good, Allowances())
        self.calls = {run: call for call in self.good.calls if call.answer == "ok" for run in call.runs}

    def one(self, things: Sequence[Thing]) -> Thing:
        assert things, "the history has nothing of the kind that is to be spoilt"
        return self.random.choice(things)

    def owed(self) -> Record:
        """A completed run of an occurrence that no overlap may skip."""
        may_skip = {(each.job, each.tenant) for each in self.good.occurrences if each.overlap_may_skip}
        return self.one([each for each in self.done() if is_owed(each) and (each.job, each.tenant) not in may_skip])

    def done(self) -> list[Record]:
        return [each for each in self.good.records if each.state == "COMPLETED"]

    def asked_for(self, state: str) -> Record:
        """A run of a call that was answered."""
        runs = [each for each in self.good.records if each.run_id in self.calls and each.state == state]
        return self.one([each for each in runs if each.cancel_requested_at is None or state == "CANCELLED"])

    def effect(self, run: Record) -> Effect:
        """The one that counted."""
        return next(each for each in self.case.effects[run.run_id] if result_of(each) == run.result)

    def at_peace(self) -> tuple[Record, Effect]:
        """A completed run with one effect, and no fault near it or in what follows."""
        return self.one([(run, effect) for run, effect in self._done_at_once() if not self._is_near_a_fault(run)])

    def beside(self, is_one: Callable[[Fault, Effect], bool]) -> tuple[Record, Effect]:
        """A completed run with one effect that no fault touched, though such a one was near."""
        faults = self.good.faults
        return self.one(
            [(run, done) for run, done in self._done_at_once() if any(is_one(each, done) for each in faults)]
        )

    def _done_at_once(self) -> Iterator[tuple[Record, Effect]]:
        """Completed runs with one effect that no fault touched."""
        for run in self.done():
            first, *more = self.case.effects[run.run_id]
            if not more and run.attempt == 1 and not self.case.touched(replace(first, ended=first.began + 6 * SECOND)):
                yield run, first

    def _is_near_a_fault(self, run: Record) -> bool:
        return self.case.broken.overlap(run.created_at, run.finished_at + 6 * SECOND)

    def retried(self) -> tuple[Record, Effect]:
        """A run, and an effect of it that said that it failed and was followed by another, with no fault near."""
        found = []
        for effect in self.good.effects:
            others = self.case.effects[effect.run_id]
            following = min((each.began for each in others if each.attempt > effect.attempt), default=None)
            if effect.outcome == "FAILED" and following is not None:
                longer = replace(effect, ended=following + SECOND)
                found += [] if self.case.touched(longer) else [(self.case.records[effect.run_id], effect)]
        return self.one(found)

    def with_record(self, run: Record, **changes: Any) -> Evidence:
        return self.with_evidence(records=replaced(self.good.records, run, replace(run, **changes)))

    def with_effect(self, effect: Effect, **changes: Any) -> Evidence:
        return self.with_evidence(effects=replaced(self.good.effects, effect, replace(effect, **changes)))

    def with_evidence(self, **changes: Any) -> Evidence:
        return replace(self.good, **changes)

    def without(self, run: Record, *, record: bool = True, effects: bool = True) -> Evidence:
        return self.with_evidence(
            records=[each for each in self.good.records if not record or each.run_id != run.run_id],
            effects=[each for each in self.good.effects if not effects or each.run_id != run.run_id],
            attempts=[each for each in self.good.attempts if not (record and effects) or each.run_id != run.run_id],
        )

    def uuid(self) -> UUID:
        return UUID(int=self.random.getrandbits(128), version=4)


def replaced(things: Sequence[Thing], old: Thing, new: Thing) -> list[Thing]:
    return [new if each is old else each for each in things]


def later(effect: Effect, attempt: int) -> Effect:
    """Another one of its run, after it has ended."""
    assert effect.ended is not None
    return replace(effect, attempt=attempt, began=effect.ended + SECOND, ended=effect.ended + 2 * SECOND, pid=1)
