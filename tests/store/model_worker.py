"""A worker as the state machine sees it, and what must become of everything that it reports.

What a result must be answered follows from the fence alone: whether, just before, a live run was in that session's
hands with that attempt and claim. What was accepted before is accepted again if it is the same; all else is refused by
its name.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import NamedTuple
from uuid import UUID, uuid4

from scheduler_service.domain.access import ANY_SERVICE, Kind, Principal, Scope
from scheduler_service.domain.attempt import AttemptOutcome, AttemptRef, ClaimedRun, ItemResult, Result, Verdict
from scheduler_service.domain.errors import Refusal
from scheduler_service.domain.job import RetryPolicy
from scheduler_service.domain.names import JobName
from scheduler_service.domain.record import RunError
from scheduler_service.engine.leases import Hello
from scheduler_service.engine.sessions import ConnectedSession
from tests.store.model_world import Replica, World

PRINCIPAL = Principal(Kind.WORKER, name="worker", service=ANY_SERVICE, scopes=frozenset({Scope.WORK}))
ROUTES = frozenset({"http"})
_HELD = """
select l.attempt, l.max_attempts, l.cancel_requested_at is not null, l.started_at is not null
from carillon.live_runs l join carillon.sessions s using (session_id)
where l.run_id = %s and l.attempt = %s and l.claim_id = %s and l.session_id = %s"""
_DUE = """
select j.service, j.job, l.run_after from carillon.live_runs l join carillon.jobs j using (job_id)
where l.run_id = %s"""
_STANDS = """
select state::text, attempt, false from carillon.runs where run_id = %(run_id)s
union all
select case when session_id is null then 'PENDING' else 'RUNNING' end, attempt, true
from carillon.live_runs where run_id = %(run_id)s"""


class Held(NamedTuple):
    """A live attempt in a session's hands."""

    attempt: int
    max_attempts: int
    cancel_requested: bool
    started: bool


class Stands(NamedTuple):
    """What a run is now."""

    state: str
    attempt: int
    live: bool


@dataclass
class Worker:
    """One session, on a stream to one replica or cut off from it. `held`: what it was handed and has not reported;
    `reported`: everything that it ever did, as it did."""

    world: World
    replica: Replica
    name: str
    session_id: UUID = field(default_factory=uuid4)
    session: ConnectedSession | None = None
    held: dict[AttemptRef, ClaimedRun] = field(default_factory=dict)
    reported: list[Result] = field(default_factory=list)
    answers: list[Verdict] = field(default_factory=list)
    refused: Refusal | None = None
    heartbeats: int = 0

    async def connect(self, replica: Replica) -> None:
        """Says Hello: with what it holds, if it holds something. Its session may be gone."""
        self.cut_off()
        hello = Hello(self.session_id, self.name, "test", ROUTES, self.claims())
        try:
            self.session = await replica.leases.open(PRINCIPAL, hello, self, now=self.world.now)
        except Refusal as refusal:
            self.end(refusal)
        self.replica = replica

    def cut_off(self) -> None:
        """The stream ends, and nothing else."""
        if self.session is not None:
            self.replica.leases.close(self.session)
            self.session = None

    def claims(self) -> list[int]:
        return sorted({ref.claim_id for ref in self.held})

    def beat(self, claims: Sequence[int]) -> None:
        assert self.session is not None
        self.heartbeats += 1
        self.replica.leases.beat(self.session, self.heartbeats, claims)

    async def leave(self) -> None:
        assert self.session is not None
        session, self.session = self.session, None
        self.refused = Refusal("it said Goodbye")
        await self.replica.leases.leave(session, now=self.world.now)

    async def start(self, refs: Sequence[AttemptRef]) -> None:
        assert self.session is not None
        self.replica.reports.started(self.session, [(ref, 0.0) for ref in refs])
        await self.replica.reports.step(self.replica.connection, now=self.world.now)

    async def progress(self, ref: AttemptRef, done: int) -> None:
        assert self.session is not None
        self.replica.reports.progressed(self.session, [(ref, (done, 10, "so far"))])
        await self.replica.reports.step(self.replica.connection, now=self.world.now)

    async def report(self, results: Sequence[Result], items: Sequence[ItemResult] = ()) -> list[Verdict]:
        """Sends them; on a stream of its own if it is cut off, as who resends after a loss does."""
        sender = self.session or ConnectedSession(self.session_id, self.name, ROUTES, 0, self)
        self.answers.clear()
        completer = self.replica.completer
        completer.submit_items(items, sender)
        completer.submit(results, sender)
        while await completer.step(self.replica.connection, now=self.world.now):
            pass
        for each in results:
            self.held.pop(each.ref, None)
        self.reported += results
        return list(self.answers)

    def assign(self, claim_id: int, runs: Sequence[ClaimedRun], asked_at: float) -> None:
        for run in runs:
            ref = AttemptRef(run.run_id, run.attempt, claim_id)
            assert ref not in self.held, f"{ref} was handed out twice"
            self.held[ref] = run

    def acknowledge(self, verdicts: Iterable[tuple[AttemptRef, Verdict]]) -> None:
        self.answers += [verdict for _, verdict in verdicts]

    def cancel(self, attempts: Iterable[AttemptRef]) -> None:
        """It stops when it is told to."""

    def acknowledge_heartbeat(self, sequence: int) -> None:
        assert sequence <= self.heartbeats

    def withdraw_late(self) -> list[AttemptRef]:
        return []

    def end(self, refusal: Refusal) -> None:
        """The scheduler ended its stream."""
        self.session = None
        self.refused = refusal


