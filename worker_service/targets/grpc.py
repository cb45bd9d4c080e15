"""Route `grpc`: a run is a call to `JobHandlerService.Execute` of the service that owns the job."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType

import grpc
import grpc.aio
from carillon import status_details
from carillon.execution import Assignment, Completed, Failed, Run
from carillon.outcome import ATTEMPT_TIMEOUT, BAD_PAYLOAD, BAD_RESULT, is_code
from carillon.status_details import StatusDetails
from carillon.structs import from_struct
from carillon.v1 import job_handler_service_pb2, job_handler_service_pb2_grpc, run_pb2

from worker_service.targets import addresses, answer
from worker_service.targets.addresses import AddressError, GrpcAddress
from worker_service.targets.allowed import TARGET_NOT_ALLOWED, Gate
from worker_service.targets.channels import Channels
from worker_service.targets.following import bounded
from worker_service.targets.hosts import Address
from worker_service.targets.resolving import NotResolved

METHOD = "carillon.v1.JobHandlerService/Execute"
MOST_ITEMS = 10_000

_REFUSED = frozenset({grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.UNIMPLEMENTED})
# Codes that the scheduler never tries again, as it must not after the statuses above.
_FINAL = frozenset({BAD_PAYLOAD, BAD_RESULT})
_TRIGGER_SOURCES: Mapping[str, run_pb2.TriggerSource.ValueType] = {
    name.removeprefix("TRIGGER_SOURCE_"): value for name, value in run_pb2.TriggerSource.items()
}

# Told of each call: the name of its status, such as `OK`, and how many seconds it took.
ObserveCall = Callable[[str, float], None]


class GrpcExecutor:
    """Carries out runs of route `grpc`. An async context manager, to be entered in the loop that runs it.

    The call's deadline is the attempt's timeout; cancelling `execute` cancels the call. gRPC itself sends a call again
    that surely did not reach the service; nothing else is tried twice within an attempt. `gate` says where calls may
    go; `base_urls` replaces the address of every job of the services it names. Calls are not signed.
    """

    def __init__(
        self,
        gate: Gate,
        base_urls: Mapping[str, GrpcAddress],
        observe_call: ObserveCall,
        channels: Channels | None = None,
    ) -> None:
        self._gate = gate
        self._base_urls = base_urls
        self._observe_call = observe_call
        self._channels = Channels() if channels is None else channels

    @property
    def routes(self) -> Sequence[str]:
        return ("grpc",)

    async def __aenter__(self) -> GrpcExecutor:
        return self

    async def __aexit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        await self._channels.close()

    async def execute(self, assignment: Assignment, run: Run) -> Completed:
        """Calls the service. Status `OK` completes the run; the items that its answer names are recorded.

        Errors: Failed with the code that the service gave; else `GRPC_REFUSED` for `INVALID_ARGUMENT` and
        `UNIMPLEMENTED`, and for any other status its name, such as `GRPC_UNAVAILABLE`; and what the status details ask
        to follow. `GRPC_UNAVAILABLE` too if its name is not found, and `TARGET_NOT_ALLOWED`.
        """
        server = self._address(assignment)
        admitted = await self._admitted(server, assignment.service)
        began = time.monotonic()
        status = grpc.StatusCode.CANCELLED
        try:
            response = await self._call(server, admitted, assignment)
            status = grpc.StatusCode.OK
        except grpc.aio.AioRpcError as error:
            status = error.code()
            raise _failed(server, assignment, error, time.monotonic() - began) from None
        finally:
            self._observe_call(status.name, time.monotonic() - began)
        return _completed(response, run)

    def _address(self, assignment: Assignment) -> GrpcAddress:
        if (base := self._base_urls.get(assignment.service)) is not None:
            return base
        try:
            return addresses.parse_grpc(assignment.endpoint)
        except AddressError as error:
            raise Failed(TARGET_NOT_ALLOWED, f"the job's address {error}") from None

    async def _admitted(self, server: GrpcAddress, service: str) -> tuple[Address, ...]:
        what = f"{METHOD} at {server}"
        try:
            return await self._gate.admit(what, service, server.host, server.port, listed=service in self._base_urls)
        except NotResolved as error:
            raise Failed("GRPC_UNAVAILABLE", f"{what} got no answer: {error}") from None

    async def _call(
        self, server: GrpcAddress, admitted: Sequence[Address], assignment: Assignment
    ) -> job_handler_service_pb2.ExecuteResponse:
        async with self._channels.lend(server, admitted) as lent:
            service = job_handler_service_pb2_grpc.JobHandlerServiceStub(lent.channel)
            try:
                return await service.Execute(
                    _request(assignment), timeout=assignment.attempt_timeout, metadata=_metadata(assignment)
                )
            except grpc.aio.AioRpcError as error:
                # A channel that cannot connect fails calls at once until it tries again; a new one tries now.
                lent.broken = lent.broken or error.code() is grpc.StatusCode.UNAVAILABLE
                raise


def _metadata(assignment: Assignment) -> tuple[tuple[str, str], ...]:
    """What `request.headers` says over HTTP; the timeout is the call's deadline."""
    return (
        ("idempotency-key", str(assignment.run_id)),
        ("carillon-attempt", str(assignment.attempt)),
        ("carillon-claim", str(assignment.claim_id)),
    )


