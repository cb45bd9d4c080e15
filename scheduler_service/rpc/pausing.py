"""The methods of ScheduleService that hold a schedule, let it go on, and run it now."""

from __future__ import annotations

from carillon.v1 import schedule_pb2
from carillon.v1 import schedule_service_pb2 as pb
from google.protobuf.message import Message

from scheduler_service.domain.catching_up import CatchUpPlan
from scheduler_service.domain.fields import Violations
from scheduler_service.domain.names import ScheduleName
from scheduler_service.domain.record import Run
from scheduler_service.domain.timing import CatchUp
from scheduler_service.rpc.calls import Context, caller
from scheduler_service.rpc.decode_runs import request_digest
from scheduler_service.rpc.encode_runs import encode_run
from scheduler_service.rpc.schedule_messages import write_schedule
from scheduler_service.rpc.strict import refuse_unknown_fields
from scheduler_service.rpc.structs import read_struct
from scheduler_service.rpc.values import read_enum, write_time
from scheduler_service.store.database import Database
from scheduler_service.usecases import pausing, run_schedule
from scheduler_service.usecases.run_schedule import RunScheduleRequest
from scheduler_service.usecases.wakeups import Wakeups


class PauseMethods:
    """PauseSchedule, ResumeSchedule and RunSchedule; the servicer of ScheduleService inherits them."""

    _database: Database
    _wakeups: Wakeups
    _default_time_zone: str

    async def PauseSchedule(self, request: pb.PauseScheduleRequest, context: Context) -> pb.PauseScheduleResponse:
        refuse_unknown_fields(request)
        name = ScheduleName.parse(request.name)
        schedule = await pausing.pause_schedule(self._database, self._wakeups, caller(), name)
        return pb.PauseScheduleResponse(schedule=write_schedule(schedule))

    async def ResumeSchedule(self, request: pb.ResumeScheduleRequest, context: Context) -> pb.ResumeScheduleResponse:
        refuse_unknown_fields(request)
        schedule, plan = await pausing.resume_schedule(
            self._database,
            self._wakeups,
            caller(),
            ScheduleName.parse(request.name),
            read_catch_up(request),
            validate_only=request.validate_only,
            default_time_zone=self._default_time_zone,
        )
        return pb.ResumeScheduleResponse(schedule=write_schedule(schedule), catch_up=write_plan(plan))

    async def RunSchedule(self, request: pb.RunScheduleRequest, context: Context) -> pb.RunScheduleResponse:
        refuse_unknown_fields(request)
        wrong = Violations()
        payload = read_struct(request.payload, "payload", wrong)
        wrong.refuse_if_any()
        wanted = RunScheduleRequest(
            ScheduleName.parse(request.name), payload, request.request_id, request_digest(request)
        )
        answer = await run_schedule.run_schedule(self._database, self._wakeups, caller(), wanted, _encode_answer)
        return pb.RunScheduleResponse.FromString(answer)


def read_catch_up(request: Message) -> CatchUp:
    """What a request to resume asks for; by default nothing."""
    wrong = Violations()
    wanted = read_enum(request, "catch_up", CatchUp, "CATCH_UP_", "", wrong)
    wrong.refuse_if_any()
    return wanted or CatchUp.NONE


def write_plan(plan: CatchUpPlan) -> schedule_pb2.CatchUpPlan:
    return schedule_pb2.CatchUpPlan(
        runs=plan.runs, missed=plan.missed, first_time=write_time(plan.first), last_time=write_time(plan.last)
    )


def _encode_answer(run: Run) -> bytes:
    return pb.RunScheduleResponse(run=encode_run(run)).SerializeToString()
