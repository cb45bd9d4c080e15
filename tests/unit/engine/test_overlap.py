"""What becomes of a run that finds a live one of its schedule."""

from __future__ import annotations

import pytest

from scheduler_service.domain.overlap import Answer, Overlap, Situation, resolve
from scheduler_service.domain.run import TriggerSource

SCHEDULE, CATCH_UP, MANUAL = TriggerSource.SCHEDULE, TriggerSource.CATCH_UP, TriggerSource.MANUAL
SKIP, BUFFER, CANCEL = Answer.SKIP, Answer.BUFFER, Answer.CANCEL

# Where an occurrence has the turn, where one has it and one waits, and where one waits for another kind of run.
RUNNING = Situation(SCHEDULE, occurrence_waits=False)
RUNNING_AND_WAITING = Situation(SCHEDULE, occurrence_waits=True)
WAITING_FOR_EXTRA = Situation(MANUAL, occurrence_waits=True)
EXTRA = Situation(CATCH_UP, occurrence_waits=False)
FREE = Situation(None, occurrence_waits=False)


@pytest.mark.parametrize(
    ("overlap", "running", "running_and_waiting", "waiting_for_extra"),
    [
        (Overlap.SKIP, SKIP, SKIP, SKIP),
        (Overlap.BUFFER_ONE, BUFFER, SKIP, SKIP),
        (Overlap.BUFFER_ALL, BUFFER, BUFFER, BUFFER),
        (Overlap.CANCEL_OTHER, CANCEL, CANCEL, CANCEL),
        # Such runs are kept out by nothing; the job's choice was another one when the index was asked.
        (Overlap.ALLOW_ALL, BUFFER, BUFFER, BUFFER),
    ],
)
def test_an_occurrence_that_finds_an_earlier_one_is_for_the_policy_to_decide(
    overlap: Overlap, running: Answer, running_and_waiting: Answer, waiting_for_extra: Answer
) -> None:
    for situation, answer in (
        (RUNNING, running),
        (RUNNING_AND_WAITING, running_and_waiting),
        (WAITING_FOR_EXTRA, waiting_for_extra),
    ):
        assert resolve(overlap, situation, [SCHEDULE]) == [answer], situation


@pytest.mark.parametrize("overlap", Overlap)
@pytest.mark.parametrize("situation", [EXTRA, FREE])
def test_an_occurrence_that_finds_no_other_waits_and_disturbs_nobody(overlap: Overlap, situation: Situation) -> None:
    assert resolve(overlap, situation, [SCHEDULE]) == [BUFFER]


@pytest.mark.parametrize("overlap", Overlap)
@pytest.mark.parametrize("situation", [RUNNING, RUNNING_AND_WAITING, WAITING_FOR_EXTRA, EXTRA, FREE])
@pytest.mark.parametrize("trigger", [each for each in TriggerSource if each is not SCHEDULE])
def test_runs_that_are_no_occurrences_always_wait(
    overlap: Overlap, situation: Situation, trigger: TriggerSource
) -> None:
    assert resolve(overlap, situation, [trigger]) == [BUFFER]


@pytest.mark.parametrize(
    ("overlap", "situation", "answers"),
    [
        (Overlap.SKIP, EXTRA, [BUFFER, BUFFER, SKIP]),
        (Overlap.SKIP, FREE, [BUFFER, BUFFER, SKIP]),
        (Overlap.BUFFER_ONE, RUNNING, [BUFFER, BUFFER, SKIP]),
        (Overlap.BUFFER_ONE, EXTRA, [BUFFER, BUFFER, SKIP]),
        (Overlap.BUFFER_ALL, RUNNING, [BUFFER, BUFFER, BUFFER]),
        (Overlap.CANCEL_OTHER, RUNNING, [BUFFER, CANCEL, CANCEL]),
        (Overlap.CANCEL_OTHER, EXTRA, [BUFFER, BUFFER, CANCEL]),
    ],
)
def test_of_several_each_meets_those_before(overlap: Overlap, situation: Situation, answers: list[Answer]) -> None:
    assert resolve(overlap, situation, [CATCH_UP, SCHEDULE, SCHEDULE]) == answers


def test_the_first_of_several_takes_a_free_place_and_the_second_waits_for_it() -> None:
    assert resolve(Overlap.BUFFER_ONE, FREE, [SCHEDULE] * 3) == [BUFFER, BUFFER, SKIP]
    assert resolve(Overlap.CANCEL_OTHER, FREE, [SCHEDULE] * 2) == [BUFFER, CANCEL]
