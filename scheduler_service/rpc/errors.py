"""Refusals as gRPC statuses with `google.rpc` details (AIP-193)."""

from __future__ import annotations

import grpc
from google.protobuf.any_pb2 import Any
from google.rpc import error_details_pb2
from google.rpc.status_pb2 import Status

from scheduler_service.domain import errors

DOMAIN = "carillon"

_CODES: dict[type[errors.Refusal], grpc.StatusCode] = {
    errors.InvalidInput: grpc.StatusCode.INVALID_ARGUMENT,
    errors.Unauthenticated: grpc.StatusCode.UNAUTHENTICATED,
    errors.Forbidden: grpc.StatusCode.PERMISSION_DENIED,
    errors.NotFound: grpc.StatusCode.NOT_FOUND,
    errors.AlreadyExists: grpc.StatusCode.ALREADY_EXISTS,
    errors.Conflict: grpc.StatusCode.FAILED_PRECONDITION,
    errors.Replaced: grpc.StatusCode.ABORTED,
    errors.RateLimited: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.Unavailable: grpc.StatusCode.UNAVAILABLE,
}

# A status travels in HTTP/2 trailers, of which clients accept 8 KiB unless they were told otherwise.
_MAX_VIOLATIONS_BYTES = 2500


def code_of(refusal: errors.Refusal) -> grpc.StatusCode:
    for kind in type(refusal).__mro__:
        if kind in _CODES:
            return _CODES[kind]
    return grpc.StatusCode.INTERNAL


def status_of(refusal: errors.Refusal) -> Status:
    """The whole status: code, sentence, `ErrorInfo`, and `BadRequest` or `RetryInfo` where they apply."""
    info = error_details_pb2.ErrorInfo(reason=refusal.reason, domain=DOMAIN, metadata=dict(refusal.metadata))
    status = Status(code=code_of(refusal).value[0], message=refusal.message, details=[_packed(info)])
    if isinstance(refusal, errors.InvalidInput):
        shown = _that_fit(refusal.violations)
        status.message = _summary(shown, len(refusal.violations))
        request = error_details_pb2.BadRequest()
        for violation in shown:
            request.field_violations.add(field=violation.field, description=violation.problem)
        status.details.append(_packed(request))
    if isinstance(refusal, (errors.Unavailable, errors.RateLimited)):
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromMilliseconds(int(refusal.retry_after * 1000))
        status.details.append(_packed(retry))
    return status


def _packed(message: error_details_pb2.ErrorInfo | error_details_pb2.BadRequest | error_details_pb2.RetryInfo) -> Any:
    packed = Any()
    packed.Pack(message)
    return packed


def _that_fit(violations: tuple[errors.Violation, ...]) -> list[errors.Violation]:
    shown: list[errors.Violation] = []
    size = 0
    for violation in violations:
        size += len(violation.field.encode()) + len(violation.problem.encode()) + 8
        if shown and size > _MAX_VIOLATIONS_BYTES:
            break
        shown.append(violation)
    return shown


def _summary(shown: list[errors.Violation], total: int) -> str:
    text = "; ".join(f"{v.field}: {v.problem}" for v in shown)
    return text if len(shown) == total else f"{text}; and {total - len(shown)} more wrong fields"
