"""No method of the API is left undecided: what the protos have, the table of actions has, and the server serves."""

from __future__ import annotations

import re
from typing import Any

import grpc
import pytest
from carillon.v1 import job_handler_service_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from prometheus_client import CollectorRegistry

from scheduler_service.domain.access import Action
from scheduler_service.rpc.calls import Calls
from scheduler_service.rpc.health import Health
from scheduler_service.rpc.methods import ACTIONS, unlisted
from scheduler_service.rpc.metrics import CallMetrics
from scheduler_service.rpc.server import build_server
from tests.credentials import accepting
from tests.e2e.cluster import ROOT
from tests.security.calling import ask
from tests.security.world import World

_CALLED_BY_THE_WORKER = job_handler_service_pb2.DESCRIPTOR.services_by_name["JobHandlerService"].full_name
PAGE = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")


def in_the_protos() -> dict[str, set[str]]:
    """The services that the scheduler serves, each with its methods, as the files have them."""
    found = {}
    for file in (ROOT / "protos" / "carillon" / "v1").glob("*.proto"):
        for service, body in re.findall(r"^service (\w+) \{(.*?)^\}", file.read_text(), re.MULTILINE | re.DOTALL):
            found[f"carillon.v1.{service}"] = set(re.findall(r"^  rpc (\w+)\(", body, re.MULTILINE))
    del found[_CALLED_BY_THE_WORKER]
    return found


def test_each_method_of_the_protos_has_an_action_and_no_other_has() -> None:
    methods = {f"/{service}/{method}" for service, methods in in_the_protos().items() for method in methods}
    assert len(methods) > 30
    assert methods == set(ACTIONS)


async def test_all_of_them_are_served_and_anybody_may_ask_which_and_whether_it_is_well(world: World) -> None:
    reflection: Any = reflection_pb2_grpc.ServerReflectionStub(world.channel)  # type: ignore[arg-type]  # typed as synchronous
    asked = [reflection_pb2.ServerReflectionRequest(list_services="")]
    [answer] = [answer async for answer in reflection.ServerReflectionInfo(iter(asked))]
    served = {service.name for service in answer.list_services_response.service}
    assert {name for name in served if name.startswith("carillon.")} == set(in_the_protos())
    stub: Any = health_pb2_grpc.HealthStub(world.channel)
    health = await stub.Check(health_pb2.HealthCheckRequest())
    assert health.status == health_pb2.HealthCheckResponse.SERVING


async def test_whoever_shows_nothing_is_told_what_to_send(world: World) -> None:
    for method in ACTIONS:
        answer = await ask(world.channel, method, b"")
        assert answer.code is grpc.StatusCode.UNAUTHENTICATED, method
        assert "x-service-token" in answer.details


async def test_a_server_with_a_method_that_nobody_decided_about_does_not_start() -> None:
    calls = Calls(accepting(), CallMetrics(CollectorRegistry()))
    with pytest.raises(ValueError, match=r"methods\.py does not say what /carillon\.v1\.JobHandlerService/\w+ is"):
        build_server(calls, {_CALLED_BY_THE_WORKER: _added}, Health(()), reflect=False)


def _added(server: grpc.aio.Server) -> None:
    raise AssertionError("refused before anything is added")


def test_only_what_is_listed_or_public_counts_as_decided() -> None:
    methods = ["/grpc.health.v1.Health/Check", "/carillon.v1.JobService/GetJob", "/carillon.v1.JobService/DropJob"]
    assert unlisted(methods) == ["/carillon.v1.JobService/DropJob"]


def test_each_action_is_of_some_method_or_of_the_command_line() -> None:
    assert set(Action) - set(ACTIONS.values()) == {Action.ADMINISTER}
