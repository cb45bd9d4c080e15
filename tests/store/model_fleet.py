"""The workers of the state machine, and what they do, rightly and wrongly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, TypeVar
from uuid import UUID

from scheduler_service.domain.attempt import AttemptOutcome, AttemptRef, ItemResult
from tests.store.model_worker import Referee, Worker, result_of
from tests.store.model_world import Replica, World

T = TypeVar("T")
MOST = 4
_CLAIMS = "select run_id, session_id, claim_id, alone from carillon.live_runs where session_id is not null"


class _Claim(NamedTuple):
    """Which session has a run, by which claim, and whether it is to have nothing else."""

    session_id: UUID
    claim_id: int
    alone: bool


def one_of(things: Sequence[T], pick: int) -> T | None:
    return things[pick % len(things)] if things else None


def some_of(things: Sequence[T], bits: int) -> list[T]:
    """Those whose bit is set; of more than six, some have the same."""
    return [each for number, each in enumerate(things) if bits >> (number % 6) & 1]


def some_or_first(things: Sequence[T], bits: int) -> list[T]:
    return some_of(things, bits) or list(things[:1])


@dataclass
class Fleet:
    """`workers`: those whose session may still be there. `gone`: the others, who still have something to say. `alone`:
    the claims of runs that were to have a session for themselves. Methods answer False where there was nothing to do it
    with."""

    world: World
    referee: Referee
    workers: list[Worker] = field(default_factory=list)
    gone: list[Worker] = field(default_factory=list)
    begun: int = 0
    alone: set[int] = field(default_factory=set)

    async def begin(self, replica: Replica, credit: int) -> bool:
        if len(self.workers) >= MOST:
            return False
        self.begun += 1
        worker = Worker(self.world, replica, f"worker-{self.begun}")
        await worker.connect(replica)
        self._grant(worker, credit)
        self.workers.append(worker)
        return True

    async def reconnect(self, pick: int, replica: Replica, credit: int) -> bool:
        """Another stream of the same session, at any replica, whether the old one still stands or not."""
        worker = one_of(self.workers, pick)
        if worker is None:
            return False
        await worker.connect(replica)
        self._grant(worker, credit)
        self._sort_out()
        return True

    async def cut_off(self, pick: int) -> bool:
        worker = one_of(self.connected(), pick)
        if worker is None:
            return False
        worker.cut_off()
        return True

    async def leave(self, pick: int) -> bool:
        worker = one_of(self.connected(), pick)
        if worker is None:
            return False
        await worker.leave()
        self._sort_out()
        return True

    async def grant(self, pick: int, credit: int) -> bool:
        worker = one_of(self.connected(), pick)
        if worker is None:
            return False
        self._grant(worker, credit)
        return True

    async def beat(self, workers: Sequence[Worker], forgotten: int = 0) -> bool:
        """`forgotten`: which claims they do not list."""
        connected = [each for each in workers if each.session is not None]
        for worker in connected:
            unlisted = some_of(worker.claims(), forgotten)
            worker.beat([claim for claim in worker.claims() if claim not in unlisted])
        for replica in self.world.replicas:
            await replica.leases.step(replica.connection, now=self.world.now)
        self._sort_out()
        return bool(connected)

    async def tick(self, replica: Replica, *, limit: int, sends: bool) -> bool:
        """And what waits is handed out."""
        await self.world.tick(replica, limit=limit, sends=sends)
        await self.dispatch(replica)
        return True

    async def dispatch(self, replica: Replica) -> bool:
        """What somebody has is given to nobody else."""
        held = self._claims()
        replica.dispatcher.look_again()
        handed = await replica.dispatcher.dispatch(replica.connection, now=self.world.now)
        now_held = self._claims()
        taken = {run: (claim, now_held.get(run)) for run, claim in held.items() if now_held.get(run) != claim}
        assert not taken, f"these were in other hands: {taken}"
        self.alone |= {claim.claim_id for claim in now_held.values() if claim.alone}
        return handed > 0

    def _claims(self) -> dict[UUID, _Claim]:
        rows = self.world.admin.execute(_CLAIMS).fetchall()
        return {run_id: _Claim(*claim) for run_id, *claim in rows}

    async def start(self, pick: int, bits: int) -> bool:
        worker = one_of(self._holding(connected=True), pick)
        refs = some_or_first(list(worker.held), bits) if worker else []
        if worker is None:
            return await self._take_something(pick)
        await worker.start(refs)
        return True

    async def progress(self, pick: int, done: int) -> bool:
        worker = one_of(self._holding(connected=True), pick)
        if worker is None:
            return await self._take_something(pick)
        await worker.progress(next(iter(worker.held)), done)
        return True

    async def finish(self, pick: int, bits: int, outcome: AttemptOutcome, *, twice: bool, items: int) -> bool:
        """Reports some of what it holds, at times twice in a batch, and items before it."""
        worker = one_of(self._holding(), pick)
        refs = some_or_first(list(worker.held), bits) if worker else []
        if worker is None:
            return await self._take_something(pick)
        results = [result_of(worker, ref, outcome) for ref in refs]
        done = [
            ItemResult(ref, worker.session_id, f"item-{number}", number % 2 == 0, "" if number % 2 == 0 else "bad")
            for ref in refs
            for number in range(items)
        ]
        await self.referee.report(worker, [*results, *map(replace, results)] if twice else results, done)
        return True

    async def repeat(self, pick: int, which: int, *, altered: bool) -> bool:
        """Reports again what it, or one that is gone, has reported before; at times another result."""
        worker = one_of([each for each in [*self.workers, *self.gone] if each.reported], pick)
        if worker is None:
            return False
        result = worker.reported[-1 - which % len(worker.reported)]
        await self.referee.report(worker, [replace(result, duration=77.0) if altered else result])
        return True

    async def report_late(self, pick: int, which: int, outcome: AttemptOutcome) -> bool:
        """One that is gone reports what it held when it was lost."""
        worker = one_of([each for each in self.gone if each.held], pick)
        if worker is None:
            return False
        ref = list(worker.held)[which % len(worker.held)]
        await self.referee.report(worker, [result_of(worker, ref, outcome)])
        return True

    async def report_anothers(self, pick: int, which: int, *, forged: bool) -> bool:
        """What another session holds; or with a claim, or an attempt, that never was."""
        worker = one_of([*self.workers, *self.gone], pick)
        refs = [ref for each in self.workers if each is not worker for ref in each.held]
        ref = one_of(refs, which)
        if worker is None or ref is None:
            return False
        made_up = AttemptRef(ref.run_id, ref.attempt + which % 2, ref.claim_id + 1_000_000)
        await self.referee.report(worker, [result_of(worker, made_up if forged else ref, "COMPLETED")])
        return True

    async def reap(self, replica: Replica) -> bool:
        await replica.reaper.step(replica.connection, now=self.world.now)
        self._sort_out()
        return True

    async def finish_all(self) -> None:
        """A new worker takes whatever can be had, until there is nothing; all that it is handed completes."""
        worker = Worker(self.world, self.world.replicas[0], "worker-of-the-end")
        await worker.connect(worker.replica)
        self._grant(worker, 500)
        handed = True
        while handed or worker.held:
            handed = await self.dispatch(worker.replica)
            await self.referee.report(worker, [result_of(worker, ref, "COMPLETED") for ref in list(worker.held)])
            self._grant(worker, 500)
        await worker.leave()

    async def _take_something(self, pick: int) -> bool:
        """There is nobody who could report: a worker comes, or gets what there is."""
        if not self.connected():
            return await self.begin(self.world.replicas[pick % 2], 30)
        worker = self.connected()[pick % len(self.connected())]
        self._grant(worker, 30)
        return await self.dispatch(worker.replica)

    def connected(self) -> list[Worker]:
        return [each for each in self.workers if each.session is not None]

    def _holding(self, *, connected: bool = False) -> list[Worker]:
        return [each for each in (self.connected() if connected else self.workers) if each.held]

    def _grant(self, worker: Worker, credit: int) -> None:
        if worker.session is not None:
            worker.replica.sessions.grant(worker.session, credit - worker.session.credit)

    def _sort_out(self) -> None:
        self.gone += [each for each in self.workers if each.refused is not None]
        self.workers = [each for each in self.workers if each.refused is None]
