"""Carillon in FastAPI and Starlette: `FastAPI(lifespan=lifespan(jobs))`. Imports neither."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, TypeVar, overload

from carillon.jobs import Jobs

App = TypeVar("App")
State = TypeVar("State")


@overload
def lifespan(jobs: Jobs) -> Callable[[Any], AbstractAsyncContextManager[None]]: ...


@overload
def lifespan(
    jobs: Jobs, inside: Callable[[App], AbstractAsyncContextManager[State]]
) -> Callable[[App], AbstractAsyncContextManager[State]]: ...


def lifespan(
    jobs: Jobs, inside: Callable[[Any], AbstractAsyncContextManager[Any]] | None = None
) -> Callable[[Any], AbstractAsyncContextManager[Any]]:
    """A lifespan that registers the jobs in the background, and carries out their handlers, while the app runs.

    inside: the app's own lifespan. The jobs are opened after it and closed before it, so that their handlers find
    what it made.
    """

    @asynccontextmanager
    async def while_the_app_runs(app: Any) -> AsyncIterator[Any]:
        if inside is None:
            async with jobs:
                yield
        else:
            async with inside(app) as state, jobs:
                yield state

    return while_the_app_runs
