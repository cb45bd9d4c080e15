"""A worker whose handler blocks the event loop for BLOCK_SECONDS, beside runs that go on for ever. Prints what it does.

A run whose payload says `block` blocks, once the file BLOCK_FILE is there; any other waits until it is stopped.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import time
from pathlib import Path

from carillon.execution import Assignment, Completed, Run
from carillon.session import WorkerSession


class Blocking:
    """Says `begun`, `stopped` and `ended`, with the run's id."""

    routes = ("http",)

    async def execute(self, assignment: Assignment, run: Run) -> Completed:
        _say("begun", run)
        try:
            await self._work(assignment)
        except asyncio.CancelledError:
            _say("stopped", run)
            raise
        _say("ended", run)
        return Completed()

    async def _work(self, assignment: Assignment) -> None:
        if not json.loads(assignment.payload_json).get("block"):
            await asyncio.Event().wait()
        while not Path(os.environ["BLOCK_FILE"]).exists():  # noqa: ASYNC110, ASYNC240  # once its start was told
            await asyncio.sleep(0.02)
        time.sleep(float(os.environ["BLOCK_SECONDS"]))  # noqa: ASYNC251  # what it is about


def _say(what: str, run: Run) -> None:
    print(what, run.run_id, flush=True)  # noqa: T201  # for the test that started it


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    asyncio.run(WorkerSession(executors=[Blocking()], name="blocking").run())


if __name__ == "__main__":
    main()
