"""Decides on a fault run as a Chronos-style test does: each thing that must run was done once and in its time, nothing
else was done, and every outcome is one that something done explains.

A must is an occurrence that a schedule owed, or a run that an answered call named; a call without an answer may have
happened, and is none. The window of a must is its grace, counted from its instant over time that was whole: a fault
stops that clock until its end plus what recovering from it takes. What the tests of a thing are called:

- lost: a must that has no run, or no effect in its window that counts, or lies in a gap
- twice: a second run of an occurrence or of a call, a second record of a run, a second effect where no fault touched
  the earlier attempt and that one had not said that it failed. What breaks one of several schedulers touches none
- early: a run or an effect before its time
- stuck: a run that had not ended when all was over
- unexplained: everything else that nothing done, asked or broken explains
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from tests.faults.case import Allowances, Case
from tests.faults.evidence import Evidence
from tests.faults.musts import check_calls, check_occurrences
from tests.faults.outcomes import check_live, check_runs, check_strays
from tests.faults.windows import Stretches

Verdict = Literal["pass", "fail", "unknown"]


@dataclass(frozen=True, slots=True)
class Thresholds:
    """How much a run must have exercised for a pass to mean something. `overlapped`: the share of the musts whose
    window, not extended, has a fault in it. `kinds`: of faults, each of which must have happened and been followed by
    work."""

    musts: int = 1_000
    overlapped: float = 0.3
    kills: int = 200
    kinds: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Judgement:
    """`overlapped` counts musts. `reasons`: sentences with ids and instants, the first of each kind; why it is unknown
    stands before them."""

    musts: int
    overlapped: int
    kills: int
    faults: int
    lost: int
    twice: int
    early: int
    stuck: int
    unexplained: int
    verdict: Verdict
    reasons: tuple[str, ...]

    def line(self) -> str:
        share = 100 * self.overlapped // self.musts if self.musts else 0
        return (
            f"musts={self.musts} kills={self.kills} faults={self.faults} overlapped={share}% lost={self.lost}"
            f" twice={self.twice} early={self.early} stuck={self.stuck} unexplained={self.unexplained}"
            f" verdict={self.verdict}"
        )


def judge(evidence: Evidence, thresholds: Thresholds | None = None, allowances: Allowances | None = None) -> Judgement:
    """Fails where something is wrong. Where nothing is, it passes if enough was exercised; otherwise, and where
    evidence is missing without which nothing can be told, it is unknown."""
    thresholds = thresholds or Thresholds()
    case = Case(evidence, allowances or Allowances())
    since = [*check_occurrences(case), *check_calls(case)]
    check_runs(case)
    check_strays(case)
    check_live(case)
    overlapped = sum(case.faults.overlap(instant, instant + case.grace) for instant in since)
    missing = tuple(_missing(evidence))
    short = tuple(_short(case, thresholds, since, overlapped))
    counts = case.found.counts
    verdict: Verdict = "unknown" if missing else "fail" if counts else "unknown" if short else "pass"
    return Judgement(
        musts=len(since),
        overlapped=overlapped,
        kills=_kills(evidence),
        faults=len(evidence.faults),
        lost=counts["lost"],
        twice=counts["twice"],
        early=counts["early"],
        stuck=counts["stuck"],
        unexplained=counts["unexplained"],
        verdict=verdict,
        reasons=(*missing, *short, *case.found.sentences),
    )


def _missing(evidence: Evidence) -> Iterator[str]:
    """Without these, what looks wrong may be only not known."""
    if not evidence.effects:
        yield "unknown: there are no effects; were the workers' files read?"
    if not evidence.records:
        yield "unknown: there are no records of ended runs; was the database read?"


def _short(case: Case, thresholds: Thresholds, since: Sequence[datetime], overlapped: int) -> Iterator[str]:
    evidence = case.evidence
    if len(since) < thresholds.musts:
        yield f"too little: {len(since)} musts; {thresholds.musts} are needed"
    if overlapped < thresholds.overlapped * len(since):
        yield f"too little: {overlapped} of {len(since)} musts overlap a fault; {thresholds.overlapped:.0%} are needed"
    if not evidence.faults:
        yield "too little: there are no faults; was their log read?"
    if (kills := _kills(evidence)) < thresholds.kills:
        yield f"too little: {kills} kills; {thresholds.kills} are needed"
    if missing := thresholds.kinds - {each.kind for each in evidence.faults}:
        yield f"too little: these faults did not happen: {', '.join(sorted(missing))}"
    if idle := thresholds.kinds - missing - _followed(case):
        yield f"too little: nothing was done after these faults: {', '.join(sorted(idle))}"


def _followed(case: Case) -> set[str]:
    """The kinds of faults after one of which an attempt began in its time."""
    work = Stretches((each.began, each.began) for each in case.evidence.effects)
    within = case.allow.recovery + case.grace
    return {each.kind for each in case.evidence.faults if work.overlap(each.ended, each.ended + within)}


def _kills(evidence: Evidence) -> int:
    return sum(each.kill for each in evidence.faults)
