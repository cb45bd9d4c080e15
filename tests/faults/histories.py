"""Good histories of fault runs, made up by a seeded generator: what a Carillon that keeps its word leaves behind, with
attempts that fail, workers that are killed, results that are lost, cancels, skips and calls without an answer."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Literal
from uuid import UUID

from scheduler_service.domain.run import scheduled_run_id
from tests.faults.evidence import Answer, Call, Effect, Ending, Evidence, FailedAttempt, Fault, Gap, Occurrence, Record
from tests.faults.outcomes import result_of
from tests.faults.windows import Stretches

BEGAN = datetime(2026, 3, 1, 12, tzinfo=UTC)
WORKERS = ("worker-1", "worker-2", "worker-3")
WAYS = ("scheduler-1", "scheduler-2")
GRACE = 30.0
MILLISECOND = timedelta(milliseconds=1)
CYCLE = 60.0
STORM = 35.0
"""Seconds of each cycle in which faults come; in the rest windows close."""


@dataclass(frozen=True, slots=True)
class Kind:
    """Runs of a job: how long attempts take at most, which share of them fails, and how many there are."""

    job: str
    most: float = 0.3
    fails: float = 0.0
    max_attempts: int = 30
    skips: bool = False


STEADY = Kind("kpi-service/steady")
FLAKY = Kind("kpi-service/flaky", fails=0.3)
SKIPPING = Kind("kpi-service/skipping", most=3.0, skips=True)
BY_HAND = Kind("email-service/by-hand", most=2.0)
DOOMED = Kind("email-service/doomed", fails=0.8, max_attempts=2)
SCHEDULES = ((STEADY, "tenant-a", 1), (STEADY, "tenant-b", 2), (FLAKY, "tenant-b", 2), (SKIPPING, "tenant-c", 2))


@dataclass
class _Run:
    """One that is being made up."""

    run_id: UUID
    kind: Kind
    tenant: str
    schedule: str
    trigger: str
    scheduled_for: datetime
    created_at: datetime
    attempt: int = 1
    cuts: int = 0
    cancelled_at: datetime | None = None


@dataclass
class History:
    """Writes an `Evidence` of so many seconds of load."""

    seed: int
    seconds: int
    occurrences: list[Occurrence] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    effects: list[Effect] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)
    attempts: list[FailedAttempt] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._random = Random(self.seed)
        self._asked = 0

    def write(self) -> Evidence:
        self._break_things()
        for number, (kind, tenant, every) in enumerate(SCHEDULES, 1):
            self._run_schedule(number, kind, tenant, every)
        for second in range(2, self.seconds, 4):
            self._ask(self._at(second), BY_HAND if self._random.random() < 0.6 else DOOMED)
        job, tenant = STEADY.job, "tenant-a"
        first = BEGAN - timedelta(seconds=9)
        return Evidence(
            began=BEGAN,
            ended=self._at(self.seconds + 120),
            grace=GRACE,
            occurrences=self.occurrences,
            calls=self.calls,
            effects=self._random.sample(self.effects, len(self.effects)),
            records=self._random.sample(self.records, len(self.records)),
            attempts=self.attempts,
            gaps=[Gap(job, tenant, "main", first, first + timedelta(seconds=5), 6, "PAUSED")],
            faults=self.faults,
            ways=WAYS,
        )

    def _at(self, seconds: float) -> datetime:
        return BEGAN + timedelta(seconds=seconds)

    def _after(self, instant: datetime, least: float, most: float) -> datetime:
        return instant + timedelta(seconds=self._random.uniform(least, most))

    def _uuid(self) -> UUID:
        return UUID(int=self._random.getrandbits(128), version=4)

    def _break_things(self) -> None:
        """Mostly kills of a worker; at times all schedulers are away, or one worker's connection is cut. In the second
        half only what changes nothing: one of the schedulers is away, or a client is cut off."""
        second = 3.0
        while second < self.seconds:
            if second % CYCLE < STORM:
                harmless = second > self.seconds / 2 + STORM / 2
                fault = self._harmless_fault if harmless else self._fault
                self.faults.append(fault(self._at(second)))
            second += self._random.uniform(2.0, 4.0)
        self._away = [each for each in self.faults if each.touches is None and not each.way]
        self._cutting = {
            worker: [each for each in self.faults if each.touches is not None and worker in each.touches]
            for worker in WORKERS
        }
        self._near = {
            worker: Stretches((each.began, each.ended) for each in faults) for worker, faults in self._cutting.items()
        }

    def _fault(self, began: datetime) -> Fault:
        worker = self._random.choice(WORKERS)
        what = self._random.random()
        if what < 0.1:
            return Fault("schedulers away", "scheduler-1", began, self._after(began, 1, 3), kill=True)
        if what < 0.35:
            target = f"{worker}>scheduler-1"
            return Fault("blackhole", target, began, self._after(began, 1, 4), touches=frozenset({worker}))
        return Fault("kill", worker, began, self._after(began, 0.5, 2), kill=True, touches=frozenset({worker}))

    def _harmless_fault(self, began: datetime) -> Fault:
        if self._random.random() < 0.5:
            return Fault("scheduler killed", WAYS[1], began, self._after(began, 1, 3), kill=True, way=WAYS[1])
        return Fault("cut", f"client-1>{WAYS[0]}", began, self._after(began, 1, 4), touches=frozenset())

    def _run_schedule(self, number: int, kind: Kind, tenant: str, every: int) -> None:
        free_at = BEGAN
        for second in range(every, self.seconds, every):
            instant = self._at(second)
            run = _Run(
                run_id=scheduled_run_id(number, instant),
                kind=kind,
                tenant=tenant,
                schedule="main",
                trigger="SCHEDULE",
                scheduled_for=instant,
                created_at=self._after(self._when_back(instant), 0.001, 0.01),
            )
            self.occurrences.append(Occurrence(kind.job, tenant, "main", instant, overlap_may_skip=kind.skips))
            if kind.skips and free_at > run.created_at:
                self._end(run, "SKIPPED", run.created_at, error="OVERLAP")
            else:
                free_at = self._carry_out(run).finished_at

    def _when_back(self, instant: datetime) -> datetime:
        ends = [each.ended for each in self._away if each.began <= instant <= each.ended]
        return max(ends, default=instant)

    def _carry_out(self, run: _Run, cancel_at: datetime | None = None) -> Record:
        """From attempt to attempt until it ends. `cancel_at`: when someone asks it to stop, if it still lives."""
        ready = run.created_at
        while True:
            worker = self._random.choice(WORKERS)
            began = self._after(ready, 0.001, 0.1)
            done = self._after(began, 0.005, run.kind.most)
            if cancel_at is not None and done > cancel_at:
                return self._stop(run, worker, began, cancel_at)
            fault = self._cut_by(worker, began, done) if run.cuts < 2 else None
            if fault is not None:
                freed = self._cut(run, worker, began, done, fault)
                if cancel_at is not None and cancel_at < freed:
                    run.cancelled_at = cancel_at
                    return self._end(run, "CANCELLED", freed, error="CANCELLED")
                ready = self._return(run, freed)
                continue
            fails = self._random.random() < run.kind.fails and (run.kind is DOOMED or run.attempt < 4)
            outcome: Ending = "FAILED" if fails else "COMPLETED"
            effect = self._do(run, worker, began, done, outcome)
            if not fails or run.attempt == run.kind.max_attempts:
                return self._end(run, outcome, self._after(done, 0.002, 0.02), effect, "HANDLER_ERROR" if fails else "")
            self._fail(run, self._after(done, 0.002, 0.02), "HANDLER_ERROR")
            ready = self._after(done, 1.0, 1.1)

    def _cut_by(self, worker: str, began: datetime, done: datetime) -> Fault | None:
        """The result is lost too if the connection breaks before it is acknowledged."""
        late = done + timedelta(seconds=0.5)
        if not self._near[worker].overlap(began, late):
            return None
        return next(each for each in self._cutting[worker] if each.began <= late and began <= each.ended)

    def _cut(self, run: _Run, worker: str, began: datetime, done: datetime, fault: Fault) -> datetime:
        """Answers when the loss of the worker is noticed."""
        run.cuts += 1
        if done < fault.began or self._random.random() < 0.3:
            self._do(run, worker, began, done, "COMPLETED")
        elif self._random.random() < 0.9:
            self._do(run, worker, began, None, None)
        return self._after(max(done, fault.ended), 1, 10)

    def _return(self, run: _Run, freed: datetime) -> datetime:
        """The attempt is charged, or its start was lost too and it costs nothing."""
        if self._random.random() < 0.7 and run.attempt < run.kind.max_attempts:
            self._fail(run, freed, "WORKER_LOST")
        return freed

    def _stop(self, run: _Run, worker: str, began: datetime, asked: datetime) -> Record:
        """Before it began, at once; otherwise its worker stops it, or it is as good as done."""
        run.cancelled_at = asked
        if began >= asked:
            return self._end(run, "CANCELLED", asked, error="CANCELLED")
        stopped = self._after(asked, 0.01, 0.2)
        outcome: Ending | None = self._random.choice(("COMPLETED", "CANCELLED", None))
        effect = self._do(run, worker, began, stopped if outcome else None, outcome)
        finished = self._after(stopped, 0.01, 0.2)
        if outcome == "COMPLETED":
            return self._end(run, "COMPLETED", finished, effect)
        return self._end(run, "CANCELLED", finished, error="CANCELLED")

    def _do(self, run: _Run, worker: str, began: datetime, ended: datetime | None, outcome: Ending | None) -> Effect:
        effect = Effect(
            run_id=run.run_id,
            attempt=run.attempt,
            job=run.kind.job,
            tenant=run.tenant,
            marker=f"{run.kind.job}/{run.tenant}",
            scheduled_for=run.scheduled_for,
            worker=worker,
            pid=self._random.randrange(1_000, 9_999),
            began=began,
            ended=ended,
            outcome=outcome,
        )
        self.effects.append(effect)
        return effect

    def _fail(self, run: _Run, at: datetime, code: str) -> None:
        self.attempts.append(FailedAttempt(run.run_id, run.attempt, code, at))
        run.attempt += 1

    def _end(self, run: _Run, state: Ending, at: datetime, effect: Effect | None = None, error: str = "") -> Record:
        record = Record(
            run_id=run.run_id,
            job=run.kind.job,
            tenant=run.tenant,
            schedule=run.schedule,
            trigger=run.trigger,
            scheduled_for=run.scheduled_for,
            created_at=run.created_at,
            started_at=effect.began if effect else None,
            finished_at=at,
            state=state,
            attempt=run.attempt,
            max_attempts=run.kind.max_attempts,
            error_code=error,
            worker=effect.worker if effect else "",
            result=result_of(effect) if effect and state == "COMPLETED" else "",
            cancel_requested_at=run.cancelled_at,
        )
        self.records.append(record)
        return record

    def _ask(self, began: datetime, kind: Kind) -> None:
        """A trigger, in most cases answered, at times only when it is repeated, at times never; some are cancelled, and
        what did not complete is often tried again."""
        tenant = self._random.choice(("tenant-a", "tenant-c"))
        call = self._call("trigger", kind, tenant, began)
        fate = self._random.random()
        if fate < 0.1:
            self._note(call, "refused")
        elif fate < 0.2:
            self._note(call, "unknown")
        else:
            record = self._make(call, kind, answered=fate > 0.3)
            if record.state in ("FAILED", "CANCELLED") and self._random.random() < 0.7:
                again = self._call("retry", kind, tenant, self._after(record.finished_at, 0.1, 2))
                self._make(replace(again, of=record.run_id), kind, answered=True)

    def _make(self, call: Call, kind: Kind, *, answered: bool) -> Record:
        made = self._after(call.began, 0.002, 0.01)
        run = _Run(self._uuid(), kind, call.tenant, "", "MANUAL", made, made)
        cancel_at = self._after(made, 0.05, 1) if self._random.random() < 0.3 else None
        record = self._carry_out(run, cancel_at)
        if answered and self._random.random() < 0.8:
            self._note(call, "ok", run.run_id)
        else:
            self._note(call, "unknown")
        if answered:
            self._note(replace(call, began=self._after(call.ended, 0.2, 1)), "ok", run.run_id)
        if cancel_at is not None:
            stop = replace(self._call("cancel", kind, call.tenant, cancel_at - 5 * MILLISECOND), of=run.run_id)
            unheard = self._random.random() < 0.2
            self._note(stop, "refused" if record.cancel_requested_at is None else "unknown" if unheard else "ok")
        return record

    def _call(self, what: Literal["trigger", "cancel", "retry"], kind: Kind, tenant: str, began: datetime) -> Call:
        self._asked += 1
        key = f"key-{self._asked}"
        return Call(what, kind.job, tenant, key, began, began + timedelta(seconds=0.05), "unknown")

    def _note(self, call: Call, answer: Answer, *runs: UUID) -> None:
        ended = max(call.ended, call.began + timedelta(seconds=0.05))
        self.calls.append(replace(call, ended=ended, answer=answer, runs=runs))


def good_history(seed: int, seconds: int = 120) -> Evidence:
    """The same for the same seed. Several hundred musts and a fault every 3 s, in storms."""
    return History(seed, seconds).write()
