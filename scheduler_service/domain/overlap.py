"""What becomes of an occurrence that comes due while an earlier run of its schedule is still live."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from enum import Enum, StrEnum, auto

from scheduler_service.domain.record import RunError
from scheduler_service.domain.run import TriggerSource


class Overlap(StrEnum):
    """A job's choice. All but ALLOW_ALL keep its schedules to one run at a time; the database holds that."""

    SKIP = "SKIP"
    BUFFER_ONE = "BUFFER_ONE"
    BUFFER_ALL = "BUFFER_ALL"
    CANCEL_OTHER = "CANCEL_OTHER"
    ALLOW_ALL = "ALLOW_ALL"


class Answer(Enum):
    """What becomes of a run that is kept from being handed out at once."""

    SKIP = auto()
    BUFFER = auto()
    """It is live and waits its turn."""
    CANCEL = auto()
    """It is live and waits its turn; every earlier occurrence of its schedule that is live is to stop."""


SKIPPED = RunError(
    "OVERLAP", "an earlier occurrence of its schedule was live, or waited, when this one was to become a run"
)
SUPERSEDED = RunError("OVERLAP", "a later occurrence of its schedule came due")
_LATE = timedelta(seconds=2)
"""Longer than a tick that has much to do takes."""


def skipped(late: timedelta) -> RunError:
    """Why an occurrence was skipped, to which a scheduler came so long after it was due."""
    if late < _LATE:
        return SKIPPED
    said = f"no scheduler came to it until {late.total_seconds():.0f} s after it was due"
    return replace(SKIPPED, message=f"{SKIPPED.message}; {said}")


@dataclass(frozen=True, slots=True)
class Situation:
    """The exclusive live runs of a schedule: why the one exists whose turn it is (None if there is none), and whether
    an occurrence waits. An occurrence is a run that its schedule owed just then: with the trigger SCHEDULE."""

    holder: TriggerSource | None
    occurrence_waits: bool

    @property
    def occurrence_lives(self) -> bool:
        return self.occurrence_waits or self.holder is TriggerSource.SCHEDULE


def resolve(overlap: Overlap, situation: Situation, triggers: Sequence[TriggerSource]) -> list[Answer]:
    """What becomes of each of these runs of one schedule, in their order; each meets what became of those before.

    Runs that are no occurrences always wait, and an occurrence that finds none but such waits ahead of them: it is
    neither skipped for them, nor does it cancel them.
    """
    answers = []
    for trigger in triggers:
        answer = _resolve(overlap, situation, trigger)
        if answer is not Answer.SKIP:
            situation = _joined(situation, trigger)
        answers.append(answer)
    return answers


def _resolve(overlap: Overlap, situation: Situation, trigger: TriggerSource) -> Answer:
    if trigger is not TriggerSource.SCHEDULE:
        return Answer.BUFFER
    if overlap is Overlap.SKIP and situation.occurrence_lives:
        return Answer.SKIP
    if overlap is Overlap.BUFFER_ONE and situation.occurrence_waits:
        return Answer.SKIP
    if overlap is Overlap.CANCEL_OTHER and situation.occurrence_lives:
        return Answer.CANCEL
    return Answer.BUFFER


def _joined(situation: Situation, trigger: TriggerSource) -> Situation:
    if situation.holder is None:
        return replace(situation, holder=trigger)
    return replace(situation, occurrence_waits=situation.occurrence_waits or trigger is TriggerSource.SCHEDULE)
