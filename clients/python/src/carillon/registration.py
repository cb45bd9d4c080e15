"""Registering a manifest: once, or in the background until the scheduler has it."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress

from carillon.backoff import Backoff
from carillon.channel import Connection
from carillon.client import Client
from carillon.errors import CarillonError, NotAllowed, NotAuthenticated, RateLimited, SchedulerUnavailable
from carillon.v1 import registry_service_pb2

_log = logging.getLogger("carillon")

CALL_SECONDS = 30.0
CREDENTIALS_SECONDS = 60.0
ANSWER_SECONDS = 5.0

# Asking again will not help: the manifest, the generation or the deployment has to change.
_FINAL = ("INVALID_ARGUMENT", "FAILED_PRECONDITION")


async def register(
    connection: Connection, manifest: registry_service_pb2.RegisterJobsRequest, timeout: float = CALL_SECONDS
) -> registry_service_pb2.RegisterJobsResponse:
    """Sends the manifest. Raises `CarillonError`, with each wrong field in `violations`."""
    async with Client.through(connection, timeout=timeout) as client:
        return await client.register_jobs(manifest)


class BackgroundRegistration:
    """Tries until the manifest is accepted, so that a service starts although the scheduler is down.

    Logs each new reason once. A refusal that only another deploy can heal ends it; wrong credentials are tried
    again each minute, and never sooner than the scheduler asks for. Needs a running event loop.
    """

    def __init__(self, connection: Connection, manifest: registry_service_pb2.RegisterJobsRequest) -> None:
        self._connection = connection
        self._manifest = manifest
        self._last_error = ""
        self._answered = asyncio.Event()
        self._is_hopeless = False
        self._task = asyncio.ensure_future(self._try_until_accepted())

    async def wait(self) -> registry_service_pb2.RegisterJobsResponse:
        """What the scheduler answered, as soon as it has accepted. Raises the refusal if there is no hope."""
        return await asyncio.shield(self._task)

    async def first_answer(self) -> bool:
        """Waits until it was tried once, whatever came of it, and no longer than 5 s. Returns whether there is hope:
        False after a refusal that only another deploy can heal."""
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._answered.wait(), ANSWER_SECONDS)
        return not self._is_hopeless

    async def stop(self) -> None:
        """Stops trying."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _try_until_accepted(self) -> registry_service_pb2.RegisterJobsResponse:
        backoff = Backoff(0.5, 30.0)
        while True:
            try:
                response = await self._try()
            except CarillonError as error:
                self._log(error)
                if self._is_hopeless:
                    raise
                refused = isinstance(error, (NotAuthenticated, NotAllowed))
                # On top of what is asked for: many copies of a service were told the same.
                wait = CREDENTIALS_SECONDS if refused else backoff.next()
                await asyncio.sleep((error.retry_after or 0.0) + wait)
            except Exception as error:
                # Whatever it was, such as a certificate's file that is being replaced: nobody else would try again.
                if self._is_new(f"{type(error).__name__}: {error}"):
                    _log.exception("the jobs of %s are not registered yet", self._manifest.service)
                await asyncio.sleep(backoff.next())
            else:
                _log.info("registered %d jobs of %s", len(self._manifest.jobs), self._manifest.service)
                return response

    async def _try(self) -> registry_service_pb2.RegisterJobsResponse:
        try:
            return await register(self._connection, self._manifest)
        except CarillonError as error:
            self._is_hopeless = error.code in _FINAL
            raise
        finally:
            self._answered.set()

    def _log(self, error: CarillonError) -> None:
        # How long to wait differs each time, and is no new reason.
        reason = error.reason if isinstance(error, RateLimited) else str(error)
        if not self._is_new(reason):
            return
        level = logging.WARNING if isinstance(error, (SchedulerUnavailable, RateLimited)) else logging.ERROR
        _log.log(level, "the jobs of %s are not registered: %s", self._manifest.service, error)

    def _is_new(self, reason: str) -> bool:
        if reason == self._last_error:
            return False
        self._last_error = reason
        return True
