"""ScheduleService."""

from __future__ import annotations

from carillon.v1 import schedule_service_pb2 as pb
from carillon.v1 import schedule_service_pb2_grpc

from scheduler_service.domain.fields import Violations
from scheduler_service.domain.names import ScheduleName, ScheduleParent
from scheduler_service.domain.preview import upcoming
from scheduler_service.rpc.calls import Context, caller
from scheduler_service.rpc.ledger import LedgerMethods
from scheduler_service.rpc.occurrence_messages import write_occurrence
from scheduler_service.rpc.pausing import PauseMethods
from scheduler_service.rpc.preview import PreviewMethods
from scheduler_service.rpc.schedule_messages import fields_set, read_schedule, write_schedule
from scheduler_service.rpc.strict import refuse_unknown_fields, unknown_fields
from scheduler_service.rpc.tenants import TenantMethods
from scheduler_service.store.database import Database
from scheduler_service.usecases import deleting, schedules
from scheduler_service.usecases.wakeups import Wakeups

_NEXT_OCCURRENCES = 5


class ScheduleService(
    LedgerMethods, PauseMethods, PreviewMethods, TenantMethods, schedule_service_pb2_grpc.ScheduleServiceServicer
):
    """Reads and sets schedules. `default_time_zone` is in force where nobody names one."""

    def __init__(self, database: Database, wakeups: Wakeups, *, default_time_zone: str = "UTC") -> None:
        self._database = database
        self._wakeups = wakeups
        self._default_time_zone = default_time_zone

    async def GetSchedule(self, request: pb.GetScheduleRequest, context: Context) -> pb.GetScheduleResponse:
        name = ScheduleName.parse(request.name)
        schedule = await schedules.get_schedule(
            self._database, caller(), name, default_time_zone=self._default_time_zone
        )
        return pb.GetScheduleResponse(schedule=write_schedule(schedule))

    async def ListSchedules(self, request: pb.ListSchedulesRequest, context: Context) -> pb.ListSchedulesResponse:
        parent = ScheduleParent.parse(request.parent)
        page, token = await schedules.list_schedules(
            self._database,
            caller(),
            parent,
            size=request.page_size,
            token=request.page_token,
            default_time_zone=self._default_time_zone,
        )
        return pb.ListSchedulesResponse(schedules=map(write_schedule, page), next_page_token=token)

    async def PutSchedule(self, request: pb.PutScheduleRequest, context: Context) -> pb.PutScheduleResponse:
        wrong = Violations(unknown_fields(request))
        spec = read_schedule(request.schedule, wrong)
        schedule = await schedules.put_schedule(
            self._database,
            self._wakeups,
            caller(),
            ScheduleName.parse(request.schedule.name, "schedule.name"),
            spec,
            list(request.update_mask.paths) or fields_set(request.schedule),
            default_time_zone=self._default_time_zone,
            problems=list(wrong),
        )
        return pb.PutScheduleResponse(
            schedule=write_schedule(schedule),
            next_occurrences=map(write_occurrence, upcoming(schedule, _NEXT_OCCURRENCES)),
        )

    async def DeleteSchedule(self, request: pb.DeleteScheduleRequest, context: Context) -> pb.DeleteScheduleResponse:
        refuse_unknown_fields(request)
        name = ScheduleName.parse(request.name)
        deleted = await deleting.delete_schedule(self._database, self._wakeups, caller(), name)
        return pb.DeleteScheduleResponse(cancelled_runs=deleted.cancelled_runs)
