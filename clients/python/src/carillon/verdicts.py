"""Results that do not count are named in the log: somebody may look for what became of the work."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from carillon.held import HeldAttempt
from carillon.v1 import work_pb2

_log = logging.getLogger("carillon")

_MOST_NAMED = 20
_REASONS = {
    work_pb2.RESULT_VERDICT_STALE: "was given to another claim, or counted as lost",
    work_pb2.RESULT_VERDICT_RUN_ENDED: "had ended with another result",
    work_pb2.RESULT_VERDICT_RUN_CANCELLED: "was cancelled, and its grace was over",
    work_pb2.RESULT_VERDICT_UNKNOWN: "is not known to the scheduler",
}


def name_refused(attempt: HeldAttempt, verdict: work_pb2.ResultVerdict.ValueType) -> None:
    """Logs the verdict of an attempt's result, if it does not count."""
    if verdict == work_pb2.RESULT_VERDICT_ACCEPTED:
        return
    known = verdict in _REASONS
    _log.warning(
        "the result of run %s, attempt %d, does not count (%s): the run %s",
        attempt.assignment.run_id,
        attempt.assignment.attempt,
        work_pb2.ResultVerdict.Name(verdict).removeprefix("RESULT_VERDICT_") if known else verdict,
        _REASONS[verdict] if known else "got a verdict that this client does not know",
    )


def name_given_up(attempts: Sequence[HeldAttempt]) -> None:
    """Logs whose results were not acknowledged when their session was lost."""
    for attempt in attempts[:_MOST_NAMED]:
        _log.warning(
            "the result of run %s, attempt %d, was not acknowledged before the session was lost; unless the scheduler "
            "recorded it all the same, the run is tried again",
            attempt.assignment.run_id,
            attempt.assignment.attempt,
        )
    if len(attempts) > _MOST_NAMED:
        _log.warning("so it is with the results of %d more runs", len(attempts) - _MOST_NAMED)
