"""What each run became, beside what was done for it: every outcome has its effect, and every effect its run."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from datetime import datetime, timedelta
from itertools import pairwise

from tests.faults.case import Case, Kind, Schedule, is_owed
from tests.faults.evidence import Effect, FailedAttempt, Record

SKIP_SLACK = timedelta(seconds=1)
"""Between the instant that a run's end is noted with and its commit, as long as nothing is broken."""
OF_TIME = "ATTEMPT_TIMEOUT"


def check_runs(case: Case) -> None:
    """Each record, with its attempts and effects."""
    counted = Counter(each.run_id for each in case.evidence.records)
    for run in case.evidence.records:
        _Run(case, run).check()
        if counted[run.run_id] > 1 or run.run_id in case.live:
            case.found.add(
                "twice", run.run_id, f"run {run.run_id} has {counted[run.run_id]} records, or ended and lives"
            )
    _check_skips(case)


def check_strays(case: Case) -> None:
    """Nothing was done, or has failed, that belongs to no run; and no answer held what is another's."""
    for run_id, effects in case.effects.items():
        if run_id not in case.records and run_id not in case.live:
            where = f"{effects[0].worker} at {effects[0].began.isoformat()}"
            case.found.add("unexplained", run_id, f"an effect by {where} names run {run_id}, which is not there")
    for run_id in case.failed.keys() - case.records.keys() - case.live:
        case.found.add("unexplained", run_id, f"an attempt failed of run {run_id}, which is not there")
    for number, answer in enumerate(case.evidence.foreign):
        case.found.add("unexplained", ("foreign", number), f"a tenant got what is another's: {answer}")


def check_live(case: Case) -> None:
    for run_id in sorted(case.live):
        case.found.add("stuck", run_id, f"run {run_id} had not ended at {case.evidence.ended.isoformat()}")


