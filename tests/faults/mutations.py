"""What can be wrong with a history, one thing at a time: each makes a bad one of a good one, and names what the checker
must call it."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

from tests.faults.bench import SECOND, Bench, Mutations, later, replaced
from tests.faults.case import key_of_record
from tests.faults.evidence import Call, Evidence, FailedAttempt, Gap, Record
from tests.faults.outcomes import result_of

MUTATIONS = Mutations()
mutation = MUTATIONS.of


@mutation("lost")
def _drop_the_record(bench: Bench) -> Evidence:
    return bench.without(bench.owed(), effects=False)


@mutation("lost")
def _never_make_the_run(bench: Bench) -> Evidence:
    return bench.without(bench.owed())


@mutation("lost")
def _drop_the_effects(bench: Bench) -> Evidence:
    return bench.without(bench.owed(), record=False)


@mutation("lost")
def _lose_the_run_of_an_answered_call(bench: Bench) -> Evidence:
    return bench.without(bench.asked_for("COMPLETED"))


@mutation("lost")
def _skip_what_may_not_be_skipped(bench: Bench) -> Evidence:
    return bench.with_record(bench.owed(), state="SKIPPED", error_code="OVERLAP")


@mutation("lost")
def _fail_what_must_complete(bench: Bench) -> Evidence:
    return bench.with_record(bench.owed(), state="FAILED", error_code="HANDLER_ERROR", result="")


@mutation("lost")
def _delay(bench: Bench) -> Evidence:
    """Until after its window, however far faults have extended that."""
    run = bench.owed()
    past = bench.case.broken.deadline(run.scheduled_for, bench.case.grace) + SECOND
    by = past - run.created_at
    late = bench.with_record(run, finished_at=run.finished_at + by)
    effects = [
        replace(each, began=each.began + by, ended=each.ended and each.ended + by)
        if each.run_id == run.run_id
        else each
        for each in late.effects
    ]
    return replace(late, effects=effects)


@mutation("lost")
def _record_a_gap_over_a_must(bench: Bench) -> Evidence:
    run = bench.owed()
    bad = Gap(run.job, run.tenant, run.schedule, run.scheduled_for, run.scheduled_for + SECOND, 2, "CATCH_UP")
    return replace(bench.without(run), gaps=[*bench.good.gaps, bad])


@mutation("lost")
def _forget_a_cancel_that_explains(bench: Bench) -> Evidence:
    run = bench.asked_for("CANCELLED")
    return bench.with_evidence(
        calls=[each for each in bench.good.calls if each.of != run.run_id or each.what != "cancel"]
    )


@mutation("early")
def _begin_early(bench: Bench) -> Evidence:
    run = bench.owed()
    effect = bench.effect(run)
    return bench.with_effect(effect, began=run.scheduled_for - SECOND)


@mutation("early")
def _make_the_run_early(bench: Bench) -> Evidence:
    run = bench.owed()
    return bench.with_record(run, created_at=run.scheduled_for - SECOND)


@mutation("early")
def _start_the_run_early(bench: Bench) -> Evidence:
    run = bench.owed()
    return bench.with_record(run, started_at=run.scheduled_for - SECOND)


@mutation("stuck")
def _leave_a_run_live(bench: Bench) -> Evidence:
    run = bench.owed()
    return replace(bench.without(run, effects=False), live=[run.run_id])


@mutation("stuck")
def _leave_live_what_a_call_asked_for(bench: Bench) -> Evidence:
    run = bench.asked_for("COMPLETED")
    return replace(bench.without(run, effects=False), live=[run.run_id])


@mutation("unexplained")
def _swap_the_tenant_of_an_effect(bench: Bench) -> Evidence:
    return bench.with_effect(bench.effect(bench.owed()), tenant="tenant-z")


@mutation("unexplained")
def _swap_the_tenant_of_a_record(bench: Bench) -> Evidence:
    return bench.with_record(bench.owed(), tenant="tenant-z")


@mutation("unexplained")
def _give_the_payload_of_another_tenant(bench: Bench) -> Evidence:
    run = bench.owed()
    return bench.with_effect(bench.effect(run), marker=f"{run.job}/tenant-z")


@mutation("unexplained")
def _answer_with_what_is_anothers(bench: Bench) -> Evidence:
    return bench.with_evidence(foreign=[f"tenant-z listed run {bench.owed().run_id}"])


@mutation("unexplained")
def _forge_the_result(bench: Bench) -> Evidence:
    run = bench.owed()
    return bench.with_record(run, result=f"{run.attempt}/{run.worker}/1")


@mutation("unexplained")
def _forge_the_worker(bench: Bench) -> Evidence:
    run = bench.owed()
    return bench.with_record(run, worker="worker-1" if run.worker != "worker-1" else "worker-2")


@mutation("unexplained")
def _take_the_result_of_an_earlier_attempt(bench: Bench) -> Evidence:
    run, effect = bench.retried()
    return bench.with_record(run, state="COMPLETED", error_code="", result=result_of(effect))


@mutation("unexplained")
def _record_before_it_was_done(bench: Bench) -> Evidence:
    run, effect = bench.at_peace()
    assert effect.ended is not None
    return bench.with_record(run, finished_at=effect.ended - SECOND)


@mutation("unexplained")
def _complete_what_failed(bench: Bench) -> Evidence:
    run = bench.asked_for("FAILED")
    effect = next(each for each in bench.case.effects[run.run_id] if each.attempt == run.attempt)
    return bench.with_record(run, state="COMPLETED", error_code="", result=result_of(effect))


@mutation("unexplained")
def _fail_what_completed(bench: Bench) -> Evidence:
    return bench.with_record(bench.at_peace()[0], state="FAILED", error_code="HANDLER_ERROR", result="")


@mutation("unexplained")
def _cancel_what_nobody_cancelled(bench: Bench) -> Evidence:
    return bench.with_record(bench.owed(), state="CANCELLED", error_code="CANCELLED", result="")


@mutation("unexplained")
def _skip_with_nothing_live(bench: Bench) -> Evidence:
    may_skip = {
        (each.job, each.tenant, each.schedule, each.instant) for each in bench.good.occurrences if each.overlap_may_skip
    }
    runs = sorted(
        (each for each in bench.done() if key_of_record(each) in may_skip), key=lambda each: each.scheduled_for
    )
    free = [
        run
        for before, run in pairwise(runs)
        if before.finished_at + 2 * SECOND < run.created_at
        and not bench.case.faults.overlap(before.finished_at, run.created_at)
    ]
    run = bench.one([runs[0], *free])
    bad = bench.without(run)
    return replace(
        bad, records=[*bad.records, replace(run, state="SKIPPED", attempt=1, error_code="OVERLAP", result="")]
    )


@mutation("unexplained")
def _do_what_was_skipped(bench: Bench) -> Evidence:
    skipped = bench.one([each for each in bench.good.records if each.state == "SKIPPED"])
    effect = bench.effect(bench.one([each for each in bench.done() if each.job == skipped.job]))
    done = replace(effect, run_id=skipped.run_id, attempt=1, scheduled_for=skipped.scheduled_for)
    return bench.with_evidence(effects=[*bench.good.effects, done])


@mutation("unexplained")
def _make_a_hole_in_the_attempts(bench: Bench) -> Evidence:
    gone = bench.one(bench.good.attempts)
    return bench.with_evidence(attempts=[each for each in bench.good.attempts if each is not gone])


@mutation("unexplained")
def _charge_one_attempt_twice(bench: Bench) -> Evidence:
    return bench.with_evidence(attempts=[*bench.good.attempts, bench.one(bench.good.attempts)])


@mutation("unexplained")
def _charge_an_attempt_for_nothing(bench: Bench) -> Evidence:
    """No fault was near, and nobody began it."""
    run, effect = bench.at_peace()
    bad = bench.with_record(run, attempt=2, max_attempts=3, result=result_of(replace(effect, attempt=2)))
    failed = FailedAttempt(run.run_id, 1, "WORKER_LOST", effect.began)
    effects = replaced(bench.good.effects, effect, replace(effect, attempt=2))
    return replace(bad, effects=effects, attempts=[*bench.good.attempts, failed])


@mutation("unexplained")
def _try_too_often(bench: Bench) -> Evidence:
    run, _ = bench.retried()
    return bench.with_record(run, max_attempts=run.attempt - 1)


@mutation("unexplained")
def _begin_an_attempt_beyond_the_last(bench: Bench) -> Evidence:
    run, effect = bench.at_peace()
    return bench.with_evidence(effects=[*bench.good.effects, later(effect, attempt=run.attempt + 1)])


@mutation("unexplained")
def _break_off_without_a_fault(bench: Bench) -> Evidence:
    return bench.with_effect(bench.retried()[1], ended=None, outcome=None)


@mutation("unexplained")
def _do_something_for_no_run(bench: Bench) -> Evidence:
    return bench.with_evidence(
        effects=[*bench.good.effects, replace(bench.one(bench.good.effects), run_id=bench.uuid())]
    )


@mutation("unexplained")
def _run_what_nothing_owes(bench: Bench) -> Evidence:
    run = bench.owed()
    odd = replace(run, run_id=bench.uuid(), scheduled_for=bench.good.began + 20.5 * SECOND)
    effect = replace(bench.effect(run), run_id=odd.run_id, scheduled_for=odd.scheduled_for)
    return bench.with_evidence(records=[*bench.good.records, odd], effects=[*bench.good.effects, effect])


@mutation("unexplained")
def _run_what_was_refused(bench: Bench) -> Evidence:
    run = bench.asked_for("COMPLETED")
    key = bench.calls[run.run_id].key
    refused: list[Call] = [
        replace(each, answer="refused", runs=()) if each.key == key else each for each in bench.good.calls
    ]
    # Nor may it be the run of another call, of which nobody knows.
    calls = [each for each in refused if each.answer != "unknown" or (each.job, each.tenant) != (run.job, run.tenant)]
    return bench.with_evidence(calls=calls)


@mutation("unexplained")
def _fail_what_was_to_stop(bench: Bench) -> Evidence:
    run = bench.asked_for("FAILED")
    bad = bench.with_record(run, cancel_requested_at=run.created_at)
    return replace(bad, calls=[*bench.good.calls, _cancel(run)])


@mutation("unexplained")
def _forget_a_cancel_that_was_answered(bench: Bench) -> Evidence:
    return bench.with_evidence(calls=[*bench.good.calls, _cancel(bench.asked_for("FAILED"))])


@mutation("unexplained")
def _try_again_what_was_to_stop(bench: Bench) -> Evidence:
    run, effect = bench.retried()
    asked = effect.began - 10 * SECOND
    bad = bench.with_record(run, cancel_requested_at=asked)
    return replace(bad, calls=[*bench.good.calls, replace(_cancel(run), began=asked, ended=asked)])


@mutation("unexplained")
def _retry_what_had_completed(bench: Bench) -> Evidence:
    run, old = bench.asked_for("COMPLETED"), bench.owed()
    call = bench.calls[run.run_id]
    calls = [replace(each, what="retry", of=old.run_id) if each.key == call.key else each for each in bench.good.calls]
    return bench.with_evidence(calls=calls)


def _cancel(run: Record) -> Call:
    at = run.created_at
    return Call("cancel", run.job, run.tenant, "cancel-of-ours", at, at, "ok", of=run.run_id)