def _request(assignment: Assignment) -> job_handler_service_pb2.ExecuteRequest:
    sent = job_handler_service_pb2.ExecuteRequest(
        run=f"runs/{assignment.run_id}",
        job=f"services/{assignment.service}/jobs/{assignment.job}",
        tenant=assignment.tenant,
        attempt=assignment.attempt,
        max_attempts=assignment.max_attempts,
        claim_id=assignment.claim_id,
        trigger_source=_TRIGGER_SOURCES.get(assignment.trigger_source, run_pb2.TRIGGER_SOURCE_UNSPECIFIED),
        labels=assignment.labels,
    )
    sent.scheduled_time.FromDatetime(assignment.scheduled_time)
    sent.payload.update(json.loads(assignment.payload_json or "{}"))
    return sent


def _failed(server: GrpcAddress, assignment: Assignment, error: grpc.aio.AioRpcError, seconds: float) -> Failed:
    status, message = error.code(), error.details() or ""
    if status is grpc.StatusCode.DEADLINE_EXCEEDED and seconds >= assignment.attempt_timeout:
        return Failed(ATTEMPT_TIMEOUT, f"the attempt took longer than {assignment.attempt_timeout:g} s")
    trailer = dict(error.trailing_metadata() or ())
    said = status_details.decode(trailer.get(status_details.KEY))
    code = _code(status, said)
    if code != said.reason:
        message = f"{METHOD} at {server} answered {status.name}: {message}"
    if said.no_retry:
        return Failed(code, message, said.detail, retry=False)
    wait = None if said.retry_after is None else bounded(said.retry_after)
    return Failed(code, message, said.detail, retry_after=wait)


def _code(status: grpc.StatusCode, said: StatusDetails) -> str:
    """The service's own name for the failure, unless the status rules out what the name leaves open."""
    refused = status in _REFUSED
    named = said.domain == status_details.CARILLON and is_code(said.reason)
    if named and (not refused or said.reason in _FINAL):
        return said.reason
    return "GRPC_REFUSED" if refused else f"GRPC_{status.name}"


def _completed(response: job_handler_service_pb2.ExecuteResponse, run: Run) -> Completed:
    said: dict[str, object] = {"metrics": from_struct(response.metrics), "metadata": from_struct(response.metadata)}
    if response.HasField("items"):
        items = response.items
        said["items"] = {"processed": items.processed, "succeeded": items.succeeded, "failed": items.failed}
    return answer.read(said, problems=_record_items(response.item_outcomes, run))


def _record_items(outcomes: Sequence[job_handler_service_pb2.ItemOutcome], run: Run) -> list[str]:
    """Records the items; answers what was wrong with those that were left out."""
    problems = []
    for index, outcome in enumerate(outcomes[:MOST_ITEMS]):
        try:
            with run.item(outcome.key) as item:
                if not outcome.succeeded:
                    item.fail(outcome.error or "the service gave no reason")
        except ValueError as wrong:
            problems.append(f"item_outcomes[{index}]: {wrong}")
    if len(outcomes) > MOST_ITEMS:
        problems.append(f"item_outcomes has {len(outcomes):,} entries; at most {MOST_ITEMS:,} are recorded")
    return problems
