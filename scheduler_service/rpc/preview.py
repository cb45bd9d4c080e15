"""The method of ScheduleService that looks ahead."""

from __future__ import annotations

from carillon.v1 import schedule_service_pb2 as pb

from scheduler_service.domain.errors import InvalidInput, Violation
from scheduler_service.domain.fields import Violations
from scheduler_service.domain.names import JobName, ScheduleName
from scheduler_service.rpc.calls import Context, caller
from scheduler_service.rpc.decode_runs import instant
from scheduler_service.rpc.job_messages import read_timing, write_timing
from scheduler_service.rpc.occurrence_messages import write_occurrence
from scheduler_service.rpc.strict import unknown_fields
from scheduler_service.store.database import Database
from scheduler_service.usecases.preview import Preview, Range, preview_schedule, preview_timing


class PreviewMethods:
    """PreviewOccurrences; the servicer of ScheduleService inherits it."""

    _database: Database
    _default_time_zone: str

    async def PreviewOccurrences(
        self, request: pb.PreviewOccurrencesRequest, context: Context
    ) -> pb.PreviewOccurrencesResponse:
        wrong = Violations(unknown_fields(request))
        wanted = Range(instant(request, "since", wrong), instant(request, "until", wrong), request.count)
        _check_what(request, wrong)
        if request.name:
            wrong.refuse_if_any()
            name = ScheduleName.parse(request.name)
            found = await preview_schedule(
                self._database, caller(), name, wanted, default_time_zone=self._default_time_zone
            )
            return _write(found)
        return _write(await self._proposed(request, wanted, wrong))

    async def _proposed(self, request: pb.PreviewOccurrencesRequest, wanted: Range, wrong: Violations) -> Preview:
        timing = read_timing(request.timing, "timing", wrong)
        job = JobName.parse(request.job, "job") if request.job else None
        return await preview_timing(
            self._database,
            caller(),
            timing,
            job,
            wanted,
            default_time_zone=self._default_time_zone,
            problems=list(wrong),
        )


def _check_what(request: pb.PreviewOccurrencesRequest, wrong: Violations) -> None:
    """Refuses at once what names nothing, or two things."""
    if bool(request.name) == request.HasField("timing"):
        problem = "set `name` for a stored schedule, or `timing` for a proposed one"
        raise InvalidInput(*wrong, Violation("name", f"{problem}; not both" if request.name else problem))
    if request.name and request.job:
        wrong.add("job", "it fills in a proposed timing only; leave it out beside `name`")


def _write(preview: Preview) -> pb.PreviewOccurrencesResponse:
    return pb.PreviewOccurrencesResponse(
        occurrences=map(write_occurrence, preview.occurrences),
        description=preview.description,
        effective_timing=write_timing(preview.timing),
    )
