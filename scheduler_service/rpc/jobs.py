"""JobService."""

from __future__ import annotations

from carillon.v1 import job_service_pb2 as pb
from carillon.v1 import job_service_pb2_grpc

from scheduler_service.domain.fields import Violations
from scheduler_service.domain.names import JobName, parse_service_parent
from scheduler_service.rpc.backfills import BackfillMethods
from scheduler_service.rpc.calls import Context, caller
from scheduler_service.rpc.job_messages import read_overrides, write_job
from scheduler_service.rpc.pausing import read_catch_up, write_plan
from scheduler_service.rpc.strict import refuse_unknown_fields, unknown_fields
from scheduler_service.rpc.trigger import TriggerMethods
from scheduler_service.store.database import Database
from scheduler_service.usecases import jobs
from scheduler_service.usecases.jobs import JobFilter
from scheduler_service.usecases.wakeups import Wakeups


class JobService(TriggerMethods, BackfillMethods, job_service_pb2_grpc.JobServiceServicer):
    """Reads and steers jobs. `default_time_zone` is in force where nobody names one."""

    def __init__(self, database: Database, wakeups: Wakeups, *, default_time_zone: str = "UTC") -> None:
        super().__init__(database, wakeups)
        self._default_time_zone = default_time_zone

    async def GetJob(self, request: pb.GetJobRequest, context: Context) -> pb.GetJobResponse:
        job = await jobs.get_job(self._database, caller(), JobName.parse(request.name))
        return pb.GetJobResponse(job=write_job(job, self._default_time_zone))

    async def ListJobs(self, request: pb.ListJobsRequest, context: Context) -> pb.ListJobsResponse:
        wanted = JobFilter(parse_service_parent(request.parent), dict(request.labels), request.show_archived)
        page, token = await jobs.list_jobs(
            self._database, caller(), wanted, size=request.page_size, token=request.page_token
        )
        return pb.ListJobsResponse(
            jobs=[write_job(job, self._default_time_zone) for job in page], next_page_token=token
        )

    async def UpdateJob(self, request: pb.UpdateJobRequest, context: Context) -> pb.UpdateJobResponse:
        wrong = Violations(unknown_fields(request))
        overrides = read_overrides(request.overrides, "overrides", wrong)
        job = await jobs.update_job(
            self._database,
            self._wakeups,
            caller(),
            JobName.parse(request.name),
            overrides,
            list(request.update_mask.paths),
            default_time_zone=self._default_time_zone,
            problems=list(wrong),
        )
        return pb.UpdateJobResponse(job=write_job(job, self._default_time_zone))

    async def ResetJobOverrides(
        self, request: pb.ResetJobOverridesRequest, context: Context
    ) -> pb.ResetJobOverridesResponse:
        refuse_unknown_fields(request)
        job = await jobs.reset_job_overrides(
            self._database,
            self._wakeups,
            caller(),
            JobName.parse(request.name),
            list(request.mask.paths),
            default_time_zone=self._default_time_zone,
        )
        return pb.ResetJobOverridesResponse(job=write_job(job, self._default_time_zone))

    async def PauseJob(self, request: pb.PauseJobRequest, context: Context) -> pb.PauseJobResponse:
        refuse_unknown_fields(request)
        job = await jobs.pause_job(self._database, self._wakeups, caller(), JobName.parse(request.name))
        return pb.PauseJobResponse(job=write_job(job, self._default_time_zone))

    async def ResumeJob(self, request: pb.ResumeJobRequest, context: Context) -> pb.ResumeJobResponse:
        refuse_unknown_fields(request)
        job, plan = await jobs.resume_job(
            self._database,
            self._wakeups,
            caller(),
            JobName.parse(request.name),
            read_catch_up(request),
            validate_only=request.validate_only,
        )
        return pb.ResumeJobResponse(job=write_job(job, self._default_time_zone), catch_up=write_plan(plan))
