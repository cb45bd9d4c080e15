"""The methods of JobService that make and count runs."""

from __future__ import annotations

from collections.abc import Sequence

from carillon.v1 import job_service_pb2 as pb

from scheduler_service.domain.fields import Violations
from scheduler_service.domain.names import JobName
from scheduler_service.domain.record import Run
from scheduler_service.rpc.calls import Context, caller
from scheduler_service.rpc.decode_runs import instant, trigger_request
from scheduler_service.rpc.encode_runs import encode_job_stats, encode_run
from scheduler_service.rpc.strict import refuse_unknown_fields
from scheduler_service.store.database import Database
from scheduler_service.usecases import stats, trigger
from scheduler_service.usecases.wakeups import Wakeups


class TriggerMethods:
    """TriggerJob and GetJobStats; the servicer of JobService inherits them."""

    def __init__(self, database: Database, wakeups: Wakeups) -> None:
        self._database = database
        self._wakeups = wakeups

    async def TriggerJob(self, request: pb.TriggerJobRequest, context: Context) -> pb.TriggerJobResponse:
        refuse_unknown_fields(request)
        answer = await trigger.trigger_job(
            self._database, self._wakeups, caller(), trigger_request(request), _encode_answer
        )
        return pb.TriggerJobResponse.FromString(answer)

    async def GetJobStats(self, request: pb.GetJobStatsRequest, context: Context) -> pb.GetJobStatsResponse:
        refuse_unknown_fields(request)
        wrong = Violations()
        since, until = instant(request, "since", wrong), instant(request, "until", wrong)
        wrong.refuse_if_any()
        job = JobName.parse(request.name)
        return encode_job_stats(await stats.get_job_stats(self._database, caller(), job, since=since, until=until))


def _encode_answer(runs: Sequence[Run]) -> bytes:
    # A thousand copies of one payload would be more than any client accepts.
    response = pb.TriggerJobResponse(runs=[encode_run(run, with_payload=len(runs) == 1) for run in runs])
    return response.SerializeToString()
