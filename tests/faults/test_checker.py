"""The checker is worth something only if it refuses what is wrong, by its name, and nothing that is right."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.faults.bench import SECOND, Bench
from tests.faults.case import Allowances, Case
from tests.faults.checker import Thresholds, judge
from tests.faults.evidence import Evidence, Fault
from tests.faults.histories import BEGAN, good_history
from tests.faults.mutations import MUTATIONS as OTHERS
from tests.faults.mutations_twice import MUTATIONS as TWICE
from tests.faults.names import touches, way
from tests.faults.windows import Stretches

ENOUGH = Thresholds(musts=200, overlapped=0.3, kills=5)
SEEDS = (1, 2, 3)
MUTATIONS = {**OTHERS, **TWICE}


@settings(deadline=None)
@given(seed=st.integers(0, 2**32))
def test_a_good_history_passes(seed: int) -> None:
    judgement = judge(good_history(seed), ENOUGH)
    assert judgement.verdict == "pass", judgement.reasons


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", sorted(MUTATIONS))
def test_what_is_wrong_is_found_and_called_by_its_name(name: str, seed: int) -> None:
    kind, spoil = MUTATIONS[name]
    judgement = judge(spoil(Bench(good_history(seed), Random(seed))), ENOUGH)
    assert judgement.verdict == "fail"
    assert getattr(judgement, kind) > 0, judgement.reasons
    assert any(reason.startswith(f"{kind}: ") for reason in judgement.reasons)
    assert judgement.line().endswith(" verdict=fail")


def test_a_call_without_an_answer_may_have_happened_or_not() -> None:
    good = good_history(1)
    bench = Bench(good, Random(1))
    unheard = [each for each in good.records if not each.schedule and each.run_id not in bench.calls]
    assert unheard
    for run in unheard:
        assert judge(bench.without(run), ENOUGH).lost == 0


def test_the_line_says_what_was_counted() -> None:
    judgement = judge(good_history(1), ENOUGH)
    share = 100 * judgement.overlapped // judgement.musts
    assert judgement.line() == (
        f"musts={judgement.musts} kills={judgement.kills} faults={judgement.faults} overlapped={share}% lost=0 twice=0"
        " early=0 stuck=0 unexplained=0 verdict=pass"
    )


@pytest.mark.parametrize(
    "thresholds",
    [
        pytest.param(replace(ENOUGH, musts=100_000), id="musts"),
        pytest.param(replace(ENOUGH, overlapped=1.0), id="overlapped"),
        pytest.param(replace(ENOUGH, kills=1_000), id="kills"),
    ],
)
def test_too_little_is_unknown(thresholds: Thresholds) -> None:
    judgement = judge(good_history(1), thresholds)
    assert (judgement.verdict, len(judgement.reasons)) == ("unknown", 1)
    assert judgement.reasons[0].startswith("too little: ")


def test_a_kind_of_fault_that_did_not_happen_leaves_it_unknown() -> None:
    kinds = frozenset({"kill", "cut", "PgBouncer killed", "deadlock"})
    judgement = judge(good_history(1), replace(ENOUGH, kinds=kinds))
    assert judgement.verdict == "unknown"
    assert judgement.reasons == ("too little: these faults did not happen: PgBouncer killed, deadlock",)


def test_a_kind_of_fault_after_which_nothing_was_done_leaves_it_unknown() -> None:
    good = good_history(1)
    over = max(each.began for each in good.effects) + SECOND
    late = replace(good, faults=[*good.faults, Fault("deadlock", "postgres", over, over)])
    thresholds = replace(ENOUGH, kinds=frozenset({"kill", "deadlock"}))
    judgement = judge(late, thresholds)
    assert judgement.verdict == "unknown"
    assert judgement.reasons == ("too little: nothing was done after these faults: deadlock",)
    again = replace(late, faults=[*late.faults, Fault("deadlock", "postgres", BEGAN, BEGAN + SECOND)])
    assert judge(again, thresholds).verdict == "pass"


BOTH = ("scheduler-1", "scheduler-2")


@pytest.mark.parametrize(
    ("faults", "touched"),
    [
        pytest.param([("worker-1", 0, 1)], True, id="its worker"),
        pytest.param([("worker-2", 0, 1)], False, id="another worker"),
        pytest.param([("http-service", 0, 1)], False, id="the service of another worker"),
        pytest.param([("postgres", 0, 1)], True, id="the database"),
        pytest.param([("worker-1", -9, -3)], False, id="its worker, before it began"),
        pytest.param([("worker-1", -9, -1)], True, id="its worker, while it was on its way"),
        pytest.param([("worker-1", 4, 5)], True, id="its worker, while its result may be on its way"),
        pytest.param([("worker-1", 6, 7)], False, id="its worker, afterwards"),
        pytest.param([("scheduler-1", 0, 1)], False, id="one scheduler"),
        pytest.param([("scheduler-1", 0, 1), ("scheduler-2", 0, 1)], True, id="both schedulers"),
        pytest.param([("scheduler-1", -4, -1), ("scheduler-2", 3, 4)], True, id="one before all have found the other"),
        pytest.param([("scheduler-1", -9, -4), ("scheduler-2", 3, 4)], False, id="one after the other"),
        pytest.param([("scheduler-1", 0, 1), ("scheduler-1>postgres", 0, 1)], False, id="one scheduler, twice"),
        pytest.param([("pgbouncer", 0, 1)], False, id="PgBouncer before one scheduler"),
        pytest.param([("scheduler-1", 0, 1), ("pgbouncer", 0, 1)], True, id="one, and PgBouncer before the other"),
        pytest.param([("scheduler-1", 0, 1), ("pgbouncer>postgres", 0, 1)], True, id="one, and the other's database"),
        pytest.param([("scheduler-1", 0, 1), ("worker-1>scheduler-2", 0, 1)], True, id="one, and its link to another"),
        pytest.param([("scheduler-1", 0, 1), ("worker-2>scheduler-2", 0, 1)], False, id="one, and another's link"),
        pytest.param([("scheduler-1", 0, 1), ("client-1>scheduler-2", 0, 1)], False, id="one, and a client's link"),
        pytest.param([("http-service>scheduler-1", 0, 1)], False, id="a link that only registers"),
    ],
)
def test_an_attempt_is_touched_by_what_leaves_its_worker_nothing(
    faults: list[tuple[str, float, float]], touched: bool
) -> None:
    """It began at 0, and was done after 2 s."""
    effect = replace(good_history(1).effects[0], worker="worker-1", began=BEGAN, ended=BEGAN + 2 * SECOND)
    broken = [
        Fault("broken", target, BEGAN + began * SECOND, BEGAN + ended * SECOND, False, touches(target), way(target))
        for target, began, ended in faults
    ]
    case = Case(Evidence(BEGAN, BEGAN, 30.0, faults=broken, ways=BOTH), Allowances())
    assert case.touched(effect) is touched


def test_what_is_wrong_is_a_fail_also_where_too_little_was_exercised() -> None:
    kind, spoil = MUTATIONS["never_make_the_run"]
    judgement = judge(spoil(Bench(good_history(1), Random(1))))
    assert (judgement.verdict, kind) == ("fail", "lost")


def test_nothing_is_known_without_effects_records_or_faults() -> None:
    good = good_history(1)
    assert judge(replace(good, effects=()), ENOUGH).verdict == "unknown"
    assert judge(replace(good, records=()), ENOUGH).verdict == "unknown"
    assert judge(Evidence(good.began, good.ended, good.grace), ENOUGH).verdict == "unknown"
    assert any("no faults" in each for each in judge(replace(good, faults=()), Thresholds(0, 0, 0)).reasons)


def test_sentences_are_bounded_and_nothing_is_counted_twice() -> None:
    good = good_history(1)
    judgement = judge(replace(good, records=[each for each in good.records if not each.schedule]), ENOUGH)
    assert judgement.lost == len(good.occurrences)
    assert sum(each.startswith("lost: ") for each in judgement.reasons) == 15


STRETCHES = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 20)), max_size=8)


@settings(deadline=None)
@given(STRETCHES, st.integers(-5, 90), st.integers(0, 30))
def test_a_window_is_over_when_its_grace_has_passed_outside_of_faults(
    faults: list[tuple[int, int]], instant: int, grace: int
) -> None:
    stretches = Stretches((BEGAN + at * SECOND, BEGAN + (at + long) * SECOND) for at, long in faults)
    deadline = stretches.deadline(BEGAN + instant * SECOND, grace * SECOND)
    broken = {second for at, long in faults for second in range(at, at + long)}
    passed = [second for second in range(instant, 400) if second not in broken]
    # The deadline lies after the last whole second of the grace, and before the next one has passed.
    until = (deadline - BEGAN) / SECOND
    assert until >= (passed[grace - 1] + 1 if grace else instant)
    assert until <= passed[grace]


@settings(deadline=None)
@given(STRETCHES, STRETCHES)
def test_what_two_have_in_common_is_in_both(one: list[tuple[int, int]], other: list[tuple[int, int]]) -> None:
    """Asked at whole and half seconds: what is between them is as the half."""
    first, second = (
        Stretches((BEGAN + at * SECOND, BEGAN + (at + long) * SECOND) for at, long in each) for each in (one, other)
    )
    both = first.common(second)
    for half in range(170):
        at = BEGAN + half * SECOND / 2
        assert both.overlap(at, at) is (first.overlap(at, at) and second.overlap(at, at))


@settings(deadline=None)
@given(STRETCHES, st.integers(-5, 90), st.integers(0, 30))
def test_an_overlap_is_one_with_any_of_them(faults: list[tuple[int, int]], began: int, length: int) -> None:
    stretches = Stretches((BEGAN + at * SECOND, BEGAN + (at + long) * SECOND) for at, long in faults)
    expected = any(at <= began + length and began <= at + long for at, long in faults)
    assert stretches.overlap(BEGAN + began * SECOND, BEGAN + (began + length) * SECOND) is expected
