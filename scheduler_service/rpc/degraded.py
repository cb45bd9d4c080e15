"""Lists while the schema is missing: empty, and saying so, rather than an error in everybody's dashboard. So it is
for a caller that nothing is there for."""

from __future__ import annotations

from google.protobuf import descriptor_pool, message_factory
from google.protobuf.message import Message

DEGRADED_TRAILER = "carillon-degraded"


def empty_list_of(method: str) -> Message | None:
    """The empty answer of a list method such as `/carillon.v1.JobService/ListJobs`; None for other methods."""
    service, _, name = method.lstrip("/").partition("/")
    if not name.startswith("List"):
        return None
    descriptor = descriptor_pool.Default().FindServiceByName(service).methods_by_name[name]
    return message_factory.GetMessageClass(descriptor.output_type)()
