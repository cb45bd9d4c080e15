"""What was done twice, one thing at a time: each spoils a good history, which the checker must then call `twice`."""

from __future__ import annotations

from dataclasses import replace

from tests.faults.bench import SECOND, Bench, Mutations, later
from tests.faults.evidence import Effect, Evidence, FailedAttempt, Fault, Record
from tests.faults.outcomes import result_of

MUTATIONS = Mutations()
mutation = MUTATIONS.of


@mutation("twice")
def _duplicate_the_run(bench: Bench) -> Evidence:
    run = bench.owed()
    other = replace(run, run_id=bench.uuid())
    effects = [replace(each, run_id=other.run_id) for each in bench.case.effects[run.run_id]]
    attempts = [replace(each, run_id=other.run_id) for each in bench.case.failed.get(run.run_id, ())]
    return bench.with_evidence(
        records=[*bench.good.records, other],
        effects=[*bench.good.effects, *effects],
        attempts=[*bench.good.attempts, *attempts],
    )


@mutation("twice")
def _duplicate_the_record(bench: Bench) -> Evidence:
    return bench.with_evidence(records=[*bench.good.records, bench.owed()])


@mutation("twice")
def _leave_an_ended_run_live(bench: Bench) -> Evidence:
    return bench.with_evidence(live=[bench.owed().run_id])


@mutation("twice")
def _duplicate_the_effect(bench: Bench) -> Evidence:
    _, effect = bench.at_peace()
    return bench.with_evidence(effects=[*bench.good.effects, later(effect, attempt=1)])


@mutation("twice")
def _try_again_what_was_done(bench: Bench) -> Evidence:
    return _tried_again(bench, *bench.at_peace())


@mutation("twice")
def _try_again_what_was_done_while_another_scheduler_was_left(bench: Bench) -> Evidence:
    return _tried_again(bench, *bench.beside(lambda fault, effect: bool(fault.way) and _meets(fault, effect)))


@mutation("twice")
def _try_again_what_was_done_while_a_client_was_cut_off(bench: Bench) -> Evidence:
    return _tried_again(
        bench, *bench.beside(lambda fault, effect: fault.touches == frozenset() and _meets(fault, effect))
    )


@mutation("twice")
def _try_again_what_was_done_while_another_worker_was_broken(bench: Bench) -> Evidence:
    def is_of_another(fault: Fault, effect: Effect) -> bool:
        return bool(fault.touches) and effect.worker not in (fault.touches or ()) and _meets(fault, effect)

    return _tried_again(bench, *bench.beside(is_of_another))


@mutation("twice")
def _try_again_what_was_done_after_its_worker_was_back(bench: Bench) -> Evidence:
    """Within the time that a run may be late for it."""

    def was_back(fault: Fault, effect: Effect) -> bool:
        is_its = effect.worker in (fault.touches or ())
        return is_its and fault.ended < effect.began < fault.ended + bench.case.allow.recovery

    return _tried_again(bench, *bench.beside(was_back))


@mutation("twice")
def _try_again_before_the_first_has_ended(bench: Bench) -> Evidence:
    run, effect = bench.retried()
    following = [each for each in bench.case.effects[run.run_id] if each.attempt > effect.attempt]
    return bench.with_effect(effect, ended=min(each.began for each in following) + SECOND)


@mutation("twice")
def _try_again_what_said_that_it_was_done(bench: Bench) -> Evidence:
    return bench.with_effect(bench.retried()[1], outcome="COMPLETED")


@mutation("twice")
def _make_another_run_when_a_call_is_repeated(bench: Bench) -> Evidence:
    run = bench.asked_for("COMPLETED")
    call = bench.calls[run.run_id]
    again = replace(call, began=call.ended, ended=call.ended + SECOND, runs=(bench.uuid(),))
    return bench.with_evidence(calls=[*bench.good.calls, again])


def _meets(fault: Fault, effect: Effect) -> bool:
    return effect.ended is not None and fault.began <= effect.ended and effect.began <= fault.ended


def _tried_again(bench: Bench, run: Record, effect: Effect) -> Evidence:
    """As if the worker had been lost."""
    second = later(effect, attempt=2)
    failed = FailedAttempt(run.run_id, 1, "WORKER_LOST", second.began - SECOND / 10)
    bad = bench.with_record(run, attempt=2, max_attempts=3, finished_at=second.ended, result=result_of(second))
    return replace(bad, effects=[*bench.good.effects, second], attempts=[*bench.good.attempts, failed])
