"""Stopping runs: pending ones end at once, running ones are asked, ended ones stay as they are."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import psycopg
import pytest

from scheduler_service.domain.access import ANONYMOUS
from scheduler_service.domain.errors import Conflict, Forbidden, InvalidInput, NotFound, NothingToSee, Unauthenticated
from scheduler_service.domain.run import RunState, id_floor
from scheduler_service.store.database import Database
from scheduler_service.usecases.cancel import cancel_run
from scheduler_service.usecases.runs import get_run
from scheduler_service.usecases.wakeups import Topic, Wakeups
from tests import builders
from tests.builders import ADMIN, MadeJob


@pytest.fixture
def job(admin: psycopg.Connection[Any]) -> MadeJob:
    return builders.make_job(admin)


async def test_a_pending_run_ends_cancelled_at_once(
    database: Database, admin: psycopg.Connection[Any], job: MadeJob
) -> None:
    run_id = builders.make_live_run(admin, job, labels={"a": "b"}, payload={"n": 1})
    run = await cancel_run(database, Wakeups(), ADMIN, run_id, "not needed")
    assert run.state is RunState.CANCELLED
    assert run.error is not None
    assert (run.error.code, run.error.message) == ("CANCELLED", "cancelled by admin:alice: not needed")
    assert (run.labels, run.payload, run.started_at) == ({"a": "b"}, {"n": 1}, None)
    assert run.finished_at is not None
    assert admin.execute("select count(*) from carillon.live_runs").fetchone() == (0,)
    assert await get_run(database, ADMIN, run_id) == run


async def test_a_running_one_is_asked_once(database: Database, admin: psycopg.Connection[Any], job: MadeJob) -> None:
    run_id = builders.make_live_run(admin, job)
    builders.claim(admin, run_id, builders.make_session(admin))
    wakeups = Wakeups()
    cancels = wakeups.listen(Topic.CANCELS)
    first = await cancel_run(database, wakeups, ADMIN, run_id, "stop")
    assert first.state is RunState.RUNNING
    assert first.cancel_requested_at is not None
    assert cancels.take()
    assert await cancel_run(database, wakeups, ADMIN, run_id, "again") == first
    asked = admin.execute("select cancel_reason, cancelled_by from carillon.live_runs").fetchone()
    assert asked == ("cancelled by admin:alice: stop", "admin:alice"), "its record says who, however it ends"


async def test_an_ended_run_never_changes(database: Database, admin: psycopg.Connection[Any], job: MadeJob) -> None:
    run_id = builders.make_ended_run(admin, job)
    with pytest.raises(Conflict) as refused:
        await cancel_run(database, Wakeups(), ADMIN, run_id)
    assert refused.value.reason == "RUN_ENDED"


async def test_only_admins_stop_runs(database: Database, admin: psycopg.Connection[Any], job: MadeJob) -> None:
    run_id = builders.make_live_run(admin, job, tenant="tenant-a")
    for principal in (builders.service("email-service"), builders.user("tenant-a")):
        with pytest.raises(Forbidden):
            await cancel_run(database, Wakeups(), principal, run_id)
    with pytest.raises(NothingToSee):
        await cancel_run(database, Wakeups(), builders.NOBODY, run_id)
    with pytest.raises(Unauthenticated):
        await cancel_run(database, Wakeups(), ANONYMOUS, run_id)
    assert (await get_run(database, ADMIN, run_id)).state is RunState.PENDING


async def test_a_run_that_is_not_there_is_not_found(database: Database, job: MadeJob) -> None:
    missing: UUID = id_floor(builders.now())
    with pytest.raises(NotFound):
        await cancel_run(database, Wakeups(), ADMIN, missing)


async def test_a_reason_is_at_most_a_thousand_characters(
    database: Database, admin: psycopg.Connection[Any], job: MadeJob
) -> None:
    run_id = builders.make_live_run(admin, job)
    with pytest.raises(InvalidInput):
        await cancel_run(database, Wakeups(), ADMIN, run_id, "x" * 1001)
    assert (await get_run(database, ADMIN, run_id)).state is RunState.PENDING
