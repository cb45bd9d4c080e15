"""The HTTP endpoints that Carillon's worker calls, one for each job."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from aiohttp import web
from aiohttp.typedefs import Handler
from carillon import Jobs, SignatureInvalid

from examples.email_service.mail import MailServerGone, Recipient
from examples.email_service.mailings import Mailings

MOST_WELCOMED = 3
RETRY_AFTER = "15"  # seconds


@dataclass(frozen=True)
class RunRequest:
    """What the worker posts, as far as this service needs it."""

    run: str
    attempt: int
    scheduled_time: datetime
    payload: dict[str, Any]

    @classmethod
    async def read(cls, request: web.Request) -> RunRequest:
        """Errors: HTTPBadRequest."""
        try:
            body = await request.json()
            return cls(
                run=str(body["run"]),
                attempt=int(body["attempt"]),
                scheduled_time=datetime.fromisoformat(body["scheduled_time"]),
                payload=dict(body["payload"]),
            )
        except (ValueError, KeyError, TypeError) as error:
            raise _bad_request(f"this is not a run as Carillon posts it: {error!r}") from None

    def batch_size(self) -> int:
        """Errors: HTTPBadRequest."""
        size = self.payload.get("batchSize", 100)
        if type(size) is not int or size < 1:
            raise _bad_request(f"batchSize must be a whole number from 1, not {size!r}")
        return size


class EmailService:
    """Answers calls that the worker service signed, with items and metrics, which Carillon records with the run."""

    def __init__(self, jobs: Jobs, mailings: Mailings, recipients: Sequence[Recipient]) -> None:
        self._jobs = jobs
        self._mailings = mailings
        self._recipients = recipients

    def app(self) -> web.Application:
        app = web.Application(middlewares=[self._verified])
        app.router.add_post("/api/jobs/weekly-digest", self._weekly_digest)
        app.router.add_post("/api/jobs/welcome-mail", self._welcome_mail)
        return app

    @web.middleware
    async def _verified(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        job = request.path.rpartition("/")[2]  # or a call for one job would do another's work
        try:
            self._jobs.verify(request.headers, await request.read(), job=job)
        except SignatureInvalid as invalid:
            raise web.HTTPUnauthorized(text=str(invalid)) from None
        return await handler(request)

    async def _weekly_digest(self, request: web.Request) -> web.Response:
        run = await RunRequest.read(request)
        week = f"{run.scheduled_time:week %V of %G}"
        return await self._send(run, self._recipients, f"Your digest, {week}", f"This is what happened in {week}.")

    async def _welcome_mail(self, request: web.Request) -> web.Response:
        run = await RunRequest.read(request)
        newcomers = who_is_new(self._recipients, run.scheduled_time)
        return await self._send(run, newcomers, "Welcome", "It is good to have you here.")

    async def _send(self, run: RunRequest, recipients: Sequence[Recipient], subject: str, text: str) -> web.Response:
        try:
            answer = await self._mailings.send(
                run.run, run.attempt, recipients, subject=subject, text=text, batch_size=run.batch_size()
            )
        except MailServerGone as error:
            # Carillon tries again, when the mail server has had the time to restart.
            raise web.HTTPServiceUnavailable(text=str(error), headers={"Retry-After": RETRY_AFTER}) from None
        return web.json_response(answer)


def _bad_request(text: str) -> web.HTTPBadRequest:
    """The same run would be as wrong in its next attempt: Carillon does not try it again."""
    return web.HTTPBadRequest(text=text, headers={"Carillon-Retry": "false"})


def who_is_new(recipients: Sequence[Recipient], at: datetime) -> list[Recipient]:
    """One to three recipients, others every other second. The same instant gives the same, so a retry does too."""
    turn = int(at.timestamp()) // 2
    count = min(1 + turn % MOST_WELCOMED, len(recipients))
    return [recipients[(turn + place) % len(recipients)] for place in range(count)]
