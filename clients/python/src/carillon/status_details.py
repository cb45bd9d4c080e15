"""Reads and writes `grpc-status-details-bin`: the `google.rpc` details that come with a status.

The messages are described here, in a descriptor pool of their own, so that the client needs no
googleapis-common-protos and collides with it nowhere if the user has it.
Source: google/rpc/status.proto and google/rpc/error_details.proto.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache, lru_cache
from typing import Any

from google.protobuf import (
    any_pb2,
    descriptor_pb2,
    descriptor_pool,
    duration_pb2,
    message_factory,
)
from google.protobuf.message import DecodeError

_Field = descriptor_pb2.FieldDescriptorProto

_MESSAGES: Mapping[str, tuple[tuple[str, int, str, bool], ...]] = {
    "Status": (
        ("code", 1, "int32", False),
        ("message", 2, "string", False),
        ("details", 3, ".google.protobuf.Any", True),
    ),
    "MetadataEntry": (("key", 1, "string", False), ("value", 2, "string", False)),
    "ErrorInfo": (
        ("reason", 1, "string", False),
        ("domain", 2, "string", False),
        ("metadata", 3, ".google.rpc.MetadataEntry", True),
    ),
    "FieldViolation": (("field", 1, "string", False), ("description", 2, "string", False)),
    "BadRequest": (("field_violations", 1, ".google.rpc.FieldViolation", True),),
    "RetryInfo": (("retry_delay", 1, ".google.protobuf.Duration", False),),
    "DebugInfo": (("stack_entries", 1, "string", True), ("detail", 2, "string", False)),
}

KEY = "grpc-status-details-bin"
"""The trailer's name."""

CARILLON = "carillon"
"""The domain of reasons that are the scheduler's, or codes of a run's error."""

RETRY, NO = "retry", "false"
"""What the metadata of an `ErrorInfo` of that domain says of a failure that must not be tried again."""


@dataclass
class StatusDetails:
    """What the details say; empty where there were none."""

    reason: str = ""
    domain: str = ""
    detail: str = ""
    metadata: dict[str, str] = field(default_factory=dict)
    violations: list[tuple[str, str]] = field(default_factory=list)
    retry_after: float | None = None  # seconds; as it was sent, so it may be less than 0

    @property
    def no_retry(self) -> bool:
        """Whether a handler said that trying again changes nothing."""
        return self.domain == CARILLON and self.metadata.get(RETRY, "").lower() == NO


def decode(data: bytes | str | None) -> StatusDetails:
    """Reads the trailer's value. What it cannot read it leaves out: the status itself is told anyway."""
    found = StatusDetails()
    if not isinstance(data, bytes):
        return found
    try:
        for packed in _message("Status").FromString(data).details:
            _read(packed, found)
    except DecodeError:
        return found
    return found


def encode(
    code: int, message: str, *, reason: str, detail: str, retry: bool = True, retry_after: float | None = None
) -> bytes:
    """The trailer's value for a failure that has a name. code, message: those of the status itself. retry: False says
    that trying again changes nothing; retry_after: seconds, when to try again."""
    status = _message("Status")(code=code, message=message)
    metadata = [] if retry else [_message("MetadataEntry")(key=RETRY, value=NO)]
    _add(status, "ErrorInfo", reason=reason, domain=CARILLON, metadata=metadata)
    if detail:
        _add(status, "DebugInfo", detail=detail)
    if retry_after is not None:
        seconds, nanos = divmod(round(retry_after * 1e9), 10**9)
        _add(status, "RetryInfo", retry_delay={"seconds": seconds, "nanos": nanos})
    data: bytes = status.SerializeToString()
    return data


def _add(status: Any, name: str, **fields: Any) -> None:
    packed = status.details.add(type_url=f"type.googleapis.com/google.rpc.{name}")
    packed.value = _message(name)(**fields).SerializeToString()


def _read(packed: any_pb2.Any, found: StatusDetails) -> None:
    kind = packed.type_url.rpartition("/")[2]
    if kind == "google.rpc.ErrorInfo":
        info = _message("ErrorInfo").FromString(packed.value)
        found.reason, found.domain = info.reason, info.domain
        found.metadata = {entry.key: entry.value for entry in info.metadata}
    elif kind == "google.rpc.BadRequest":
        request = _message("BadRequest").FromString(packed.value)
        found.violations += [(wrong.field, wrong.description) for wrong in request.field_violations]
    elif kind == "google.rpc.DebugInfo":
        found.detail = _message("DebugInfo").FromString(packed.value).detail
    elif kind == "google.rpc.RetryInfo":
        delay = _message("RetryInfo").FromString(packed.value).retry_delay
        found.retry_after = delay.seconds + delay.nanos / 1e9


@cache
def _message(name: str) -> Any:
    return message_factory.GetMessageClass(_pool().FindMessageTypeByName(f"google.rpc.{name}"))


@lru_cache(maxsize=1)
def _pool() -> descriptor_pool.DescriptorPool:
    pool = descriptor_pool.DescriptorPool()
    for known in (any_pb2, duration_pb2):
        pool.AddSerializedFile(known.DESCRIPTOR.serialized_pb)
    file = descriptor_pb2.FileDescriptorProto(
        name="carillon/private/status_details.proto",
        package="google.rpc",
        syntax="proto3",
        dependency=[any_pb2.DESCRIPTOR.name, duration_pb2.DESCRIPTOR.name],
    )
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for field_name, number, kind, repeated in fields:
            message.field.append(_field(field_name, number, kind, repeated))
    pool.AddSerializedFile(file.SerializeToString())
    return pool


def _field(name: str, number: int, kind: str, repeated: bool) -> descriptor_pb2.FieldDescriptorProto:
    described = _Field(name=name, number=number, label=_Field.LABEL_REPEATED if repeated else _Field.LABEL_OPTIONAL)
    if kind.startswith("."):
        described.type = _Field.TYPE_MESSAGE
        described.type_name = kind
    else:
        described.type = _Field.TYPE_INT32 if kind == "int32" else _Field.TYPE_STRING
    return described