class _Run:
    """One record with what was done for it."""

    def __init__(self, case: Case, run: Record) -> None:
        self.case = case
        self.run = run
        self.effects = sorted(case.effects.get(run.run_id, ()), key=lambda each: (each.attempt, each.began))
        self.failed = case.failed.get(run.run_id, [])

    def check(self) -> None:
        self._check_instants()
        self._check_attempts()
        for effect in self.effects:
            self._check_effect(effect)
        for earlier, later in pairwise(self.effects):
            self._check_repeat(earlier, later)
        {
            "COMPLETED": self._check_completed,
            "FAILED": self._check_failed,
            "CANCELLED": self._check_cancelled,
            "SKIPPED": self._check_skipped,
        }[self.run.state]()
        self._check_cancel_was_kept()

    def _add(self, kind: Kind, sentence: str) -> None:
        """One finding of a kind for a run: what follows from the same cause is not counted again."""
        run = self.run
        self.case.found.add(kind, run.run_id, f"run {run.run_id} of {run.job} {run.tenant} {run.schedule}: {sentence}")

    def _check_instants(self) -> None:
        run, soonest = self.run, self.run.scheduled_for - self.case.allow.reading
        if is_owed(run) and run.created_at < soonest:
            self._add("early", f"made at {run.created_at.isoformat()}, due at {run.scheduled_for.isoformat()}")
        if run.started_at is not None and run.started_at < soonest:
            self._add("early", f"started at {run.started_at.isoformat()}, due at {run.scheduled_for.isoformat()}")

    def _check_effect(self, effect: Effect) -> None:
        run, reading = self.run, self.case.allow.reading
        if effect.began < run.scheduled_for - reading:
            self._add("early", f"begun at {effect.began.isoformat()}, due at {run.scheduled_for.isoformat()}")
        if (effect.job, effect.tenant, effect.scheduled_for) != (run.job, run.tenant, run.scheduled_for):
            self._add("unexplained", f"{_name(effect)} was for {effect.job} {effect.tenant} {effect.scheduled_for}")
        if not names(effect.marker, run.job, run.tenant):
            self._add("unexplained", f"{_name(effect)} was given the payload of {effect.marker!r}")
        if effect.attempt > run.attempt:
            self._add("unexplained", f"{_name(effect)} is of an attempt beyond the last, {run.attempt}")
        if effect.began > run.finished_at + reading and not self.case.touched(effect):
            self._add("unexplained", f"{_name(effect)} began after the run had ended, at {run.finished_at.isoformat()}")
        if effect.ended is None and not self._may_have_no_end(effect):
            self._add("unexplained", f"{_name(effect)} was broken off, and no fault was near")

    def _may_have_no_end(self, effect: Effect) -> bool:
        stopped = self.run.cancel_requested_at is not None or self._has_failed(effect.attempt, OF_TIME)
        following = (each.began for each in self.effects if each.began > effect.began)
        until = min(following, default=self.run.finished_at)
        return stopped or self.run.error_code == OF_TIME or self.case.touched(effect, until)

    def _check_repeat(self, earlier: Effect, later: Effect) -> None:
        """The earlier one may have been cut, or it has come to its end first and said that it failed. Of one attempt,
        the one that began first may be the one that was handed out anew."""
        if self.case.touched(earlier, later.began):
            return
        if earlier.attempt == later.attempt:
            explained = self.case.touched(later)
        else:
            over = earlier.ended is not None and earlier.ended <= later.began + self.case.allow.reading
            said = earlier.outcome == "FAILED" or self._has_failed(earlier.attempt, OF_TIME)
            explained = said and over and earlier.outcome != "COMPLETED" and self._has_failed(earlier.attempt)
        if not explained:
            self._add(
                "twice", f"{_name(later)} after {_name(earlier)}, which no fault touched and which had not failed"
            )

    def _check_attempts(self) -> None:
        run = self.run
        if run.attempt > run.max_attempts:
            self._add("unexplained", f"ended in attempt {run.attempt} of {run.max_attempts}")
        numbers = sorted(each.attempt for each in self.failed)
        if numbers != list(range(1, run.attempt)):
            self._add("unexplained", f"ended in attempt {run.attempt}, and these had failed: {numbers}")
        for each in self.failed:
            if not self._may_have_failed(each):
                self._add("unexplained", f"attempt {each.attempt} failed with {each.error_code}; nothing done says so")

    def _may_have_failed(self, failed: FailedAttempt) -> bool:
        of_it = [each for each in self.effects if each.attempt == failed.attempt]
        if self.case.has_failed_by_itself(self.run.run_id, failed.attempt):
            return True
        if not of_it:
            return self.case.broken.overlap(self.run.created_at, failed.finished_at)
        over_time = failed.error_code == OF_TIME and all(each.outcome != "COMPLETED" for each in of_it)
        return over_time or any(self.case.touched(each, failed.finished_at) for each in of_it)

    def _check_completed(self) -> None:
        run, latest = self.run, self.run.finished_at + self.case.allow.reading
        done = [
            each
            for each in self.effects
            if each.attempt == run.attempt and each.outcome == "COMPLETED" and each.ended is not None
        ]
        if not any(result_of(each) == run.result and each.ended is not None and each.ended <= latest for each in done):
            found = ", ".join(map(result_of, done)) or "none"
            self._add("unexplained", f"completed with the result {run.result!r}; completed effects before: {found}")
        elif run.worker in self.case.workers and run.worker != run.result.split("/")[1]:
            self._add("unexplained", f"recorded for {run.worker}, and its result is {run.result!r}")

    def _check_failed(self) -> None:
        run = self.run
        if run.cancel_requested_at is not None:
            self._add("unexplained", f"failed, though it was asked to stop at {run.cancel_requested_at.isoformat()}")
        if self.case.has_failed_by_itself(run.run_id, run.attempt):
            return
        last = [each for each in self.effects if each.attempt == run.attempt]
        touched = (
            any(self.case.touched(each, run.finished_at) for each in last)
            if last
            else self.case.broken.overlap(run.started_at or run.created_at, run.finished_at)
        )
        spent = run.attempt == run.max_attempts or run.error_code == "RUN_TIMEOUT"
        if not (spent and touched):
            self._add("unexplained", f"failed in attempt {run.attempt} with {run.error_code}; nothing done says so")

    def _check_cancelled(self) -> None:
        if not self.case.was_asked_to_stop(self.run):
            self._add("unexplained", "ended CANCELLED, and nobody asked for that")

    def _check_skipped(self) -> None:
        if self.effects:
            self._add("unexplained", f"ended SKIPPED, and {_name(self.effects[0])} was done for it")

    def _check_cancel_was_kept(self) -> None:
        """What was asked to stop is not tried again; a request that was answered is not forgotten."""
        run, allow = self.run, self.case.allow
        asked = run.cancel_requested_at
        if asked is not None and not self.case.was_asked_to_stop(run):
            self._add("unexplained", f"was to stop from {asked.isoformat()} on, and nobody had asked for that")
        for each in self.failed:
            if asked is not None and each.finished_at > asked + allow.report:
                self._add("unexplained", f"attempt {each.attempt} was followed by another after it was to stop")
        for call in self.case.cancels.get(run.run_id, ()):
            ignored = run.state == "FAILED" or (run.state == "COMPLETED" and asked is None)
            if call.answer == "ok" and ignored and run.finished_at > call.ended + allow.reading:
                self._add("unexplained", f"ended {run.state}, though cancel {call.key} had been answered before")

    def _has_failed(self, attempt: int, code: str | None = None) -> bool:
        return any(each.attempt == attempt and code in (None, each.error_code) for each in self.failed)


def result_of(effect: Effect) -> str:
    """What the attempt says of itself in its result."""
    return f"{effect.attempt}/{effect.worker}/{effect.pid}"


def names(marker: str, job: str, tenant: str) -> bool:
    """Whether it is the job's name, one character, and the tenant's."""
    return marker.startswith(job) and marker.endswith(tenant) and len(marker) == len(job) + 1 + len(tenant)


def _check_skips(case: Case) -> None:
    """Where an occurrence was skipped, an earlier one of its schedule was live."""
    by_schedule: defaultdict[Schedule, list[Record]] = defaultdict(list)
    for run in case.evidence.records:
        if is_owed(run):
            by_schedule[run.job, run.tenant, run.schedule].append(run)
    for runs in by_schedule.values():
        runs.sort(key=lambda each: each.scheduled_for)
        _check_skips_of(case, runs)


def _check_skips_of(case: Case, runs: Sequence[Record]) -> None:
    """In the order of their instants, in which they were also made."""
    last_end: datetime | None = None
    for run in runs:
        if run.state != "SKIPPED":
            last_end = max(last_end or run.finished_at, run.finished_at)
        elif not _was_live(case, last_end, run.created_at):
            name = f"run {run.run_id} of {run.job} {run.tenant} {run.schedule}"
            case.found.add("unexplained", run.run_id, f"{name} was skipped while no earlier one was live")


def _was_live(case: Case, last_end: datetime | None, at: datetime) -> bool:
    if last_end is None:
        return False
    return last_end + SKIP_SLACK >= at or case.faults.overlap(last_end, at)


def _name(effect: Effect) -> str:
    ended = effect.ended.isoformat() if effect.ended else "no end"
    return f"attempt {effect.attempt} by {effect.worker} ({effect.pid}) {effect.began.isoformat()} to {ended}"
