"""What tests of `carillon.Jobs` share."""

from __future__ import annotations

import asyncio
import json
import logging
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from carillon.v1 import work_pb2

if TYPE_CHECKING:
    from tests.rpc.client.conftest import ScriptedScheduler


async def nothing_to_do() -> None: ...


@contextmanager
def logged() -> Iterator[asyncio.Queue[str]]:
    """What the client logs meanwhile."""
    lines: asyncio.Queue[str] = asyncio.Queue()

    class Kept(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.put_nowait(record.getMessage())

    handler = Kept()
    logging.getLogger("carillon").addHandler(handler)
    try:
        yield lines
    finally:
        logging.getLogger("carillon").removeHandler(handler)


async def welcomed(scheduler: ScriptedScheduler) -> Any:
    stream = await scheduler.next_stream()
    stream.welcome()
    return stream


async def the_result(stream: Any) -> Any:
    results = await stream.next("results")
    stream.acknowledge(results)
    [result] = results.results
    return result


def a_run(payload: dict[str, Any], **fields: Any) -> work_pb2.Assignment:
    given: dict[str, Any] = {"run_id": uuid.UUID(int=1).bytes, "attempt": 1, "max_attempts": 3, "tenant": "-"}
    run = work_pb2.Assignment(
        **{**given, **fields}, job="services/kpi-service/jobs/sync", payload_json=json.dumps(payload)
    )
    run.attempt_timeout.FromSeconds(60)
    run.cancel_grace.FromSeconds(30)
    return run
