"""What may be a handler, and what a type checker refuses to declare as one."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any, TypedDict

import carillon
from pydantic import BaseModel
from typing_extensions import assert_type

jobs = carillon.Jobs(service="email-service")


@dataclass
class Digest:
    batch_size: int = 100


class Export(TypedDict):
    file: str


class Report(BaseModel):
    rows: int


class Plain:
    batch_size: int


@jobs.handler("run-and-dataclass", cron="0 9 * * 1", time_zone="America/New_York", timeout=600, retries=2)
async def run_and_dataclass(run: carillon.Run, digest: Digest) -> None:
    assert_type(run.attempt, int)
    assert_type(run.tenant, str)
    assert_type(run.items, carillon.ItemCounts)
    for address in run.track(["ada@example.com"]):
        assert_type(address, str)
    digest.batch_sze  # E: "Digest" has no attribute "batch_sze"
    run.progress("half")  # E: Argument 1 to "progress" of "Run" has incompatible type "str"
    run.item(5)  # E: Argument 1 to "item" of "Run" has incompatible type "int"


@jobs.handler("payload-first")
def payload_first(payload: Export, run: carillon.Run) -> dict[str, int]:
    return {"characters": len(payload["file"])}


@jobs.handler("pydantic-model")
async def pydantic_model(payload: Report) -> carillon.Completed:
    return carillon.Completed(metrics={"rows": payload.rows}, items=carillon.ItemCounts(1, 1, 0))


@jobs.handler("plain-dict")
async def plain_dict(payload: dict[str, Any]) -> Mapping[str, object]:
    return payload


@jobs.handler("nothing-at-all")
def nothing_at_all() -> None: ...


@jobs.grpc_handler("over-grpc", address="email-service:50051")
async def over_grpc(payload: Digest) -> None: ...


# What is decorated stays what it was.
assert_type(run_and_dataclass, Callable[[carillon.Run, Digest], Coroutine[Any, Any, None]])
assert_type(payload_first, Callable[[Export, carillon.Run], dict[str, int]])
assert_type(nothing_at_all, Callable[[], None])
run_and_dataclass(5, Digest())  # E: Argument 1 to "run_and_dataclass" has incompatible type "int"


@jobs.handler("no-json-object")  # E: incompatible type "Callable[[int], Coroutine[Any, Any, None]]"
async def no_json_object(payload: int) -> None: ...


@jobs.handler("no-json-beside-run")  # E: type variable "P" of "__call__" of "Declare" cannot be "list[str]"
async def no_json_object_beside_run(run: carillon.Run, payload: list[str]) -> None: ...


@jobs.handler("no-payload-type")  # E: incompatible type "Callable[[Plain], Coroutine[Any, Any, None]]"
async def no_payload_type(payload: Plain) -> None: ...


@jobs.handler("three-parameters")  # E: incompatible type "Callable[[Run, Digest, Digest], Coroutine[Any, Any, None]]"
async def three_parameters(run: carillon.Run, first: Digest, second: Digest) -> None: ...


@jobs.handler("returns-a-number")  # E: incompatible type "Callable[[], Coroutine[Any, Any, int]]"
async def returns_a_number() -> int:
    return 5


@jobs.grpc_handler("over-grpc-wrong", address="a:1")  # E: incompatible type "Callable[[str], Coroutine
async def over_grpc_wrong(payload: str) -> None: ...
