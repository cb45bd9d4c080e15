"""Which calls the channel makes again by itself: each method of the API is decided one way or the other."""

from __future__ import annotations

from carillon.channel import _IDEMPOTENT
from carillon.v1 import (
    audit_service_pb2,
    job_service_pb2,
    registry_service_pb2,
    run_service_pb2,
    schedule_service_pb2,
)

FILES = (audit_service_pb2, job_service_pb2, registry_service_pb2, run_service_pb2, schedule_service_pb2)
# A second one would be told that there is nothing any more.
ONCE = {"carillon.v1.ScheduleService": {"DeleteSchedule", "RemoveTenant"}}


def test_each_method_is_retried_or_said_not_to_be() -> None:
    for file in FILES:
        for service in file.DESCRIPTOR.services_by_name.values():
            unary = {method.name for method in service.methods if not method.server_streaming}
            again = set(_IDEMPOTENT[service.full_name])
            assert again.isdisjoint(ONCE.get(service.full_name, set()))
            assert unary == again | ONCE.get(service.full_name, set())
