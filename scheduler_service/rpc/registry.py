"""RegistryService."""

from __future__ import annotations

from carillon.v1 import registry_service_pb2 as pb
from carillon.v1 import registry_service_pb2_grpc

from scheduler_service.domain.errors import InvalidInput, Violation
from scheduler_service.domain.fields import Violations
from scheduler_service.domain.job_rules import MAX_JOBS
from scheduler_service.domain.names import JobName
from scheduler_service.rpc.calls import Context, caller
from scheduler_service.rpc.job_messages import read_manifest, write_change, write_job
from scheduler_service.rpc.strict import refuse_unknown_fields, unknown_fields
from scheduler_service.store.database import Database
from scheduler_service.usecases import registry
from scheduler_service.usecases.wakeups import Wakeups


class RegistryService(registry_service_pb2_grpc.RegistryServiceServicer):
    """Services say what their jobs are. `default_time_zone` is in force where nobody names one."""

    def __init__(self, database: Database, wakeups: Wakeups, *, default_time_zone: str = "UTC") -> None:
        self._database = database
        self._wakeups = wakeups
        self._default_time_zone = default_time_zone

    async def RegisterJobs(self, request: pb.RegisterJobsRequest, context: Context) -> pb.RegisterJobsResponse:
        _refuse_too_many(request)
        wrong = Violations(unknown_fields(request))
        manifest = read_manifest(request, wrong)
        registration = await registry.register_jobs(
            self._database,
            self._wakeups,
            caller(),
            manifest,
            validate_only=request.validate_only,
            default_time_zone=self._default_time_zone,
            problems=wrong,
        )
        return pb.RegisterJobsResponse(
            changes=[write_change(change, self._default_time_zone) for change in registration.changes],
            generation=registration.generation,
        )

    async def RemoveJob(self, request: pb.RemoveJobRequest, context: Context) -> pb.RemoveJobResponse:
        refuse_unknown_fields(request)
        name = JobName.parse(request.name)
        job = await registry.remove_job(self._database, self._wakeups, caller(), name)
        return pb.RemoveJobResponse(job=write_job(job, self._default_time_zone))


def _refuse_too_many(request: pb.RegisterJobsRequest) -> None:
    """Before any is read: a hundred thousand take seconds."""
    if len(request.jobs) > MAX_JOBS:
        problem = f"there are {len(request.jobs):,} jobs; at most {MAX_JOBS:,} are allowed"
        raise InvalidInput(Violation("jobs", problem))