@dataclass
class Referee:
    """Says what results must be answered and what must become of their runs, and holds what happens against it."""

    world: World
    accepted: dict[AttemptRef, str] = field(default_factory=dict)

    async def report(self, worker: Worker, results: Sequence[Result], items: Sequence[ItemResult] = ()) -> None:
        held = [self._held(each) for each in results]
        answers = await worker.report(results, items)
        assert len(answers) == len(results), f"{len(results)} results had {len(answers)} answers"
        decided: set[AttemptRef] = set()
        for result, held_by_it, answer in zip(results, held, answers, strict=True):
            if held_by_it is not None and result.ref not in decided:
                decided.add(result.ref)
                self._check_accepted(result, held_by_it, answer)
            else:
                self._check_repeated(result, answer)

    def _held(self, result: Result) -> Held | None:
        row = self.world.admin.execute(_HELD, (*result.ref, result.session_id)).fetchone()
        return Held(*row) if row else None

    def _stands(self, run_id: UUID) -> Stands | None:
        row = self.world.admin.execute(_STANDS, {"run_id": run_id}).fetchone()
        return Stands(*row) if row else None

    def _check_accepted(self, result: Result, held: Held, answer: Verdict) -> None:
        assert answer is Verdict.ACCEPTED, f"{result} of {held} was answered {answer}"
        if result.outcome != "RETURNED" or held.cancel_requested or held.started:
            self.accepted[result.ref] = result.digest()
        stands = self._stands(result.ref.run_id)
        assert stands == _becomes(result.outcome, held), f"{result} of {held} made it {stands}"
        if stands.live and stands.attempt > held.attempt:
            self._check_delay(result, held.attempt)

    def _check_delay(self, result: Result, failed: int) -> None:
        """The next attempt is due after the delay of the policy that its job has now; at once, if it was given back."""
        row = self.world.admin.execute(_DUE, [result.ref.run_id]).fetchone()
        assert row is not None
        service, job, due = row
        retry = self.world.diary.policies(JobName(service, job), self.world.now).retry
        most, least = longest_delay(retry, failed), shortest_delay(retry, failed)
        if result.outcome == "RETURNED":
            most = least = timedelta()
        waits = due - self.world.now
        assert least <= waits <= most, f"after attempt {failed} {result} waits {waits}, by {retry}"

    def _check_repeated(self, result: Result, answer: Verdict) -> None:
        if self.accepted.get(result.ref) == result.digest():
            expected = {Verdict.ACCEPTED}
        else:
            expected = {_refusal(self._stands(result.ref.run_id))}
        assert answer in expected, f"{result} was answered {answer}, not {expected}"


def longest_delay(retry: RetryPolicy, failed: int) -> timedelta:
    """After attempt number `failed`, by a policy that says all."""
    delay, multiplier, most = retry.delay, retry.multiplier, retry.max_delay
    assert delay is not None
    assert multiplier is not None
    assert most is not None
    return min(delay * multiplier ** (failed - 1), most)


def shortest_delay(retry: RetryPolicy, failed: int) -> timedelta:
    assert retry.jitter is not None
    return longest_delay(retry, failed) * (1 - retry.jitter)


def _becomes(outcome: AttemptOutcome, held: Held) -> Stands:
    if outcome == "COMPLETED":
        return Stands("COMPLETED", held.attempt, live=False)
    if held.cancel_requested:
        return Stands("CANCELLED", held.attempt, live=False)
    if outcome == "RETURNED" and not held.started:
        return Stands("PENDING", held.attempt, live=True)
    if held.attempt >= held.max_attempts:
        return Stands("FAILED", held.attempt, live=False)
    return Stands("PENDING", held.attempt + 1, live=True)


def _refusal(stands: Stands | None) -> Verdict:
    if stands is None:
        return Verdict.UNKNOWN
    if stands.live:
        return Verdict.STALE
    return Verdict.RUN_CANCELLED if stands.state == "CANCELLED" else Verdict.RUN_ENDED


def result_of(worker: Worker, ref: AttemptRef, outcome: AttemptOutcome, duration: float | None = 0.5) -> Result:
    error = None if outcome in ("COMPLETED", "RETURNED") else RunError("HANDLER_ERROR", "it did not work")
    return Result(ref, worker.session_id, outcome, None if outcome == "RETURNED" else duration, error)
