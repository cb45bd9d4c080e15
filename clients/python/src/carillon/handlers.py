"""Python functions as handlers: what they take is read once, when they are declared."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

from carillon.execution import Assignment, Completed, Failed, Run
from carillon.outcome import ATTEMPT_TIMEOUT, BAD_RESULT, CANCELLED, HANDLER_ERROR, took_too_long
from carillon.payload import hints_of, payload_decoder

_log = logging.getLogger("carillon")


@dataclass(frozen=True)
class Handler:
    """A function, and how to call it."""

    job: str
    function: Callable[..., Any]
    is_async: bool
    run_parameter: str | None
    payload_parameter: str | None
    decode: Callable[[str], Any] | None

    def arguments(self, run: Run) -> dict[str, Any]:
        """What the function is called with. Raises `Failed` with `BAD_PAYLOAD`."""
        given: dict[str, Any] = {}
        if self.run_parameter is not None:
            given[self.run_parameter] = run
        if self.payload_parameter is not None and self.decode is not None:
            given[self.payload_parameter] = self.decode(run.payload_json)
        return given


def read_handler(job: str, function: Callable[..., Any], names: Mapping[str, Any]) -> Handler:
    """Reads what `function` takes, by its annotations: at most one `Run` and one payload.

    names: the names where it is declared. Raises TypeError with a sentence that says what is wrong.
    """
    what = f"handler {job!r}"
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise TypeError(f"{what}: {function.__qualname__} is a generator; a handler returns, it does not yield")
    hints = hints_of(function, names, what)
    run_parameter: str | None = None
    payload_parameter: str | None = None
    decode: Callable[[str], Any] | None = None
    for parameter in inspect.signature(function).parameters.values():
        _check_parameter(what, parameter, hints)
        if hints[parameter.name] is Run:
            if run_parameter is not None:
                raise TypeError(f"{what}: {run_parameter!r} and {parameter.name!r} are both Run; one is enough")
            run_parameter = parameter.name
            continue
        if payload_parameter is not None:
            raise TypeError(
                f"{what}: {payload_parameter!r} and {parameter.name!r} would both be the payload; there is one: "
                "put both into a dataclass"
            )
        payload_parameter = parameter.name
        try:
            decode = payload_decoder(hints[parameter.name], names)
        except TypeError as error:
            raise TypeError(f"{what}: parameter {parameter.name!r}: {error}") from None
    is_async = inspect.iscoroutinefunction(function)
    return Handler(job, function, is_async, run_parameter, payload_parameter, decode)


class HandlerExecutor:
    """Carries out runs with a service's handlers; plain functions run in threads.

    concurrency: as of the session, so that a thread is free whenever a slot is.
    """

    def __init__(self, service: str, handlers: Mapping[str, Handler], concurrency: int) -> None:
        self._handlers = dict(handlers)
        self._routes = tuple(f"handler/{service}/{job}" for job in self._handlers)
        self._concurrency = concurrency
        self._threads: ThreadPoolExecutor | None = None

    @property
    def routes(self) -> Sequence[str]:
        """See `Executor`."""
        return self._routes

    async def execute(self, assignment: Assignment, run: Run) -> Completed:
        """See `Executor`."""
        handler = self._handlers[assignment.job]
        call = partial(handler.function, **handler.arguments(run))
        try:
            value = await (call() if handler.is_async else self._in_thread(call))
        except SystemExit as left:
            # In a thread or task of the worker it would end the worker, and every run beside this one.
            raise Failed(HANDLER_ERROR, f"the handler called sys.exit({left.code!r})") from left
        except asyncio.CancelledError:
            if run.stop_code == CANCELLED:
                _log.info("run %s of %s stopped in attempt %d: %s", run.run_id, run.job, run.attempt, CANCELLED)
            raise
        except Failed as failed:
            _log.warning("run %s of %s failed in attempt %d: %s", run.run_id, assignment.job, run.attempt, failed)
            raise
        except Exception:
            _log.exception("run %s of %s failed in attempt %d", run.run_id, assignment.job, run.attempt)
            raise
        finally:
            # However it ended: nothing that it says counts any more.
            if run.stop_code == ATTEMPT_TIMEOUT:
                late = took_too_long(run.attempt_timeout)
                _log.warning("run %s of %s failed in attempt %d: %s", run.run_id, run.job, run.attempt, late)
        return _completed(value)

    def close(self) -> None:
        """Lets the threads end when their functions have."""
        if self._threads is not None:
            self._threads.shutdown(wait=False)

    async def _in_thread(self, call: Callable[[], Any]) -> Any:
        """Waits for the function also when it is asked to stop: it sees `run.cancelled`, and keeps its slot.

        A second cancellation gives it up.
        """
        if self._threads is None:
            self._threads = ThreadPoolExecutor(self._concurrency, "carillon-handler")
        context = contextvars.copy_context()
        future = asyncio.get_running_loop().run_in_executor(self._threads, context.run, _in_a_future, call)
        try:
            await asyncio.wait([future])
        except asyncio.CancelledError:
            await asyncio.wait([future])
        return future.result()


def _in_a_future(call: Callable[[], Any]) -> Any:
    """The function's value. A future cannot carry StopIteration: it would never end, nor would the run."""
    try:
        return call()
    except StopIteration as stopped:
        raise RuntimeError("the handler raised StopIteration") from stopped


def _completed(value: object) -> Completed:
    if value is None:
        return Completed()
    if isinstance(value, Completed):
        return value
    if isinstance(value, Mapping):
        return Completed(metrics=value)
    raise Failed(
        BAD_RESULT,
        f"the handler returned {type(value).__name__}; return None, a mapping of metrics, or carillon.Completed(...)",
    )


def _check_parameter(what: str, parameter: inspect.Parameter, hints: Mapping[str, Any]) -> None:
    if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
        raise TypeError(f"{what}: {parameter} is not possible; name the Run and the payload")
    if parameter.kind is parameter.POSITIONAL_ONLY:
        raise TypeError(f"{what}: {parameter.name!r} must not be positional-only")
    if parameter.name not in hints:
        raise TypeError(
            f"{what}: parameter {parameter.name!r} has no annotation; annotate it with carillon.Run, or with the "
            "type of the payload (a dataclass, a TypedDict, dict[str, Any] or a pydantic model)"
        )
