"""Every method of the API, asked by every sort of caller, over a real connection."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from uuid import uuid4

import grpc
import pytest
from carillon.v1 import job_pb2
from carillon.v1 import job_service_pb2 as jobs
from google.protobuf.field_mask_pb2 import FieldMask

from scheduler_service.rpc.methods import ACTIONS
from tests.security.calling import Answer, ask
from tests.security.rpc_matrix import COLUMNS, expected, method_of, request_of
from tests.security.world import ADMIN, CALLERS, EMAIL, Things, World

_LETTERS = {
    grpc.StatusCode.NOT_FOUND: "N",
    grpc.StatusCode.PERMISSION_DENIED: "D",
    grpc.StatusCode.UNAUTHENTICATED: "U",
}


def letter(answer: Answer) -> str:
    if answer.code is not grpc.StatusCode.OK:
        return _LETTERS.get(answer.code, f"{answer.code.name}: {answer.details}")
    return "E" if answer.is_empty_list else "O"


def test_every_method_and_every_caller_has_its_cells() -> None:
    assert {method_of(row) for row in expected()} == set(ACTIONS)
    assert set(COLUMNS) == set(CALLERS)


@pytest.mark.parametrize("caller", COLUMNS)
async def test_each_method_answers_a_caller_as_the_matrix_says(world: World, caller: str) -> None:
    wanted = {row: answers[caller] for row, answers in expected().items()}
    answered = {row: answer for row, answer in wanted.items() if answer == "O"}
    found = {}
    await world.be_still()
    before = world.contents()
    for row in (row for row in wanted if row not in answered):
        found[row] = letter(await ask(world.channel, method_of(row), request_of(row, world.things), CALLERS[caller]))
    changed = [table for table, rows in world.contents().items() if rows != before[table]]
    for row in answered:
        things = world.new_things()  # which the call may change, or remove
        found[row] = letter(await ask(world.channel, method_of(row), request_of(row, things), CALLERS[caller]))
    assert {row: answer for row, answer in found.items() if answer != wanted[row]} == {}
    assert changed == [], "what was refused changed something"


def _missing_like(things: Things) -> Things:
    """Things of names as long as these, that are not there."""
    job = replace(things.job, job=things.job.job[:-1] + "x")
    schedule = things.schedule.replace(things.job.name, job.name)
    return Things(job, schedule, uuid4(), uuid4(), f"{job.name}/backfills/{uuid4()}")


def _without_names(answer: Answer, things: Things) -> tuple[grpc.StatusCode, bytes]:
    said = answer.said()
    for name in (things.job.name, things.schedule, things.backfill, str(things.run), str(things.live_run)):
        said = said.replace(name.encode(), b"<asked>")
    return answer.code, said


@pytest.mark.parametrize("caller", ["user-b", "nobody", "other"])
async def test_not_there_and_not_yours_are_the_same_answer(world: World, caller: str) -> None:
    """To the last byte of the message, the details and the trailers, but for the name that was asked for."""
    by_hand = replace(world.things, job=replace(world.things.job, job="only-by-hand"))
    for there in (world.things, by_hand):
        for row, answers in expected().items():
            if answers[caller] == "O":
                continue
            for missing in (_missing_like(there), replace(there, run=uuid4(), live_run=uuid4())):
                both = [
                    _without_names(await ask(world.channel, method_of(row), request_of(row, it), CALLERS[caller]), it)
                    for it in (there, missing)
                ]
                assert both[0] == both[1], row


async def test_what_an_admin_overrides_survives_registration_is_shown_and_can_be_reset(world: World) -> None:
    name = f"services/{EMAIL}/jobs/weekly-digest"

    async def job_after(method: str, request: Any) -> job_pb2.Job:
        answer = await ask(world.channel, f"/carillon.v1.JobService/{method}", request, ADMIN)
        assert answer.code is grpc.StatusCode.OK, answer.details
        job: job_pb2.Job = answer.message.job  # type: ignore[union-attr]  # each of these answers has one
        return job

    def cron(spec: job_pb2.JobSpec | job_pb2.JobOverrides) -> str:
        return spec.timing.cron

    overrides = job_pb2.JobOverrides(timing=job_pb2.Timing(cron="0 7 * * *"))
    mask = FieldMask(paths=["timing.cron"])
    await job_after("UpdateJob", jobs.UpdateJobRequest(name=name, overrides=overrides, update_mask=mask))
    await world.register(EMAIL, "weekly-digest", "only-by-hand", timing=job_pb2.Timing(cron="0 9 * * *"))
    shown = await job_after("GetJob", jobs.GetJobRequest(name=name))
    crons = [cron(spec) for spec in (shown.declared, shown.overrides, shown.effective)]
    assert crons == ["0 9 * * *", "0 7 * * *", "0 7 * * *"]
    reset = await job_after("ResetJobOverrides", jobs.ResetJobOverridesRequest(name=name))
    assert (cron(reset.overrides), cron(reset.effective)) == ("", "0 9 * * *")


async def test_an_admin_has_no_way_to_act_as_a_service(world: World) -> None:
    both = (*ADMIN, *CALLERS["service"])
    answer = await ask(world.channel, "/carillon.v1.JobService/ListJobs", jobs.ListJobsRequest(), both)
    assert letter(answer) == "U"
    assert "a call carries one credential" in answer.details
