"""The evidence of a fault run as the checker looks things up in it, and what it has found so far."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cached_property, reduce
from typing import Literal, TypeVar
from uuid import UUID

from tests.faults.evidence import Call, Effect, Evidence, FailedAttempt, Occurrence, Record
from tests.faults.windows import Stretches

Kind = Literal["lost", "twice", "early", "stuck", "unexplained"]
Schedule = tuple[str, str, str]
Key = tuple[str, str, str, datetime]
Each = TypeVar("Each")
By = TypeVar("By")
OF_A_SCHEDULE = frozenset({"SCHEDULE", "CATCH_UP"})


@dataclass(frozen=True, slots=True)
class Allowances:
    """How long what was broken reaches. `recovery`: after a fault's end until all is as before (a lease, 5 s in which
    the reaper frees what a lost session held, and the backoff of who connects again). `report`: how long after an
    effect its result may still be on the way. `handed`: how long before its effect began an attempt may have been on
    its way to the worker. `elsewhere`: after a scheduler is back until each worker has found it. `reading`: between two
    processes that read one clock. `boundary`: how far outside the plan a schedule may have owed, while it was being put
    or paused."""

    recovery: timedelta = timedelta(seconds=15)
    report: timedelta = timedelta(seconds=3)
    handed: timedelta = timedelta(seconds=2)
    elsewhere: timedelta = timedelta(seconds=5)
    reading: timedelta = timedelta(milliseconds=50)
    boundary: timedelta = timedelta(seconds=60)


@dataclass
class Findings:
    """What is wrong: counts, and the first sentences of each kind. `seen` keeps one thing from being counted twice."""

    most_of_a_kind: int = 15
    counts: Counter[Kind] = field(default_factory=Counter)
    sentences: list[str] = field(default_factory=list)
    _seen: set[tuple[Kind, object]] = field(default_factory=set)

    def add(self, kind: Kind, about: object, sentence: str) -> None:
        """`about`: what it is about; of one kind each is counted once."""
        if (kind, about) in self._seen:
            return
        self._seen.add((kind, about))
        self.counts[kind] += 1
        if self.counts[kind] <= self.most_of_a_kind:
            self.sentences.append(f"{kind}: {sentence}")


class Case:
    """Evidence by run, by occurrence and by worker. `found` collects what the rules say of it."""

    def __init__(self, evidence: Evidence, allowances: Allowances) -> None:
        self.evidence = evidence
        self.allow = allowances
        self.grace = timedelta(seconds=evidence.grace)
        self.found = Findings()
        self.live = frozenset(evidence.live)
        self.records: Mapping[UUID, Record] = {each.run_id: each for each in evidence.records}
        self.effects: Mapping[UUID, list[Effect]] = _by(evidence.effects, lambda each: each.run_id)
        self.failed: Mapping[UUID, list[FailedAttempt]] = _by(evidence.attempts, lambda each: each.run_id)
        self.of_occurrence: Mapping[Key, list[Record]] = _by(
            (each for each in evidence.records if is_owed(each)), key_of_record
        )
        self.cancels: Mapping[UUID | None, list[Call]] = _by(
            (each for each in evidence.calls if each.what == "cancel" and each.answer != "refused"),
            lambda each: each.of,
        )
        self._cutting: dict[str, Stretches] = {}

    @cached_property
    def faults(self) -> Stretches:
        """As they were, without what they cost afterwards."""
        return Stretches((each.began, each.ended) for each in self.evidence.faults)

    @cached_property
    def broken(self) -> Stretches:
        """The time that does not count towards a window: what carries no attempts delays none either."""
        recovery = self.allow.recovery
        return Stretches(
            (each.began, each.ended + recovery) for each in self.evidence.faults if each.touches != frozenset()
        )

    @cached_property
    def workers(self) -> frozenset[str]:
        """Those that have noted an effect."""
        return frozenset(each.worker for each in self.evidence.effects)

    @cached_property
    def live_instants(self) -> frozenset[int]:
        """Milliseconds of the instants that live runs of schedules are for: their ids begin with it."""
        return frozenset(each.int >> 80 for each in self.live if each.version == 8)

    def touched(self, effect: Effect, until: datetime | None = None) -> bool:
        """Whether a fault may have cut this attempt or its result. `until`: how far to look where it has no end."""
        if effect.worker not in self._cutting:
            self._cutting[effect.worker] = self._cuts(effect.worker)
        began, ended = effect.began, max(effect.began, effect.ended or until or effect.began)
        return self._cutting[effect.worker].overlap(began - self.allow.handed, ended + self.allow.report)

    def _cuts(self, worker: str) -> Stretches:
        """When what this worker had in hand could be lost: while it was broken itself, or whatever all of it hangs on,
        or no scheduler was left to it. One that is left renews its lease and takes its results."""
        faults = [each for each in self.evidence.faults if each.touches is None or worker in each.touches]
        itself = [(each.began, each.ended) for each in faults if not each.way]
        lost = [
            Stretches([(each.began, each.ended + self.allow.elsewhere) for each in faults if each.way == way] + itself)
            for way in self.evidence.ways
        ]
        return reduce(Stretches.common, lost) if lost else Stretches(itself)

    def was_asked_to_stop(self, run: Record) -> bool:
        return any(call.began <= run.finished_at + self.allow.reading for call in self.cancels.get(run.run_id, ()))

    def has_failed_by_itself(self, run_id: UUID, attempt: int) -> bool:
        """Whether that attempt's handler came to its end, and said that it failed."""
        return any(
            each.attempt == attempt and each.ended is not None and each.outcome == "FAILED"
            for each in self.effects.get(run_id, ())
        )


def is_owed(record: Record) -> bool:
    """Whether a schedule owed it (and nobody asked for it by hand)."""
    return record.trigger in OF_A_SCHEDULE


def key_of_record(record: Record) -> Key:
    return record.job, record.tenant, record.schedule, record.scheduled_for


def key_of(occurrence: Occurrence) -> Key:
    return occurrence.job, occurrence.tenant, occurrence.schedule, occurrence.instant


def _by(all_of_them: Iterable[Each], key: Callable[[Each], By]) -> Mapping[By, list[Each]]:
    grouped: defaultdict[By, list[Each]] = defaultdict(list)
    for each in all_of_them:
        grouped[key(each)].append(each)
    return dict(grouped)
