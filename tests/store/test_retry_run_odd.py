"""Trying odd runs again: those whose record says less than the engine's does."""

from __future__ import annotations

from datetime import timedelta

import pytest

from scheduler_service.domain.errors import Conflict
from scheduler_service.domain.run import RunState
from tests.builders import days_ago
from tests.store.definitions_case import START, Scheduler
from tests.store.retry_case import begin, ended, retries, retry

DAY = timedelta(days=1)
LONG_AGO = min(START, days_ago(0)) - 3 * DAY
"""By the stepped clock, and by the database's own, by which payloads are cleared."""
CLEAR = "select carillon.clear_payloads('email-service/weekly-digest', %s)"


@pytest.fixture
async def scheduler(scheduler: Scheduler) -> Scheduler:
    return await begin(scheduler)


async def refusal(scheduler: Scheduler, **columns: object) -> Conflict:
    run_id = ended(scheduler, **columns)  # type: ignore[arg-type]  # columns are of any type
    scheduler.admin.execute(CLEAR, [days_ago(1)])
    with pytest.raises(Conflict) as refused:
        await retry(scheduler, run_id)
    assert retries(scheduler) == {}
    return refused.value


@pytest.mark.parametrize("state", [RunState.FAILED, RunState.CANCELLED, RunState.SKIPPED])
async def test_a_cleared_run_without_an_error_is_not_taken_for_one_that_had_no_payload(
    scheduler: Scheduler, state: RunState
) -> None:
    refused = await refusal(scheduler, state=state, at=LONG_AGO, payload={"to": "jane"}, error=None)
    assert "neither a payload nor an error" in refused.message
    assert "TriggerJob" in refused.message


async def test_a_run_of_which_an_empty_error_was_kept_is_answered_as_cleared(scheduler: Scheduler) -> None:
    refused = await refusal(scheduler, at=LONG_AGO, payload={}, error={})
    assert "not kept any more" in refused.message


@pytest.mark.parametrize("days", [0.5, 3])
async def test_a_run_without_an_error_that_has_its_payload_is_tried_again(scheduler: Scheduler, days: float) -> None:
    run = await retry(scheduler, ended(scheduler, at=START - days * DAY, payload={"to": "jane"}, error=None))
    assert run.payload == {"to": "jane"}


async def test_a_run_that_is_too_young_to_have_been_cleared_had_no_payload(scheduler: Scheduler) -> None:
    run = await retry(scheduler, ended(scheduler, at=START - DAY / 2, error=None))
    assert run.payload == {}


async def test_a_run_whose_schedule_is_not_even_there_is_of_a_deleted_one(scheduler: Scheduler) -> None:
    run_id = ended(scheduler, schedule_id=2**40, revision=1)
    with pytest.raises(Conflict, match="was deleted"):
        await retry(scheduler, run_id)
