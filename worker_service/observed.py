"""An executor with every attempt logged and counted."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

import structlog
from carillon.execution import Assignment, Completed, Executor, Failed, Run
from carillon.outcome import ATTEMPT_TIMEOUT, took_too_long

_log = structlog.stdlib.get_logger("worker_service")


class ObservedExecutor:
    """Carries out what `executor` does. `count` is told each attempt's outcome: completed, failed or stopped."""

    def __init__(self, executor: Executor, count: Callable[[str], None]) -> None:
        self._executor = executor
        self._count = count

    @property
    def routes(self) -> Sequence[str]:
        return self._executor.routes

    async def execute(self, assignment: Assignment, run: Run) -> Completed:
        """As the executor; what it raises is raised on."""
        names = structlog.contextvars.bound_contextvars(
            run=str(assignment.run_id),
            attempt=assignment.attempt,
            job=f"services/{assignment.service}/jobs/{assignment.job}",
            tenant=assignment.tenant,
        )
        began = time.monotonic()
        with names:
            try:
                completed = await self._executor.execute(assignment, run)
            except asyncio.CancelledError:
                self._ended("stopped", began, **_why_stopped(run))
                raise
            except Failed as failed:
                self._ended("failed", began, code=failed.code, error=failed.message)
                raise
            except Exception:
                _log.exception("the executor is at fault")
                self._ended("failed", began)
                raise
            self._ended("completed", began)
            return completed

    def _ended(self, outcome: str, began: float, **why: str) -> None:
        self._count(outcome)
        log = _log.warning if outcome == "failed" or "error" in why else _log.info
        log(f"attempt {outcome}", seconds=round(time.monotonic() - began, 6), **why)


def _why_stopped(run: Run) -> dict[str, str]:
    """That somebody cancelled it is no error; without a code, the worker gave it up."""
    if run.stop_code == ATTEMPT_TIMEOUT:
        return {"code": ATTEMPT_TIMEOUT, "error": took_too_long(run.attempt_timeout).message}
    return {"code": run.stop_code} if run.stop_code else {}
