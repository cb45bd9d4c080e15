"""Carillon in Django: call `start(jobs)` in `AppConfig.ready`, and `@verified(jobs, job)` on endpoints' views."""

from __future__ import annotations

import inspect
import os
import sys
import threading
from collections.abc import Callable, Collection, Iterator
from functools import wraps
from types import FrameType
from typing import Any, TypeVar, cast

from django.core.management import ManagementUtility
from django.http import HttpRequest, HttpResponse
from django.utils.autoreload import DJANGO_AUTORELOAD_ENV
from django.views.decorators.csrf import csrf_exempt

from carillon.background import Background
from carillon.errors import SignatureInvalid
from carillon.jobs import Jobs

View = TypeVar("View", bound=Callable[..., Any])

SERVING_COMMANDS = frozenset({"runserver"})

_starting = threading.Lock()
_started: dict[Jobs, Background] = {}


def start(jobs: Jobs, *, commands: Collection[str] = SERVING_COMMANDS) -> Background | None:
    """Registers the jobs in the background, and carries out their handlers, if this process is one that serves.

    That is every process but those of management commands other than `commands`: a WSGI or ASGI server's, and that of
    `runserver` (not its reloader's). Starting twice starts once. It ends with the process.

    A server that loads the application before it forks (`gunicorn --preload`) must call this in each worker instead,
    after the fork: in gunicorn's `post_fork`.

    Returns what runs in the background, or None if this process does not serve.
    """
    command = _management_command()
    if command is not None and not _serves(command, commands):
        return None
    with _starting:
        background = _started.setdefault(jobs, Background(jobs))
        background.start()
        return background


def verified(jobs: Jobs, job: str | None = None) -> Callable[[View], View]:
    """A decorator for a view, async or plain, that lets only the worker service's calls for the job through, and
    answers others with 401. Without a job, calls for any job of the service pass. The view is exempt from Django's own
    check of forms (CSRF), which the worker could not pass.

    The view raises SigningKeysMissing if the service has no keys.
    """

    def decorate(view: View) -> View:
        @wraps(view)
        def plain(request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
            return _refusal(jobs, job, request) or view(request, *args, **kwargs)

        @wraps(view)
        async def asynchronous(request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
            return _refusal(jobs, job, request) or await view(request, *args, **kwargs)

        return cast("View", csrf_exempt(asynchronous if inspect.iscoroutinefunction(view) else plain))

    return decorate


def _refusal(jobs: Jobs, job: str | None, request: HttpRequest) -> HttpResponse | None:
    try:
        jobs.verify(request.headers, request.body, job=job)
    except SignatureInvalid as invalid:
        return HttpResponse(str(invalid), status=401, content_type="text/plain")
    return None


def _serves(command: list[str], commands: Collection[str]) -> bool:
    """Whether a management command serves in this process: the reloader's parent only watches over one that does."""
    if not command or command[0] not in commands:
        return False
    reloads = command[0] == "runserver" and "--noreload" not in command
    return not reloads or os.environ.get(DJANGO_AUTORELOAD_ENV) == "true"


def _management_command() -> list[str] | None:
    """The management command that is loading the apps, with its arguments. None outside of one."""
    for frame in _callers():
        utility = frame.f_locals.get("self")
        if isinstance(utility, ManagementUtility):
            return list(utility.argv[1:])
    return None


def _callers() -> Iterator[FrameType]:
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        yield frame
        frame = frame.f_back
