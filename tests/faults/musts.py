"""What must have happened: each occurrence that a schedule owed, and each call that was answered, once and in time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Container
from datetime import datetime
from uuid import UUID

from tests.faults.case import Case, Schedule, is_owed, key_of
from tests.faults.evidence import Call, Occurrence, Record
from tests.faults.windows import Stretches

Asked = tuple[str, str]
"""A call with all its repeats: what, and its key."""


def check_occurrences(case: Case) -> list[datetime]:
    """Each has one run that was carried out. Returns from when each of them was owed."""
    gaps = _gaps(case)
    for owed in case.evidence.occurrences:
        _check_occurrence(case, owed, gaps.get((owed.job, owed.tenant, owed.schedule)))
    _check_that_no_other_was_made(case)
    return [each.instant for each in case.evidence.occurrences]


def check_calls(case: Case) -> list[datetime]:
    """Each that was answered has its runs, and no run is there that none asked for. Returns from when each was owed."""
    answered = [call for call in case.evidence.calls if call.what != "cancel" and call.answer == "ok"]
    began: dict[Asked, datetime] = {}
    for call in case.evidence.calls:
        began[call.what, call.key] = min(call.began, began.get((call.what, call.key), call.began))
    makers: dict[UUID, Call] = {}
    firsts: dict[Asked, Call] = {}
    for call in sorted(answered, key=lambda each: each.ended):
        first = firsts.setdefault((call.what, call.key), call)
        if first is call:
            _check_call(case, call, began[call.what, call.key], makers)
        elif set(call.runs) != set(first.runs):
            case.found.add(
                "twice", call.key, f"{_name(call)} made {_ids(first)}, and when it was repeated {_ids(call)}"
            )
    _check_that_others_were_asked_for(case, makers, firsts)
    return [call.ended for call in makers.values()]


def _check_occurrence(case: Case, owed: Occurrence, gaps: Stretches | None) -> None:
    name = f"{owed.job} {owed.tenant} {owed.schedule} {owed.instant.isoformat()}"
    runs = case.of_occurrence.get(key_of(owed), [])
    for another in runs[1:]:
        case.found.add("twice", another.run_id, f"{name} has a run {another.run_id} beside {runs[0].run_id}")
    if gaps is not None and gaps.overlap(owed.instant, owed.instant):
        case.found.add("lost", key_of(owed), f"{name} was recorded as missed, in a gap")
    elif runs:
        may_skip = owed.overlap_may_skip and runs[0].state == "SKIPPED"
        if not may_skip:
            _check_that_it_was_done(case, key_of(owed), runs[0], f"{name} (run {runs[0].run_id})", owed.instant)
    elif round(owed.instant.timestamp() * 1000) not in case.live_instants:
        case.found.add("lost", key_of(owed), f"{name} has no run")


def _check_call(case: Case, call: Call, began: datetime, makers: dict[UUID, Call]) -> None:
    if not call.runs:
        case.found.add("unexplained", call.key, f"{_name(call)} was answered ok, and named no run")
    for run_id in call.runs:
        other = makers.setdefault(run_id, call)
        run = case.records.get(run_id)
        if other is not call and (call.what, call.of) != ("retry", other.of):
            case.found.add("unexplained", run_id, f"{_name(call)} was answered with run {run_id} of {_name(other)}")
        elif run is None and run_id not in case.live:
            case.found.add("lost", run_id, f"{_name(call)} was answered ok with run {run_id}, which is not there")
        elif run is not None and other is call:
            _check_run_of_call(case, call, run, began)


def _check_run_of_call(case: Case, call: Call, run: Record, began: datetime) -> None:
    _check_that_it_was_done(case, run.run_id, run, f"run {run.run_id} of {_name(call)}", call.ended, may_fail=True)
    if (run.job, run.tenant) != (call.job, call.tenant):
        case.found.add("unexplained", run.run_id, f"{_name(call)} made run {run.run_id} of {run.job} {run.tenant}")
    if run.created_at < began - case.allow.reading:
        case.found.add("unexplained", run.run_id, f"run {run.run_id} was there before {_name(call)} asked for it")
    if call.what == "retry":
        _check_retry(case, call, run)


def _check_retry(case: Case, call: Call, run: Record) -> None:
    old = case.records.get(call.of) if call.of is not None else None
    if old is None:
        case.found.add("unexplained", run.run_id, f"{_name(call)} tries run {call.of} again, which has no record")
    elif old.state == "COMPLETED" or old.finished_at > run.created_at + case.allow.reading:
        case.found.add("unexplained", run.run_id, f"{_name(call)} tries run {old.run_id} again, which had not failed")
    elif (old.job, old.tenant) != (run.job, run.tenant):
        case.found.add("unexplained", run.run_id, f"{_name(call)} made run {run.run_id} of another job or tenant")


def _check_that_it_was_done(
    case: Case, about: object, run: Record, name: str, since: datetime, *, may_fail: bool = False
) -> None:
    """`may_fail`: that its handler said that it failed is as good."""
    if run.state == "CANCELLED" and case.was_asked_to_stop(run):
        return
    enough = {"COMPLETED", "FAILED"} if may_fail and run.state == "FAILED" else {"COMPLETED"}
    effects = case.effects.get(run.run_id, ())
    done = [each.ended for each in effects if each.ended is not None and each.outcome in enough]
    deadline = case.broken.deadline(since, case.grace)
    if run.state not in enough or not done:
        case.found.add("lost", about, f"{name} ended {run.state} {run.error_code} with {len(done)} effects that count")
    elif min(done) > deadline + case.allow.reading:
        late = f"was done at {min(done).isoformat()}, and its window closed at {deadline.isoformat()}"
        case.found.add("lost", about, f"{name} {late}")


def _gaps(case: Case) -> dict[Schedule, Stretches]:
    found = defaultdict(list)
    for each in case.evidence.gaps:
        found[each.job, each.tenant, each.schedule].append((each.first, each.last))
    return {schedule: Stretches(stretches) for schedule, stretches in found.items()}


def _check_that_no_other_was_made(case: Case) -> None:
    """A plan names every instant that a schedule owes from its first to its last one in it."""
    owed: defaultdict[Schedule, set[datetime]] = defaultdict(set)
    for each in case.evidence.occurrences:
        owed[each.job, each.tenant, each.schedule].add(each.instant)
    bounds = {schedule: (min(instants), max(instants)) for schedule, instants in owed.items()}
    for run, *_ in case.of_occurrence.values():
        schedule = (run.job, run.tenant, run.schedule)
        if not _may_be_owed(case, run.scheduled_for, owed.get(schedule, set()), bounds.get(schedule)):
            name = " ".join((*schedule, run.scheduled_for.isoformat()))
            case.found.add("unexplained", run.run_id, f"run {run.run_id} is of {name}, which nothing owes")


def _may_be_owed(case: Case, instant: datetime, owed: set[datetime], bounds: tuple[datetime, datetime] | None) -> bool:
    if bounds is None:
        return False
    first, last = bounds
    reach = case.allow.boundary
    return instant in owed or first - reach <= instant < first or last < instant <= last + reach


def _check_that_others_were_asked_for(case: Case, named: Container[UUID], answered: Container[Asked]) -> None:
    """A run by hand that no answer names is one of a call without an answer: one for each key, and not before it."""
    asked: defaultdict[tuple[str, str], dict[Asked, datetime]] = defaultdict(dict)
    for call in case.evidence.calls:
        if call.what != "cancel" and call.answer == "unknown" and (call.what, call.key) not in answered:
            since = asked[call.job, call.tenant].setdefault((call.what, call.key), call.began)
            asked[call.job, call.tenant][call.what, call.key] = min(since, call.began)
    by_hand: defaultdict[tuple[str, str], list[Record]] = defaultdict(list)
    for run in case.evidence.records:
        if not is_owed(run) and run.run_id not in named:
            by_hand[run.job, run.tenant].append(run)
    for of, runs in by_hand.items():
        began = sorted(asked[of].values())
        for used, run in enumerate(sorted(runs, key=lambda each: each.created_at)):
            if used >= len(began) or began[used] > run.created_at + case.allow.reading:
                case.found.add("unexplained", run.run_id, f"run {run.run_id} of {' '.join(of)}: no call asked for it")


def _name(call: Call) -> str:
    return f"{call.what} {call.key} of {call.job} {call.tenant} at {call.began.isoformat()}"


def _ids(call: Call) -> str:
    return ", ".join(map(str, call.runs)) or "nothing"
