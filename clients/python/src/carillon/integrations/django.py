"""Carillon in Django: call `start(jobs)` in `AppConfig.ready`."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Collection, Iterator
from types import FrameType

from django.core.management import ManagementUtility
from django.utils.autoreload import DJANGO_AUTORELOAD_ENV

from carillon.background import Background
from carillon.jobs import Jobs

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
