"""Tenants, defaults and deletions over a real connection: what a client of ScheduleService sees."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from carillon.v1 import job_pb2, schedule_pb2
from carillon.v1 import schedule_service_pb2 as pb

from tests.rpc.test_definitions import ACME, ADMIN, EMAIL, JOB, Stubs, digest, reason_and_fields, stubs

__all__ = ["stubs"]

DEFAULT = f"{JOB}/tenants/acme/schedules/default"
NINE = job_pb2.Timing(cron="0 9 * * *")


async def refused(call: Any) -> tuple[grpc.StatusCode, str, list[str]]:
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await call
    return (error.value.code(), *reason_and_fields(error.value))


async def put_zone(stubs: Stubs, zone: str, name: str = "tenants/acme", metadata: Any = ACME) -> schedule_pb2.Tenant:
    request = pb.PutTenantRequest(tenant=schedule_pb2.Tenant(name=name, time_zone=zone))
    return (await stubs.schedules.PutTenant(request, metadata=metadata)).tenant


async def get(stubs: Stubs, name: str = DEFAULT, metadata: Any = ACME) -> schedule_pb2.Schedule:
    return (await stubs.schedules.GetSchedule(pb.GetScheduleRequest(name=name), metadata=metadata)).schedule


async def test_a_default_is_shown_until_it_is_put_and_again_once_it_is_deleted(stubs: Stubs) -> None:
    await stubs.register(digest(tenant_schedules=True, timing=NINE))
    await put_zone(stubs, "America/New_York")
    shown = await get(stubs)
    assert (shown.name, shown.stored, shown.enabled) == (DEFAULT, False, False)
    assert shown.description == "At 09:00 every day, New York time"
    assert (shown.timing, shown.effective_timing.cron) == (job_pb2.Timing(), "0 9 * * *")
    set_here = {field.name for field, _ in shown.ListFields()}
    assert not set_here & {"next_run_time", "create_time", "update_time", "pause_time", "revision"}
    listed = await stubs.schedules.ListSchedules(pb.ListSchedulesRequest(), metadata=ACME)
    assert list(listed.schedules) == [shown]

    request = pb.PutScheduleRequest(schedule=schedule_pb2.Schedule(name=DEFAULT, enabled=True))
    answer = await stubs.schedules.PutSchedule(request, metadata=ACME)
    assert (answer.schedule.stored, answer.schedule.description) == (True, shown.description)
    assert answer.schedule.effective_timing == shown.effective_timing
    assert [each.local_time[10:] for each in answer.next_occurrences] == ["T09:00:00"] * 5

    deleted = await stubs.schedules.DeleteSchedule(pb.DeleteScheduleRequest(name=DEFAULT), metadata=ACME)
    assert deleted == pb.DeleteScheduleResponse()
    assert await get(stubs) == shown
    call = stubs.schedules.DeleteSchedule(pb.DeleteScheduleRequest(name=DEFAULT), metadata=ACME)
    assert (await refused(call))[0] is grpc.StatusCode.NOT_FOUND


async def test_without_a_cron_a_default_says_so(stubs: Stubs) -> None:
    await stubs.register(digest(tenant_schedules=True))
    shown = await get(stubs)
    assert "no cron expression" in shown.description
    assert (shown.effective_timing.HasField("cron"), shown.effective_timing.time_zone) == (False, "UTC")


async def test_a_tenants_zone_is_set_read_and_cleared(stubs: Stubs) -> None:
    request = pb.GetTenantRequest(name="tenants/acme")
    unset = (await stubs.schedules.GetTenant(request, metadata=ACME)).tenant
    assert unset == schedule_pb2.Tenant(name="tenants/acme")
    put = await put_zone(stubs, "Asia/Tokyo")
    assert (put.time_zone, put.updated_by, put.HasField("create_time")) == ("Asia/Tokyo", "user:ann", True)
    assert (await stubs.schedules.GetTenant(request, metadata=ADMIN)).tenant == put
    assert (await put_zone(stubs, "", metadata=ADMIN)).time_zone == ""


async def test_wrong_names_and_zones_are_refused_by_field(stubs: Stubs) -> None:
    wrong_zone = await refused(put_zone(stubs, "Mars/Olympus"))
    assert wrong_zone == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELDS", ["tenant.time_zone"])
    for name in ("", "acme", "tenants/-", "tenants/a/b"):
        wrong_name = await refused(put_zone(stubs, "UTC", name, ADMIN))
        assert wrong_name == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELDS", ["tenant.name"])
    newer = pb.PutTenantRequest(tenant=schedule_pb2.Tenant(name="tenants/acme"))
    newer.tenant.MergeFromString(b"\x9a\x06\x01x")  # field 99
    assert (await refused(stubs.schedules.PutTenant(newer, metadata=ACME)))[2] == ["tenant"]


async def test_who_may_read_change_and_remove_a_tenant(stubs: Stubs) -> None:
    globex = pb.GetTenantRequest(name="tenants/globex")
    assert (await refused(stubs.schedules.GetTenant(globex, metadata=ACME)))[0] is grpc.StatusCode.NOT_FOUND
    assert (await refused(stubs.schedules.GetTenant(globex, metadata=EMAIL)))[0] is grpc.StatusCode.PERMISSION_DENIED
    assert (await refused(put_zone(stubs, "UTC", "tenants/globex")))[0] is grpc.StatusCode.NOT_FOUND
    remove = pb.RemoveTenantRequest(name="tenants/acme")
    for metadata in (ACME, EMAIL):
        code, _, _ = await refused(stubs.schedules.RemoveTenant(remove, metadata=metadata))
        assert code is grpc.StatusCode.PERMISSION_DENIED


async def test_a_removed_tenant_has_no_schedules_and_no_zone(stubs: Stubs) -> None:
    await stubs.register(digest(tenant_schedules=True, timing=NINE))
    await put_zone(stubs, "Asia/Tokyo")
    for schedule in ("default", "weekly"):
        name = f"{JOB}/tenants/acme/schedules/{schedule}"
        request = pb.PutScheduleRequest(schedule=schedule_pb2.Schedule(name=name, enabled=True))
        await stubs.schedules.PutSchedule(request, metadata=ACME)
    remove = pb.RemoveTenantRequest(name="tenants/acme")
    assert await stubs.schedules.RemoveTenant(remove, metadata=ADMIN) == pb.RemoveTenantResponse(deleted_schedules=2)
    assert await stubs.schedules.RemoveTenant(remove, metadata=ADMIN) == pb.RemoveTenantResponse()
    shown = await get(stubs, metadata=ADMIN)
    assert (shown.stored, shown.effective_timing.time_zone) == (False, "UTC")


async def test_a_jobs_own_schedule_says_how_to_stop_it(stubs: Stubs) -> None:
    await stubs.register(digest(timing=NINE))
    request = pb.DeleteScheduleRequest(name=f"{JOB}/tenants/-/schedules/default")
    with pytest.raises(grpc.aio.AioRpcError, match="PauseJob") as error:
        await stubs.schedules.DeleteSchedule(request, metadata=ADMIN)
    assert error.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    code, _, _ = await refused(stubs.schedules.DeleteSchedule(request, metadata=EMAIL))
    assert code is grpc.StatusCode.PERMISSION_DENIED


async def test_without_a_mask_what_is_set_is_taken_and_the_rest_stays(stubs: Stubs) -> None:
    await stubs.register(digest(tenant_schedules=True, timing=NINE))

    async def put(*mask: str, **fields: Any) -> schedule_pb2.Schedule:
        request = pb.PutScheduleRequest(schedule=schedule_pb2.Schedule(name=DEFAULT, **fields))
        request.update_mask.paths.extend(mask)
        return (await stubs.schedules.PutSchedule(request, metadata=ACME)).schedule

    made = await put(timing=job_pb2.Timing(cron="0 8 * * *", time_zone="Asia/Tokyo"), labels={"brand_id": "7"})
    assert made.enabled
    changed = await put(timing=job_pb2.Timing(cron="0 10 * * *"))
    assert (changed.enabled, dict(changed.labels)) == (True, {"brand_id": "7"})
    assert changed.timing == job_pb2.Timing(cron="0 10 * * *", time_zone="Asia/Tokyo")
    assert await put() == changed
    stopped = await put(enabled=False)
    assert (stopped.enabled, stopped.timing, stopped.labels) == (False, changed.timing, changed.labels)
    cleared = await put("timing.time_zone", "labels")
    assert (cleared.timing, dict(cleared.labels)) == (job_pb2.Timing(cron="0 10 * * *"), {})


async def test_a_jobs_own_schedule_that_has_lost_its_expression_shows_none(stubs: Stubs) -> None:
    await stubs.register(digest(timing=NINE))
    await stubs.register(digest())
    name = f"{JOB}/tenants/-/schedules/default"
    shown = await get(stubs, name, ADMIN)
    assert "no cron expression" in shown.description
    assert (shown.enabled, shown.effective_timing.HasField("cron")) == (False, False)
    ahead = await stubs.schedules.PreviewOccurrences(pb.PreviewOccurrencesRequest(name=name), metadata=ADMIN)
    assert (list(ahead.occurrences), ahead.description) == ([], shown.description)
