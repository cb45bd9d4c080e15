"""Carillon in FastAPI and Starlette: `FastAPI(lifespan=lifespan(jobs))`, `Depends(verified(jobs, job))`.

Imports neither of them, until `verified` is called.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVar, overload

from carillon.errors import SignatureInvalid
from carillon.jobs import Jobs

if TYPE_CHECKING:
    from starlette.requests import Request

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


def verified(jobs: Jobs, job: str | None = None) -> Callable[[Request], Awaitable[None]]:
    """A dependency that lets only the worker service's calls for the job through, and answers others with 401:
    `@app.post(jobs.endpoint("digest", ...), dependencies=[Depends(verified(jobs, "digest"))])`. Without FastAPI, in an
    endpoint: `await verified(jobs, "digest")(request)`. Without a job, calls for any job of the service pass.

    It reads the body, which stays to be read. Raises HTTPException, and SigningKeysMissing if the service has no keys.
    """

    from starlette.exceptions import HTTPException
    from starlette.requests import Request

    async def verify(request: Request) -> None:
        try:
            jobs.verify(request.headers, await request.body(), job=job)
        except SignatureInvalid as invalid:
            raise HTTPException(401, str(invalid)) from None

    verify.__annotations__["request"] = Request  # FastAPI reads it, and could not find the name
    return verify
